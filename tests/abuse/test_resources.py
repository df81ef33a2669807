"""What the machine refuses: descriptors, room in buffers, room on the disk (row 38 of the abuse list), over real UDP."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from quicflow_trio import Client, ClientState, Message, Server, ServerConfig, open_client, serve
from quicflow_trio.net.udp import UdpSocket
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.testing import echo_router, throwaway_tls

resource = pytest.importorskip("resource", reason="only POSIX systems have limits of descriptors to run into")

pytestmark = pytest.mark.realtime

FULL_DEVICE = Path("/dev/full")


@contextlib.asynccontextmanager
async def loopback(**options: Any) -> AsyncIterator[tuple[Server, Client]]:
    """A server over UDP and the well-behaved client beside the trouble."""
    server_tls, client_tls = throwaway_tls()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            run = partial(serve, echo_router(), host="127.0.0.1", port=0, tls=server_tls, config=ServerConfig(session_ttl=0.1))
            server: Server = await nursery.start(partial(run, **options))
            async with open_client(*server.address, client_id="beside", tls=client_tls, router=echo_router()) as client:
                await client.wait_connected()
                yield server, client
                assert client.statistics().connects == 1
                assert server.metrics().internal_errors == 0
            await server.drain(grace=5)
            figures = server.statistics()
            assert (figures.endpoint.connection_ids, figures.requests_waiting, figures.tasks) == (0, 0, 0)


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Leave the process no descriptor to open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        # The limit is of the highest number, so the gaps below it are filled first.
        lowest = os.open("/dev/null", os.O_RDONLY)
        stack.callback(os.close, lowest)
        top = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208  names, not paths + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.suppress(OSError):
            while True:
                stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/dev/null", os.O_RDONLY)
        yield


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts its descriptors in /proc")
async def test_38_no_descriptor_is_left() -> None:
    """Bound: a server needs none to take a client or to go on with one; a client that cannot have one tries again; the ops side waits."""
    tls = throwaway_tls()[1]
    async with loopback(ops="127.0.0.1:0") as (server, client):
        assert server.ops_url is not None
        host, port = server.ops_url.removeprefix("http://").split(":")
        early = socket.socket()
        early.setblocking(False)
        with early, contextlib.ExitStack() as limit:
            async with open_client(*server.address, client_id="starved", tls=tls, router=echo_router()) as starved:
                await starved.wait_connected()
                limit.enter_context(no_more_descriptors())
                # To the ops side: accepted by the kernel, but not by the process.
                assert early.connect_ex((host, int(port))) in (0, errno.EINPROGRESS)
                server.sessions["starved"]._connection.close(CloseCode.OVERLOADED, "to make it want a socket again")
                await starved.state.wait_value(ClientState.CONNECTING)
                await trio.sleep(0.1)
                assert starved.state.value is not ClientState.CONNECTED
                for _ in range(20):
                    assert (await client.request(Message.query(b"still"))).result == b"still"
                limit.close()
                # Its back-off is at most a second or two old.
                with trio.fail_after(10):
                    await starved.wait_connected()
                    assert (await starved.request(Message.query(b"now"))).result == b"now"
                    assert any("Too many open files" in change.reason for change in starved.statistics().history)
            early.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(early)
            assert early.recv(100).startswith(b"HTTP/1.1 200")


class Starving(socket.socket):
    """A socket whose sends fail with ENOBUFS, some of them and then all for a while: what loopback cannot be made to do."""

    sends = 0
    refused = 0

    def sendto(self, *args: Any) -> int:
        type(self).sends += 1
        if self.sends % 3 == 0 or 60 < self.sends < 80:
            type(self).refused += 1
            raise OSError(errno.ENOBUFS, "no buffer space")
        return super().sendto(*args)


class StarvingNetwork:
    """The machine's network, short of buffers for whoever binds on it."""

    async def bind(self, host: str, port: int) -> UdpSocket:
        await trio.lowlevel.checkpoint()
        sock = Starving(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, port))
        return UdpSocket(sock)


async def test_38_no_buffers_for_packets() -> None:
    """Bound: a pause instead of a spin, nothing lost for good, and everybody served."""
    async with loopback(network=StarvingNetwork()) as (server, client):
        for number in range(100):
            assert (await client.request(Message.query(b"%d" % number))).result == b"%d" % number
        assert Starving.refused > 30
        assert server.metrics().requests_refused == 0
        # One try per pause, and each request is one packet: a spin would make thousands.
        assert Starving.sends < 1000


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="a disk that is always full is /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
async def test_38_the_disk_under_the_log_is_full(buffered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound: the lines are lost, nothing else."""
    errors = []
    monkeypatch.setattr(logging.Handler, "handleError", lambda handler, record: errors.append(record))
    with contextlib.ExitStack() as stack:
        stream = FULL_DEVICE.open("w", encoding="utf-8", buffering=-1 if buffered else 1)  # noqa: ASYNC230  a device
        handler = logging.StreamHandler(stream)
        logger = logging.getLogger("quicflow_trio")
        level = logger.level
        logger.addHandler(handler)
        stack.callback(logger.setLevel, level)
        stack.callback(logger.removeHandler, handler)
        logger.setLevel(logging.DEBUG)
        async with loopback() as (_, client):
            for number in range(20):
                assert (await client.request(Message.query(b"%d" % number))).result == b"%d" % number
        assert len(errors) > 20, "that is what was tried"
        # Closing it fails as well, as what it holds has no room either.
        with contextlib.suppress(OSError):
            stream.close()
