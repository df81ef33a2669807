"""The ops side as a whole: what runs, and how it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial

import trio

from ..config import OpsConfig
from ..observe.logs import Logger, get_logger
from .app import OpsApp, build_app
from .auth import is_loopback
from .events import EventFeed
from .exchange import ExchangeApp
from .http import Connections, bind, url_of
from .page import LivePage
from .samples import Sampler
from .view import ServerView

__all__ = ["bind_ops", "run_ops"]

log: Logger = get_logger(__name__)

RESTART_PAUSE = 1.0
"""Seconds before a part that failed is started again."""


async def bind_ops(config: OpsConfig) -> trio.SocketListener:
    """Listen where the configuration says; the listener is for `run_ops`.

    Raises:
        OSError: the address cannot be bound; the text says which and why.
    """
    return await bind(config.host, config.port)


async def run_ops(
    view: ServerView,
    config: OpsConfig,
    *,
    listener: trio.SocketListener | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve those who operate a server until it is cancelled. Start it in a nursery, which gets the URL once it is bound.

    Cancelled, it takes no further connection, gives requests under way ``config.stop_grace`` seconds to end, and leaves nothing behind.
    Once bound it raises no `Exception`, whatever comes in: what fails is logged, closed or started again.

    Args:
        view: the server.
        config: see `OpsConfig`.
        listener: what `bind_ops` returned; None binds now.
        task_status: Trio's; it is given the URL.

    Raises:
        OSError: the address cannot be bound.
    """
    page = LivePage()
    if listener is None:
        listener = await bind_ops(config)
    with closing(listener.socket):
        _warn_if_exposed(listener.socket.getsockname()[0], config)
        async with trio.open_nursery() as tasks:
            sampler, feed = Sampler(view), EventFeed(view, config.max_streams)
            app = OpsApp(view, page, config, sampler, feed, _Drain(view, tasks).start, started_at=trio.current_time())
            http = ExchangeApp(build_app(app), max_body=config.max_body, request_timeout=config.request_timeout)
            connections = Connections(http, config)
            url = url_of(listener)
            log.info("the ops side listens", url=url)
            task_status.started(url)
            # The exchanges get a moment more than the tasks around them, which a cancellation ends at once.
            with trio.CancelScope(shield=True) as grace:
                async with trio.open_nursery() as exchanges:
                    ending = trio.Event()
                    # Whatever cancels these tasks ends them before the exchanges, which have their grace first.
                    tasks.start_soon(_keep_running, sampler.run)
                    tasks.start_soon(_keep_running, partial(connections.accept, listener, exchanges))  # noqa: ASYNC111
                    tasks.start_soon(_end_when_cancelled, ending, grace, config.stop_grace)  # noqa: ASYNC111
                    await ending.wait()
                    feed.end()
                    await connections.finish()


async def _end_when_cancelled(ending: trio.Event, grace: trio.CancelScope, seconds: float) -> None:
    try:
        await trio.sleep_forever()
    finally:
        grace.deadline = trio.current_time() + seconds
        ending.set()


async def _keep_running(part: Callable[[], Awaitable[None]]) -> None:
    """Run a part of the ops side for ever; a defect in it must not end the backbone."""
    while True:
        try:
            await part()
        except Exception:
            log.exception("a part of the ops side failed and is started again")
        await trio.sleep(RESTART_PAUSE)


class _Drain:
    """Drains the server in a task outside the exchanges: it lasts longer than the one that asked for it."""

    def __init__(self, view: ServerView, tasks: trio.Nursery) -> None:
        self._view = view
        self._tasks = tasks
        self._running = False

    async def start(self, grace: float, retry_after: float) -> None:
        """Begin, unless it has begun, and return when the server knows."""
        if not (self._running or self._view.draining):
            self._running = True
            log.info("an operator drains the server", grace=grace, retry_after=retry_after)
            self._tasks.start_soon(self._run, grace, retry_after)
            # The task runs within the next turn of the scheduler, and this one goes on in the turn after that at the earliest.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()

    async def _run(self, grace: float, retry_after: float) -> None:
        try:
            await self._view.drain(grace=grace, retry_after=retry_after)
        except Exception:
            log.exception("draining failed")
        finally:
            self._running = False


def _warn_if_exposed(host: str, config: OpsConfig) -> None:
    if config.token is None and not is_loopback(host):
        log.warning(
            "the ops side listens beyond this machine and has no token: from there only its health and the page can be read; "
            "set OpsConfig(token=...), and know that it travels unencrypted",
            host=host,
        )
