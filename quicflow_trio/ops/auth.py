"""Who may do what, decided from the head of a request alone.

Reading is open to programs on this machine; anything else wants the bearer token. "On this machine" takes more than the peer's
address: a page in a browser here can send requests to 127.0.0.1 as well, under a name of its own whose address it changes once the
page is loaded (DNS rebinding), and a reverse proxy makes the whole world look local.
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Caller", "Verdict", "is_loopback", "judge"]

FORWARDING = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
)
"""Headers that a proxy adds: with one of them the peer's address says nothing of who asks."""


class Verdict(enum.Enum):
    """What becomes of a request."""

    ALLOWED = "allowed"
    TOKEN_WANTED = "token wanted"
    """It needs the token, and shows none or a wrong one."""
    NO_TOKEN_SET = "no token set"
    """It needs a token, and this server has none: nobody may."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as the head of the request tells.

    Attributes:
        address: the peer's IP address; empty when it is not known.
        host: the ``Host`` header, or what HTTP/2 has for it.
        proxied: true when a proxy says that it passes the request on for somebody else.
        cross_site: true when a browser says that a page from elsewhere sends the request, and not a person who followed a link.
        authorization: the ``Authorization`` header; empty when there is none.
    """

    address: str
    host: str
    proxied: bool = False
    cross_site: bool = False
    authorization: str = ""

    @classmethod
    def of(cls, client: tuple[str, int] | None, headers: Mapping[str, str]) -> Caller:
        """Build it from the peer's address and the headers, by lower-case name."""
        elsewhere = headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate"
        return cls(
            address="" if client is None else client[0],
            host=headers.get("host", ""),
            proxied=any(name in headers for name in FORWARDING),
            cross_site=elsewhere,
            authorization=headers.get("authorization", ""),
        )


def judge(caller: Caller, *, command: bool, token: str | None, bound_host: str) -> Verdict:
    """Decide about one request.

    Args:
        caller: who asks.
        command: true when the request does something, false when it only reads.
        token: the token that was configured, if any.
        bound_host: the host that the operator bound, which a caller on this machine may name too.
    """
    if token is not None and _shows(caller.authorization, token):
        return Verdict.ALLOWED
    if not command and _is_local(caller, bound_host):
        return Verdict.ALLOWED
    return Verdict.NO_TOKEN_SET if token is None else Verdict.TOKEN_WANTED


def is_loopback(host: str) -> bool:
    """Return whether this IP address, or the name ``localhost``, can only be this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # A socket that takes both families shows 127.0.0.1 as ::ffff:127.0.0.1, which is_loopback knows from Python 3.13 on.
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or (mapped is not None and mapped.is_loopback)


def _is_local(caller: Caller, bound_host: str) -> bool:
    if caller.proxied or caller.cross_site or not is_loopback(caller.address):
        return False
    host = _host_of(caller.host)
    return is_loopback(host) or (host != "" and host.lower() == bound_host.lower())


def _host_of(header: str) -> str:
    """Return the host of a ``Host`` header, without port and brackets; empty when it is not of that form."""
    header = header.strip()
    if header.startswith("["):
        host, bracket, rest = header[1:].partition("]")
        return host if bracket and (not rest or _is_port(rest)) else ""
    host, colon, _ = header.partition(":")
    return host if not colon or _is_port(header[len(host) :]) else ""


def _is_port(text: str) -> bool:
    return text.startswith(":") and (text[1:] == "" or (text[1:].isascii() and text[1:].isdigit()))


def _shows(authorization: str, token: str) -> bool:
    scheme, _, shown = authorization.strip().partition(" ")
    if scheme.lower() != "bearer":
        return False
    # In constant time: how long a comparison takes must not tell how much of the token was right.
    return hmac.compare_digest(shown.strip().encode("utf-8", "surrogateescape"), token.encode("ascii"))
