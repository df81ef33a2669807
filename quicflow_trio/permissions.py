"""What a client may send: `Permissions`, rules of message types and targets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, final

from .errors import ConfigurationError
from .message import MessageType

__all__ = ["Permissions"]

_TYPES: Final = {member.name.lower(): int(member) for member in MessageType}


class _Targets:
    """Which targets the rules of one message type allow."""

    __slots__ = ("any", "exact", "prefixes")

    def __init__(self) -> None:
        self.any: bool = False
        self.exact: set[str] = set()
        self.prefixes: tuple[str, ...] = ()

    def add(self, target: str) -> None:
        if target == "*":
            self.any = True
        elif target.endswith("*"):
            self.prefixes += (target[:-1],)
        else:
            self.exact.add(target)


@final
class Permissions:
    """What a client may send. Everything that no rule allows is denied::

        Permissions("query", "event:", "command:orders/*")

    allows queries anywhere, events on the default lane only, and commands on lanes whose names begin with ``orders/``.

    Args:
        rules: each ``TYPE`` or ``TYPE:TARGET``. A type is ``command``, ``event``, ``query``, ``response`` or ``*`` for all; without a
            target any will do. The target of a message is the name of its lane, empty for the default lane; a ``*`` at the end stands
            for any rest. Targets of your own are checked by your handlers, with `allows`.

    Attributes:
        rules: as given.

    Raises:
        ConfigurationError: a rule cannot be read.
    """

    __slots__ = ("_by_type", "rules")

    def __init__(self, *rules: str) -> None:
        self.rules: tuple[str, ...] = rules
        self._by_type: dict[int, _Targets] = {}
        for rule in rules:
            for type, target in _parse(rule):
                self._by_type.setdefault(type, _Targets()).add(target)

    @property
    def everything(self) -> bool:
        """True when every type is allowed everywhere."""
        return "*" in self.rules or "*:*" in self.rules

    def allows(self, type: MessageType | int, target: str = "") -> bool:
        """Tell whether a message of this type may be sent to this target."""
        targets = self._by_type.get(type)
        if targets is None:
            return False
        return targets.any or target in targets.exact or target.startswith(targets.prefixes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permissions) and set(self.rules) == set(other.rules)

    def __hash__(self) -> int:
        return hash(frozenset(self.rules))

    def __repr__(self) -> str:
        return f"Permissions({', '.join(map(repr, self.rules))})"


def _parse(rule: object) -> Iterable[tuple[int, str]]:
    if not isinstance(rule, str):
        raise ConfigurationError(f"permission {rule!r}: expected a string such as 'command:orders/*'")
    name, colon, target = rule.partition(":")
    if name != "*" and name not in _TYPES:
        raise ConfigurationError(f"permission {rule!r}: expected one of {', '.join(_TYPES)} or * before the colon")
    if "*" in target[:-1]:
        raise ConfigurationError(f"permission {rule!r}: expected * at the end of the target only")
    return [(type, target if colon else "*") for type in (_TYPES.values() if name == "*" else [_TYPES[name]])]
