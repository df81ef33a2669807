"""The fields of a request, taken out one by one and checked; what is wrong is refused with the field's name."""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Mapping
from typing import final

from starlette.requests import Request

from .jsontext import parse
from .refusals import bad_request

__all__ = ["Fields", "parameter_fields", "read_fields"]


@final
class Fields:
    """Named values of a JSON object or a query string. Take what is known, then call `end`: a misspelt name must not pass unseen.

    Args:
        values: the fields by name.
        as_text: true when numbers come as text, as in a query string.
    """

    def __init__(self, values: Mapping[str, object], *, as_text: bool = False) -> None:
        self._values = dict(values)
        self._as_text = as_text

    def given(self, name: str) -> bool:
        """Return whether the field is there; null says that it is not."""
        if self._values.get(name) is None:
            self._values.pop(name, None)
            return False
        return True

    def text(self, name: str, default: str | None = None, *, longest: int | None = None) -> str:
        """Take a field of text; without a default it must be there."""
        value = self._take(name, default)
        if not isinstance(value, str) or (longest is not None and len(value) > longest):
            raise bad_request(f"{name}: expected text" + ("" if longest is None else f" of at most {longest} characters"))
        return value

    def encoded_text(self, name: str) -> bytes:
        """Take a field of text as UTF-8."""
        try:
            return self.text(name).encode("utf-8")
        except UnicodeEncodeError:
            raise bad_request(f"{name}: expected text, and it has half a character in it; see {name}_base64") from None

    def base64(self, name: str) -> bytes:
        """Take a field of bytes in base64."""
        try:
            return b64decode(self.text(name), validate=True)
        except ValueError:
            raise bad_request(f"{name}: expected base64") from None

    def choice(self, name: str, default: str, choices: Mapping[str, object] | tuple[str, ...]) -> str:
        """Take a field that is one of a few words."""
        value = self._take(name, default)
        if not isinstance(value, str) or value not in choices:
            raise bad_request(f"{name}: expected one of {', '.join(choices)}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Take a field that is a number in a range, both ends included."""
        value = self._take(name, default)
        if self._as_text and isinstance(value, str):
            value = _number_of(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise bad_request(f"{name}: expected a number from {low:,} to {high:,}")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """Take a field that is a whole number in a range, both ends included."""
        value = self.number(name, default, low, high)
        if value != int(value):
            raise bad_request(f"{name}: expected a whole number from {low:,} to {high:,}")
        return int(value)

    def texts(self, name: str) -> list[str]:
        """Take a field that is a list of texts."""
        value = self._take(name, None)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise bad_request(f"{name}: expected a list of texts")
        return value

    def end(self) -> None:
        """Refuse what nobody took."""
        if self._values:
            raise bad_request(f"{next(iter(self._values))}: there is no such field here")

    def _take(self, name: str, default: object) -> object:
        value = self._values.pop(name, None)
        return default if value is None else value


async def read_fields(request: Request) -> Fields:
    """Read the body of a request: a JSON object, or nothing, which is an empty one."""
    body = await request.body()
    if not body:
        return Fields({})
    try:
        value = parse(body)
    except ValueError as exc:
        raise bad_request(f"the body is not JSON: {exc}") from None
    if not isinstance(value, dict):
        raise bad_request("the body is not a JSON object")
    return Fields(value)


def parameter_fields(request: Request) -> Fields:
    """Return the parameters of the query string; of several with one name, the last."""
    return Fields(request.query_params, as_text=True)


def _number_of(text: str) -> float:
    """Return the number that a parameter stands for; NaN, which is in no range, when it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
