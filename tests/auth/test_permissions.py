"""Rules of permissions: what they allow, and that nothing else is."""

from __future__ import annotations

import pytest

from quicflow_trio import ConfigurationError, MessageType, Permissions

COMMAND, EVENT, QUERY = MessageType.COMMAND, MessageType.EVENT, MessageType.QUERY


@pytest.mark.parametrize(
    ("rules", "type", "target", "allowed"),
    [
        ((), COMMAND, "", False),
        (("*",), COMMAND, "any", True),
        (("*",), 4, "", True),
        (("*",), 9, "", False),  # a type that this version does not know has no handler either
        (("query",), QUERY, "any", True),
        (("query",), COMMAND, "any", False),
        (("event:",), EVENT, "", True),
        (("event:",), EVENT, "bulk", False),
        (("command:orders/*",), COMMAND, "orders/7", True),
        (("command:orders/*",), COMMAND, "orders/", True),
        (("command:orders/*",), COMMAND, "orders", False),
        (("command:orders/*",), COMMAND, "ORDERS/7", False),
        (("command:orders/*",), QUERY, "orders/7", False),
        (("command:a", "command:b"), COMMAND, "b", True),
        (("command:a", "command:b"), COMMAND, "ab", False),
        (("*:audit",), EVENT, "audit", True),
        (("*:audit",), EVENT, "", False),
        (("command:a:b",), COMMAND, "a:b", True),
        (("command:*",), COMMAND, "", True),
    ],
)
def test_what_is_allowed(rules: tuple[str, ...], type: MessageType, target: str, allowed: bool) -> None:
    assert Permissions(*rules).allows(type, target) is allowed


@pytest.mark.parametrize("rule", ["", "Command", "delete", "command:a*b", "command:**", ":a", 7, None])
def test_a_rule_that_cannot_be_read_is_refused(rule: object) -> None:
    with pytest.raises(ConfigurationError, match="permission"):
        Permissions(rule)  # type: ignore[arg-type]


def test_everything() -> None:
    assert Permissions("*").everything
    assert Permissions("query", "*:*").everything
    assert not Permissions("*:a", "command", "event", "query").everything


def test_the_order_of_rules_does_not_matter() -> None:
    one, other = Permissions("query", "event:"), Permissions("event:", "query")
    assert one == other
    assert len({one, other, Permissions("query")}) == 2
    assert repr(one) == "Permissions('query', 'event:')"
