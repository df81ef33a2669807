"""HTTP: a socket, and Hypercorn for each connection that comes in, so that one that fails takes nothing else down.

Hypercorn's own Trio worker runs all connections in one nursery, where an error of one cancels all, itself, and then the program
around it: 1,500 HTTP/2 PRIORITY frames are enough (``priority.TooManyStreamsError``). So its listener is not used, only
``TCPServer``, which is one connection; and that gets a stream whose writes end, since Hypercorn shields them from cancellation.
"""

from __future__ import annotations

import logging
import socket
from typing import Any, cast, final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from ..config import OpsConfig
from ..observe.logs import Logger, get_logger
from .exchange import ExchangeApp

__all__ = ["Connections", "bind", "url_of"]

log: Logger = get_logger(__name__)

BACKLOG = 64
READ_AT_ONCE = 8 * 1024
"""Bytes read at once. Hypercorn would take 64 KiB, and parse 4,600 PRIORITY frames in them before any message is served again."""
HEAD = 16 * 1024
"""Largest head of a request, bytes; h11's own default (and a header list's under HTTP/2)."""
H2_STREAMS = 16
"""Requests at once on one HTTP/2 connection."""
REQUESTS = 1000
"""Requests on one connection before it is closed."""
DEAD_AFTER = 30_000
"""Milliseconds that the kernel waits for a peer to acknowledge what was written, where it can be told."""
REFUSAL_PAUSE = 0.1
"""Seconds to wait when the kernel has no descriptors left for another connection."""

_BUSY_BODY = b'{"error":{"type":"TooManyConnections","message":"too many connections are open"}}'
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY)
)


async def bind(host: str, port: int) -> trio.SocketListener:
    """Listen on the first address of a host.

    One address and not all: ``localhost`` with port 0 would get two ports, and one URL could name only one of them.

    Raises:
        OSError: the host has no address here, or the port is taken.
    """
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    listening = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as exc:
        listening.close()
        raise OSError(exc.errno, f"the ops side cannot listen on {host} port {port}: {exc.strerror}") from exc
    except BaseException:
        listening.close()
        raise
    return trio.SocketListener(listening)


def url_of(listener: trio.SocketListener) -> str:
    """Return where the listener is reached."""
    host, port, *_ = listener.socket.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@final
class Connections:
    """Accepts connections and runs each of them by itself.

    Attributes:
        open: connections open now.
        failed: connections that ended by an error of Hypercorn or below, since the start.
        refused: connections that were too many, since the start.
    """

    def __init__(self, app: ExchangeApp, config: OpsConfig) -> None:
        self._app = ASGIWrapper(cast(Any, app))
        self._limit = config.max_connections
        self._write_timeout = config.request_timeout
        self._hypercorn = _hypercorn_config(config)
        self._context = WorkerContext(None)
        self.open: int = 0
        self.failed: int = 0
        self.refused: int = 0

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Accept for ever; each connection gets a task in the nursery."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as exc:
                # No descriptors left, for one (EMFILE). The kernel keeps the connection waiting: try again when some were closed.
                log.warning("cannot accept a connection", error=exc)
                await trio.sleep(REFUSAL_PAUSE)
                continue
            if self.open >= self._limit:
                self.refused += 1
                log.warning("refused a connection: too many are open", open=self.open, refused=self.refused)
                _send_busy(stream)
                continue
            # Counted here: a whole batch is accepted before the first of their tasks runs.
            self.open += 1
            nursery.start_soon(self._run, stream)

    async def finish(self) -> None:
        """Close the connections that stand idle, and the others with the end of their request."""
        await self._context.terminated.set()

    async def _run(self, stream: trio.SocketStream) -> None:
        guarded = _GuardedStream(stream, self._write_timeout)
        try:
            _detect_dead_peer(stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guarded.abort_when_cancelled)
                await _Connection(self._app, self._hypercorn, self._context, ConnectionState({}), cast(Any, guarded)).run()
                nursery.cancel_scope.cancel()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as group:
            log.debug("a connection was cut", error=_first(group))
        except* Exception as group:
            self.failed += 1
            error = _first(group)
            log.warning("a connection failed and was closed", error=f"{type(error).__name__}: {error}", failed=self.failed)
            log.debug("how it failed", exc_info=group)
        finally:
            # Hypercorn's own close is lost to a cancellation.
            stream.socket.close()
            self.open -= 1


@final
class _Connection(TCPServer):
    """Hypercorn's connection, which ends with its peer."""

    async def _read_data(self) -> None:
        await super()._read_data()
        # The timer for the next request would go on, and with it the connection: sixty-four that come and go would be all there are.
        await self.idle_task.stop()


@final
class _GuardedStream:
    """What Hypercorn uses of a TCP stream. Its writes end: in time, or when the connection is cancelled."""

    def __init__(self, stream: trio.SocketStream, write_timeout: float) -> None:
        self._stream = stream
        self._write_timeout = write_timeout
        self._writing = trio.CancelScope()
        self._aborted = False

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket, for its addresses."""
        return self._stream.socket

    async def send_all(self, data: bytes) -> None:
        """Write, or raise `trio.BrokenResourceError` when that takes too long."""
        if self._aborted:
            raise trio.BrokenResourceError("the connection was aborted")
        with trio.move_on_after(self._write_timeout) as self._writing:
            await self._stream.send_all(data)
            return
        # Half of it may be written: nothing may follow.
        self._aborted = True
        self._stream.socket.close()
        raise trio.BrokenResourceError("the client does not read")

    async def receive_some(self, _: int) -> bytes:
        """Return some bytes, fewer than Hypercorn asks for; empty at the end."""
        return await self._stream.receive_some(READ_AT_ONCE)

    async def send_eof(self) -> None:
        """Say that nothing follows."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._stream.aclose()

    async def abort_when_cancelled(self) -> None:
        """Wait for the cancellation of this task, and then end a write under way: Hypercorn shields it, without a deadline."""
        try:
            await trio.sleep_forever()
        finally:
            self._aborted = True
            self._writing.cancel()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception of a group that is not a group itself."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _hypercorn_config(config: OpsConfig) -> Config:
    settings = Config()
    settings.accesslog = None
    settings.errorlog = logging.getLogger(__name__)
    settings.include_server_header = False
    settings.keep_alive_timeout = config.keep_alive
    settings.keep_alive_max_requests = REQUESTS
    # Not read_timeout: it would also end event streams, on which a client has nothing to send.
    settings.h11_max_incomplete_size = HEAD
    settings.h2_max_header_list_size = HEAD
    settings.h2_max_concurrent_streams = H2_STREAMS
    return settings


def _detect_dead_peer(stream: trio.SocketStream) -> None:
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Without it an event stream to a machine that has vanished stays open for a quarter of an hour.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER)


def _send_busy(stream: trio.SocketStream) -> None:
    """Say that there are too many, without waiting: the buffer of a new socket has room for it, and if not, so be it."""
    try:
        with socket.fromfd(stream.socket.fileno(), stream.socket.family, socket.SOCK_STREAM) as raw:
            raw.setblocking(False)
            raw.send(BUSY)
            raw.shutdown(socket.SHUT_WR)
    except OSError as exc:
        log.debug("a connection that was too many is gone already", error=exc)
    finally:
        stream.socket.close()
