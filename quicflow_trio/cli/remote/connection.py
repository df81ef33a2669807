"""The ops side of a running server, over HTTP: where it is, one call, the stream of events, and what its errors mean to a user."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, final
from urllib.parse import quote, urlsplit

import httpx2
import trio
from cyclopts import Parameter

from ..common import CommandFailed, ExitCode, OpsToken, Patience
from .errors import OpsRefused, OpsUnreachable, refuse, translated
from .records import BadAnswer, ServerEvent, parse_object
from .stream import StreamParser

if TYPE_CHECKING:
    from cyclopts import Token

__all__ = ["DEFAULT_OPS", "EventFeed", "OpsClient", "OpsOptions", "client_path", "open_ops", "parse_ops"]

DEFAULT_PORT = 8475
DEFAULT_OPS = f"http://127.0.0.1:{DEFAULT_PORT}"
LARGEST_ANSWER = 16 * 1024 * 1024
"""Bytes of an answer that are read: a page of 1,000 clients has half a million."""
SILENCE = 45.0
"""Seconds without a byte after which a stream of events counts as dead: the server sends a comment every 15."""


# -- where it is -------------------------------------------------------------------------------------------------------
def parse_ops(text: str) -> str:
    """Return the URL in ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT`` or ``http(s)://...``, without a slash at its end.

    Raises:
        ValueError: it is none of these.
    """
    bare = "://" not in text
    try:
        url = urlsplit(f"http://{text}" if bare else text)
        port = url.port
        # What no name server could be asked for.
        (url.hostname or "").encode("idna")
    except ValueError as exc:
        raise ValueError(f"{text!r}: {exc}") from None
    if url.scheme not in ("http", "https") or not url.hostname or any(char.isspace() or not char.isprintable() for char in text):
        raise ValueError(f"{text!r}: expected HOST:PORT or http://HOST:PORT")
    if url.query or url.fragment or "@" in url.netloc:
        raise ValueError(f"{text!r}: expected no user, query or fragment")
    if bare and url.path.strip("/"):
        raise ValueError(f"{text!r}: expected HOST:PORT; a path needs http:// in front")
    # What has no scheme is an address of ours; behind a full URL may stand a proxy, on the port of its scheme.
    place = f"{url.netloc.rstrip(':')}:{DEFAULT_PORT}" if bare and port is None else url.netloc
    return f"{url.scheme}://{place}{url.path.rstrip('/')}"


def _convert_ops(_type: object, tokens: tuple[Token, ...]) -> str:
    return parse_ops(tokens[0].value)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class OpsOptions:
    """Where the server's ops side is, and the right to use it.

    Attributes:
        ops: HOST:PORT or URL of the server's ops side (`quicflow serve --ops`).
        token: bearer token; commands always need it, reading only from another machine.
        patience: seconds to wait for each answer.
    """

    ops: Annotated[str, Parameter(env_var="QUICFLOW_OPS", converter=_convert_ops, n_tokens=1, accepts_keys=False)] = DEFAULT_OPS
    token: OpsToken = field(default=None, repr=False)
    patience: Patience = 5.0


def client_path(client_id: str) -> str:
    """Return the path of a client.

    Raises:
        CommandFailed: the id is empty.
    """
    if not client_id:
        raise CommandFailed(ExitCode.USAGE, "the client id is empty")
    # Dots as well: an id of ".." would be taken for the parent folder.
    return "/clients/" + quote(client_id, safe="").replace(".", "%2E")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# -- calls -------------------------------------------------------------------------------------------------------------
@asynccontextmanager
async def open_ops(options: OpsOptions) -> AsyncIterator[OpsClient]:
    """Open a client of the ops side; its connections are made when they are needed and closed with the block."""
    headers = {"User-Agent": f"quicflow/{version('quicflow_trio')}", "Accept-Encoding": "identity"}
    if options.token is not None:
        headers["Authorization"] = f"Bearer {options.token}"
    async with httpx2.AsyncClient(
        base_url=options.ops,
        headers=headers,
        # Trio's deadlines bound every call.
        timeout=None,
        limits=httpx2.Limits(max_connections=4, max_keepalive_connections=4),
        # The system's authorities: an ops side behind TLS often has a certificate of the house.
        verify=ssl.create_default_context(),
        # A proxy of the environment cannot reach this machine's loopback.
        trust_env=not _is_loopback(urlsplit(options.ops).hostname or ""),
    ) as http:
        yield OpsClient(http, options)


@final
class OpsClient:
    """Calls of the ops side.

    Args:
        http: carries them.
        options: where to.
    """

    def __init__(self, http: httpx2.AsyncClient, options: OpsOptions) -> None:
        self._http = http
        self._patience = options.patience
        self.url: str = options.ops

    async def get(self, path: str, **params: str | int | float) -> dict[str, Any]:
        """Return what the server says.

        Raises:
            OpsUnreachable: nothing that can be read came in time.
            OpsRefused: the server answered with an error.
        """
        return await self._call("GET", path, params=params)

    async def post(self, path: str, body: Mapping[str, object], *, extra: float = 0.0) -> dict[str, Any]:
        """Let the server do something and return what it says.

        Args:
            path: what.
            body: the particulars.
            extra: seconds that the server itself may wait, beside the patience for its answer.

        Raises:
            OpsUnreachable: nothing that can be read came in time.
            OpsRefused: the server answered with an error.
        """
        return await self._call("POST", path, body=body, extra=extra)

    async def ready(self) -> bool:
        """Return whether the server takes new clients."""
        try:
            return bool((await self.get("/readyz")).get("ready"))
        except OpsRefused as exc:
            if exc.status == HTTPStatus.SERVICE_UNAVAILABLE:
                return False
            raise

    @asynccontextmanager
    async def open_events(self, *, kinds: Sequence[str] = (), client_id: str | None = None) -> AsyncIterator[EventFeed]:
        """Subscribe to events.

        Raises:
            OpsUnreachable: the stream cannot be had, or breaks off.
            OpsRefused: the server answered with an error.
        """
        params: list[tuple[str, str | int | float | bool | None]] = [("kind", kind) for kind in kinds]
        if client_id is not None:
            params.append(("client_id", client_id))
        request = self._http.build_request("GET", "/events", params=params, headers={"Accept": "text/event-stream"})
        with translated(self.url):
            with self._deadline():
                response = await self._http.send(request, stream=True)
            try:
                if response.status_code != HTTPStatus.OK:
                    with self._deadline():
                        refuse(response, await _read(response))
                async with _chunks(response) as chunks:
                    yield EventFeed(chunks, self.url)
            finally:
                # Shielded: a cancelled reader must not leave the socket to the garbage collector. Closing a plain socket takes no time.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                    await response.aclose()

    @contextmanager
    def _deadline(self, extra: float = 0.0) -> Iterator[None]:
        try:
            with trio.fail_after(self._patience + extra):
                yield
        except trio.TooSlowError:
            raise OpsUnreachable(ExitCode.TIMEOUT, f"{self.url}: no answer within {self._patience + extra:g} s") from None

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | float] | None = None,
        body: Mapping[str, object] | None = None,
        extra: float = 0.0,
    ) -> dict[str, Any]:
        with translated(self.url), self._deadline(extra):
            async with self._http.stream(method, path, params=params, json=body) as response:
                content = await _read(response)
        if not response.is_success:
            refuse(response, content)
        with translated(self.url):
            return parse_object(content)


@final
class EventFeed:
    """The events of one connection to the server: iterate over it. It ends when the server ends it."""

    def __init__(self, chunks: AsyncIterator[bytes], url: str) -> None:
        self._chunks = chunks
        self._parser = StreamParser()
        self._waiting: list[ServerEvent] = []
        self._url = url

    def __aiter__(self) -> EventFeed:
        return self

    async def __anext__(self) -> ServerEvent:
        """Wait for the next event."""
        while not self._waiting:
            try:
                with translated(self._url), trio.fail_after(SILENCE):
                    chunk = await anext(self._chunks, None)
            except trio.TooSlowError:
                raise OpsUnreachable(ExitCode.NO_CONNECTION, f"{self._url}: nothing was heard for {SILENCE:g} s") from None
            if chunk is None:
                raise StopAsyncIteration
            with translated(self._url):
                records = self._parser.feed(chunk)
                self._waiting = [ServerEvent.parse(record.kind, parse_object(record.data)) for record in records]
        return self._waiting.pop(0)


# -- what came back ----------------------------------------------------------------------------------------------------
async def _read(response: httpx2.Response) -> bytes:
    content = bytearray()
    async with _chunks(response) as chunks:
        async for chunk in chunks:
            content += chunk
            if len(content) > LARGEST_ANSWER:
                raise BadAnswer(f"an answer of more than {LARGEST_ANSWER:,} bytes")
    return bytes(content)


@asynccontextmanager
async def _chunks(response: httpx2.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """Give the body piece by piece; it need not be read to its end."""
    chunks = response.aiter_bytes()
    try:
        yield chunks
    finally:
        # The library stacks generators, and closing the outermost would leave the others to the garbage collector, which Trio warns
        # of. A cancelled read ends them all: it is raised in the innermost. What is buffered comes before it.
        left: bytes | None = b""
        while left is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0) as scope, suppress(httpx2.HTTPError):
                scope.cancel()
                left = await anext(chunks, None)
            if scope.cancelled_caught:
                left = None
