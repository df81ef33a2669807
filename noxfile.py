"""The checks, one session each: `nox` runs lint, typing and tests; `nox -l` lists all; `nox -s tests -- -k lanes` passes arguments on."""

from __future__ import annotations

import os
import shutil
import subprocess

import nox

SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
# Left out are the optional rules of flake8-async: they want a checkpoint in every coroutine (9xx; a send that has room yields once in
# 64 messages, on purpose), mistake async overrides for needless ones (124), and cannot follow `partial` into `start` (114, 128),
# and want pytest's matcher where a test looks at the very group that was raised (4xx).
TRIO_TRAPS = ("--select=ASYNC", "--extend-ignore=ASYNC114,ASYNC124,ASYNC126,ASYNC128,ASYNC4,ASYNC9")
SOURCES = ("quicflow_trio", "tests", "examples", "benchmarks")

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "typing", "tests"]
nox.options.reuse_existing_virtualenvs = True


def wake_pyenv() -> None:
    """Make every Python that pyenv has installed answer to its name (python3.12 ...), not only the selected one.

    Its shims are found on PATH for all versions, yet refuse to run the ones that are not selected: nox would report an
    installed interpreter as missing.
    """
    if shutil.which("pyenv") is None:
        return
    listing = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True, check=True).stdout.split()
    chosen = [name for name in listing if name.startswith(tuple(f"{version}." for version in SUPPORTED))]
    if chosen:
        os.environ["PYENV_VERSION"] = ":".join(chosen)


def answers(version: str) -> bool:
    """Return whether `pythonX.Y` starts; a shim on PATH alone proves nothing."""
    name = f"python{version}"
    return shutil.which(name) is not None and subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode == 0


wake_pyenv()
# At least the oldest supported one, so that a machine with none of them fails and does not pass with nothing tested.
INSTALLED = [version for version in SUPPORTED if answers(version)] or [SUPPORTED[0]]


@nox.session(python=INSTALLED)
def tests(session: nox.Session) -> None:
    """Run the test suite on every installed Python from 3.11 on. Arguments go to pytest."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", "-q", *(session.posargs or ["--cov"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and layout with ruff, and Trio's traps with flake8-async."""
    session.install(*nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]["lint"])
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("python", "-m", "flake8", *TRIO_TRAPS, "--extend-exclude=quicflow_trio/wire/proto", *SOURCES)


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types with mypy, and with pyright that every public name has a complete one."""
    session.install("-e", ".[test,typing,bench]", "nox")
    session.run("mypy")
    session.run("pyright", "--verifytypes", "quicflow_trio", "--ignoreexternal")


@nox.session
def protos(session: nox.Session) -> None:
    """Generate the protobuf code afresh and compare it with what is committed."""
    session.install("-e", ".[protos,lint]")
    session.run("python", "protos/generate.py", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run every example against real UDP sockets."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", "-q", "tests/test_examples.py", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """Run the live page's tests in the machine's own Chromium."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", "-q", "tests/browser", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz datagrams, encrypted packets and application frames: a full run takes half an hour; `-- --share 0.01` a moment."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.abuse.fuzz", *session.posargs)


@nox.session
def endure(session: nox.Session) -> None:
    """Prove with real processes over real UDP: `-- reconnects`, `kill`, `drain`, `rolling`, `stuck`, `original` or `soak` (half an hour); `-- --help`."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.endurance", *(session.posargs or ["--help"]))


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demo: a server and five clients over loopback UDP."""
    session.install("-e", ".")
    session.run("quicflow", "demo", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """Simulate 300 client-hours of faults and hold them against the promise, in about two minutes; `-- --help` for other runs."""
    session.install("-e", ".")
    session.run("quicflow", "simulate", *(session.posargs or ["--seeds", "15", "--hours", "5", "--clients", "4"]))


def run_benchmark(session: nox.Session, module: str, extras: str = "bench") -> None:
    """Install what a benchmark needs, and run it with the session's arguments."""
    session.install("-e", f".[{extras}]")
    session.run("python", "-m", module, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run all benchmark sessions but the profile, each in its short form. Arguments of any benchmark go behind `--`: see `-- --help`."""
    run_benchmark(session, "benchmarks", "bench,peers,qh3")


@nox.session(name="bench-throughput")
def bench_throughput(session: nox.Session) -> None:
    """Measure messages per second over one connection; `-- --engine qh3` adds the second engine."""
    run_benchmark(session, "benchmarks.throughput", "bench,qh3")


@nox.session(name="bench-latency")
def bench_latency(session: nox.Session) -> None:
    """Measure connect time, round trips, and latency at a steady rate."""
    run_benchmark(session, "benchmarks.latency")


@nox.session(name="bench-broadcast")
def bench_broadcast(session: nox.Session) -> None:
    """Measure how long a broadcast takes until the last client has it."""
    run_benchmark(session, "benchmarks.broadcast")


@nox.session(name="bench-connections")
def bench_connections(session: nox.Session) -> None:
    """Connect many clients and measure the server's memory and CPU; `-- --full` takes ten thousand."""
    run_benchmark(session, "benchmarks.connections")


@nox.session(name="bench-codec")
def bench_codec(session: nox.Session) -> None:
    """Measure encoding and decoding of single frames."""
    run_benchmark(session, "benchmarks.codec")


@nox.session(name="bench-growth")
def bench_growth(session: nox.Session) -> None:
    """Measure the cost per message against the number of clients and of messages so far."""
    run_benchmark(session, "benchmarks.growth")


@nox.session(name="bench-peers")
def bench_peers(session: nox.Session) -> None:
    """Do the same work with other messaging libraries, in turn."""
    run_benchmark(session, "benchmarks.peers", "bench,peers")


@nox.session(name="bench-ops")
def bench_ops(session: nox.Session) -> None:
    """Measure what watching costs: a thousand clients with the ops side on and off, in turn."""
    run_benchmark(session, "benchmarks.ops")


@nox.session(name="bench-attacker")
def bench_attacker(session: nox.Session) -> None:
    """Measure a client's round trips while another one attacks the server."""
    run_benchmark(session, "benchmarks.attacker", "bench,auth")


@nox.session
def profile(session: nox.Session) -> None:
    """Show where the time of a message goes: the hot functions of both processes, ours apart from aioquic's."""
    run_benchmark(session, "benchmarks.profile")
