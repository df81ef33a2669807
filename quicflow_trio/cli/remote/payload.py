"""What `send` and `broadcast` share: the message from the command line, and the answers."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from ..common import CommandFailed, ExitCode, shown
from ..stdin import read_all

__all__ = ["AckTimeout", "PayloadArgument", "Type", "payload_fields", "result_bytes"]

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
