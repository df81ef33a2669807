"""What `send` and `broadcast` share: the message from the command line, the answers, and errors as JSON."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from ..common import CommandFailed, ExitCode, plain, shown
from ..stdin import read_all

__all__ = ["AckTimeout", "PayloadArgument", "Type", "payload_fields", "result_bytes", "with_json_errors"]

PayloadArgument = Annotated[str, Parameter(allow_leading_hyphen=True)]
Type = Literal["command", "event", "query"]
AckTimeout = Annotated[float, Parameter(validator=validators.Number(gt=0, lte=86_400))]


async def payload_fields(payload: str) -> dict[str, str]:
    """Return the fields that carry a payload given as text, or as ``-`` on standard input, to the server."""
    content = await read_all() if payload == "-" else os.fsencode(payload)
    try:
        return {"payload": content.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(content).decode()}


def result_bytes(answer: Mapping[str, Any]) -> bytes:
    """Return what a handler answered.

    Raises:
        CommandFailed: the server's answer holds no result.
    """
    try:
        return base64.b64decode(answer["result_base64"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise CommandFailed(ExitCode.NO_CONNECTION, f"unexpected answer: {shown(json.dumps(answer))}") from None


async def with_json_errors(run: Callable[[], Awaitable[int]], json_output: bool) -> int:
    """Run a command; with ``json_output`` an error becomes a JSON object, as `quicflow request` prints it, except one of usage."""
    try:
        return await run()
    except CommandFailed as exc:
        if exc.code == ExitCode.USAGE or not json_output:
            raise
        # A hint is for people.
        text = plain(str(exc)).partition("\nhint:")[0]
        print(json.dumps({"ok": False, "status": exc.code.name.lower(), "error": text}))
        return exc.code
