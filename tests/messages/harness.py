"""What the message tests share: a worked example of handlers, and the sweep that cancels at every checkpoint."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from quicflow_trio import Message, MessageType, Request, Router
from quicflow_trio.protocol.outgoing import OutgoingRequest
from quicflow_trio.testing import MemoryNetwork, World

KINDS = (MessageType.COMMAND, MessageType.EVENT, MessageType.QUERY)


class Recorder:
    """A router whose handlers note what came, and answer with the payload reversed."""

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.router = Router()
        for kind in KINDS:
            self.router.add(kind, self.handle)

    async def handle(self, request: Request) -> bytes:
        self.received.append(request.message)
        return request.message.payload[::-1]

    def payloads(self, kind: MessageType | None = None) -> list[bytes]:
        return [message.payload for message in self.received if kind in (None, message.type)]


class Gate:
    """Handlers for commands that stand still until the gate is opened, one after the other; queries and events pass."""

    def __init__(self, *, serial: bool = True) -> None:
        self.opened = trio.Event()
        self.started: list[bytes] = []
        self.passed: list[bytes] = []
        self.router = Router()
        self.router.add(MessageType.COMMAND, self.stand, serial=serial)
        self.router.add(MessageType.QUERY, self.answer)
        self.router.add(MessageType.EVENT, self.answer)

    async def stand(self, request: Request) -> bytes:
        self.started.append(request.message.payload)
        await self.opened.wait()
        self.passed.append(request.message.payload)
        return b"done"

    async def answer(self, request: Request) -> bytes:
        return request.message.payload


async def until(condition: Callable[[], object], *, seconds: float = 60.0, step: float = 0.01) -> None:
    """Let virtual time pass until the condition holds."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is any figure of the library, and virtual time costs nothing
            await trio.sleep(step)


def task_names() -> Counter[str]:
    """Every task of this run, by name."""
    names: Counter[str] = Counter()
    pending = [trio.lowlevel.current_root_task()]
    while pending:
        task = pending.pop()
        if task is None:
            continue
        names[task.name] += 1
        for nursery in task.child_nurseries:
            pending.extend(nursery.child_tasks)
    return names


def open_sockets(network: MemoryNetwork) -> set[tuple[str, int]]:
    return set(network._sockets)


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope when one task (or, with ``everyone``, any task of the run) has been suspended for the n-th time."""

    def __init__(self, scope: trio.CancelScope, count: int, *, everyone: bool) -> None:
        self._scope = scope
        self._left = count
        self._task = None if everyone else trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._task is None or task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def cancelled_at(count: int, operation: Callable[[], Awaitable[object]], *, everyone: bool = False) -> bool:
    """Run ``operation`` and cancel it at its checkpoint number ``count``, from 0; return False when it ended before."""
    with trio.CancelScope() as scope:
        instrument = _CancelAt(scope, count, everyone=everyone)
        if count == 0:
            scope.cancel()
        trio.lowlevel.add_instrument(instrument)
        try:
            await operation()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


async def sweep(
    operation: Callable[[], Awaitable[object]],
    check: Callable[[], Awaitable[object]],
    *,
    everyone: bool = False,
    stride: int = 1,
    limit: int = 2000,
) -> int:
    """Cancel ``operation`` at each of its checkpoints in turn, ``check`` what is left each time; return how many there are."""
    for count in range(0, limit, stride):
        cancelled = await cancelled_at(count, operation, everyone=everyone)
        await check()
        if not cancelled and count:
            return count
    raise AssertionError(f"the operation has more than {limit} checkpoints")


def assert_at_rest(world: World) -> None:
    """No waiter, nothing in an outbox, nothing held for a handler, on either side."""
    peers = [*world.clients.values(), *world.server.sessions.values()]
    for peer in peers:
        figures = peer.statistics()
        left = (
            figures.requests_waiting,
            figures.outbox_messages,
            figures.outbox_bytes,
            figures.unreceipted,
            figures.handlers_running,
            figures.held_bytes,
        )
        assert left == (0,) * 6, f"{peer!r}: {figures}"
        for lane in peer._link.lanes.values():
            assert lane.waiting == 0
        for _, _, entry in peer._link.deadlines._entries:
            assert not (entry.live and isinstance(entry, OutgoingRequest)), "the deadline of a request that is over"
    assert world.server.statistics().requests_waiting == 0


@contextlib.asynccontextmanager
async def same_tasks() -> AsyncIterator[None]:
    """Check that a block leaves neither more nor fewer tasks behind."""
    before = task_names()
    yield
    await trio.testing.wait_all_tasks_blocked()
    assert task_names() == before
