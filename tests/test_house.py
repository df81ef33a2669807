"""The rules of the house that a machine can check: sizes, one test command, documented names, and no asyncio loop."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_origin

import pytest

import quicflow_trio

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ROOT / "quicflow_trio" / "wire" / "proto"
MODULES = sorted(path for path in (ROOT / "quicflow_trio").rglob("*.py") if not path.is_relative_to(GENERATED))
MODULE_LINES = 500
FUNCTION_LINES = 60


def too_long(source: str) -> str | None:
    """Return what is wrong with a module's length: over the limit, and no ``Length:`` line in its docstring says why."""
    count = len(source.splitlines())
    reason = re.search(r"^Length: \S", ast.get_docstring(ast.parse(source)) or "", re.MULTILINE)
    return f"{count} lines and no reason" if count > MODULE_LINES and reason is None else None


def long_functions(source: str) -> Iterator[str]:
    """Yield each function that is over the limit, its signature and docstring counted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            count = node.end_lineno - node.lineno + 1
            if count > FUNCTION_LINES:
                yield f"{node.name} at line {node.lineno}: {count} lines"


def test_no_module_is_longer_than_its_reason() -> None:
    verdicts = {str(path.relative_to(ROOT)): too_long(path.read_text(encoding="utf-8")) for path in MODULES}
    assert {name: verdict for name, verdict in verdicts.items() if verdict} == {}


def test_no_function_is_over_sixty_lines() -> None:
    verdicts = {str(path.relative_to(ROOT)): list(long_functions(path.read_text(encoding="utf-8"))) for path in MODULES}
    assert {name: verdict for name, verdict in verdicts.items() if verdict} == {}


def test_the_size_checks_catch_what_they_are_for() -> None:
    padding = "x = 1\n" * MODULE_LINES
    assert too_long(f'"""Two concepts."""\n{padding}') is not None
    assert too_long(f'"""One table.\n\nLength: the table is one thing.\n"""\n{padding}') is None
    assert len(list(long_functions("class A:\n    async def f(self):\n" + "        x = 1\n" * FUNCTION_LINES))) == 1
    assert list(long_functions("def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1))) == []


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    command = blocks[1].strip()  # the first block is the demo, the second the tests
    assert "pytest" in command
    assert len(command.splitlines()) == 1, "a newcomer pastes one line"
    assert command in [line.strip() for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("module", ["quicflow_trio", "quicflow_trio.testing"])
def test_every_public_name_exists_and_says_what_it_is(module: str) -> None:
    # The class's own docstring: a dataclass without one gets its signature as a docstring, a subclass inherits its parent's.
    public = importlib.import_module(module)
    assert len(public.__all__) == len(set(public.__all__)) > 0
    silent = []
    for name in public.__all__:
        value = getattr(public, name)
        if inspect.isclass(value):
            text = vars(value).get("__doc__") or ""
            documented = bool(text.strip()) and not text.startswith(f"{value.__name__}(")
        else:
            # A type alias has no docstring of its own; what stands below it in the source is for the reader.
            documented = not callable(value) or get_origin(value) is not None or bool(inspect.getdoc(value))
        if not documented:
            silent.append(name)
    assert silent == []


def test_the_facade_leaves_nothing_unlisted() -> None:
    # A public-looking name that is not in __all__ is one that users will find, use, and lose in the next release.
    visible = {name for name, value in vars(quicflow_trio).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert visible - set(quicflow_trio.__all__) - {"annotations"} == set()


WATCHED_PROGRAM = """
import asyncio
from functools import partial

born = []
real_init = asyncio.BaseEventLoop.__init__


def recording_init(loop, *args, **kwargs):
    born.append(type(loop).__name__)
    real_init(loop, *args, **kwargs)


asyncio.BaseEventLoop.__init__ = recording_init
asyncio.new_event_loop().close()
assert len(born) == 1, "the watch itself is blind"
born.clear()

import trio

from quicflow_trio import Message, MessageType, Router, open_client, serve
from quicflow_trio.testing import throwaway_tls

router = Router()


@router.on(MessageType.COMMAND)
async def echo(request):
    return request.message.payload


async def main():
    server_tls, client_tls = throwaway_tls()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, router, host="127.0.0.1", port=0, tls=server_tls))
        host, port = server.address
        async with open_client(host, port, client_id="watched", tls=client_tls) as client:
            ack = await client.request(Message.command(b"over UDP"))
            assert ack.result == b"over UDP", ack
        await server.aclose()


trio.run(main)
assert not born, f"event loops were made: {born}"
assert asyncio._get_running_loop() is None
print("no loop")
"""


@pytest.mark.realtime
def test_a_server_and_a_client_never_make_an_asyncio_loop() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WATCHED_PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout) == (0, "no loop\n"), run.stderr
