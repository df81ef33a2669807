"""`quicflow connect`: a client operated by hand."""

from __future__ import annotations

import operator
import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import final

import trio
from cyclopts import App

from ..client import Client, open_client
from ..client_state import StateChange
from ..config import Protocol
from ..credentials import CredentialsSource
from ..errors import QuicFlowError
from ..message import Message, MessageType
from ..peer import Peer
from ..router import Request, Router
from .access import Credentials
from .common import (
    Address,
    AddressArgument,
    ClientTLS,
    ExitCode,
    LogLevel,
    Patience,
    configure_logging,
    explain,
    first_of,
    plain,
    shown,
    until_signalled,
    wait_connected,
)
from .stdin import read_lines

__all__ = ["app"]

EPILOGUE = """Commands come from the terminal or a pipe: `help` lists them. The end of the
input, `quit` and Ctrl-C end the program; except after Ctrl-C it waits for
answers that are still out. A lost connection is opened again by itself.

Exit codes: 0 ended as asked, 2 usage,
3 refused by the server, replaced by a newer connection with the same id, or
  not connected within --timeout while the commands come from a pipe.

Examples:
  quicflow connect 127.0.0.1 --id me --ca certs/ca.pem
  echo 'request hello' | quicflow connect 127.0.0.1 --id me --insecure
"""

COMMANDS = """  request TEXT   send a command and show its answer
  query TEXT     send a query and show its answer
  send TEXT      send a command, show when the server has it
  event TEXT     send an event, show when the server has it
  lane [NAME]    use this lane from now on; without a name the default one
  stats          show figures of the session
  help           show this
  quit           leave"""

SENT = {"send": MessageType.COMMAND, "event": MessageType.EVENT}
REQUESTED = {"request": MessageType.COMMAND, "query": MessageType.QUERY}

app: App = App(name="connect", help_epilogue=EPILOGUE)


@app.default
async def connect(
    address: AddressArgument,
    /,
    *,
    id: str,
    protocol: Protocol = "auto",
    patience: Patience = 5.0,
    tls: ClientTLS = ClientTLS(),  # noqa: B008 - frozen
    credentials: Credentials = Credentials(),  # noqa: B008 - frozen
    log_level: LogLevel = "off",
) -> int:
    """Talk to a server by hand: send, request, and watch what arrives.

    Args:
        address: the server; the port is 8474 when not given, an IPv6 address with a port stands in brackets.
        id: client id to connect as. A client that is connected with the same id is replaced.
        protocol: auto, quicflow/2, or quic-backbone-v1, which is the original's.
        patience: seconds to wait for each answer and each receipt.
        tls: certificates.
        credentials: what is shown to the server.
        log_level: debug, info, warning, error or off; logs go to standard error.
    """
    configure_logging(log_level)
    code = await until_signalled(partial(_connect, address, id, protocol, patience, tls, credentials.source(id)))
    # Ctrl-C is how many leave such a program: no failure.
    return ExitCode.OK if code == ExitCode.INTERRUPTED else code


async def _connect(
    address: Address, client_id: str, protocol: Protocol, patience: float, tls: ClientTLS, credentials: CredentialsSource
) -> int:
    screen = Screen(interactive=sys.stdin.isatty() and sys.stdout.isatty())
    router = make_router(screen)
    async with open_client(
        address.host,
        address.port,
        client_id=client_id,
        tls=tls.config(),
        credentials=credentials,
        protocol=protocol,
        router=router,
    ) as client:

        async def run() -> None:
            # A person sees the attempts and may wait; a script wants to hear that there is no server.
            if not sys.stdin.isatty():
                await wait_connected(client, address, patience)
            await Session(client, screen, patience).run()

        screen.show(f"connecting to {address} as {shown(client_id)}; `help` lists the commands")
        await first_of(client.wait_closed, partial(show_states, client, screen), run)
    return ExitCode.OK


@final
class Screen:
    """Where lines are shown. On a terminal the prompt is drawn again below each."""

    def __init__(self, *, interactive: bool) -> None:
        self._before, self._after = ("\r\x1b[K", "> ") if interactive else ("", "")

    def show(self, text: str) -> None:
        """Print lines; they have to be safe for a terminal already, see `shown`."""
        print(f"{self._before}{text}\n{self._after}", end="", flush=True)

    def prompt(self) -> None:
        """Draw the prompt."""
        print(self._after, end="", flush=True)


