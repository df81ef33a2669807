"""The router: one handler per type, registered once."""

from __future__ import annotations

import pytest

from quicflow_trio import ConfigurationError, Message, MessageType, Peer, Request, Router


async def handler(request: Request) -> bytes:
    return request.message.payload


def test_a_handler_is_found_by_type_with_its_mode() -> None:
    router = Router()
    assert router.on(MessageType.COMMAND)(handler) is handler
    router.on(MessageType.EVENT, serial=True)(handler)
    router.add(MessageType.QUERY, handler, serial=True)
    command, event, query = (router.route(int(kind)) for kind in (MessageType.COMMAND, MessageType.EVENT, MessageType.QUERY))
    assert command is not None
    assert event is not None
    assert query is not None
    assert (command.handler, command.serial, event.serial, query.serial) == (handler, False, True, True)
    assert router.route(int(MessageType.RESPONSE)) is None
    assert router.route(99) is None


def test_a_second_handler_for_a_type_is_a_mistake() -> None:
    router = Router()
    router.add(MessageType.COMMAND, handler)
    with pytest.raises(ConfigurationError, match="COMMAND has a handler already"):
        router.on(MessageType.COMMAND)(handler)


def test_what_is_no_handler_or_no_type_is_refused_where_it_is_written() -> None:
    router = Router()
    with pytest.raises(ConfigurationError, match="callable"):
        router.add(MessageType.COMMAND, "handler")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="MessageType"):
        router.add(7, handler)  # type: ignore[arg-type]
    # Forgetting the parentheses of `router.on(...)` must not replace the function by a decorator silently.
    with pytest.raises(ConfigurationError, match="expected a MessageType"):
        router.on(handler)(handler)  # type: ignore[arg-type]


def test_a_request_says_who_asks() -> None:
    message = Message(MessageType.COMMAND, b"xy", id=bytes(16), sender="worker-1")
    peer: Peer = None  # type: ignore[assignment]
    request = Request(message, peer, redelivered=True)
    assert (request.message, request.redelivered) == (message, True)
    assert repr(request) == f"<Request <Message COMMAND {bytes(16).hex()} 2 bytes> from 'worker-1'>"
