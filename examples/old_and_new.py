"""Clients of the original's protocol and of ours on one server. Run it: ``python examples/old_and_new.py``."""

from __future__ import annotations

from functools import partial

import trio

from quicflow_trio import LaneLimitReached, Message, MessageType, Request, Router, open_client, serve
from quicflow_trio.testing import throwaway_tls

router = Router()


@router.on(MessageType.QUERY)
async def echo(request: Request) -> bytes:
    return request.message.payload


# What each of the clients does when the server asks it.
client_router = Router()


@client_router.on(MessageType.COMMAND)
async def work(request: Request) -> bytes:
    return b"done: " + request.message.payload


async def main() -> None:
    server_tls, client_tls = throwaway_tls()
    async with trio.open_nursery() as nursery:
        # A server speaks both on one port. `ServerConfig(protocol="quicflow/2")` would turn the old ones away.
        server = await nursery.start(partial(serve, router, host="127.0.0.1", port=0, tls=server_tls))
        host, port = server.address
        opened = partial(open_client, host, port, tls=client_tls, router=client_router)
        async with (
            # Our client speaks the original's protocol as well: for servers of the original, and here in place of one of its clients.
            opened(client_id="old", protocol="quic-backbone-v1") as old,
            # Offers both; the server takes the better one.
            opened(client_id="new") as new,
        ):
            for client in (old, new):
                ack = await client.request(Message.query(b"hello"))
                print(f"{client.client_id} asks, and hears: {ack.result.decode()}")
            for client_id in ("old", "new"):
                session = server.session(client_id)
                ack = await session.request(Message.command(b"sweep"))
                print(f"{client_id} speaks {session.protocol}: {ack.result.decode()}")

            report = await server.broadcast(Message.command(b"lunch"), ack_timeout=5)
            print(f"a broadcast reached: {', '.join(sorted(report.acked))}")

            # What the old protocol cannot do is an error, not a silence.
            try:
                old.lane("bulk")
            except LaneLimitReached as exc:
                print(f"old has no further lane: {exc}")
            print(f"new has: {new.lane('bulk').statistics().lanes} lanes")
        await server.drain(grace=5)
    print("done")


if __name__ == "__main__":
    trio.run(main)
