"""One seed, one run: Trio's scheduler and the randomness that a simulation takes, for the length of a block."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import random
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any, TypeVar, cast, final

__all__ = ["seeded"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_SCHEDULER_FLAG = "_ALLOW_DETERMINISTIC_SCHEDULING"
_SCHEDULER_RANDOM = "_r"


def seeded(seed: int) -> _Seeded:
    """Make what runs inside repeatable: a context manager, and a decorator for functions, async or not.

    Use it around a whole run, ``with seeded(7): trio.run(main)``, or as ``@seeded(7)`` above a test. Inside, Trio steps its ready
    tasks in a seeded order, `os.urandom` is a seeded stream (aioquic takes its connection ids and TLS randoms there), and the
    module-level functions of `random` start from the seed. At the end all of it is as before. Entered while Trio runs already, it
    holds from there on. Blocks nest; a decorated function enters a block of its own at each call.

    It is for tests, and for one simulation at a time: these are settings of the whole process, threads included. **Keys and tokens
    made inside are predictable.** Not covered: time (use `trio.testing.MockClock`), `secrets` and `random.SystemRandom` (they keep
    their own reference to the operating system's source), OpenSSL (the key exchange differs from run to run, its lengths do not), and
    the order of sets.

    Args:
        seed: any whole number.

    Raises:
        RuntimeError: on entering, when this version of Trio has no deterministic scheduling to switch on; on leaving, when blocks
            overlap without nesting (all of them are undone then).
        TypeError: it decorates a generator function, whose body would run after the block has ended.
    """
    return _Seeded(seed)


@final
class _Seeded:
    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        scheduler = _scheduler_module()
        scheduler_random: random.Random = getattr(scheduler, _SCHEDULER_RANDOM)
        undo = (
            functools.partial(setattr, scheduler, _SCHEDULER_FLAG, getattr(scheduler, _SCHEDULER_FLAG)),
            functools.partial(scheduler_random.setstate, scheduler_random.getstate()),
            functools.partial(random.setstate, random.getstate()),
            functools.partial(setattr, os, "urandom", os.urandom),
        )
        _blocks.append((self, undo))
        # Three different streams: with one seed for all, the scheduler's choices would be correlated with the connection ids.
        setattr(scheduler, _SCHEDULER_FLAG, True)
        scheduler_random.seed(f"scheduler {self._seed}")
        random.seed(f"random {self._seed}")
        os.urandom = _seeded_urandom(f"urandom {self._seed}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        owners = [owner for owner, _undo in _blocks]
        if self not in owners:
            return  # an overlapping block has undone this one already, and said so
        nested = owners[-1] is self
        for _ in owners[-1:] if nested else owners:
            _owner, undo = _blocks.pop()
            for restore in undo:
                restore()
        if not nested:
            raise RuntimeError("seeded() blocks overlap without nesting: run one simulation at a time in a process")

    def __call__(self, function: _Function) -> _Function:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"seeded() cannot decorate the generator function {function.__qualname__}: use `with` inside it")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                with _Seeded(self._seed):
                    return await function(*args, **kwargs)

            return cast("_Function", call_async)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with _Seeded(self._seed):
                return function(*args, **kwargs)

        return cast("_Function", call)


# The blocks that are open, outermost first. Were they left in the wrong order unnoticed, the last one to be left would put the
# seeded `os.urandom` of another back, for the rest of the process.
_blocks: list[tuple[_Seeded, tuple[Callable[[], object], ...]]] = []


def _scheduler_module() -> ModuleType:
    """Find Trio's scheduler, which has no public switch for this.

    Raises:
        RuntimeError: it is not where it has been so far.
    """
    try:
        module = importlib.import_module("trio._core._run")
        found = isinstance(getattr(module, _SCHEDULER_FLAG), bool) and isinstance(
            getattr(module, _SCHEDULER_RANDOM), random.Random
        )
    except (ImportError, AttributeError):
        found = False
    if not found:
        raise RuntimeError(
            f"seeded() needs trio._core._run.{_SCHEDULER_FLAG} and .{_SCHEDULER_RANDOM}, which this version of Trio does not have: "
            "its scheduler cannot be made deterministic"
        )
    return module


def _seeded_urandom(seed: str) -> Callable[[int], bytes]:
    stream = random.Random(seed)

    def urandom(size: int, /) -> bytes:
        return stream.randbytes(size)

    return urandom
