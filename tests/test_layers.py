"""The layers hold: imports point left only, there are no cycles, and each foreign library has one home.

The modules are read, not imported, so that an import inside a function or under TYPE_CHECKING is seen like any other. If one of
these fails, move the code rather than the line in the table: a layer that looks to the right can no longer be tested alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "quicflow_trio"

BASE = {"errors", "config", "background", "observe"}
MESSAGES = BASE | {"wire", "message", "protocol"}
QUIC = {"errors", "config", "quic"}
PEERS = {
    "backbone1",
    "connection",
    "crew",
    "deadlines",
    "dialect",
    "dispatch",
    "endings",
    "exchanges",
    "flow2",
    "gate",
    "gauges",
    "half_frames",
    "heartbeat",
    "lanes",
    "link",
    "liveness",
    "peer",
    "router",
}
SHARED = MESSAGES | QUIC | {"net", "auth", "permissions", "rates"} | PEERS
CLIENT = {"client", "supervisor", "client_endpoint", "credentials", "client_state", "reconnect"}
SERVER = {"server", "admission", "gatekeeper", "sessions", "broadcast"}
FACADE = {"", "tuning"}

# What each layer may import, beside itself. A layer is a subpackage or a module directly below the package; "" is the package's
# own __init__. A layer that is not listed has no place in the house yet: give it one here.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "rates": {"errors"},
    "config": {"errors", "rates"},
    "background": set(),
    "tuning": set(),
    "observe": {"errors", "config", "background"},
    "wire": BASE,
    "message": BASE | {"wire"},
    "permissions": {"errors", "message"},
    "auth": {"errors", "permissions", "rates"},
    "protocol": BASE | {"wire", "message"},
    "quic": {"errors", "config"},
    "net": QUIC,
    **dict.fromkeys(PEERS, SHARED),
    "ops": SHARED,
    **dict.fromkeys(CLIENT, SHARED | CLIENT),
    **dict.fromkeys(SERVER, SHARED | SERVER | {"ops"}),
    "": SHARED | CLIENT | SERVER | {"tuning"},
    "testing": SHARED | CLIENT | SERVER | FACADE,
    "simulate": SHARED | CLIENT | SERVER | FACADE | {"testing"},
    "cli": SHARED | CLIENT | SERVER | FACADE | {"testing", "simulate"},
    "__main__": {"cli"},
}

# Where a foreign library may be imported. Asyncio has no home: one loop of its own in the process and Trio's guarantees end there.
HOMES: dict[str, set[str]] = {
    "jwt": {"auth"},
    "aioquic": {"quic"},
    "betterproto2": {"wire"},
    "OpenSSL": {"quic"},
    "asyncio": set(),
    "anyio": set(),
    "httpx2": {"cli"},
    "hypercorn": {"ops"},
    "prometheus_client": {"observe"},
    "qh3": {"quic"},
    "starlette": {"ops"},
    "structlog": {"observe"},
    "uvloop": set(),
}

# These are given bytes and `now`, so that a test can replay them: no scheduler, clock, socket or randomness of their own.
PURE = {"wire", "protocol", "quic"}
IMPURE_MODULES = {"trio", "trio_util", "time", "socket", "select", "selectors", "random", "secrets"}
IMPURE_NAMES = {"urandom", "getrandom", "uuid1", "uuid4", "utcnow"}
IMPURE_CALLS = {("datetime", "now"), ("datetime", "today"), ("date", "today")}


class Module:
    """One source file: its dotted name, its layer and its syntax tree."""

    def __init__(self, path: Path, root: Path, package: str) -> None:
        parts = list(path.relative_to(root).with_suffix("").parts)
        self.is_package = parts[-1] == "__init__"
        if self.is_package:
            parts.pop()
        self.name = ".".join(parts)
        self.layer = layer_of(self.name, package)
        self.tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))

    def imports(self, known: Iterable[str], *, for_types: bool = True) -> Iterator[str]:
        """Yield the full name of every module imported anywhere in this one; without `for_types` not those under TYPE_CHECKING.

        ``from a import b`` names the module ``a.b`` where there is one, else ``a``.
        """
        skipped = set() if for_types else set(self._type_checking_nodes())
        for node in ast.walk(self.tree):
            if node in skipped:
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    yield full if full in known else base

    def _type_checking_nodes(self) -> Iterator[ast.AST]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
                for statement in node.body:
                    yield from ast.walk(statement)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        parts = self.name.split(".")
        parents = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parents, node.module] if node.module else parents)


def layer_of(name: str, package: str) -> str:
    """Return the layer of a module of the package: the first part below it, or "" for the package itself."""
    return name.removeprefix(package).removeprefix(".").partition(".")[0]


def read(root: Path, package: str = PACKAGE) -> dict[str, Module]:
    """Return every module of the package below `root`, by full name."""
    modules = (Module(path, root, package) for path in sorted((root / package).rglob("*.py")))
    return {module.name: module for module in modules}


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer_breaches(modules: dict[str, Module], package: str = PACKAGE) -> list[str]:
    """Return a line for each import that points right, and for each module without a layer."""
    found = []
    for module in modules.values():
        if module.layer not in ALLOWED:
            found.append(f"{module.name}: {module.layer!r} is not in the table of layers")
            continue
        for target in module.imports(modules):
            if not inside(target, package):
                continue
            layer = layer_of(target, package)
            if layer != module.layer and layer not in ALLOWED[module.layer]:
                found.append(f"{module.name} imports {target}: {module.layer!r} may not see {layer!r}")
    return found


def foreign_breaches(modules: dict[str, Module]) -> list[str]:
    """Return a line for each foreign library imported outside its home."""
    return [
        f"{module.name} imports {target}: only {sorted(HOMES[library]) or 'nobody'} may"
        for module in modules.values()
        for target in module.imports(modules)
        if (library := target.partition(".")[0]) in HOMES and module.layer not in HOMES[library]
    ]


def purity_breaches(modules: dict[str, Module]) -> list[str]:
    """Return a line for each clock, socket, scheduler or randomness that a pure layer reaches for."""
    found = []
    for module in modules.values():
        if module.layer not in PURE:
            continue
        found += [f"{module.name} imports {name}" for name in module.imports(modules) if name.partition(".")[0] in IMPURE_MODULES]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                if node.attr in IMPURE_NAMES or (owner, node.attr) in IMPURE_CALLS:
                    found.append(f"{module.name}:{node.lineno} uses {owner}.{node.attr}")
            elif isinstance(node, ast.ImportFrom):
                found += [
                    f"{module.name}:{node.lineno} imports {alias.name}" for alias in node.names if alias.name in IMPURE_NAMES
                ]
    return found


def cycle(modules: dict[str, Module]) -> list[str]:
    """Return one import cycle as a list of names that ends where it began, or nothing.

    An import inside a function counts: it is how a circle is usually hidden. One under TYPE_CHECKING does not, as long as it stays
    in its layer (which `layer_breaches` sees to): a request names its peer and the peer its router, and at run time neither imports
    the other. An ``__init__`` may gather names from its files; a file that takes a name back out of its own ``__init__`` closes a
    circle.
    """
    graph = {
        name: sorted({target for target in module.imports(modules, for_types=False) if target in modules and target != name})
        for name, module in modules.items()
    }
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for target in graph[name]:
            if found := visit(target):
                return found
        path.pop()
        done.add(name)
        return []

    for name in graph:
        if found := visit(name):
            return found
    return []


MODULES = read(ROOT)


def test_imports_point_left_only() -> None:
    assert layer_breaches(MODULES) == []


def test_every_foreign_library_stays_in_its_home() -> None:
    assert foreign_breaches(MODULES) == []


def test_pure_layers_read_no_clock_socket_or_randomness() -> None:
    assert purity_breaches(MODULES) == []


def test_there_is_no_import_cycle() -> None:
    assert cycle(MODULES) == []


def test_the_walk_saw_the_package() -> None:
    # An empty walk would let everything above pass.
    assert {"quicflow_trio", "quicflow_trio.errors", "quicflow_trio.quic.engine"} <= MODULES.keys()
    assert "quicflow_trio.errors" in set(MODULES["quicflow_trio.config"].imports(MODULES))


def house(root: Path, files: dict[str, str]) -> dict[str, Module]:
    """Build a made-up package of the same name from `files` and read it."""
    for name, source in {"__init__.py": "", **files}.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source), encoding="utf-8")
    return read(root)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("wire/framing.py", "from ..client import open_client"),
        ("wire/framing.py", "from .. import client"),
        ("wire/framing.py", "import quicflow_trio.client"),
        ("wire/framing.py", "def late():\n    from quicflow_trio import client"),
        ("wire/framing.py", "if TYPE_CHECKING:\n    from ..client import Client"),
        ("wire/framing.py", "from .. import Client"),
        ("wire/__init__.py", "from ..client import Client"),
        ("quic/engine.py", "from ..wire import framing"),
        ("net/udp.py", "from ..message import Message"),
        ("server.py", "from .client import Client"),
        ("client.py", "from .server import Server"),
        ("client.py", "from .testing import open_world"),
        ("attic.py", ""),
    ],
)
def test_a_made_up_look_to_the_right_is_caught(tmp_path: Path, file: str, source: str) -> None:
    files = {f"{name}.py": "" for name in ("client", "server", "message", "errors")}
    files |= {
        "wire/__init__.py": "",
        "wire/framing.py": "",
        "quic/__init__.py": "",
        "net/__init__.py": "",
        "testing/__init__.py": "",
    }
    assert layer_breaches(house(tmp_path, files)) == []
    assert len(layer_breaches(house(tmp_path, {file: source}))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("net/udp.py", "from aioquic.quic.connection import QuicConnection"),
        ("quic/tls.py", "import betterproto2"),
        ("server.py", "def run():\n    import asyncio.events"),
        ("cli.py", "import hypercorn.trio"),
    ],
)
def test_a_made_up_foreign_import_is_caught(tmp_path: Path, file: str, source: str) -> None:
    allowed = {"quic/hardened.py": "import aioquic.tls", "wire/codec.py": "import betterproto2"}
    assert foreign_breaches(house(tmp_path, allowed)) == []
    assert len(foreign_breaches(house(tmp_path, {file: source}))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import trio",
        "from time import monotonic",
        "def f():\n    import random",
        "import os\nx = os.urandom(8)",
        "from os import urandom",
        "import uuid\nx = uuid.uuid4()",
        "import datetime\nx = datetime.datetime.now()",
    ],
)
def test_a_made_up_impurity_is_caught(tmp_path: Path, source: str) -> None:
    assert purity_breaches(house(tmp_path, {"net/udp.py": source, "errors.py": "import trio"})) == []
    assert len(purity_breaches(house(tmp_path, {"protocol/lanes.py": source}))) == 1


def test_a_made_up_cycle_is_caught(tmp_path: Path) -> None:
    line = {"peer.py": "from .router import Router", "router.py": "from .dispatch import Request", "dispatch.py": ""}
    assert cycle(house(tmp_path, line)) == []
    ring = cycle(house(tmp_path, {"dispatch.py": "def f():\n    from .peer import Peer"}))
    assert ring[0] == ring[-1]
    assert {name.rpartition(".")[2] for name in ring} == {"peer", "router", "dispatch"}
    assert cycle(house(tmp_path, {"dispatch.py": "if TYPE_CHECKING:\n    from .peer import Peer"})) == []


def test_a_file_that_imports_its_own_package_is_a_cycle(tmp_path: Path) -> None:
    files = {"wire/__init__.py": "from .framing import Frame", "wire/framing.py": "from . import Frame"}
    assert cycle(house(tmp_path, files)) == [f"{PACKAGE}.wire", f"{PACKAGE}.wire.framing", f"{PACKAGE}.wire"]
