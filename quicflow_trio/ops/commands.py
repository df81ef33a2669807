"""What an operator tells a server to do: disconnect, send, request, broadcast. Each is a line in the log."""

from __future__ import annotations

from base64 import b64encode

import trio

from ..errors import SlowConsumer
from ..message import Ack, Message, MessageType
from ..observe.logs import Logger, get_logger
from .fields import Fields
from .jsontext import dump, dump_object
from .refusals import bad_request, error_json
from .view import ServerView

__all__ = ["ACK_TIMEOUT", "LONGEST_ACK_TIMEOUT", "broadcast", "disconnect", "request", "send"]

log: Logger = get_logger(__name__)

ACK_TIMEOUT = 5.0
"""Seconds that a request waits for its ack unless it says otherwise."""
LONGEST_ACK_TIMEOUT = 300.0
SEND_PATIENCE = 5.0
"""Seconds that a message may wait for room in the client's outbox."""
LONGEST_REASON = 200

TYPES = {"event": MessageType.EVENT, "command": MessageType.COMMAND, "query": MessageType.QUERY}


async def disconnect(view: ServerView, client_id: str, fields: Fields) -> bytes:
    """Close a client's connection and end its session."""
    reason = fields.text("reason", "closed by an operator", longest=LONGEST_REASON)
    fields.end()
    session = view.session(client_id)
    log.info("an operator disconnects a client", client_id=client_id, reason=reason)
    await session.close(reason)
    return dump({"client_id": client_id, "disconnected": True})


async def send(view: ServerView, client_id: str, fields: Fields) -> bytes:
    """Send one message to a client, and wait for no answer."""
    message = _take_message(fields)
    lane = fields.text("lane", "")
    fields.end()
    session = view.session(client_id)
    log.info("an operator sends a message", client_id=client_id, size=len(message.payload))
    with trio.move_on_after(SEND_PATIENCE):
        await (session.lane(lane) if lane else session).send(message)
        return dump({"message_id": message.id.hex()})
    raise SlowConsumer(f"the outbox of {client_id!r} was full for {SEND_PATIENCE:g} s; the message was not sent")


async def request(view: ServerView, client_id: str, fields: Fields) -> bytes:
    """Send one message to a client and wait for its answer."""
    message = _take_message(fields)
    lane = fields.text("lane", "")
    ack_timeout = fields.number("ack_timeout", ACK_TIMEOUT, 0.001, LONGEST_ACK_TIMEOUT)
    fields.end()
    session = view.session(client_id)
    log.info("an operator sends a request", client_id=client_id, size=len(message.payload))
    began = trio.current_time()
    ack = await (session.lane(lane) if lane else session).request(message, ack_timeout=ack_timeout)
    latency = trio.current_time() - began
    return dump({"message_id": message.id.hex(), "status": "success", **_result(ack), "latency_ms": latency * 1000})


async def broadcast(view: ServerView, fields: Fields) -> bytes:
    """Send one message to all connected clients, or to some."""
    message = _take_message(fields)
    to = fields.texts("to") if fields.given("to") else None
    wanted = fields.given("ack_timeout")
    ack_timeout = fields.number("ack_timeout", ACK_TIMEOUT, 0.001, LONGEST_ACK_TIMEOUT) if wanted else None
    fields.end()
    log.info("an operator broadcasts a message", size=len(message.payload))
    outcome = await view.broadcast(message, to=to, ack_timeout=ack_timeout)
    acked = await dump_object((client_id, _result(ack)) for client_id, ack in outcome.acked.items())
    failed = await dump_object((client_id, error_json(error)) for client_id, error in outcome.failed.items())
    head = dump({"message_id": message.id.hex(), "sent": outcome.sent})
    return head[:-1] + b',"acked":' + acked + b',"failed":' + failed + b"}"


def _take_message(fields: Fields) -> Message:
    if fields.given("payload") == fields.given("payload_base64"):
        raise bad_request("payload: expected either payload or payload_base64")
    payload = fields.encoded_text("payload") if fields.given("payload") else fields.base64("payload_base64")
    return Message(TYPES[fields.choice("type", "event", TYPES)], payload)


def _result(ack: Ack) -> dict[str, object]:
    try:
        text = ack.result.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    return {"result": text, "result_base64": b64encode(ack.result).decode("ascii")}
