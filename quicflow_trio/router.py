"""Which handler runs for which message: `Router`, and the `Request` that a handler gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, final

from .errors import ConfigurationError
from .message import Message, MessageType
from .peer import Peer

__all__ = ["Handler", "Request", "Router"]


@final
class Request:
    """What a handler gets.

    Attributes:
        message: the message received.
        peer: who sent it: the `Session` on a server, the `Client` on a client. A handler may send and request through it.
        redelivered: true when the sender says that an earlier process may have handled this message already.
    """

    __slots__ = ("message", "peer", "redelivered")

    def __init__(self, message: Message, peer: Peer, redelivered: bool) -> None:
        self.message: Message = message
        self.peer: Peer = peer
        self.redelivered: bool = redelivered

    def __repr__(self) -> str:
        return f"<Request {self.message!r} from {self.message.sender!r}>"


Handler = Callable[[Request], Awaitable[bytes | None]]
"""An async function from a `Request` to the ack's result: bytes, or None for an empty one. What it raises becomes a failure ack."""


class Route(NamedTuple):
    """A handler and how it is run."""

    handler: Handler
    serial: bool


class Router:
    """Handlers by message type. One router may serve any number of servers and clients::

    router = Router()

    @router.on(MessageType.COMMAND)
    async def command(request: Request) -> bytes:
        return request.message.payload.upper()
    """

    def __init__(self) -> None:
        self._routes: dict[int, Route] = {}

    def on(self, type: MessageType, *, serial: bool = False) -> Callable[[Handler], Handler]:
        """Register the decorated function for a message type; see `add`."""

        def register(handler: Handler) -> Handler:
            self.add(type, handler, serial=serial)
            return handler

        return register

    def add(self, type: MessageType, handler: Handler, *, serial: bool = False) -> None:
        """Register ``handler`` for a message type.

        Handlers of one lane start in sending order and may overlap; with ``serial`` each runs to its end before that lane's next
        message is started. The handler's time is limited by ``handler_timeout`` of the configuration; when the sender takes its
        request back (its caller was cancelled, its ack deadline passed), the handler is cancelled. A lost connection cancels none.

        Raises:
            ConfigurationError: the type has a handler already, or is none, or the handler cannot be called.
        """
        if type.__class__ is not MessageType:
            raise ConfigurationError(f"Router: type = {type!r}: expected a MessageType")
        if not callable(handler):
            raise ConfigurationError(f"Router: handler = {handler!r}: expected a callable")
        if type in self._routes:
            raise ConfigurationError(f"Router: {type.name} has a handler already")
        self._routes[int(type)] = Route(handler, serial)

    def route(self, type: int) -> Route | None:
        """Return what is registered for a message type."""
        return self._routes.get(type)
