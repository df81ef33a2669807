"""`quicflow request`: one message, one answer, one exit code."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Annotated, Literal

from cyclopts import App, Parameter

from ..client import Client, open_client
from ..config import Protocol
from ..errors import QuicFlowError
from ..message import Message, MessageType
from .access import Credentials
from .common import (
    Address,
    AddressArgument,
    ClientTLS,
    CommandFailed,
    ExitCode,
    JsonFlag,
    LogLevel,
    Patience,
    configure_logging,
    exit_code,
    plain,
    print_result,
    until_signalled,
    wait_connected,
)
from .stdin import read_all

__all__ = ["app"]

EPILOGUE = """The result goes to standard output as it came, and a line feed after it; that
it is empty is said on standard error. With --json it is one object with "ok",
"status", "seconds", and "result" ("result_base64" where that is no UTF-8) or
"error".

Exit codes: 0 answered, 1 the handler failed, 2 usage,
3 no connection (unreachable, refused, lost), 4 no answer in time.

Examples:
  quicflow request 127.0.0.1 hello --id me --ca certs/ca.pem
  quicflow request backbone.example:9000 reboot --id ops --timeout 30 --json
  quicflow request 127.0.0.1 - --id me --type query --insecure < document.txt
"""

app: App = App(name="request", help_epilogue=EPILOGUE)


@app.default
async def request(
    address: AddressArgument,
    payload: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    id: str,
    type: Literal["command", "event", "query"] = "command",
    protocol: Protocol = "auto",
    patience: Patience = 5.0,
    tls: ClientTLS = ClientTLS(),  # noqa: B008 - frozen
    credentials: Credentials = Credentials(),  # noqa: B008 - frozen
    log_level: LogLevel = "off",
    json_output: JsonFlag = False,
) -> int:
    """Send one message, wait for its answer and print it; made for scripts.

    Args:
        address: the server; the port is 8474 when not given, an IPv6 address with a port stands in brackets.
        payload: the message, as text; - reads it from standard input.
        id: client id to connect as. A client that is connected with the same id is replaced.
        type: what the message is.
        protocol: auto, quicflow/2, or quic-backbone-v1, which is the original's.
        patience: seconds to wait for the connection, and again for the answer.
        tls: certificates.
        credentials: what is shown to the server.
        log_level: debug, info, warning, error or off; logs go to standard error.
        json_output: print one JSON object instead of the bare result.
    """
    configure_logging(log_level)
    connecting = partial(
        open_client,
        address.host,
        address.port,
        client_id=id,
        tls=tls.config(),
        credentials=credentials.source(id),
        protocol=protocol,
    )
    run = partial(_request, connecting, address, payload, MessageType[type.upper()], patience, json_output)
    return await until_signalled(run)


async def _request(
    connecting: Callable[[], AbstractAsyncContextManager[Client]],
    address: Address,
    payload: str,
    type: MessageType,
    patience: float,
    json_output: bool,
) -> int:
    content = await read_all() if payload == "-" else os.fsencode(payload)
    started = time.perf_counter()
    try:
        async with connecting() as client:
            await wait_connected(client, address, patience)
            started = time.perf_counter()
            ack = await client.request(Message(type, content), ack_timeout=patience)
            seconds = time.perf_counter() - started
    except (QuicFlowError, CommandFailed) as exc:
        code = exit_code(exc)
        if code == ExitCode.USAGE or not json_output:
            raise
        seconds = time.perf_counter() - started
        print(json.dumps({"ok": False, "status": code.name.lower(), "seconds": seconds, "error": plain(str(exc))}))
        return code
    if json_output:
        print(json.dumps({"ok": True, "status": "ok", "seconds": seconds} | _result(ack.result)))
    else:
        print_result(ack.result)
    return ExitCode.OK


def _result(result: bytes) -> dict[str, str]:
    try:
        return {"result": result.decode()}
    except UnicodeDecodeError:
        return {"result_base64": base64.b64encode(result).decode()}
