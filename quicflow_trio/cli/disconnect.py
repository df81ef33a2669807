"""`quicflow disconnect`: close the connection of a running server's client."""

from __future__ import annotations

import json
from functools import partial

from cyclopts import App

from .common import ExitCode, JsonFlag, shown, until_signalled
from .remote.connection import OpsOptions, client_path, open_ops
from .remote.errors import with_json_errors

__all__ = ["app"]

EPILOGUE = """The client is told the reason. One that reconnects by itself, as those of this
library do, comes back after a second.

The server does it; it needs the token that it was started with.

Exit codes: 0 disconnected, 1 no such client, 2 usage, 3 no connection or
not allowed, 4 no answer in time.

Examples:
  quicflow disconnect sensor-7
  quicflow disconnect sensor-7 --reason 'new certificate needed'
"""

app: App = App(name="disconnect", help_epilogue=EPILOGUE)


@app.default
async def disconnect(
    id: str,
    /,
    *,
    reason: str | None = None,
    options: OpsOptions = OpsOptions(),  # noqa: B008 - frozen
    json_output: JsonFlag = False,
) -> int:
    """Close the connection of one client of a running server.

    Args:
        id: client id.
        reason: what the client is told, and what stands in its history.
        options: the server.
        json_output: print one JSON object instead.
    """
    run = partial(_disconnect, options, id, reason, json_output)
    return await until_signalled(partial(with_json_errors, run, json_output))


async def _disconnect(options: OpsOptions, client_id: str, reason: str | None, json_output: bool) -> int:
    async with open_ops(options) as ops:
        answer = await ops.post(f"{client_path(client_id)}/disconnect", {} if reason is None else {"reason": reason})
    if json_output:
        print(json.dumps(answer | {"ok": True, "status": "ok"}))
    else:
        print(f"{shown(client_id)} is disconnected")
    return ExitCode.OK
