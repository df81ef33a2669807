"""`OpsConfig`: what it takes, and what its messages say."""

from __future__ import annotations

import pytest

from quicflow_trio import ConfigurationError
from quicflow_trio.config import OpsConfig


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:8475", "127.0.0.1", 8475),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65_535),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("0.0.0.0:80", "0.0.0.0", 80),
    ],
)
def test_an_address_is_host_and_port(address: str, host: str, port: int) -> None:
    config = OpsConfig(address)
    assert (config.host, config.port) == (host, port)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "8475",
        "127.0.0.1",
        "127.0.0.1:",
        ":8475",
        "::1:8475",
        "[::1]",
        "host:65536",
        "host:-1",
        "host:x",
        "a b:1",
        8475,
        "http://127.0.0.1:8475",
        "[::1]x:1",
        "host:1\n",
    ],
)
def test_another_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OpsConfig\.address = .*expected HOST:PORT with a port from 0 to 65,535"):
        OpsConfig(address)


@pytest.mark.parametrize("token", ["", "two words", "line\n", "é", "x" * 1025, b"bytes"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OpsConfig\.token: expected None or 1 to 1,024 visible") as caught:
        OpsConfig(token=token)
    assert not token or repr(token) not in str(caught.value)


def test_a_token_does_not_show() -> None:
    assert "sesame" not in repr(OpsConfig(token="open-sesame"))


@pytest.mark.parametrize("field", ["max_connections", "max_streams", "max_body", "request_timeout", "keep_alive", "stop_grace"])
def test_a_limit_out_of_its_range_is_refused_by_name(field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"OpsConfig\.{field} = -1: expected a (whole )?number from"):
        OpsConfig(**{field: -1})  # type: ignore[arg-type]
