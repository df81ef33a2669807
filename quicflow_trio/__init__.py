r"""A messaging backbone for Trio programs, over QUIC.

Layers; imports point left only::

    errors, config, observe <- wire <- message, protocol \
                                                           link, connection, dispatch, peer <- client, server <- testing <- cli
    errors, config          <- quic <- net               /

``wire``, ``protocol`` and ``quic`` do no IO: bytes and ``now`` in, bytes and events out. ``net`` knows engines, not messages.
"""

from __future__ import annotations

from .auth import AuthenticationRequest, Authenticator, ClientCertificates, Identity, SignedTokens
from .broadcast import BroadcastReport
from .client import Client, open_client
from .client_endpoint import ClientEndpoint, open_endpoint
from .client_state import ClientState, ClientStatistics, StateChange
from .config import ClientConfig, Limits, OpsConfig, ServerConfig, TLSConfig
from .errors import (
    AckTimeout,
    AuthenticationFailed,
    ClientNotConnected,
    ConfigurationError,
    ConnectionClosed,
    ConnectionLost,
    ConnectionRefused,
    CredentialsRefused,
    CredentialsUnavailable,
    HandlerFailed,
    LaneLimitReached,
    LocalProtocolError,
    PayloadTooLarge,
    PermissionDenied,
    ProtocolError,
    QuicFlowError,
    RateLimited,
    RemoteProtocolError,
    SessionReplaced,
    SlowConsumer,
    WaitingTableFull,
)
from .message import Ack, AckStatus, Delivery, Message, MessageType
from .observe.events import (
    AckTimeoutEvent,
    BroadcastEvent,
    ConnectEvent,
    DisconnectEvent,
    DisconnectReason,
    ErrorEvent,
    Event,
    EventStream,
    HeartbeatTimeoutEvent,
    MessageEvent,
    MessageReceivedEvent,
    MessageSentEvent,
    ReconnectEvent,
    StateChangeEvent,
)
from .observe.histogram import HistogramSnapshot
from .observe.history import SessionChange
from .observe.hooks import Hooks
from .observe.logs import configure_logging
from .observe.metrics import MetricsSnapshot
from .peer import Peer, PeerStatistics, Sent
from .permissions import Permissions
from .rates import RateLimit
from .router import Handler, Request, Router
from .server import Server, ServerStatistics, serve
from .sessions import Session
from .tuning import tune_garbage_collector

__all__ = [
    "Ack",
    "AckStatus",
    "AckTimeout",
    "AckTimeoutEvent",
    "AuthenticationFailed",
    "AuthenticationRequest",
    "Authenticator",
    "BroadcastEvent",
    "BroadcastReport",
    "Client",
    "ClientCertificates",
    "ClientConfig",
    "ClientEndpoint",
    "ClientNotConnected",
    "ClientState",
    "ClientStatistics",
    "ConfigurationError",
    "ConnectEvent",
    "ConnectionClosed",
    "ConnectionLost",
    "ConnectionRefused",
    "CredentialsRefused",
    "CredentialsUnavailable",
    "Delivery",
    "DisconnectEvent",
    "DisconnectReason",
    "ErrorEvent",
    "Event",
    "EventStream",
    "Handler",
    "HandlerFailed",
    "HeartbeatTimeoutEvent",
    "HistogramSnapshot",
    "Hooks",
    "Identity",
    "LaneLimitReached",
    "Limits",
    "LocalProtocolError",
    "Message",
    "MessageEvent",
    "MessageReceivedEvent",
    "MessageSentEvent",
    "MessageType",
    "MetricsSnapshot",
    "OpsConfig",
    "PayloadTooLarge",
    "Peer",
    "PeerStatistics",
    "PermissionDenied",
    "Permissions",
    "ProtocolError",
    "QuicFlowError",
    "RateLimit",
    "RateLimited",
    "ReconnectEvent",
    "RemoteProtocolError",
    "Request",
    "Router",
    "Sent",
    "Server",
    "ServerConfig",
    "ServerStatistics",
    "Session",
    "SessionChange",
    "SessionReplaced",
    "SignedTokens",
    "SlowConsumer",
    "StateChange",
    "StateChangeEvent",
    "TLSConfig",
    "WaitingTableFull",
    "configure_logging",
    "open_client",
    "open_endpoint",
    "serve",
    "tune_garbage_collector",
]
