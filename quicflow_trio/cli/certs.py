"""`quicflow certs`: an authority, and certificates below it, as files."""

from __future__ import annotations

import datetime
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from cyclopts import App, Parameter, validators

from ..quic.certificates import CertificateAndKey, make_authority, make_client_certificate, make_server_certificate
from .common import CommandFailed, ExitCode, Flag, JsonFlag

__all__ = ["app"]

EPILOGUE = """Writes ca.pem, ca.key, server.pem, server.key and, for each client,
client-ID.pem and client-ID.key. Keys are readable by their owner only.
Whoever has ca.key can make certificates that your clients trust: keep it
away from the server.

Exit codes: 0 written, 1 cannot write,
2 usage (a file exists already, a name is malformed).

Examples:
  quicflow certs
  quicflow certs --name backbone.example --name 192.0.2.7 --days 90
  quicflow certs --client worker-1 --client worker-2 --json
"""

app: App = App(name="certs", help_epilogue=EPILOGUE)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate with its key, and where they go."""

    made: CertificateAndKey
    certificate: Path
    key: Path


@app.default
def certs(
    *,
    out: Path = Path("certs"),
    name: Annotated[tuple[str, ...], Parameter(negative=(), show_default=", ".join)] = ("localhost", "127.0.0.1", "::1"),
    client: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    days: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=36_500))] = 365,
    force: Flag = False,
    json_output: JsonFlag = False,
) -> int:
    """Make a certification authority and the certificates of a server and of clients.

    Args:
        out: folder to write to; made when it does not exist.
        name: host name or address that clients reach the server by; may be given several times.
        client: client id to make a client certificate for; may be given several times.
        days: how long all of them are valid, days.
        force: replace files that exist.
        json_output: print one JSON object instead of text.
    """
    pairs = _make(out, name, client, datetime.timedelta(days=days))
    files = [file for pair in pairs for file in (pair.certificate, pair.key)]
    existing = [str(file) for file in files if file.exists()]
    if existing and not force:
        raise CommandFailed(ExitCode.USAGE, f"these exist already: {', '.join(existing)}; use --force to replace them, or --out")
    out.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        pair.made.write_pem(pair.certificate, pair.key)
    if json_output:
        print(json.dumps(_as_json(pairs)))
    else:
        _print(pairs, "127.0.0.1" if "127.0.0.1" in name else name[0])
    return ExitCode.OK


def _make(out: Path, names: tuple[str, ...], clients: tuple[str, ...], valid_for: datetime.timedelta) -> list[_Pair]:
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority(now=now, valid_for=valid_for)
    server = make_server_certificate(authority, names, now=now, valid_for=valid_for)
    pairs = [_Pair(authority, out / "ca.pem", out / "ca.key"), _Pair(server, out / "server.pem", out / "server.key")]
    for client_id in dict.fromkeys(clients):
        made = make_client_certificate(authority, client_id, now=now, valid_for=valid_for)
        # A client id may hold a slash; quoted, it stays a name in this folder.
        stem = f"client-{quote(client_id, safe='@ ')}"
        pairs.append(_Pair(made, out / f"{stem}.pem", out / f"{stem}.key"))
    return pairs


def _as_json(pairs: list[_Pair]) -> dict[str, object]:
    authority, server, *clients = pairs
    return {
        "ca": {"certificate": str(authority.certificate), "key": str(authority.key)},
        "server": {"certificate": str(server.certificate), "key": str(server.key)},
        "clients": [{"certificate": str(pair.certificate), "key": str(pair.key)} for pair in clients],
        "valid_until": server.made.certificate.not_valid_after_utc.isoformat(),
    }


def _print(pairs: list[_Pair], host: str) -> None:
    authority, server, *clients = pairs
    for pair in pairs:
        print(f"wrote {pair.certificate} and {pair.key}")
    print(f"valid until {server.made.certificate.not_valid_after_utc:%Y-%m-%d}")
    trust = shlex.quote(str(authority.certificate))
    require = f" --client-ca {trust}" if clients else ""
    show = ""
    if clients:
        show = f" --cert {shlex.quote(str(clients[0].certificate))} --key {shlex.quote(str(clients[0].key))}"
    print("\nnext, start a server:")
    print(f"  quicflow serve --cert {shlex.quote(str(server.certificate))} --key {shlex.quote(str(server.key))}{require}")
    print("and in another terminal:")
    print(f"  quicflow connect {shlex.quote(host)} --id me --ca {trust}{show}")
