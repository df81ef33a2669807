"""The routes of the ops side, and what each of them answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import NoReturn
from urllib.parse import unquote

import trio
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from ..config import OpsConfig
from ..observe.logs import Logger, get_logger
from ..observe.prometheus import CONTENT_TYPE, metrics_text
from . import commands
from .auth import Caller, Verdict, judge
from .clients import ClientQuery, list_clients, one_client
from .events import EventFeed, EventQuery
from .fields import Fields, parameter_fields, read_fields
from .jsontext import json_response
from .openapi import description
from .page import LivePage
from .refusals import HANDLERS, Refusal
from .samples import INTERVAL, KEPT, Sampler
from .view import ServerView

__all__ = ["OpsApp", "build_app"]

Handler = Callable[[Request], Awaitable[ASGIApp]]
Command = Callable[[Request, Fields], Awaitable[Response]]

log: Logger = get_logger(__name__)

LONGEST_GRACE = 86_400.0

NO_TOKEN_SET = (
    "this server has no token, so nobody may do this: start it with one, by OpsConfig(token=...), --ops-token or QUICFLOW_OPS_TOKEN; "
    "without one it can only be read, and only from the machine it runs on"
)
TOKEN_WANTED = "this wants the server's token, as in: Authorization: Bearer TOKEN"
WRONG_TOKEN = "the token given is not the server's; it is wanted as in: Authorization: Bearer TOKEN"


@dataclass(frozen=True, slots=True)
class OpsApp:
    """What the handlers work with.

    Attributes:
        view: the server.
        page: what is shown at ``/``.
        config: see `OpsConfig`.
        sampler: the figures over time.
        feed: the event streams.
        drain: starts to drain the server, with grace and retry_after in seconds, and returns when it has begun.
        started_at: when the ops side started, Trio's clock.
    """

    view: ServerView
    page: LivePage
    config: OpsConfig
    sampler: Sampler
    feed: EventFeed
    drain: Callable[[float, float], Awaitable[None]]
    started_at: float

    # -- open to everybody -------------------------------------------------------------------------------------------
    async def show_page(self, request: Request) -> Response:
        """Answer with the page; it holds no data, and asks for it like everybody else."""
        return self.page.response()

    async def health(self, request: Request) -> Response:
        """Answer that the process runs."""
        uptime = trio.current_time() - self.started_at
        return json_response({"status": "ok", "uptime_seconds": uptime, "version": version("quicflow_trio")})

    async def ready(self, request: Request) -> Response:
        """Answer whether new clients are taken."""
        if self.view.draining:
            return json_response({"ready": False, "reason": "draining"}, 503)
        return json_response({"ready": True})

    # -- reading -----------------------------------------------------------------------------------------------------
    async def metrics(self, request: Request) -> Response:
        """Answer with the figures as Prometheus reads them."""
        return Response(metrics_text(self.view.metrics()), headers={"Content-Type": CONTENT_TYPE})

    async def metrics_json(self, request: Request) -> Response:
        """Answer with the figures as JSON."""
        return json_response(self.view.metrics().as_json())

    async def samples(self, request: Request) -> Response:
        """Answer with the figures over time."""
        fields = parameter_fields(request)
        count = fields.whole("seconds", 300, 1, KEPT)
        fields.end()
        return json_response({"interval": INTERVAL, "samples": self.sampler.recent(count)})

    async def clients(self, request: Request) -> Response:
        """Answer with one page of clients."""
        query = ClientQuery.of(parameter_fields(request))
        return _json(await list_clients(self.view, query, time.time()))

    async def client(self, request: Request) -> Response:
        """Answer with one client and its history."""
        return json_response(one_client(self.view, _client_id(request)))

    async def events(self, request: Request) -> ASGIApp:
        """Answer with events, as they come."""
        return self.feed.answer(EventQuery.of(request))

    async def openapi(self, request: Request) -> Response:
        """Answer with the description of all this."""
        return json_response(description(version("quicflow_trio")))

    # -- commands ----------------------------------------------------------------------------------------------------
    async def disconnect(self, request: Request, fields: Fields) -> Response:
        """Disconnect a client."""
        return _json(await commands.disconnect(self.view, _client_id(request), fields))

    async def send(self, request: Request, fields: Fields) -> Response:
        """Send a message."""
        return _json(await commands.send(self.view, _client_id(request), fields))

    async def request(self, request: Request, fields: Fields) -> Response:
        """Send a message and answer with its ack."""
        return _json(await commands.request(self.view, _client_id(request), fields))

    async def broadcast(self, request: Request, fields: Fields) -> Response:
        """Send one message to many."""
        return _json(await commands.broadcast(self.view, fields))

    async def start_drain(self, request: Request, fields: Fields) -> Response:
        """Begin to stop, and answer at once."""
        grace = fields.number("grace", 30.0, 0, LONGEST_GRACE)
        retry_after = fields.number("retry_after", 1.0, 0, LONGEST_GRACE)
        fields.end()
        await self.drain(grace, retry_after)
        return json_response({"draining": True}, 202)

    # -- who may -----------------------------------------------------------------------------------------------------
    def reading(self, handler: Handler) -> Handler:
        """Return the handler behind the check for those who read."""

        async def checked(request: Request) -> ASGIApp:
            self._check(request, command=False)
            return await handler(request)

        return checked

    def command(self, handler: Command) -> Handler:
        """Return the handler behind the check for those who command; only then is the body read."""

        async def checked(request: Request) -> ASGIApp:
            self._check(request, command=True)
            return await handler(request, await read_fields(request))

        return checked

    def _check(self, request: Request, *, command: bool) -> None:
        caller = Caller.of(request.scope["client"], request.headers)
        verdict = judge(caller, command=command, token=self.config.token, bound_host=self.config.host)
        if verdict is not Verdict.ALLOWED:
            self._deny(caller, verdict)

    def _deny(self, caller: Caller, verdict: Verdict) -> NoReturn:
        if caller.authorization:
            log.warning("a request showed a token that is not ours", remote=caller.address)
        if verdict is Verdict.NO_TOKEN_SET:
            raise Refusal(403, "Forbidden", NO_TOKEN_SET)
        raise Refusal(401, "Unauthorized", WRONG_TOKEN if caller.authorization else TOKEN_WANTED, {"WWW-Authenticate": "Bearer"})


def routes(app: OpsApp) -> Iterator[Route]:
    """Yield every route there is."""
    yield Route("/", app.show_page)
    yield Route("/healthz", app.health)
    yield Route("/readyz", app.ready)
    for path, reader in {
        "/metrics": app.metrics,
        "/metrics.json": app.metrics_json,
        "/samples": app.samples,
        "/clients": app.clients,
        "/clients/{client_id}": app.client,
        "/events": app.events,
        "/openapi.json": app.openapi,
    }.items():
        yield Route(path, app.reading(reader))
    for path, command in {
        "/clients/{client_id}/disconnect": app.disconnect,
        "/clients/{client_id}/send": app.send,
        "/clients/{client_id}/request": app.request,
        "/broadcast": app.broadcast,
        "/drain": app.start_drain,
    }.items():
        yield Route(path, app.command(command), methods=["POST"])


def build_app(app: OpsApp) -> ASGIApp:
    """Return the ASGI application: the routes, and errors as JSON."""
    return ExceptionMiddleware(Router([*routes(app)], redirect_slashes=False), handlers=HANDLERS)


def _json(text: bytes) -> Response:
    return Response(text, media_type="application/json")


def _client_id(request: Request) -> str:
    # The path is routed as it was sent, so that an id may have a slash in it.
    return unquote(request.path_params["client_id"])
