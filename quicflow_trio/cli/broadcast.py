"""`quicflow broadcast`: one message from a running server to many of its clients."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

from cyclopts import App, Parameter

from .common import NO_RESULT, ExitCode, JsonFlag, shown, until_signalled
from .remote.connection import OpsOptions, open_ops
from .remote.errors import parsed, with_json_errors
from .remote.payload import AckTimeout, PayloadArgument, Type, payload_fields, result_bytes
from .remote.records import BadAnswer

__all__ = ["app"]

EPILOGUE = """Without --ack-timeout it ends when the server has queued the message for all;
with it, when all have answered or the time is over. With --json "acked" has of
each client "result_base64", and "result", which is null where it is no UTF-8.

The server sends; it needs the token that it was started with.

Exit codes: 0 queued for all, or answered by all, 1 not by all (they are
named), 2 usage, 3 no connection or not allowed, 4 no answer of the server in
time.

Examples:
  quicflow broadcast 'maintenance at noon'
  quicflow broadcast reload --to web-1 --to web-2 --ack-timeout 5
  quicflow broadcast - --json < notice.txt
"""

app: App = App(name="broadcast", help_epilogue=EPILOGUE)


@app.default
async def broadcast(
    payload: PayloadArgument,
    /,
    *,
    to: Annotated[list[str] | None, Parameter(negative=())] = None,
    type: Type = "event",
    ack_timeout: AckTimeout | None = None,
    options: OpsOptions = OpsOptions(),  # noqa: B008 - frozen
    json_output: JsonFlag = False,
) -> int:
    """Let a running server send one message to all its clients, or to some.

    Args:
        payload: the message, as text; - reads it from standard input.
        to: client id, once for each; all that are connected when not given.
        type: what the message is.
        ack_timeout: wait for answers, for at most so many seconds.
        options: the server.
        json_output: print one JSON object instead: "ok", "status", "message_id", "sent", "acked" and "failed" by client id.
    """
    fields = {"type": type, "to": to, "ack_timeout": ack_timeout}
    run = partial(_broadcast, options, payload, fields, ack_timeout or 0.0, json_output)
    return await until_signalled(partial(with_json_errors, run, json_output))


async def _broadcast(options: OpsOptions, payload: str, fields: dict[str, Any], waits: float, json_output: bool) -> int:
    body = {**fields, **await payload_fields(payload)}
    async with open_ops(options) as ops:
        answer = await ops.post("/broadcast", body, extra=waits)
    sent, acked, failed = parsed(ops.url, _outcome, answer)
    code = ExitCode.FAILED if failed else ExitCode.OK
    if json_output:
        print(json.dumps(answer | {"ok": not failed, "status": code.name.lower()}))
        return code
    print(f"queued for {sent:,} client{'s' * (sent != 1)}" + (f", answered by {len(acked):,}" if waits else ""))
    for client_id, result in acked.items():
        print(f"  {shown(client_id)}: {shown(result_bytes(result)) or NO_RESULT}")
    for client_id, error in failed.items():
        print(f"  {shown(client_id)}: {shown(str(error.get('type')))}: {shown(str(error.get('message')))}")
    return code


def _outcome(answer: dict[str, Any]) -> tuple[int, dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    sent, acked, failed = answer.get("sent"), answer.get("acked"), answer.get("failed")
    if not isinstance(sent, int):
        raise BadAnswer("sent is no number")
    for name, by_client in (("acked", acked), ("failed", failed)):
        if not isinstance(by_client, dict) or not all(isinstance(value, dict) for value in by_client.values()):
            raise BadAnswer(f"{name} is no object of objects")
    return sent, dict(acked or {}), dict(failed or {})
