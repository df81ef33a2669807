"""Who may connect to `quicflow serve`: tokens, names in certificates, a rate; and what the other commands show."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Child, Quicflow

jwt = pytest.importorskip("jwt", reason="PyJWT is an extra and not installed")
pytestmark = pytest.mark.realtime

Serving = Callable[..., tuple[Child, str]]
SECRET = "a secret that is long enough for it"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text(SECRET + "\n")
    claims = {"sub": "me", "aud": "backbone", "iss": "login", "exp": time.time() + 600, "permissions": ["command"]}
    (tmp_path / "me.jwt").write_text(jwt.encode(claims, SECRET) + "\n")
    return tmp_path


def tokens(folder: Path) -> tuple[str, ...]:
    return ("--token-key", str(folder / "secret"), "--audience", "backbone", "--issuer", "login")


def test_tokens_let_in_and_say_what_is_permitted(
    serving: Serving, quicflow: Quicflow, trust: tuple[str, str], folder: Path
) -> None:
    _server, address = serving(*tokens(folder), "--ops", "127.0.0.1:0")
    token = ("--token", str(folder / "{id}.jwt"))
    ran = quicflow("request", address, "hello", "--id", "me", *trust, *token)
    assert (ran.code, ran.out) == (0, "HELLO\n")
    ran = quicflow("request", address, "hello", "--id", "me", "--type", "query", *trust, *token)
    assert (ran.code, ran.err) == (1, "quicflow: query on the default lane is not permitted\n")
    ran = quicflow("request", address, "hello", "--id", "you", *trust, "--token", str(folder / "me.jwt"))
    assert ran.code == 3
    assert ran.err.startswith("quicflow: the token is for another client id\nhint: show what the server asks for with --token")
    ran = quicflow("request", address, "hello", "--id", "you", *trust)
    assert ran.code == 3
    assert "a token is required" in ran.err


def test_a_client_is_listed_with_its_identity(
    start: Callable[..., Child], quicflow: Quicflow, certificates: Path, trust: tuple[str, str], folder: Path
) -> None:
    files = ("--cert", str(certificates / "server.pem"), "--key", str(certificates / "server.key"))
    server = start("serve", "--json", "--port", "0", *files, *tokens(folder), "--ops", "127.0.0.1:0")
    said = json.loads(server.line("port"))
    client = start("connect", f"127.0.0.1:{said['port']}", "--id", "me", *trust, "--token", str(folder / "me.jwt"))
    client.line("* connected")
    ran = quicflow("client", "me", "--ops", said["ops_url"], "--json")
    assert json.loads(ran.out)["identity"] == "me"
    assert "identity" in quicflow("client", "me", "--ops", said["ops_url"]).out


def test_a_rate_says_when_to_try_again(
    serving: Serving, quicflow: Quicflow, trust: tuple[str, str], stdin: Callable[[bytes], None]
) -> None:
    _server, address = serving("--rate", "2")
    stdin(b"request x\n" * 3)
    ran = quicflow("connect", address, "--id", "eager", *trust)
    assert ran.out.count("-> X") == 2
    assert "RateLimited: over the rate limit, try again in" in ran.out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--token-key", "secret"), "--token-key: needs --audience and --issuer"),
        (("--audience", "a"), "--audience and --issuer: need --token-key"),
        (("--client-names",), "--client-names: needs --client-ca"),
        (("--client-names", "--token-key", "secret"), "give one of them"),
        (("--token-key", "no such file", "--audience", "a", "--issuer", "b"), "no such file: No such file or directory"),
        (("--rate", "0"), "--rate"),
    ],
)
def test_what_does_not_fit_is_said_at_once(quicflow: Quicflow, certificates: Path, options: tuple[str, ...], text: str) -> None:
    files = ("--cert", str(certificates / "server.pem"), "--key", str(certificates / "server.key"))
    ran = quicflow("serve", "--port", "0", *files, *options)
    assert ran.code == 2
    assert text in " ".join(ran.err.split())


def test_a_token_that_is_not_there(quicflow: Quicflow, trust: tuple[str, str]) -> None:
    ran = quicflow("request", "127.0.0.1:1", "x", "--id", "me", *trust, "--token", "missing.jwt")
    assert (ran.code, ran.err) == (2, "quicflow: --token: missing.jwt: no such file\n")


def test_names_in_certificates(
    serving: Serving, quicflow: Quicflow, tmp_path: Path, certificates: Path, trust: tuple[str, str]
) -> None:
    folder = tmp_path / "certs"
    assert quicflow("certs", "--client", "me", "--out", str(folder)).code == 0
    _server, address = serving("--client-ca", str(folder / "ca.pem"), "--client-names")
    shown = (*trust, "--cert", str(folder / "client-me.pem"), "--key", str(folder / "client-me.key"))
    assert quicflow("request", address, "hello", "--id", "me", *shown).out == "HELLO\n"
    ran = quicflow("request", address, "hello", "--id", "you", *shown)
    assert ran.code == 3
    assert "the certificate does not name this client id" in ran.err
