"""A server that answers, and a client that asks. Run it: ``python examples/echo.py``."""

from __future__ import annotations

from functools import partial

import trio

from quicflow_trio import Message, MessageType, Request, Router, open_client, serve
from quicflow_trio.testing import throwaway_tls

# A router says which handler takes which type of message. What the handler returns travels back as the answer.
router = Router()


@router.on(MessageType.QUERY)
async def echo(request: Request) -> bytes:
    return request.message.payload


@router.on(MessageType.COMMAND)
async def shout(request: Request) -> bytes:
    return request.message.payload.upper()


async def main() -> None:
    # Certificates made on the spot, for this process only. In production the two sides are two programs, with files from your
    # authority or from `quicflow certs`: TLSConfig.server("server.pem", "server.key") here, TLSConfig.client("ca.pem") there.
    server_tls, client_tls = throwaway_tls()

    async with trio.open_nursery() as nursery:
        # `start` returns when the server listens. Port 0 takes any free one; the default is 8474.
        server = await nursery.start(partial(serve, router, host="127.0.0.1", port=0, tls=server_tls))
        host, port = server.address
        print(f"the server listens on UDP port {port}")

        # The block starts at once; the first request waits until the connection stands.
        async with open_client(host, port, client_id="echo-client", tls=client_tls) as client:
            ack = await client.request(Message.query(b"hello"))
            print(f"query   -> {ack.result.decode()}")

            ack = await client.request(Message.command(b"hello"))
            print(f"command -> {ack.result.decode()}")

            # Without waiting for an answer: `send` returns once the message is queued, `delivered` once the server has it.
            sent = await client.send(Message.command(b"nobody waits for this answer"))
            await sent.delivered()
            print("sent    -> delivered")

        # Leaving the block has said goodbye. Draining lets handlers finish, closes, and ends the task that `start` began.
        await server.drain(grace=5)
    print("done")


if __name__ == "__main__":
    trio.run(main)
