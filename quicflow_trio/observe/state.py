"""A value that can be watched: what `Client.state` is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar, final

from trio_util import AsyncValue  # type: ignore[attr-defined]  # the package has no py.typed

__all__ = ["Observable"]

T = TypeVar("T")


@final
class Observable(Generic[T]):
    """A value whose changes can be awaited. Read-only for those who watch.

    Built on `trio_util.AsyncValue`. Quick double changes may show as one in `transitions`: use the log for an audit.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value: AsyncValue[T] = AsyncValue(value)

    @property
    def value(self) -> T:
        """The value now."""
        return self._value.value

    async def wait_value(self, value: T | Callable[[T], bool]) -> T:
        """Wait until the value is ``value`` (or satisfies it, when it is a function); return it at once when it is already.

        Cancellation leaves nothing behind.
        """
        result: T = await self._value.wait_value(value)
        return result

    async def transitions(self) -> AsyncIterator[tuple[T, T]]:
        """Iterate over (new value, old value), from the next change on. It does not end by itself: leave the loop, or cancel it."""
        async for change in self._value.transitions():
            yield change

    def __repr__(self) -> str:
        return f"<Observable {self.value!r}>"


def set_value(observable: Observable[T], value: T) -> None:
    """Change the value; for its owner."""
    observable._value.value = value
