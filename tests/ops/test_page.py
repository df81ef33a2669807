"""The live page is served with a policy that lets a browser run only what is in it."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

import pytest

from quicflow_trio.ops.page import policy_for
from tests.ops.harness import open_ops


def sha(text: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


def test_the_policy_allows_what_is_in_the_page_and_requests_to_its_own_server() -> None:
    html = b"<html><style>a {}\n</style><script type='module'>\nlet a = 1;</script><SCRIPT>b()</SCRIPT></html>"
    assert policy_for(html).split("; ") == [
        "default-src 'none'",
        "script-src " + sha(b"\nlet a = 1;") + " " + sha(b"b()"),
        "style-src " + sha(b"a {}\n"),
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]


def test_a_page_without_script_may_run_none() -> None:
    assert "script-src 'none'; style-src 'none'" in policy_for(b"<p>hello</p>")


@pytest.mark.realtime
async def test_the_page_is_served_to_everybody() -> None:
    html = files("quicflow_trio.ops").joinpath("page.html").read_bytes()
    async with open_ops(token=None) as ops:
        answer = await ops.http.get("/", headers={"Host": "evil.example"})
        assert (answer.status_code, answer.content) == (200, html)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"] == policy_for(html)
        assert "unsafe" not in policy_for(html)
        assert answer.headers["x-frame-options"] == "DENY"
