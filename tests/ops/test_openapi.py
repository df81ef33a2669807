"""The description names what there is, and nothing else."""

from __future__ import annotations

import re
from typing import Any, cast

import trio
from starlette.routing import Route

from quicflow_trio.config import OpsConfig
from quicflow_trio.ops.app import OpsApp, routes
from quicflow_trio.ops.clients import describe
from quicflow_trio.ops.events import EventFeed
from quicflow_trio.ops.openapi import description
from quicflow_trio.ops.page import LivePage
from quicflow_trio.ops.samples import Sampler
from tests.ops.harness import FakeClient, FakeServer


def all_routes() -> list[Route]:
    view = cast(Any, FakeServer())

    async def drain(grace: float, retry_after: float) -> None:
        await trio.lowlevel.checkpoint()

    app = OpsApp(view, LivePage(), OpsConfig(), Sampler(view), EventFeed(view, 1), drain, started_at=0.0)
    return [*routes(app)]


def test_it_names_exactly_the_routes() -> None:
    paths = cast(dict[str, dict[str, Any]], description("1.2.3")["paths"])
    described = {(path, method.upper()) for path, item in paths.items() for method in item}
    assert described == {(route.path, method) for route in all_routes() for method in route.methods or () if method != "HEAD"}


def test_it_says_which_routes_want_the_token() -> None:
    for path, item in cast(dict[str, dict[str, Any]], description("1.2.3")["paths"]).items():
        for method, operation in item.items():
            wanted: list[dict[str, list[str]]]
            wanted = [{"token": []}] if method == "post" else [] if path in ("/", "/healthz", "/readyz") else [{}, {"token": []}]
            assert operation["security"] == wanted, path
            named = re.findall(r"\{(\w+)\}", path)
            assert [entry["name"] for entry in operation["parameters"] if entry["in"] == "path"] == named


def test_every_reference_leads_somewhere() -> None:
    whole = description("1.2.3")
    references: list[str] = []

    def collect(value: object) -> None:
        if isinstance(value, dict):
            references.extend(entry for name, entry in value.items() if name == "$ref")
            for entry in value.values():
                collect(entry)
        elif isinstance(value, list):
            for entry in value:
                collect(entry)

    collect(whole)
    assert references
    for reference in references:
        target: Any = whole
        for name in reference.removeprefix("#/").split("/"):
            target = target[name]
    assert whole["info"]["version"] == "1.2.3"  # type: ignore[index]


def test_the_client_described_is_the_client_shown() -> None:
    schemas = cast(Any, description("1.2.3")["components"])["schemas"]
    assert schemas["Client"]["properties"].keys() == describe(cast(Any, FakeClient("a"))).keys()
