"""aioquic's own asyncio API as shipped: `connect`, `serve`, and one long-lived bidirectional stream by StreamReader and StreamWriter.

The writer joins what is written in one turn of the loop into one transmit. Tried as well: a subclass of QuicConnectionProtocol that parses
in `quic_event_received` and calls `send_stream_data`. With transmits joined by `call_soon` it took the same CPU time per message; with a
`transmit` per message, as aioquic's DNS example has it, a fifth less went through.
``drain()`` never waits on such a stream and never lets the loop run; a sender of one-way messages therefore lets it, once in 64 messages.
Tried for these: never (a third less, and all messages buffered at once), every 16 (the same), every 256 (a tenth to a quarter less).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aioquic.asyncio.client import connect
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration

from benchmarks.peers.frames import StreamTalk, answer_all
from benchmarks.peers.on_asyncio import background, keep, main
from benchmarks.peers.work import Conversation, Files, Hello

ALPN = ["peers"]
YIELD_AFTER = 64


@asynccontextmanager
async def serving(files: Files) -> AsyncIterator[Hello]:
    """Listen on UDP."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=ALPN)
    configuration.load_cert_chain(files.certificate, files.key)

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        keep(answer_all(reader, writer))

    server = await serve("127.0.0.1", 0, configuration=configuration, stream_handler=start)
    try:
        # The only way to learn which free port it was.
        assert server._transport is not None
        yield {"port": server._transport.get_extra_info("sockname")[1]}
    finally:
        server.close()


@asynccontextmanager
async def connected(hello: Hello) -> AsyncIterator[Conversation]:
    """Connect, open the one stream and keep reading."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=ALPN, server_name="127.0.0.1")
    configuration.load_verify_locations(hello["ca"])
    async with connect("127.0.0.1", hello["port"], configuration=configuration) as protocol:
        talk = StreamTalk(*await protocol.create_stream(), yield_after=YIELD_AFTER)
        async with background(talk.receive()):
            yield talk


if __name__ == "__main__":
    main(serving, connected)
