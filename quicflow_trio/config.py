"""Configuration: frozen, complete, checked on construction.

Times are seconds, sizes are bytes. A value outside its range raises `ConfigurationError` with the field's name, the value and the
allowed range, at the line that wrote it and not an hour later in a background task.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import KW_ONLY, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from .errors import ConfigurationError
from .rates import RateLimit

__all__ = ["ClientConfig", "Limits", "OpsConfig", "Protocol", "ServerConfig", "TLSConfig", "check_protocol"]

_MIB = 1024 * 1024

PathLike = str | os.PathLike[str]

Protocol: TypeAlias = Literal["auto", "quicflow/2", "quic-backbone-v1"]
PROTOCOLS = get_args(Protocol)
"""Message protocols that can be chosen; ``auto`` offers both, quicflow/2 first."""

CONGESTION = ("reno", "lossy")
"""Congestion controls that can be chosen."""

ENGINES = ("aioquic", "qh3")
"""QUIC libraries that can be chosen, by their module's name."""


def check_protocol(name: str, protocol: str) -> None:
    """Raise unless ``protocol`` can be chosen.

    Raises:
        ConfigurationError: it cannot; ``name`` says where it stands.
    """
    if protocol not in PROTOCOLS:
        raise ConfigurationError(f"{name} = {protocol!r}: expected one of {', '.join(PROTOCOLS)}")


