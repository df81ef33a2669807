"""The server process of the benchmarks: answers requests with nothing, takes events; runs until its standard input closes.

With ``--ops`` its ops side listens as well.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import trio

from quicflow_trio import MessageType, Request, Router, Server, serve, tune_garbage_collector
from quicflow_trio.testing import throwaway_tls


async def main() -> None:
    """Serve on a free port; print port and CA file as one JSON line."""
    tune_garbage_collector()
    router = Router()

    async def take(_: Request) -> None:
        return None

    router.add(MessageType.COMMAND, take)
    router.add(MessageType.EVENT, take)
    server_tls, client_tls = throwaway_tls()
    async with trio.open_nursery() as nursery:
        ops = "127.0.0.1:0" if "--ops" in sys.argv[1:] else None
        server: Server = await nursery.start(partial(serve, router, host="127.0.0.1", port=0, tls=server_tls, ops=ops))
        print(json.dumps({"port": server.address[1], "ca": str(client_tls.ca_file), "ops_url": server.ops_url}), flush=True)
        # The parent holds the other end: when it is gone, however it went, so is this process.
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        await server.aclose()


if __name__ == "__main__":
    trio.run(main)
