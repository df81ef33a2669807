"""What the end of a connection means: final, or worth another attempt."""

from __future__ import annotations

import pytest

from quicflow_trio.endings import HANDSHAKE_TIMEOUT, UNREACHABLE, disconnect_reason, ending_text, loss, reason_label, refusal
from quicflow_trio.errors import AuthenticationFailed, ConnectionLost, ConnectionRefused, QuicFlowError, SessionReplaced
from quicflow_trio.observe.events import DisconnectReason
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.quic.engine import ConnectionEnded

FINAL = {
    CloseCode.SESSION_REPLACED: SessionReplaced,
    CloseCode.REJECTED: ConnectionRefused,
    CloseCode.AUTHENTICATION_FAILED: AuthenticationFailed,
}


def closed(code: int, reason: str = "because", *, by_peer: bool = True) -> ConnectionEnded:
    return ConnectionEnded(code, reason, application=True, by_peer=by_peer)


def alerted(alert: int, reason: str = "", *, by_peer: bool = False) -> ConnectionEnded:
    return ConnectionEnded(0x100 + alert, reason, application=False, by_peer=by_peer, tls_alert=alert)


@pytest.mark.parametrize("code", list(CloseCode))
def test_a_close_by_the_server_is_final_for_three_codes_only(code: CloseCode) -> None:
    error = refusal(closed(code))
    if code in FINAL:
        assert error is not None
        assert type(error()) is FINAL[code]
        assert str(error()) == "because"
    else:
        assert error is None


@pytest.mark.parametrize("code", [*CloseCode, 0x4242])
def test_a_close_of_our_own_is_never_final(code: int) -> None:
    # Else a client that closes a misbehaving server with some code would refuse itself for ever.
    assert refusal(closed(code, by_peer=False)) is None


def test_an_unknown_code_is_worth_another_attempt() -> None:
    assert refusal(closed(0x4242)) is None


def test_a_final_close_without_a_reason_names_its_code() -> None:
    error = refusal(closed(CloseCode.REJECTED, ""))
    assert error is not None
    assert "6" in str(error())


@pytest.mark.parametrize("alert", [41, 42, 43, 44, 45, 46, 48, 113, 116])
@pytest.mark.parametrize("by_peer", [True, False])
def test_certificate_alerts_are_authentication_failures(alert: int, by_peer: bool) -> None:
    error = refusal(alerted(alert, "the text", by_peer=by_peer))
    assert error is not None
    assert type(error()) is AuthenticationFailed
    assert ("the server" if by_peer else "this client") in str(error())
    assert "the text" in str(error())


@pytest.mark.parametrize("alert", [40, 70, 71, 109, 112, 120])
def test_alerts_of_two_configurations_that_never_fit_are_refusals(alert: int) -> None:
    error = refusal(alerted(alert))
    assert error is not None
    assert type(error()) is ConnectionRefused
    assert str(error()).endswith("from this client")


@pytest.mark.parametrize("alert", [10, 20, 50, 80])
def test_other_alerts_may_be_a_damaged_or_busy_server(alert: int) -> None:
    assert refusal(alerted(alert)) is None


def test_transport_errors_and_silence_are_not_final() -> None:
    assert refusal(ConnectionEnded(3, "flow", application=False, by_peer=True)) is None
    assert refusal(ConnectionEnded(0, "", application=False, by_peer=False, timed_out=True)) is None


def test_each_waiter_gets_an_exception_of_its_own() -> None:
    for factory in (refusal(closed(CloseCode.REJECTED)), loss(closed(CloseCode.SHUTDOWN))):
        assert factory is not None
        first: QuicFlowError = factory()
        assert factory() is not first


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (closed(8, "bye"), "connection ended by the peer: bye"),
        (closed(8, "", by_peer=False), "connection ended by this side: code 0x8"),
        (ConnectionEnded(3, "", application=False, by_peer=True), "connection ended by the peer: transport code 0x3"),
    ],
)
def test_a_loss_says_who_and_why(ended: ConnectionEnded, text: str) -> None:
    error = loss(ended)()
    assert type(error) is ConnectionLost
    assert str(error) == text


# -- reasons ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("code", list(CloseCode))
def test_every_close_code_is_a_reason_of_its_own(code: CloseCode) -> None:
    assert disconnect_reason(closed(code)).name == code.name
    assert reason_label(closed(code), is_client=False) == f"client:{code.name.lower()}"
    assert reason_label(closed(code), is_client=True) == f"server:{code.name.lower()}"
    assert reason_label(closed(code, by_peer=False), is_client=True) == f"client:{code.name.lower()}"


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (closed(0x77), DisconnectReason.OTHER),
        (ConnectionEnded(0, "", application=False, by_peer=False, timed_out=True), DisconnectReason.IDLE_TIMEOUT),
        (alerted(40), DisconnectReason.TLS),
        (ConnectionEnded(0, HANDSHAKE_TIMEOUT, application=False, by_peer=False), DisconnectReason.HANDSHAKE_TIMEOUT),
        (ConnectionEnded(0, UNREACHABLE, application=False, by_peer=False), DisconnectReason.UNREACHABLE),
        # The same words of a peer mean nothing.
        (ConnectionEnded(0, UNREACHABLE, application=False, by_peer=True), DisconnectReason.TRANSPORT),
        (ConnectionEnded(1, "", application=False, by_peer=True), DisconnectReason.TRANSPORT),
    ],
)
def test_other_ends_have_reasons_out_of_a_fixed_set(ended: ConnectionEnded, reason: DisconnectReason) -> None:
    assert disconnect_reason(ended) is reason


def test_what_a_peer_says_is_escaped_and_never_a_label() -> None:
    ended = closed(0, "bye\n2026 ERROR forged")
    assert ending_text(ended) == "bye\\n2026 ERROR forged"
    assert reason_label(ended, is_client=False) == "client:normal"
    assert ending_text(closed(3, "")) == "code 0x3"
