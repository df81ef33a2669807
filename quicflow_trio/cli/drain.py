"""`quicflow drain`: stop a running server gracefully."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

from cyclopts import App, Parameter, validators

from .common import ExitCode, JsonFlag, until_signalled
from .remote.connection import OpsOptions, open_ops
from .remote.errors import with_json_errors

__all__ = ["app"]

EPILOGUE = """It returns when the server has begun: no new client is admitted, clients are
told, handlers may end within --grace, and /readyz says no.

It needs the token that the server was started with.

Exit codes: 0 the server drains, 1 it refused, 2 usage, 3 no connection or not
allowed, 4 no answer in time.

Examples:
  quicflow drain
  quicflow drain --grace 120 --ops 10.0.0.5:8475
"""

app: App = App(name="drain", help_epilogue=EPILOGUE)


@app.default
async def drain(
    *,
    grace: Annotated[float, Parameter(validator=validators.Number(gte=0, lte=3600))] = 30.0,
    retry_after: Annotated[float, Parameter(validator=validators.Number(gte=0, lte=3600))] = 1.0,
    options: OpsOptions = OpsOptions(),  # noqa: B008 - frozen
    json_output: JsonFlag = False,
) -> int:
    """Stop a running server gracefully.

    Args:
        grace: how long running handlers may go on, seconds.
        retry_after: seconds after which clients are asked to try again.
        options: the server.
        json_output: print one JSON object instead.
    """
    run = partial(_drain, options, grace, retry_after, json_output)
    return await until_signalled(partial(with_json_errors, run, json_output))


async def _drain(options: OpsOptions, grace: float, retry_after: float, json_output: bool) -> int:
    async with open_ops(options) as ops:
        answer = await ops.post("/drain", {"grace": grace, "retry_after": retry_after})
    if json_output:
        print(json.dumps(answer | {"ok": True, "status": "ok"}))
    else:
        print(f"the server drains, for at most {grace:g} s")
    return ExitCode.OK