def _check(owner: object, name: str, low: float, high: float, *, whole: bool = False) -> None:
    value = getattr(owner, name)
    kind = "a whole number" if whole else "a number"
    accepted = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, accepted) or not low <= value <= high:
        raise ConfigurationError(f"{type(owner).__name__}.{name} = {value!r}: expected {kind} from {low:,} to {high:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound of one process, in one place.

    Attributes:
        payload: largest message payload and largest handler result, bytes.
        waiting: requests that may wait for an ack at once, per server and per client.
        waiting_per_session: the share of ``waiting`` that one session of a server may take; a client has one session and all of it.
        lanes: lanes each side of one session may open, the default lane included. Sessions resume with as many as a hello has room for:
            28 KiB of names, plus 32 bytes for each. Beyond that, what is under way ends with its connection.
        lane_window: bytes a peer may send on one lane ahead of its handlers.
        outbox_bytes: bytes of messages that wait on one lane to be written, before senders wait. As many again are kept after they were
            written, until the peer has received them (handled them, with `Delivery.REDELIVER`), to be sent again after a reconnect: a
            lane writes no more than this per round trip. It is also how many bytes of acks may wait to be written before a lane starts
            no further handler. Acks that have left are kept until the peer confirms them, up to 1 MiB of them. Our own peers confirm
            them long before; one that does not, and then reconnects, loses its session.
        dispatch_queue: decoded messages that wait for a handler, per lane; more stay undecoded, within ``lane_window``.
        half_open: server connections that have not completed their hello; the oldest is dropped for a newer one.
        initials_per_second: first packets of clients that a server answers in full, per second. While there come more, and while half of
            ``half_open`` is used up, a new client is first asked to show that it receives where it sends from (Retry, RFC 9000 section
            8.1): one round trip for the client, and next to nothing for the server. 0 always asks.
        total_bytes: received bytes that wait for handlers, over all sessions; near it every lane window shrinks.
    """

    payload: int = _MIB
    waiting: int = 50_000
    waiting_per_session: int = 25_000
    lanes: int = 16
    lane_window: int = 512 * 1024
    outbox_bytes: int = _MIB
    dispatch_queue: int = 1024
    half_open: int = 1024
    initials_per_second: int = 250
    total_bytes: int = 256 * _MIB

    def __post_init__(self) -> None:
        _check(self, "payload", 1, 1024 * _MIB, whole=True)
        _check(self, "waiting", 1, 10_000_000, whole=True)
        _check(self, "waiting_per_session", 1, 10_000_000, whole=True)
        _check(self, "lanes", 1, 1024, whole=True)
        _check(self, "lane_window", 16 * 1024, 1024 * _MIB, whole=True)
        _check(self, "outbox_bytes", 4096, 1024 * _MIB, whole=True)
        _check(self, "dispatch_queue", 1, 10_000_000, whole=True)
        _check(self, "half_open", 1, 1_000_000, whole=True)
        _check(self, "initials_per_second", 0, 1_000_000, whole=True)
        _check(self, "total_bytes", _MIB, 1024 * 1024 * _MIB, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PeerConfig:
    """What both sides of a connection configure alike."""

    heartbeat_interval: float = 15.0
    heartbeat_timeout: float = 45.0
    handshake_timeout: float = 10.0
    hello_timeout: float = 10.0
    authenticate_timeout: float = 5.0
    ack_timeout: float = 30.0
    handler_timeout: float = 30.0
    workers: int = 64
    close_grace: float = 3.0
    datagram_size: int = 1200
    congestion: Literal["reno", "lossy"] = "reno"
    engine: str = "aioquic"
    v1_results: Literal["plain", "json"] = "plain"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        _check(self, "heartbeat_interval", 0.01, 3600)
        _check(self, "heartbeat_timeout", 0.02, 36_000)
        if self.heartbeat_timeout <= self.heartbeat_interval:
            raise ConfigurationError(
                f"{type(self).__name__}.heartbeat_timeout = {self.heartbeat_timeout!r}: expected more than "
                f"heartbeat_interval, which is {self.heartbeat_interval!r}"
            )
        _check(self, "handshake_timeout", 0.01, 3600)
        _check(self, "hello_timeout", 0.01, 3600)
        _check(self, "authenticate_timeout", 0.001, 3600)
        _check(self, "ack_timeout", 0.001, math.inf)
        _check(self, "handler_timeout", 0.001, math.inf)
        _check(self, "workers", 1, 100_000, whole=True)
        _check(self, "close_grace", 0, 3600)
        _check(self, "datagram_size", 1200, 16_000, whole=True)
        if self.congestion not in CONGESTION or (self.congestion != "reno" and self.engine == "qh3"):
            allowed = ", ".join(CONGESTION if self.engine != "qh3" else CONGESTION[:1])
            raise ConfigurationError(
                f"{type(self).__name__}.congestion = {self.congestion!r}: expected one of {allowed} with the engine {self.engine}"
            )
        if self.engine not in ENGINES:
            raise ConfigurationError(f"{type(self).__name__}.engine = {self.engine!r}: expected one of {', '.join(ENGINES)}")
        if self.v1_results not in ("plain", "json"):
            raise ConfigurationError(f"{type(self).__name__}.v1_results = {self.v1_results!r}: expected 'plain' or 'json'")
        if find_spec(self.engine) is None:
            raise ConfigurationError(
                f"{type(self).__name__}.engine = {self.engine!r}: it is not installed; pip install 'quicflow_trio[{self.engine}]'"
            )
        if not isinstance(self.limits, Limits):
            raise ConfigurationError(f"{type(self).__name__}.limits = {self.limits!r}: expected a Limits")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig(_PeerConfig):
    """How one client behaves.

    Attributes:
        heartbeat_interval: seconds between pings; the server's, when that is shorter.
        heartbeat_timeout: seconds without any frame from the server after which the connection counts as lost; while a frame is incomplete,
            seconds in which it must bring 8 bytes each.
        handshake_timeout: seconds that one connection attempt may take until TLS is done.
        hello_timeout: seconds that the server may take to answer the hello.
        authenticate_timeout: seconds that a function given as ``credentials`` may take.
        backoff_initial: seconds before the first reconnect; it doubles from there.
        backoff_max: seconds that the doubling stops at.
        jitter: how far each wait is spread, as a share of it: 1 means from nothing to all of it, 0.2 means 80 % to 100 %. Ten thousand
            clients that lose their server in one instant come back over the whole wait only with 1.
        seed: seed of that jitter; None takes one from the operating system.
        ack_timeout: default for `Client.request`, seconds; ``math.inf`` waits for ever.
        handler_timeout: seconds that a handler may run.
        workers: handlers that may run at once (each lane can always run one).
        close_grace: seconds that leaving ``open_client`` may take to flush, finish handlers and say goodbye.
        datagram_size: UDP payload of the packets sent, bytes; above 1,200 only on links known to carry them.
        congestion: ``"reno"`` is fair to others on the same links (RFC 9002). ``"lossy"`` is for links that lose packets whatever one
            sends, over the air for one: 32 packets may always be in flight, and probes are at most a second apart. Set it on both
            sides; not for links that are full, nor for round trips of more than a second. Only with ``engine="aioquic"``.
        engine: the QUIC library underneath, ``aioquic`` or ``qh3`` (an extra). Each talks to the other; see the README for what qh3
            cannot do.
        v1_results: see `ServerConfig`.
        limits: see `Limits`.
    """

    backoff_initial: float = 1.0
    backoff_max: float = 60.0
    jitter: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _PeerConfig.__post_init__(self)
        _check(self, "backoff_initial", 0.001, 3600)
        _check(self, "backoff_max", self.backoff_initial, 86_400)
        _check(self, "jitter", 0, 1)
        if self.seed is not None:
            _check(self, "seed", -(2**63), 2**63, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(_PeerConfig):
    """How one server behaves; fields shared with `ClientConfig` mean the same.

    Attributes:
        heartbeat_interval: seconds between pings, asked of every client in the welcome.
        heartbeat_timeout: seconds without any frame from a client after which its connection is closed; frames that have begun as for
            `ClientConfig`.
        handshake_timeout: seconds a new connection may take until TLS is done.
        hello_timeout: seconds a client may take from there to its hello, and the answer to it.
        authenticate_timeout: seconds that the authenticator may take; no use beyond ``hello_timeout``.
        ack_timeout: default for `Session.request`, seconds; ``math.inf`` waits for ever.
        handler_timeout: seconds that a handler may run.
        workers: handlers that may run at once for one session (each lane can always run one).
        close_grace: seconds that ``aclose`` may take to say goodbye to every client.
        datagram_size: UDP payload of the packets sent, bytes; above 1,200 only on links known to carry them.
        congestion: ``"reno"`` is fair to others on the same links (RFC 9002). ``"lossy"`` is for links that lose packets whatever one
            sends, over the air for one: 32 packets may always be in flight, and probes are at most a second apart. Set it on both
            sides; not for links that are full, nor for round trips of more than a second. Only with ``engine="aioquic"``.
        engine: the QUIC library underneath, ``aioquic`` or ``qh3`` (an extra). Each talks to the other; see the README for what qh3
            cannot do.
        session_ttl: seconds that a session is kept after its connection was lost, for its client to resume it with the token that it
            was given. Then it ends: the server's calls that wait for that client raise `ConnectionLost`, handlers that still run are
            cancelled, and the client, when it returns, learns that it has a new session. 0 keeps none.
        away: what becomes of new messages and requests for a session that is kept but has no connection: ``"refuse"`` raises
            `ClientNotConnected`, ``"queue"`` lets them wait in its bounded outbox. Those under way when the connection was lost wait in
            either case. Broadcasts go to connected clients only.
        reset_key_file: file with the key of stateless resets; one that does not exist is made, with mode 0600. With the same key after a
            restart, also one by ``kill -9``, clients learn with their next packet that their connection is gone, and not from a
            heartbeat time-out. Servers behind one address share it. Whoever reads it can end any connection whose packets they see.
            None makes a key for this process only.
        protocol: the message protocols that it speaks: ``"quicflow/2"``, ``"quic-backbone-v1"`` (the original's), or ``"auto"`` for both.
        v1_duplicates: what becomes of a client of quic-backbone-v1 whose id is connected already: it takes over (``"replace"``), as with
            quicflow/2, or is told ``failed to create session`` and may try again (``"refuse"``), as the original does.
        allow_unauthenticated_v1: clients of quic-backbone-v1 can show no credentials. Where there is an authenticator, it is asked about
            those only whose client certificate names their id; the others are refused, or with True taken with every permission. None
            of them ever takes over the session of a client of quicflow/2 that has shown credentials.
        v1_results: how results go to peers of quic-backbone-v1: as they are (``"plain"``), or as ``"json"``, which is
            ``{"msg_id": ..., "status": ..., "result": base64}``. Both are read.
        rate: how much each client may send, unless its identity says otherwise; None does not limit it.
        limits: see `Limits`.
    """

    session_ttl: float = 120.0
    away: Literal["refuse", "queue"] = "refuse"
    protocol: Protocol = "auto"
    v1_duplicates: Literal["replace", "refuse"] = "replace"
    allow_unauthenticated_v1: bool = False
    reset_key_file: PathLike | None = None
    rate: RateLimit | None = None

    def __post_init__(self) -> None:
        _PeerConfig.__post_init__(self)
        _check(self, "session_ttl", 0, 7 * 86_400)
        if self.away not in ("refuse", "queue"):
            raise ConfigurationError(f"ServerConfig.away = {self.away!r}: expected 'refuse' or 'queue'")
        check_protocol("ServerConfig.protocol", self.protocol)
        if self.v1_duplicates not in ("replace", "refuse"):
            raise ConfigurationError(f"ServerConfig.v1_duplicates = {self.v1_duplicates!r}: expected 'replace' or 'refuse'")
        if not isinstance(self.allow_unauthenticated_v1, bool):
            raise ConfigurationError(
                f"ServerConfig.allow_unauthenticated_v1 = {self.allow_unauthenticated_v1!r}: expected a bool"
            )
        if self.reset_key_file is not None and not isinstance(self.reset_key_file, (str, os.PathLike)):
            raise ConfigurationError(f"ServerConfig.reset_key_file = {self.reset_key_file!r}: expected a path or None")
        if self.rate is not None and not isinstance(self.rate, RateLimit):
            raise ConfigurationError(f"ServerConfig.rate = {self.rate!r}: expected None or a RateLimit")


@dataclass(frozen=True, slots=True)
class OpsConfig:
    """How the ops side of a server behaves: metrics, clients, events and commands over HTTP.

    Attributes:
        address: ``HOST:PORT`` to listen on, an IPv6 host in brackets; port 0 takes a free one. A name is bound at its first address.
        token: what commands, and readers from elsewhere than this machine, show as ``Authorization: Bearer TOKEN``; None allows no
            commands, and readers on this machine only.
        max_connections: connections open at once; one more is answered 503.
        max_streams: event streams open at once; one more is answered 503.
        max_body: largest body of a request, bytes. A payload in base64 takes four thirds of itself: when ``Limits.payload`` is
            raised, raise this too.
        request_timeout: seconds that a client may take to send a request's body, or to take 64 KiB of an answer.
        keep_alive: seconds that a connection may take to send a request's head, the first or the next.
        stop_grace: seconds that requests under way have to end when the server stops.
    """

    address: str = "127.0.0.1:8475"
    _: KW_ONLY
    token: str | None = field(default=None, repr=False)
    max_connections: int = 64
    max_streams: int = 16
    max_body: int = 2 * _MIB
    request_timeout: float = 10.0
    keep_alive: float = 15.0
    stop_grace: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.address, str) or _split_address(self.address) is None:
            raise ConfigurationError(
                f"OpsConfig.address = {self.address!r}: expected HOST:PORT with a port from 0 to 65,535, "
                "such as 127.0.0.1:8475 or [::1]:8475"
            )
        # The value stays out of the message: it may be a secret with a line break at its end.
        if self.token is not None and not (isinstance(self.token, str) and _TOKEN.fullmatch(self.token)):
            raise ConfigurationError("OpsConfig.token: expected None or 1 to 1,024 visible ASCII characters without spaces")
        _check(self, "max_connections", 1, 10_000, whole=True)
        _check(self, "max_streams", 1, 10_000, whole=True)
        _check(self, "max_body", 1024, 2048 * _MIB, whole=True)
        _check(self, "request_timeout", 0.01, 3600)
        _check(self, "keep_alive", 0.01, 3600)
        _check(self, "stop_grace", 0, 60)

    @property
    def host(self) -> str:
        """The host to bind, without brackets."""
        return self._parts()[0]

    @property
    def port(self) -> int:
        """The port to bind; 0 takes a free one."""
        return self._parts()[1]

    def _parts(self) -> tuple[str, int]:
        parts = _split_address(self.address)
        assert parts is not None, "checked on construction"
        return parts


_TOKEN = re.compile(r"[\x21-\x7e]{1,1024}")
_ADDRESS = re.compile(r"(?:\[(?P<bracketed>[^\[\]\s]+)\]|(?P<plain>[^\[\]:\s/]+)):(?P<port>[0-9]{1,5})")


def _split_address(address: str) -> tuple[str, int] | None:
    """Return host and port of ``HOST:PORT``, or None when it is not of that form."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65_535:
        return None
    return match["bracketed"] or match["plain"], int(match["port"])


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """TLS 1.3 settings of one side. Build it with `TLSConfig.server` or `TLSConfig.client`.

    Attributes:
        is_client: which side it is for.
        cert_file: PEM certificate chain, leaf first; None on a client that shows no certificate.
        key_file: PEM private key of the leaf; None as above.
        ca_file: PEM certificates that a client trusts; None means the ones that ship with `certifi`.
        client_ca: PEM certificates that a server accepts client certificates from; None asks for none.
        server_name: name that the server's certificate must carry; None takes the host that was dialled.
        insecure: true switches verification off. For experiments on one machine only.
    """

    is_client: bool
    cert_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = None
    client_ca: Path | None = None
    server_name: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Path) and not value.is_file():
                raise ConfigurationError(f"TLSConfig.{entry.name} = {str(value)!r}: expected an existing PEM file")
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigurationError("TLSConfig.cert_file and TLSConfig.key_file: expected both or neither")
        if not self.is_client and self.cert_file is None:
            raise ConfigurationError("TLSConfig.cert_file = None: a server needs a certificate and its key")

    @classmethod
    def server(cls, cert_file: PathLike, key_file: PathLike, *, client_ca: PathLike | None = None) -> TLSConfig:
        """Return a server's settings.

        Raises:
            ConfigurationError: a file does not exist.
        """
        return cls(
            is_client=False,
            cert_file=Path(cert_file),
            key_file=Path(key_file),
            client_ca=None if client_ca is None else Path(client_ca),
        )

    @classmethod
    def client(
        cls,
        ca_file: PathLike | None = None,
        *,
        server_name: str | None = None,
        insecure: bool = False,
        cert_file: PathLike | None = None,
        key_file: PathLike | None = None,
    ) -> TLSConfig:
        """Return a client's settings; without ``ca_file`` the public authorities of `certifi` are trusted.

        Raises:
            ConfigurationError: a file does not exist, or only one of ``cert_file`` and ``key_file`` is given.
        """
        return cls(
            is_client=True,
            cert_file=None if cert_file is None else Path(cert_file),
            key_file=None if key_file is None else Path(key_file),
            ca_file=None if ca_file is None else Path(ca_file),
            server_name=server_name,
            insecure=insecure,
        )
