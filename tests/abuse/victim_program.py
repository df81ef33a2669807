"""A server in a process of its own, to be attacked: prints its address, and its figures for each line on standard input.

Usage: python -m tests.abuse.victim_program CERT KEY PORT JSON, where JSON holds fields of `ServerConfig`, and of `Limits` under "limits".
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial

import trio

from quicflow_trio import Limits, Server, ServerConfig, TLSConfig, serve
from quicflow_trio.testing import echo_router


def figures(server: Server) -> dict[str, object]:
    statistics = server.statistics()
    admission = server._admission
    return {
        **server.metrics().as_json(),
        "connection_ids": statistics.endpoint.connection_ids,
        "connections": statistics.connections,
        "waiting": statistics.requests_waiting,
        "tasks": statistics.tasks,
        "timers": sum(entry.live for _, _, entry in admission.deadlines._entries),
        "negotiations": statistics.endpoint.negotiations,
    }


async def main() -> None:
    cert, key, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    options = json.loads(sys.argv[4])
    config = ServerConfig(**{**options, "limits": Limits(**options.get("limits", {}))})
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(
            partial(serve, echo_router(), host="127.0.0.1", port=port, tls=TLSConfig.server(cert, key), config=config)
        )
        print(server.address[1], flush=True)
        async for lines in trio.lowlevel.FdStream(os.dup(0)):
            for _ in range(lines.count(b"\n")):
                print(json.dumps(figures(server)), flush=True)
        await server.aclose()


if __name__ == "__main__":
    trio.run(main)
