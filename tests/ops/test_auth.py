"""Who may do what: every combination that matters, without a socket."""

from __future__ import annotations

import pytest

from quicflow_trio.ops.auth import FORWARDING, Caller, Verdict, is_loopback, judge

TOKEN = "open-sesame"


def verdict(caller: Caller, *, command: bool = False, token: str | None = TOKEN, bound_host: str = "127.0.0.1") -> Verdict:
    return judge(caller, command=command, token=token, bound_host=bound_host)


def caller(address: str = "127.0.0.1", host: str = "127.0.0.1:8475", **headers: str) -> Caller:
    return Caller.of((address, 50_000), {"host": host, **{name.replace("_", "-"): text for name, text in headers.items()}})


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8475", "localhost", "LOCALHOST:8475", "localhost.", "[::1]:8475", "[::1]", "127.1.2.3", "ops.example:8475"],
)
@pytest.mark.parametrize("token", [TOKEN, None])
def test_this_machine_reads_without_a_token_and_commands_with_one(address: str, host: str, token: str | None) -> None:
    local = caller(address, host)
    assert verdict(local, token=token, bound_host="ops.example") is Verdict.ALLOWED
    wanted = Verdict.TOKEN_WANTED if token else Verdict.NO_TOKEN_SET
    assert verdict(local, command=True, token=token) is wanted


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1", "0.0.0.0", "2001:db8::1", "::ffff:192.0.2.1", "fe80::1%eth0", ""])
@pytest.mark.parametrize("command", [False, True])
def test_elsewhere_nothing_goes_without_the_token(address: str, command: bool) -> None:
    for host in ("127.0.0.1:8475", "192.0.2.7:8475"):
        assert verdict(caller(address, host), command=command) is Verdict.TOKEN_WANTED
        assert verdict(caller(address, host), command=command, token=None) is Verdict.NO_TOKEN_SET


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8475",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "127.0.0.1:80@evil.example",
        "[::1",
        "[::1]evil",
        "[evil.example]",
        "127.0.0.1:8475:1",
        "192.0.2.1",
        "localhost:x",
    ],
)
def test_a_page_that_rebinds_its_name_cannot_read(host: str) -> None:
    # The browser connects from this machine, but names the site that the page came from.
    assert verdict(caller(host=host)) is Verdict.TOKEN_WANTED
    assert verdict(caller(host=host), token=None) is Verdict.NO_TOKEN_SET


@pytest.mark.parametrize("header", FORWARDING)
def test_behind_a_proxy_nobody_is_local(header: str) -> None:
    assert verdict(caller(**{header: "127.0.0.1"})) is Verdict.TOKEN_WANTED


def test_a_page_from_elsewhere_cannot_take_up_streams_but_a_link_may_be_followed() -> None:
    assert verdict(caller(sec_fetch_site="cross-site", sec_fetch_mode="no-cors")) is Verdict.TOKEN_WANTED
    assert verdict(caller(sec_fetch_site="cross-site", sec_fetch_mode="navigate")) is Verdict.ALLOWED
    assert verdict(caller(sec_fetch_site="same-origin", sec_fetch_mode="cors")) is Verdict.ALLOWED


@pytest.mark.parametrize("shown", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "])
@pytest.mark.parametrize("command", [False, True])
def test_the_token_opens_everything_from_everywhere(shown: str, command: bool) -> None:
    for address, host in (("127.0.0.1", "evil.example"), ("192.0.2.1", "ops.example")):
        assert verdict(caller(address, host, authorization=shown, x_forwarded_for="1.2.3.4"), command=command) is Verdict.ALLOWED


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \xe9\xff",
        "Bearer None",
    ],
)
def test_a_wrong_token_opens_nothing(shown: str) -> None:
    assert verdict(caller("192.0.2.1", authorization=shown)) is Verdict.TOKEN_WANTED
    assert verdict(caller(authorization=shown), command=True) is Verdict.TOKEN_WANTED
    assert verdict(caller(authorization=shown), command=True, token=None) is Verdict.NO_TOKEN_SET
    # Reading stays open on this machine: a page may remember the token of yesterday.
    assert verdict(caller(authorization=shown)) is Verdict.ALLOWED


def test_without_a_peer_address_nobody_is_local() -> None:
    assert verdict(Caller.of(None, {"host": "localhost"})) is Verdict.TOKEN_WANTED


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.255.0.1", "::1", "localhost", "::ffff:127.0.0.1"]))
    assert not any(map(is_loopback, ["", "0.0.0.0", "::", "128.0.0.1", "localhost.localdomain", "::ffff:1.2.3.4"]))
