"""qh3's connection with what it fixes for every connection made ours: credit, streams, transport parameters, TLS settings.

qh3 (2.1) is a Rust core for packets, recovery and streams, with TLS and the handshake in Python around it. The class here keeps the
Python half for the handshake only; from then on `qh3_engine` speaks to the core itself.
"""

from __future__ import annotations

import ssl
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

import certifi
from aioquic import tls as aioquic_tls
from aioquic.quic.configuration import QuicConfiguration as Settings
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from qh3._hazmat import Buffer, CryptoError, QuicConnectionCore
from qh3._hazmat import pull_quic_header as pull_header
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.packet import QuicTransportParameters, QuicVersionInformation, push_quic_transport_parameters
from qh3.quic.tls_bridge import QuicTlsBridge, QuicTlsBridgeError
from qh3.tls import AlertDescription, Epoch, Group, SignatureAlgorithm, load_pem_private_key, load_pem_x509_certificates

from ..errors import ConfigurationError
from .limits import CONNECTION_IDS, Windows
from .resets import ResetKey
from .tls import TLSContext
from .verify import check_server_purpose

__all__ = ["HandshakeRefusedError", "Qh3Core", "check", "make_configuration"]

_MAX_ACK_DELAY: Final = 25
"""Milliseconds that an ACK of ours may be late, as told to the peer; the core takes one."""

_ACK_DELAY_EXPONENT: Final = 3

_CRYPTO_ERROR: Final = 0x100
"""A TLS alert as a transport error code."""

_NO_COMMON_PROTOCOL: Final = _CRYPTO_ERROR + AlertDescription.no_application_protocol
_NO_ALPN: Final = "No common ALPN protocols"
"""What qh3 says where RFC 7301 wants an alert of its own; qh3's is handshake_failure."""

_SIGNATURES: Final = (
    SignatureAlgorithm.ECDSA_SECP256R1_SHA256,
    SignatureAlgorithm.ED25519,
    SignatureAlgorithm.RSA_PSS_RSAE_SHA256,
    SignatureAlgorithm.ECDSA_SECP384R1_SHA384,
    SignatureAlgorithm.RSA_PSS_RSAE_SHA384,
    SignatureAlgorithm.RSA_PSS_RSAE_SHA512,
    SignatureAlgorithm.RSA_PKCS1_SHA256,
)
"""What a client lets a server sign with: qh3's list leaves Ed25519 out, and takes SHA-1."""

_configurations: WeakKeyDictionary[TLSContext, dict[tuple[object, ...], QuicConfiguration]] = WeakKeyDictionary()


def make_configuration(
    tls: TLSContext, *, server_name: str | None, alpn: tuple[str, ...], idle_timeout: float, datagram_size: int
) -> QuicConfiguration:
    """Return qh3's settings for a connection; the same object for the same arguments, as certificates are parsed for it.

    Raises:
        ConfigurationError: qh3 cannot sign with the private key, or client certificates are asked for, which its server cannot do.
    """
    if tls.client_verifier is not None:
        raise ConfigurationError("TLSConfig.client_ca: engine 'qh3' cannot ask for client certificates; use engine 'aioquic'")
    known = _configurations.setdefault(tls, {})
    key = (server_name, alpn, idle_timeout, datagram_size)
    configuration = known.get(key)
    if configuration is None:
        # The settings for aioquic hold what was loaded and checked; reading the files a second time could give something else.
        if server_name is not None:
            settings = tls.client_configuration(
                server_name=server_name, alpn=alpn, idle_timeout=idle_timeout, datagram_size=datagram_size
            )
        else:
            settings = tls.server_configurations(alpn=alpn, idle_timeout=idle_timeout, datagram_size=datagram_size)[0]
        configuration = known[key] = _translate(settings)
    return configuration


def check(tls: TLSContext) -> None:
    """See whether qh3 can do what TLS settings ask for.

    Raises:
        ConfigurationError: it cannot.
    """
    make_configuration(tls, server_name="check" if tls.is_client else None, alpn=("check",), idle_timeout=1, datagram_size=1200)


