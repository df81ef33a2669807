"""`quicflow send`: one message from a running server to one of its clients."""

from __future__ import annotations

import json
from functools import partial

from cyclopts import App

from .common import CommandFailed, ExitCode, Flag, JsonFlag, print_result, shown, until_signalled
from .remote.connection import OpsOptions, client_path, open_ops
from .remote.errors import with_json_errors
from .remote.payload import AckTimeout, PayloadArgument, Type, payload_fields, result_bytes

__all__ = ["app"]

EPILOGUE = """Without --request it ends when the server has queued the message, and prints
its id. With --request it waits for the client's handler and prints the result
as it came, and a line feed after it; that it is empty is said on standard
error. With --json it is "result_base64", and "result", which is null where it
is no UTF-8.

The server sends; it needs the token that it was started with.

Exit codes: 0 queued, or answered, 1 no such client, or its handler failed,
2 usage, 3 no connection or not allowed, 4 no answer in time.

Examples:
  quicflow send sensor-7 'lunch is ready'
  quicflow send sensor-7 reboot --type command --request --ack-timeout 30
  quicflow send sensor-7 - --lane files --json < picture.png
"""

app: App = App(name="send", help_epilogue=EPILOGUE)


@app.default
async def send(
    id: str,
    payload: PayloadArgument,
    /,
    *,
    type: Type = "event",
    lane: str = "",
    request: Flag = False,
    ack_timeout: AckTimeout | None = None,
    options: OpsOptions = OpsOptions(),  # noqa: B008 - frozen
    json_output: JsonFlag = False,
) -> int:
    """Let a running server send one message to one of its clients.

    Args:
        id: client id.
        payload: the message, as text; - reads it from standard input.
        type: what the message is.
        lane: lane to send it on; messages of one lane arrive in order.
        request: wait for the client's answer and print it.
        ack_timeout: seconds that the answer may take, with --request; 5 when not given.
        options: the server.
        json_output: print one JSON object instead: "ok", "status", "message_id"; with --request "latency_ms", "result_base64", "result".
    """
    if ack_timeout is not None and not request:
        raise CommandFailed(ExitCode.USAGE, "--ack-timeout needs --request: without it no answer is waited for")
    waits = (5.0 if ack_timeout is None else ack_timeout) if request else None
    run = partial(_send, options, id, payload, {"type": type, "lane": lane}, waits, json_output)
    return await until_signalled(partial(with_json_errors, run, json_output))


async def _send(
    options: OpsOptions, client_id: str, payload: str, fields: dict[str, str], waits: float | None, json_output: bool
) -> int:
    path = client_path(client_id)
    body: dict[str, object] = {**fields, **await payload_fields(payload)}
    async with open_ops(options) as ops:
        if waits is None:
            answer = await ops.post(f"{path}/send", body)
        else:
            answer = await ops.post(f"{path}/request", body | {"ack_timeout": waits}, extra=waits)
    if json_output:
        print(json.dumps(answer | {"ok": True, "status": "ok"}))
    elif waits is None:
        print(f"queued as {shown(str(answer.get('message_id', '')))}")
    else:
        print_result(result_bytes(answer))
    return ExitCode.OK
