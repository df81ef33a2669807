"""What can become of a request: an answer, a failure, a time-out, a cancellation. Run it: ``python examples/callback.py``."""

from __future__ import annotations

import logging
from functools import partial

import trio

from quicflow_trio import AckTimeout, Client, HandlerFailed, Message, MessageType, Request, Router, open_client, serve
from quicflow_trio.testing import throwaway_tls

router = Router()


@router.on(MessageType.COMMAND)
async def work(request: Request) -> bytes:
    job = request.message.payload.decode()
    if job == "divide by zero":
        # Any exception becomes a failure for the sender, and a line in the server's log. The server goes on.
        raise ZeroDivisionError("nobody can do that")
    if job == "bake a cake":
        try:
            await trio.sleep(60)
        finally:
            # The sender gave up: the handler is cancelled, like any Trio task, and can clean up.
            print("  server: the oven is off")
    return f"{job}: done".encode()


@router.on(MessageType.QUERY)
async def ask_back(request: Request) -> bytes:
    # A handler may send and request through the peer that the message came from.
    ack = await request.peer.request(Message.query(b"what is your name?"))
    return b"so you are " + ack.result


client_router = Router()


@client_router.on(MessageType.QUERY)
async def name(_: Request) -> bytes:
    return b"Worker One"


async def talk(client: Client) -> None:
    # 1. The answer is what the handler returned.
    ack = await client.request(Message.command(b"sweep the floor"))
    print(f"answer: {ack.result.decode()}")

    # 2. The handler raised: its reason arrives as an exception.
    try:
        await client.request(Message.command(b"divide by zero"))
    except HandlerFailed as exc:
        print(f"failure: {exc.reason}")

    # 3. No answer within the time that this message is given.
    try:
        await client.request(Message.command(b"bake a cake"), ack_timeout=0.2)
    except AckTimeout as exc:
        print(f"time-out: {exc}")

    # 4. Trio's own cancellation works as everywhere. Here too the handler on the other side is stopped.
    with trio.move_on_after(0.2) as scope:
        await client.request(Message.command(b"bake a cake"))
    print(f"cancelled: {scope.cancelled_caught}")

    # 5. Requests run side by side: each waits for its own answer.
    async with trio.open_nursery() as nursery:
        for job in (b"wash up", b"dry up"):
            nursery.start_soon(client.request, Message.command(job))
    print("side by side: both done")

    # 6. The server asks back before it answers.
    ack = await client.request(Message.query(b"who am I?"))
    print(f"asked back: {ack.result.decode()}")


async def main() -> None:
    # The handler that divides by zero is meant to fail. A server of yours keeps this log: it has the traceback, the sender has not.
    logging.getLogger("quicflow_trio").setLevel(logging.CRITICAL)
    # In production: TLSConfig.server("server.pem", "server.key") and TLSConfig.client("ca.pem"); `quicflow certs` makes the files.
    server_tls, client_tls = throwaway_tls()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, router, host="127.0.0.1", port=0, tls=server_tls))
        host, port = server.address
        async with open_client(host, port, client_id="worker-1", tls=client_tls, router=client_router) as client:
            await talk(client)
        await server.drain(grace=5)
    print("done")


if __name__ == "__main__":
    trio.run(main)
