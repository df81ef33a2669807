"""One message to many clients, with a report of who took it. Run it: ``python examples/broadcast.py``."""

from __future__ import annotations

from functools import partial

import trio

from quicflow_trio import Client, Message, MessageType, Request, Router, TLSConfig, open_client, serve
from quicflow_trio.testing import throwaway_tls

LISTENERS = ("kitchen", "office", "workshop")


async def listen(host: str, port: int, name: str, tls: TLSConfig, *, task_status: trio.TaskStatus[Client]) -> None:
    """Be one client: connect, print what comes, until cancelled."""
    router = Router()

    @router.on(MessageType.EVENT)
    async def hear(request: Request) -> bytes:
        text = request.message.payload.decode()
        print(f"  {name} hears: {text}")
        return f"{name} heard it".encode()

    # Clients have handlers too: messages go both ways, and either side can ask.
    async with open_client(host, port, client_id=name, tls=tls, router=router) as client:
        await client.wait_connected()
        task_status.started(client)
        await trio.sleep_forever()


async def main() -> None:
    # In production: TLSConfig.server("server.pem", "server.key") and TLSConfig.client("ca.pem"); `quicflow certs` makes the files.
    server_tls, client_tls = throwaway_tls()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, Router(), host="127.0.0.1", port=0, tls=server_tls))
        host, port = server.address
        for name in LISTENERS:
            await nursery.start(listen, host, port, name, client_tls)
        print(f"connected: {', '.join(server.sessions)}")

        # With an ack_timeout the call waits for everybody's answer, but never longer. One slow client holds up nobody.
        print("to all:")
        report = await server.broadcast(Message.event(b"lunch is ready"), ack_timeout=5)
        answers = sorted(ack.result.decode() for ack in report.acked.values())
        print(f"sent to {report.sent}: {'; '.join(answers)}")

        # To some of them. Who is not connected is reported, not raised: the others still get the message.
        print("to two, one of whom is not there:")
        report = await server.broadcast(Message.event(b"the parcel has come"), to=["office", "attic"], ack_timeout=5)
        for name, error in report.failed.items():
            print(f"failed for {name}: {error}")

        # Without an ack_timeout it returns as soon as the messages are queued: fire and forget.
        report = await server.broadcast(Message.event(b"lights out"))
        print(f"queued for {report.sent}")

        # A drain delivers what is queued before it closes.
        await server.drain(grace=5)
        nursery.cancel_scope.cancel()
    print("done")


if __name__ == "__main__":
    trio.run(main)
