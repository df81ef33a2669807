"""The description of the HTTP side, for people and programs: OpenAPI 3.1, written by hand. A test compares it with the routes."""

from __future__ import annotations

from ..observe.events import EVENTS
from .clients import FIGURES, SORTS, STATES
from .commands import LONGEST_ACK_TIMEOUT, TYPES

__all__ = ["description"]

Json = dict[str, object]

REFUSALS = {
    400: "A field or parameter is wrong; the message names it",
    401: "The token is missing or wrong",
    403: "The server has no token, so this is not open from here",
    404: "No such client",
    408: "The body did not come in time",
    409: "The connection ended, or the session takes no further lane",
    413: "The body or the payload is too long",
    502: "The client's handler failed",
    503: "The client's outbox is full, or too many requests wait",
    504: "No ack in time",
}


def description(version: str) -> Json:
    """Return the description; ``version`` is the package's."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "quicflow ops",
            "version": version,
            "description": "What a server of quicflow_trio shows to those who operate it, and what they can tell it to do. "
            "Reading is open on the machine itself; from elsewhere, and for every command, a bearer token is wanted. "
            "Times are Unix seconds unless the name says ms; counters of a client count since its session began.",
        },
        "paths": {**_open_paths(), **_reading_paths(), **_command_paths()},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Client": _client(), "Error": _error(), "Message": _object(_MESSAGE, one_of_payloads=True)},
        },
    }


def _open_paths() -> Json:
    return {
        "/": _get("The live page", "text/html", {"type": "string"}, token=False),
        "/healthz": _get(
            "Whether the process runs",
            schema=_object({"status": {"const": "ok"}, "uptime_seconds": _NUMBER, "version": _TEXT}),
            token=False,
        ),
        "/readyz": _get(
            "Whether new clients are taken",
            schema=_object({"ready": {"const": True}}),
            token=False,
            others={"503": {"description": "Not now", **_content(_object({"ready": {"const": False}, "reason": _TEXT}))}},
        ),
    }


def _reading_paths() -> Json:
    sample: Json = {
        **dict.fromkeys(("at", "connected_clients", "sent_per_second", "received_per_second", "bytes_per_second"), _NUMBER),
        **dict.fromkeys(("p50_ms", "p99_ms"), _MAYBE_NUMBER),
        "promise_active": _WHOLE,
    }
    change = _object({"at": _NUMBER, "change": _TEXT, "detail": _TEXT})
    page: Json = dict.fromkeys(("total", "offset", "limit"), _WHOLE)
    return {
        "/metrics": _get("All figures, for Prometheus", "text/plain", {"type": "string"}),
        "/metrics.json": _get("All figures", schema={"type": "object"}),
        "/samples": _get(
            "Figures of each of the last seconds, oldest first; the latencies are those of requests acked within it",
            schema=_object({"interval": _NUMBER, "samples": _list(_object(sample))}),
            parameters=[_query("seconds", {"type": "integer", "minimum": 1, "maximum": 900, "default": 300})],
        ),
        "/clients": _get(
            "Clients, page by page",
            schema=_object({**page, "timestamp": _NUMBER, "clients": _list(_ref("Client"))}),
            parameters=[
                _query("filter", _TEXT, "part of the client id or remote address, whatever its case"),
                _query("state", {"enum": [*STATES], "default": "connected"}),
                _query("sort", {"enum": [*SORTS], "default": "connected_at"}, "with - in front the largest comes first"),
                _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
                _query("offset", {"type": "integer", "minimum": 0, "default": 0}),
            ],
        ),
        "/clients/{client_id}": _get(
            "One client, with its last 100 changes, oldest first; also after it has left",
            schema={"allOf": [_ref("Client"), _object({"history": _list(change)})]},
            parameters=[_CLIENT_ID],
        ),
        "/events": _get(
            "Events as they come; 'dropped' says how many did not fit into the buffer, a comment comes every 15 s of silence",
            "text/event-stream",
            {"type": "string"},
            parameters=[
                _query("kind", _list({"enum": [kind.kind for kind in EVENTS]}), "all but those of single messages by default"),
                _query("client_id", _TEXT),
            ],
        ),
        "/openapi.json": _get("This description", schema={"type": "object"}),
    }


def _command_paths() -> Json:
    result: Json = {"result": {"type": ["string", "null"], "description": "null when it is not UTF-8"}, "result_base64": _TEXT}
    failure = {"type": "object", "additionalProperties": _object({"type": _TEXT, "message": _TEXT})}
    return {
        "/clients/{client_id}/disconnect": _post(
            "Close a client's connection and end its session; it may connect again",
            _object({"reason": {"type": "string", "maxLength": 200}}, required=False),
            _object({"client_id": _TEXT, "disconnected": {"const": True}}),
            [_CLIENT_ID],
        ),
        "/clients/{client_id}/send": _post(
            "Send a message, and wait for no answer",
            _extended({"lane": _LANE}),
            _object({"message_id": _HEX}),
            [_CLIENT_ID],
        ),
        "/clients/{client_id}/request": _post(
            "Send a message and wait until its handler has answered",
            _extended({"lane": _LANE, "ack_timeout": {**_ACK_TIMEOUT, "default": 5.0}}),
            _object({"message_id": _HEX, "status": {"const": "success"}, **result, "latency_ms": _NUMBER}),
            [_CLIENT_ID],
        ),
        "/broadcast": _post(
            "Send one message to all connected clients, or to those named",
            _extended(
                {
                    "to": {"type": ["array", "null"], "items": _TEXT, "default": None},
                    "ack_timeout": {**_ACK_TIMEOUT, "type": ["number", "null"], "default": None},
                }
            ),
            _object(
                {
                    "message_id": _HEX,
                    "sent": _WHOLE,
                    "acked": {"type": "object", "additionalProperties": _object(result)},
                    "failed": failure,
                }
            ),
        ),
        "/drain": _post(
            "Begin to stop: take no new clients, let what is under way finish, then end",
            _object(
                {
                    "grace": {"type": "number", "minimum": 0, "maximum": 86_400, "default": 30.0},
                    "retry_after": {"type": "number", "minimum": 0, "maximum": 86_400, "default": 1.0},
                },
                required=False,
            ),
            _object({"draining": {"const": True}}),
            status=202,
        ),
    }


# -- the words that it is written in -----------------------------------------------------------------------------------
_TEXT: Json = {"type": "string"}
_NUMBER: Json = {"type": "number"}
_WHOLE: Json = {"type": "integer"}
_MAYBE_NUMBER: Json = {"type": ["number", "null"]}
_MAYBE_WHOLE: Json = {"type": ["integer", "null"]}
_HEX: Json = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_LANE: Json = {"type": "string", "default": "", "description": "messages of one lane keep their order and wait for no other lane"}
_ACK_TIMEOUT: Json = {"type": "number", "minimum": 0.001, "maximum": LONGEST_ACK_TIMEOUT, "description": "seconds"}
_CLIENT_ID: Json = {
    "name": "client_id",
    "in": "path",
    "required": True,
    "schema": _TEXT,
    "description": "percent-encoded, a slash too",
}
_MESSAGE: Json = {
    "type": {"enum": [*TYPES], "default": "event"},
    "payload": {"type": "string", "description": "sent as UTF-8"},
    "payload_base64": {"type": "string", "contentEncoding": "base64"},
}


def _object(properties: Json, *, required: bool = True, one_of_payloads: bool = False) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    if one_of_payloads:
        schema["oneOf"] = [{"required": ["payload"]}, {"required": ["payload_base64"]}]
    elif required:
        schema["required"] = [*properties]
    return schema


def _extended(properties: Json) -> Json:
    return {"allOf": [_ref("Message"), _object(properties, required=False)]}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _query(name: str, schema: Json, text: str = "") -> Json:
    described: Json = {"description": text} if text else {}
    return described | {"name": name, "in": "query", "required": False, "schema": schema}


def _content(schema: Json, kind: str = "application/json") -> Json:
    return {"content": {kind: {"schema": schema}}}


def _refusals(*statuses: int) -> Json:
    return {str(status): {"description": REFUSALS[status], **_content(_ref("Error"))} for status in statuses}


def _get(
    summary: str,
    kind: str = "application/json",
    schema: Json | None = None,
    parameters: list[Json] | None = None,
    *,
    token: bool = True,
    others: Json | None = None,
) -> Json:
    responses: Json = {"200": {"description": "OK", **_content(schema or {}, kind)}, **(others or {})}
    if token:
        responses |= _refusals(401, 403)
        if parameters:
            responses |= _refusals(400, 404) if _CLIENT_ID in parameters else _refusals(400)
    # The empty requirement: no token is fine as well, where reading is open.
    security: list[Json] = [{}, {"token": []}] if token else []
    return {"get": {"summary": summary, "parameters": parameters or [], "security": security, "responses": responses}}


def _post(summary: str, body: Json, answer: Json, parameters: list[Json] | None = None, *, status: int = 200) -> Json:
    done: Json = {str(status): {"description": "Done", **_content(answer)}}
    return {
        "post": {
            "summary": summary,
            "parameters": parameters or [],
            "security": [{"token": []}],
            "requestBody": _content(body),
            "responses": done | _refusals(*REFUSALS),
        }
    }


def _client() -> Json:
    described: Json = {
        "client_id": _TEXT,
        "state": {"enum": ["connected", "away", "gone"]},
        "identity": {"type": ["string", "null"], "description": "who it has shown to be; null where nobody is asked"},
        "protocol": {"type": ["string", "null"], "description": "quicflow/2 or quic-backbone-v1"},
        "remote_address": {"type": ["string", "null"], "description": "host:port"},
        "connected_at": _MAYBE_NUMBER,
        "last_heartbeat": _MAYBE_NUMBER,
        "rtt_ms": _MAYBE_NUMBER,
    }
    return _object(described | dict.fromkeys(FIGURES, _MAYBE_WHOLE))


def _error() -> Json:
    return _object({"error": _object({"type": _TEXT, "message": _TEXT})})
