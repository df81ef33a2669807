"""The original's client and server: introduction, heartbeats, messages and answers."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from . import wire
from .streams import Link, Lost, NotConnected, Stack
from .tally import Tally

Say = Callable[..., None]


def now() -> int:
    """Return the time as frames carry it."""
    return int(time.time() * 1000)


class Peer:
    """What client and server have in common.

    Settings:
        answer: what becomes of a message with wait_ack: ``ack`` (with the payload as result), ``bare`` (an ACK without a result),
            ``response`` (DATA of type RESPONSE), ``json`` (the same, in the form that fills a result), ``failure``, ``timeout``, ``fin``
            (no frame), ``elsewhere`` (an ACK on a new stream), ``never`` (nothing, and the half is left open), ``wait`` (an ACK once
            `release` is asked for).
        answer_fin: ``with`` the answer's last byte, or ``late``, a packet after it.
        finish: false leaves its half of a stream open where there is nothing to answer.
        heartbeat: seconds between PINGs (a client), or without a frame after which a client is dropped (a server).
    """

    def __init__(self, name: str, settings: dict[str, Any], say: Say) -> None:
        self.name = name
        self.answer: str = settings.get("answer", "ack")
        self.answer_fin: str = settings.get("answer_fin", "with")
        self.does_finish: bool = settings.get("finish", True)
        self.heartbeat: float = settings["heartbeat"]
        self.stack = Stack(settings.get("stack", "aioquic"))
        self.say = say
        self.counts: Counter[str] = Counter()
        self.received = Tally()
        self._held: list[tuple[Link, Any, wire.Ack]] = []

    # -- incoming ------------------------------------------------------------------------------------------------------
    def handle_frame(self, link: Link, exchange: Any, frame: wire.Frame) -> None:
        """Act on the first frame of a stream that the other side has opened."""
        try:
            if frame.type == wire.DATA:
                self._handle_message(link, exchange, wire.read_data(frame.payload))
            elif frame.type == wire.ACK:
                answer = wire.read_ack(frame.payload)
                self.counts["acks_elsewhere"] += 1
                waiting = link.waiting.get(answer.msg_id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame)
                link.finish(exchange)
            elif frame.type == wire.PING:
                self.handle_ping(link, exchange, wire.read_ping(frame.payload))
            else:
                raise wire.BadFrame(f"type {frame.type}")
        except wire.BadFrame:
            self.counts["bad_frames"] += 1
            link.finish(exchange)

    def handle_ping(self, link: Link, exchange: Any, client_id: str) -> None:
        """Act on a PING, which only a server expects."""
        raise wire.BadFrame("a PING from a server")

    def handle_end(self, link: Link) -> None:
        """Note that a connection is over."""
        code, reason = link.closed or (0, "")
        self.counts["ends"] += 1
        self.say(event="closed", id=link.peer_id, code=code, reason=reason)

    def _handle_message(self, link: Link, exchange: Any, message: wire.Data) -> None:
        self.received.note(message.sender_id, message.payload)
        if not message.wait_ack:
            if self.does_finish:
                link.finish(exchange)
            return
        way, payload = self.answer, message.payload
        answer = wire.Ack(message.msg_id, wire.SUCCESS, payload)
        if way == "bare":
            answer.result = b""
        elif way == "failure":
            answer = wire.Ack(message.msg_id, wire.FAILURE, error="the handler failed")
        elif way == "timeout":
            answer = wire.Ack(message.msg_id, wire.TIMEOUT, error="the handler took too long")
        if way in ("response", "json"):
            self._reply(link, exchange, self._response(message, in_json=way == "json"))
        elif way == "elsewhere":
            self._reply(link, link.open(), wire.ack(answer, now()))
            # Much later than the ACK: without a frame it would be a failure.
            link.finish_later(exchange, 0.1)
        elif way == "fin":
            link.finish(exchange)
        elif way == "wait":
            self._held.append((link, exchange, answer))
        elif way != "never":
            self._reply(link, exchange, wire.ack(answer, now()))

    def _response(self, message: wire.Data, *, in_json: bool) -> bytes:
        payload = message.payload
        if in_json:
            result = base64.b64encode(payload).decode()
            payload = json.dumps({"msg_id": message.msg_id, "status": wire.SUCCESS, "result": result}).encode()
        answer = wire.Data(message.msg_id, self.name, message.sender_id, wire.RESPONSE, payload, False, now())
        return wire.data(answer, now())

    def _reply(self, link: Link, exchange: Any, frame: bytes) -> None:
        self.counts["answers"] += 1
        if self.answer_fin == "late":
            link.write_late(exchange, frame)
        else:
            link.write(exchange, frame, fin=True)

    def release(self) -> int:
        """Answer what was held back; return how many."""
        held, self._held = self._held, []
        for link, exchange, answer in held:
            link.write(exchange, wire.ack(answer, now()), fin=True)
        return len(held)

    # -- outgoing ------------------------------------------------------------------------------------------------------
    async def exchange(self, link: Link, message: wire.Data, *, fin: str = "with", blind: bool = False) -> dict[str, Any]:
        """Send one message; return what the original's application would see, and ``frame``, what it was made from.

        Without wait_ack the stream's other half is read to its end, and nothing more is waited for.

        Args:
            link: the connection.
            message: what to send.
            fin: ``with`` the last byte, ``late`` (a packet after it), ``after`` the answer, or ``never``.
            blind: never read the stream; the answer must come on another one.
        """
        stream = link.open()
        frame = wire.data(message, now())
        if fin == "late":
            link.write_late(stream, frame)
        else:
            link.write(stream, frame, fin=fin == "with")
        if not message.wait_ack:
            await stream.over.wait()
            if link.closed is not None:
                raise Lost(link.closed[1])
            return {"frame": "none"}
        elsewhere: asyncio.Future[wire.Frame | None] = asyncio.get_running_loop().create_future()
        link.waiting[message.msg_id] = elsewhere
        try:
            ways = [elsewhere] if blind else [elsewhere, stream.answer]
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            return _seen(done.pop().result())
        finally:
            del link.waiting[message.msg_id]
            if fin == "after":
                link.finish(stream)

    async def raw(self, link: Link, pieces: list[bytes], *, fin: str = "with") -> bytes:
        """Write bytes on a stream, each piece in a packet of its own; return all that comes back until the other half ends."""
        stream = link.open(raw=True)
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            link.write(stream, piece, fin=last and fin == "with")
            link.protocol.transmit()
            await asyncio.sleep(0.002)
        if fin == "late":
            link.finish(stream)
        await stream.over.wait()
        return bytes(stream.heard)

    def message(self, to: str, payload: bytes, *, wait_ack: bool, type: int = wire.COMMAND) -> wire.Data:
        """Make one, with an id of its own."""
        return wire.Data(str(uuid.uuid4()), self.name, to, type, payload, wait_ack, now())

    def link_to(self, to: str) -> Link:
        """Return the connection to somebody; raises `NotConnected` where there is none."""
        raise NotImplementedError

    def figures(self) -> dict[str, Any]:
        """Return what it has counted."""
        return {**self.counts, "received": dict(self.received.counts), "held": len(self._held)}


def _seen(frame: wire.Frame | None) -> dict[str, Any]:
    """Return what the original makes of an answer: a result only from the JSON form; ``raw`` is what was really there."""
    if frame is None:
        return {"frame": "none", "status": wire.FAILURE, "error": "no answer"}
    if frame.type == wire.ACK:
        answer = wire.read_ack(frame.payload)
        seen = {"frame": "ack", "status": answer.status, "error": answer.error, "raw": answer.result.hex()}
        return {**seen, "msg_id": answer.msg_id, "result": _result(answer.result)}
    if frame.type != wire.DATA:
        return {"frame": "other", "status": wire.FAILURE, "error": f"an answer of type {frame.type}"}
    message = wire.read_data(frame.payload)
    status = wire.SUCCESS if message.type == wire.RESPONSE else wire.FAILURE
    raw, result = message.payload.hex(), _result(message.payload)
    return {"frame": "response", "status": status, "raw": raw, "msg_id": message.msg_id, "result": result}


def _result(payload: bytes) -> str | None:
    """Return the result (hex) from ``{"msg_id", "status", "result": base64}``; None where there is something else."""
    try:
        form = json.loads(payload)
        return base64.b64decode(form["result"], validate=True).hex() if {"msg_id", "status"} <= form.keys() else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class Client(Peer):
    """The original's client: connects, introduces itself, pings, and comes again one second after a loss, then two, up to 60.

    A connection on which nothing is heard for three heartbeats is lost.

    Settings, beside a `Peer`'s: ``id``, ``port``, ``ca``; ``retry``, seconds before it first comes again (None: never).
    """

    def __init__(self, settings: dict[str, Any], say: Say) -> None:
        super().__init__(settings["id"], {"heartbeat": 15.0, **settings}, say)
        self._port: int = settings["port"]
        self._retry: float | None = settings.get("retry", 1.0)
        self._configuration = self.stack.configure(client=True, settings=settings)
        self._link: Link | None = None
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        delay = self._retry
        while True:
            link, transport = await self.stack.connect(self._port, self._configuration, self)
            link.peer_id = self.name
            try:
                if await self._introduce(link):
                    delay = self._retry
                    await self._stay(link)
            finally:
                self.connected.clear()
                self._link = None
                if link.closed is None:
                    link.close(0, "client disconnect")
                transport.close()
            if delay is None:
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, 60.0)

    async def _introduce(self, link: Link) -> bool:
        try:
            await asyncio.wait_for(link.protocol.wait_connected(), 10)
            stream = link.open()
            link.write(stream, wire.ping(self.name, now()), fin=True)
            # Messages may come before the PONG, and can be answered.
            answer = await asyncio.wait_for(stream.answer, 10)
        except (ConnectionError, TimeoutError, Lost):
            return False
        if answer is None or answer.type != wire.PONG:
            return False
        self._link = link
        self.counts["connects"] += 1
        self.connected.set()
        self.say(event="connected")
        return True

    async def _stay(self, link: Link) -> None:
        while not link.over.is_set():
            try:
                await asyncio.wait_for(link.over.wait(), self.heartbeat)
            except TimeoutError:
                if link.closed is not None:
                    return
                if time.monotonic() - link.last_heard > 3 * self.heartbeat:
                    link.close(0, "heartbeat timeout")
                    return
                stream = link.open()
                # Its client_id is ignored from the second one on.
                link.write(stream, wire.ping("anybody", now()), fin=True)
                stream.answer.add_done_callback(self._pong)

    def _pong(self, answer: asyncio.Future[wire.Frame | None]) -> None:
        frame = None if answer.cancelled() or answer.exception() else answer.result()
        self.counts["pongs" if frame is not None and frame.type == wire.PONG else "pongs_missed"] += 1

    def link_to(self, to: str) -> Link:
        """Return the connection to the server."""
        if self._link is None:
            raise NotConnected("not connected")
        return self._link

    def figures(self) -> dict[str, Any]:
        """Return what it has counted, and what the connection holds."""
        return {**super().figures(), **({} if self._link is None else self._link.figures())}


class Server(Peer):
    """The original's server.

    Settings, beside a `Peer`'s: ``port`` (0 for any), ``cert``, ``key``; ``refuse``, a reason for which every client is refused;
    ``eager``, messages sent to each client before its PONG.
    """

    def __init__(self, settings: dict[str, Any], say: Say) -> None:
        super().__init__("server", {"heartbeat": 45.0, **settings}, say)
        self._settings = settings
        self._configuration = self.stack.configure(client=False, settings=settings)
        self.refuse: str = settings.get("refuse", "")
        self.eager: int = settings.get("eager", 0)
        self.links: dict[str, Link] = {}

    async def run(self) -> None:
        """Serve until cancelled."""
        server, port = await self.stack.serve(self._settings.get("port", 0), self._configuration, self._accept)
        self.say(event="serving", port=port)
        try:
            while True:
                await asyncio.sleep(self.heartbeat / 10)
                silent = time.monotonic() - self.heartbeat
                for link in [link for link in self.links.values() if link.last_heard < silent]:
                    link.close(0, "heartbeat timeout")
        finally:
            for link in list(self.links.values()):
                link.close(0, "server shutdown")
            server.close()

    def _accept(self, protocol: Any) -> None:
        Link(self, protocol)

    def handle_frame(self, link: Link, exchange: Any, frame: wire.Frame) -> None:
        """Hold the first frame to be a PING."""
        if not link.peer_id and frame.type != wire.PING:
            link.close(1, "first frame must be PING")
            return
        super().handle_frame(link, exchange, frame)

    def handle_ping(self, link: Link, exchange: Any, client_id: str) -> None:
        """Register a client with its first PING; answer every one."""
        self.counts["pings"] += 1
        if not link.peer_id:
            # A second one of the same id is refused: the first may not have been missed yet.
            reason = self.refuse or ("client ID is required" if not client_id else "")
            if reason or client_id in self.links:
                link.close(1, reason or "failed to create session")
                return
            link.peer_id = client_id
            self.links[client_id] = link
            self.counts["connects"] += 1
            for number in range(self.eager):
                early = self.message(client_id, number.to_bytes(8, "big") + b"early", wait_ack=False, type=wire.EVENT)
                link.write(link.open(), wire.data(early, now()), fin=True)
            self.say(event="connected", id=client_id)
        link.write(exchange, wire.pong(now()), fin=True)

    def handle_end(self, link: Link) -> None:
        """Forget the client."""
        if self.links.get(link.peer_id) is link:
            del self.links[link.peer_id]
        super().handle_end(link)

    def link_to(self, to: str) -> Link:
        """Return the connection to a client."""
        if to not in self.links:
            raise NotConnected(f"{to} is not connected")
        return self.links[to]

    def figures(self) -> dict[str, Any]:
        """Return what it has counted, who is connected, and what the connections hold together."""
        held: Counter[str] = Counter()
        for link in self.links.values():
            held.update(link.figures())
        return {**super().figures(), **held, "clients": sorted(self.links)}
