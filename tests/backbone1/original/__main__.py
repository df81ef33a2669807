"""One peer in a process: `python -m tests.backbone1.original JSON`, then commands as JSON lines on standard input until its end.

The argument is the settings of `roles.Client` or `roles.Server`, with ``role`` and ``stack`` (``aioquic`` or ``qh3``). A command is
``{"id": 1, "do": "send", ...}`` with the arguments of a method of `Program`; it is answered by ``{"id": 1, "reply": {...}}`` when it is
done, other commands meanwhile. Events are lines with ``event``: ``serving``, ``connected``, ``closed``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from . import wire
from .roles import Client, Peer, Server
from .streams import Lost, NotConnected
from .tally import Tally

OURS = "quicflow_trio"


def say(**words: Any) -> None:
    """Write a line."""
    print(json.dumps(words), flush=True)


def resident() -> int:
    """Return the bytes of memory this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Program:
    """What the peer may be asked for."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def send(
        self,
        count: int,
        *,
        to: str = "",
        size: int = 16,
        wait_ack: bool = True,
        type: int = wire.COMMAND,
        fin: str = "with",
        blind: bool = False,
        inflight: int = 64,
        first: int = 0,
        again: bool = False,
        patience: float = 20.0,
        ack_timeout: float = 30.0,
    ) -> dict[str, Any]:
        """Send messages numbered from ``first`` in the first eight bytes of their payload, ``size`` bytes each, so many at once.

        Without ``to`` a server takes whoever is connected in turn. With ``again`` one that the connection's end has cut off is sent once
        more, under a new id. It stops after ``patience`` seconds in which not one was done.

        Returns:
            ``done`` counts by outcome, ``seconds``, ``cut`` (sent again), ``last`` (the last answer), ``first_unlike`` (the first answer
            that was no success).
        """
        numbers = iter(range(first, first + count))
        outcome: Counter[str] = Counter()
        told: dict[str, Any] = {}
        peer = self._peer

        async def one(number: int) -> dict[str, Any]:
            payload = number.to_bytes(8, "big") + bytes(max(0, size - 8))
            while True:
                try:
                    whom = to or (list(peer.links)[number % len(peer.links)] if isinstance(peer, Server) and peer.links else "")
                    message = peer.message(whom, payload, wait_ack=wait_ack, type=type)
                    sent = peer.exchange(peer.link_to(whom), message, fin=fin, blind=blind)
                    return await asyncio.wait_for(sent, ack_timeout)
                except Lost as error:
                    if not again:
                        return {"frame": "lost", "status": wire.FAILURE, "error": str(error)}
                    outcome["cut"] += not isinstance(error, NotConnected)
                    await asyncio.sleep(0.02)
                except TimeoutError:
                    return {"frame": "late", "status": wire.TIMEOUT, "error": "no answer in time"}

        async def work() -> None:
            for number in numbers:
                answer = await one(number)
                status = answer.get("status", wire.SUCCESS)
                outcome["done" if status == wire.SUCCESS else f"{answer['frame']}: {answer.get('error')}"] += 1
                told["last"] = answer
                if status != wire.SUCCESS:
                    told.setdefault("first_unlike", answer)

        began = time.monotonic()
        workers = [asyncio.ensure_future(work()) for _ in range(min(inflight, count))]
        left, before = set(workers), -1
        while left and before != outcome.total():
            before = outcome.total()
            _, left = await asyncio.wait(workers, timeout=patience)
        for worker in left:
            worker.cancel()
        finished = await asyncio.gather(*workers, return_exceptions=True)
        broken = [repr(result) for result in finished if isinstance(result, Exception)]
        assert not broken, broken
        return {"outcome": dict(outcome), "stuck": len(left), "seconds": time.monotonic() - began, **told}

    async def one(self, payload: str, *, to: str = "", **options: Any) -> dict[str, Any]:
        """Send one message with this payload (hex) and ``msg_id``, ``wait_ack``, ``type``, ``sender``, ``receiver`` as given."""
        peer = self._peer
        message = peer.message(to, bytes.fromhex(payload), wait_ack=options.get("wait_ack", True))
        message.msg_id = options.get("msg_id", message.msg_id)
        message.type = options.get("type", message.type)
        message.sender_id = options.get("sender", message.sender_id)
        message.receiver_id = options.get("receiver", message.receiver_id)
        sent = peer.exchange(peer.link_to(to), message, fin=options.get("fin", "with"), blind=options.get("blind", False))
        return await asyncio.wait_for(sent, options.get("ack_timeout", 10.0))

    async def raw(self, pieces: list[str], *, to: str = "", fin: str = "with", patience: float = 10.0) -> dict[str, Any]:
        """Write these bytes (hex) on a new stream; reply with what came back before the other half ended."""
        parts = [bytes.fromhex(piece) for piece in pieces]
        came = self._peer.raw(self._peer.link_to(to), parts, fin=fin)
        return {"heard": (await asyncio.wait_for(came, patience)).hex()}

    async def become(self, **settings: Any) -> dict[str, Any]:
        """Change ``answer``, ``answer_fin``, ``does_finish``, ``refuse`` or ``eager`` from here on."""
        for name, value in settings.items():
            assert hasattr(self._peer, name), name
            setattr(self._peer, name, value)
        return {}

    async def release(self) -> dict[str, Any]:
        """Answer what ``answer: wait`` has held back."""
        return {"released": self._peer.release()}

    async def cut(self, *, to: str = "", code: int = 0, reason: str = "", quiet: bool = False) -> dict[str, Any]:
        """Close a connection, or leave it without a word (``quiet``); a client comes again."""
        peer = self._peer
        if quiet:
            peer.link_to(to).vanish()
            return {}
        peer.link_to(to).close(code, reason or ("server shutdown" if isinstance(peer, Server) else "client disconnect"))
        return {}

    async def figures(self) -> dict[str, Any]:
        """Reply with what was counted, the memory in bytes, and the CPU time in seconds."""
        strangers = sorted(name for name in sys.modules if name.partition(".")[0] in (OURS, "trio"))
        return {**self._peer.figures(), "memory": resident(), "cpu": time.process_time(), "ours": strangers}

    async def clear(self) -> dict[str, Any]:
        """Begin to count afresh."""
        self._peer.counts.clear()
        self._peer.received = Tally()
        return {}


async def obey(program: Program) -> None:
    """Run commands, each in a task of its own, until standard input ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as group:
        running: set[asyncio.Task[None]] = set()

        async def run(words: dict[str, Any]) -> None:
            number, do = words.pop("id"), words.pop("do")
            try:
                say(id=number, reply=await getattr(program, do)(**words))
            except (Lost, TimeoutError) as error:
                say(id=number, error=f"{type(error).__name__}: {error}")

        async for line in reader:
            task = group.create_task(run(json.loads(line)))
            running.add(task)
            task.add_done_callback(running.discard)
        for task in running:
            task.cancel()


async def main(settings: dict[str, Any]) -> None:
    """Run the peer until standard input ends."""
    peer = (Client if settings["role"] == "client" else Server)(settings, say)
    running = asyncio.ensure_future(peer.run())
    obeying = asyncio.ensure_future(obey(Program(peer)))
    done, _ = await asyncio.wait([running, obeying], return_when=asyncio.FIRST_COMPLETED)
    if running in done:
        # A client that does not come again: it can still be asked what it has seen.
        running.result()
        await obeying
        return
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.sleep(0.05)
    obeying.result()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