def make_router(screen: Screen) -> Router:
    """Return handlers that show every message of the server and answer with nothing."""
    router = Router()

    async def show(request: Request) -> None:
        message = request.message
        screen.show(f"<- {message.type.name.lower()} from {shown(message.sender)}: {shown(message.payload)}")

    for type in (MessageType.COMMAND, MessageType.EVENT, MessageType.QUERY):
        router.add(type, show)
    return router


async def show_states(client: Client, screen: Screen) -> None:
    """Show the changes of the client's state as they happen, for ever."""
    last: StateChange | None = None
    while True:
        # The history and not the observable alone: quick double changes show as one in that, and it has no reasons.
        history = client.statistics().history
        unseen = history[history.index(last) + 1 :] if last in history else history
        for change in unseen:
            screen.show(f"* {change.state.value}" + (f" ({shown(plain(change.reason))})" if change.reason else ""))
            last = change
        now = client.state.value
        await client.state.wait_value(partial(operator.is_not, now))


@final
class Session:
    """The commands of one sitting.

    Args:
        client: who carries them out.
        screen: where results are shown.
        patience: seconds to wait for each answer and receipt.
    """

    def __init__(self, client: Client, screen: Screen, patience: float) -> None:
        self._client = client
        self._screen = screen
        self._timeout = patience
        self._peer: Peer = client
        self._count = 0

    async def run(self) -> None:
        """Carry out commands until standard input ends or says `quit`; return when all answers are in or overdue."""
        # Closed, because `quit` leaves it in the middle.
        async with trio.open_nursery() as nursery, aclosing(read_lines()) as lines:
            async for line in lines:
                word, _, text = line.strip().partition(" ")
                if word == "quit":
                    break
                await self._carry_out(nursery, word, text)

    async def _carry_out(self, nursery: trio.Nursery, word: str, text: str) -> None:
        if word in SENT or word in REQUESTED:
            self._count += 1
            work = self._send if word in SENT else self._request
            message = Message((SENT | REQUESTED)[word], text.encode())
            # `start` returns when the message stands in the outbox: the order of the lines is the order of sending.
            await nursery.start(self._guarded, f"#{self._count}", partial(work, message))
        elif word == "lane":
            self._use_lane(text.strip())
        elif word == "stats":
            self._screen.show(self._statistics())
        elif word == "help":
            self._screen.show(COMMANDS)
        elif word:
            self._screen.show(f"{shown(word)}: no such command; `help` lists them")
        else:
            self._screen.prompt()

    async def _guarded(self, label: str, work: Callable[[], Awaitable[str]], *, task_status: trio.TaskStatus[None]) -> None:
        started = time.perf_counter()
        # Not later: up to its first wait, which comes after the message was queued, the call runs in one go.
        task_status.started()
        try:
            with trio.fail_after(self._timeout):
                result = await work()
        except trio.TooSlowError:
            # Either ours, or the AckTimeout of the request.
            result = f"nothing within {self._timeout:g} s"
        except QuicFlowError as exc:
            result = explain(exc)
        self._screen.show(f"{label} {result} [{(time.perf_counter() - started) * 1000:.1f} ms]")

    async def _send(self, message: Message) -> str:
        sent = await self._peer.send(message)
        await sent.delivered()
        return "delivered"

    async def _request(self, message: Message) -> str:
        ack = await self._peer.request(message, ack_timeout=self._timeout)
        return f"-> {shown(ack.result)}"

    def _use_lane(self, name: str) -> None:
        try:
            self._peer = self._client.lane(name)
        except QuicFlowError as exc:
            self._screen.show(explain(exc))
        else:
            self._screen.show(f"lane {shlex.quote(shown(name))}" if name else "the default lane")

    def _statistics(self) -> str:
        figures = self._client.statistics()
        rtt = "not measured yet" if figures.rtt is None else f"{figures.rtt * 1000:.2f} ms"
        return "\n".join(
            (
                f"  state     {figures.state.value}, {figures.connects} connections in {figures.attempts} attempts, round trip {rtt}",
                f"  sent      {figures.messages_sent:,} messages, {figures.bytes_sent:,} bytes, {figures.lanes} lanes",
                f"  received  {figures.messages_received:,} messages ({figures.messages_failed:,} failed), {figures.bytes_received:,} bytes",
                f"  waiting   {figures.requests_waiting:,} for answers, {figures.outbox_messages:,} in the outbox",
            )
        )