def _translate(settings: Settings) -> QuicConfiguration:
    made = QuicConfiguration(
        alpn_protocols=settings.alpn_protocols,
        connection_id_length=settings.connection_id_length,
        idle_timeout=settings.idle_timeout,
        is_client=settings.is_client,
        max_datagram_size=settings.max_datagram_size,
        # Discovery goes up to 1,472 bytes at most, and what a path carries is configured: `datagram_size`.
        probe_datagram_size=False,
        server_name=settings.server_name,
        cadata=settings.cadata,
        # Without any authority qh3 takes the operating system's; the rest of this package those of certifi.
        cafile=certifi.where() if settings.is_client and settings.cadata is None else None,
        active_connection_id_limit=CONNECTION_IDS,
        signature_algorithms=list(_SIGNATURES),
        supported_versions=list(settings.supported_versions),
        verify_mode=settings.verify_mode,
    )
    if settings.certificate is not None and settings.private_key is not None:
        chain = [settings.certificate, *settings.certificate_chain]
        loaded = load_pem_x509_certificates(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
        made.certificate, made.certificate_chain = loaded[0], loaded[1:]
        pem = settings.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            made.private_key = load_pem_private_key(pem)
        except (ssl.SSLError, ValueError, CryptoError) as error:
            raise ConfigurationError(
                f"engine = 'qh3': expected an RSA, P-256, P-384 or Ed25519 key, got {type(settings.private_key).__name__}"
            ) from error
    return made


def _stream_window(windows: Windows) -> int:
    """Return the credit of any stream, bytes: the core has one window for all, and gives more when half of it is used up.

    A peer that was told of less would wait for ever once it has used that.
    """
    return max(windows.stream_in, windows.stream_out)


class HandshakeRefusedError(Exception):
    """The handshake must end; tells the peer why.

    Attributes:
        code: QUIC transport error code.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code: int = code


class _TlsBridge(QuicTlsBridge):
    """Offers the credit that was asked for. Stock offers the same to every stream, 100 streams, DATAGRAM frames, and marks of Chrome."""

    def __init__(self, configuration: QuicConfiguration, windows: Windows, **options: Any) -> None:
        self._windows = windows
        super().__init__(configuration, **options)
        # Stock clients offer ML-KEM too. Its key fills a second datagram, and an attempt at a port where nobody listens would not
        # fail at once: the network's answer to the first datagram is lost on the sending of the second.
        self.tls._supported_groups = [Group.X25519, Group.SECP256R1]

    def serialize_transport_parameters(self) -> bytes:
        """Return this side's transport parameters (RFC 9000 section 18)."""
        configuration, windows = self.configuration, self._windows
        parameters = QuicTransportParameters(
            max_idle_timeout=int(configuration.idle_timeout * 1000),
            initial_max_data=windows.connection,
            initial_max_stream_data_bidi_local=_stream_window(windows),
            initial_max_stream_data_bidi_remote=_stream_window(windows),
            initial_max_stream_data_uni=0,
            initial_max_streams_bidi=windows.streams,
            initial_max_streams_uni=0,
            ack_delay_exponent=_ACK_DELAY_EXPONENT,
            max_ack_delay=_MAX_ACK_DELAY,
            active_connection_id_limit=CONNECTION_IDS,
            initial_source_connection_id=self.local_initial_source_connection_id,
            version_information=QuicVersionInformation(
                chosen_version=self.version, available_versions=list(configuration.supported_versions)
            ),
        )
        if not configuration.is_client:
            parameters.original_destination_connection_id = self.original_destination_connection_id
            parameters.retry_source_connection_id = self.retry_source_connection_id
            parameters.stateless_reset_token = self.stateless_reset_token
        buf = Buffer(capacity=1024)
        push_quic_transport_parameters(buf, parameters)
        return buf.data


class Qh3Core(QuicConnection):
    """qh3's connection during the handshake: it makes the core and the TLS side, and leads data between the two.

    Args:
        configuration: of `make_configuration`.
        windows: receive credit that the peer starts with.
        original_destination_id: on a server, the destination id of the client's first datagram.
        retry_source_id: on a server, the id that the client was told to use by a Retry; None when there was none.
        reset_key: makes the stateless reset token of the first connection id; None makes up a random one. The core keeps those of the
            other ids to itself, so a client that has moved does not know a reset.
    """

    def __init__(
        self,
        configuration: QuicConfiguration,
        windows: Windows,
        original_destination_id: bytes | None = None,
        *,
        retry_source_id: bytes | None = None,
        reset_key: ResetKey | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_id,
            retry_source_connection_id=retry_source_id,
        )
        self._reset_token = None if reset_key is None else reset_key.token(self.host_cid)
        self.windows: Final = windows
        self._bridge: ref[_TlsBridge] | None = None

    @property
    def native(self) -> QuicConnectionCore | None:
        """The Rust core; None before `connect`, and on a server before the first good datagram."""
        return self._core

    def _create_core(self, remote_addr: Any, initial_dcid: bytes, now: float) -> None:
        configuration, windows = self._configuration, self.windows
        window = _stream_window(windows)
        # Send limits are nothing until the peer's transport parameters come: there is no 0-RTT.
        self._core = QuicConnectionCore(
            is_client=self._is_client,
            version=self._version or configuration.supported_versions[0],
            local_addr=("0.0.0.0", 0),
            remote_addr=remote_addr,
            source_cid=self.host_cid,
            destination_cid=initial_dcid,
            peer_address_validated=self._is_client or self._retry_source_connection_id is not None,
            active_connection_id_limit=CONNECTION_IDS,
            max_datagram_size=configuration.max_datagram_size,
            probe_datagram_size=False,
            idle_timeout=configuration.idle_timeout,
            ack_delay_exponent=_ACK_DELAY_EXPONENT,
            max_datagram_frame_size=None,
            peer_max_datagram_frame_size=None,
            connection_receive_window=windows.connection,
            connection_send_limit=0,
            stream_receive_window=window,
            stream_send_limit_bidi_local=0,
            stream_send_limit_bidi_remote=0,
            stream_send_limit_uni=0,
            max_stream_reassembly=window,
            local_max_streams_bidi=windows.streams,
            local_max_streams_uni=0,
            peer_max_streams_bidi=0,
            peer_max_streams_uni=0,
            initial_rtt=configuration.initial_rtt,
            max_ack_delay=_MAX_ACK_DELAY / 1000,
            initial_time=now,
        )
        self._applied_transport_parameters = None
        self._pre_handshake_state_replayed = True  # Nothing is written before the handshake.

    def _create_tls(self, remote_source_cid: bytes | None) -> QuicTlsBridge:
        self._tls = bridge = _TlsBridge(
            self._configuration,
            self.windows,
            version=self._version,
            local_initial_source_connection_id=self.host_cid,
            remote_initial_source_connection_id=remote_source_cid,
            original_destination_connection_id=self._original_destination_connection_id,
            retry_source_connection_id=self._retry_source_connection_id,
            stateless_reset_token=self._reset_token,
            version_change_handler=self._set_version,
        )
        self._bridge = ref(bridge)
        return bridge

    def release(self) -> None:
        """Cut what leads from TLS back to here, so that an ended connection is freed at once; see `lean.take_apart`."""
        # Stock drops it after the handshake, and the circle stays.
        bridge = None if self._bridge is None else self._bridge()
        if bridge is not None:
            vars(bridge.tls).clear()
            vars(bridge).clear()

    def _drain_core(self) -> None:
        """Leave the core's events to the engine, which takes them after each packet of the handshake."""

    def begin(self, data: bytes, address: tuple[str, int], now: float) -> bool:
        """Make the core for a client's first datagram; false when it is none."""
        try:
            version, _, _, destination = pull_header(data, 0, self._configuration.connection_id_length)[:4]
        except ValueError:
            return False
        if version not in self._configuration.supported_versions:
            return False
        self._remote_addr = address
        self._version = version
        self._create_core(address, destination, now)
        self._create_tls(remote_source_cid=None)
        return True

    def renew(self, data: bytes, address: tuple[str, int], now: float) -> bool:
        """Start anew if the datagram is a Retry or a version negotiation for this client; true when it was one of the two."""
        return self._receive_version_negotiation(data, address, now) or self._receive_retry(data, address, now)

    def packets(self, data: bytes) -> list[bytes]:
        """Split a datagram of the handshake into its packets: TLS must make the keys of the second out of the first.

        What follows the last packet stays with it. A client may fill its datagram up behind the packet instead of inside, as aioquic
        does. Stock hands the packet over alone, so the core counts 350 bytes of 1,200 as received, may answer three times that, and
        gives up with an exception where its certificate does not fit.
        """
        found, rest = [], data
        while rest:
            end = self._end_of_packet(rest)
            if end is None or self._end_of_packet(rest[end:]) is None:
                end = len(rest)
            found.append(rest[:end])
            rest = rest[end:]
        return found

    def _end_of_packet(self, data: bytes) -> int | None:
        try:
            end: int = pull_header(data, 0, self._configuration.connection_id_length)[9]
        except ValueError:
            return None
        return end or None

    def learn_peer_id(self, packet: bytes) -> None:
        """Note the source id of a packet that could be decrypted: TLS compares it with what the peer says of itself."""
        self._learn_remote_source_cid(packet)

    def take_crypto(self, epoch: int, offset: int, data: bytes) -> str | None:
        """Give TLS what came, and the core what TLS says to it; return the protocol agreed on once the handshake is done.

        Raises:
            HandshakeRefusedError: the handshake ends here.
        """
        bridge, core = self._tls, self._core
        assert bridge is not None, "asked during the handshake only"
        assert core is not None, "made before the TLS side"
        try:
            bridge.receive_crypto(Epoch(epoch), data, offset, version=core.version)
        except QuicTlsBridgeError as error:
            code = _NO_COMMON_PROTOCOL if error.reason_phrase == _NO_ALPN else int(error.error_code)
            raise HandshakeRefusedError(code, error.reason_phrase) from error
        if bridge.handshake_complete:
            alpn = bridge.tls.alpn_negotiated
            if alpn not in (self._configuration.alpn_protocols or ()):
                # Stock goes on without one.
                raise HandshakeRefusedError(_NO_COMMON_PROTOCOL, _NO_ALPN)
            self._check_purpose()
            self._drain_tls()
            return alpn
        self._drain_tls()
        return None

    def _check_purpose(self) -> None:
        der = self.peer_certificate()
        if der is None:
            return
        try:
            check_server_purpose(x509.load_der_x509_certificate(der))
        except (aioquic_tls.Alert, ValueError) as error:
            alert = getattr(error, "description", AlertDescription.bad_certificate)
            raise HandshakeRefusedError(_CRYPTO_ERROR + int(alert), str(error)) from error

    def peer_certificate(self) -> bytes | None:
        """Return the server's certificate as DER; None on a server, and on a client that verifies none."""
        if self._tls is None or not self._is_client or self._configuration.verify_mode is not None:
            return None
        certificate = self._tls.peer_certificate
        return None if certificate is None else certificate.public_bytes()

    def peer_windows(self) -> tuple[int, int]:
        """Return what the peer takes at first on streams that this side opens, and on those it opens itself, bytes."""
        assert self._tls is not None, "asked at the end of the handshake"
        parameters = self._tls.remote_transport_parameters
        if parameters is None:
            return 0, 0
        return parameters.initial_max_stream_data_bidi_remote or 0, parameters.initial_max_stream_data_bidi_local or 0

    def peer_reset_token(self) -> bytes | None:
        """Return the token by which the peer will say that it has lost this connection, None when it named none."""
        assert self._tls is not None, "asked at the end of the handshake"
        parameters = self._tls.remote_transport_parameters
        return None if parameters is None else parameters.stateless_reset_token

    def forget_tls(self) -> None:
        """Let go of the TLS state: half of what a connection weighs, and nothing is read from it any more."""
        self._tls = None
