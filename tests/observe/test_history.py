"""The histories of clients: those here, and the last that left."""

from __future__ import annotations

from quicflow_trio.observe.history import CHANGES, HistoryBook, SessionChange


def change(number: int) -> SessionChange:
    return SessionChange(float(number), "connected", f"127.0.0.1:{number}")


def leave(book: HistoryBook, *client_ids: str) -> None:
    for client_id in client_ids:
        book.enter(client_id).append(change(0))
        book.leave(client_id)


def test_an_unknown_client_has_no_history() -> None:
    book = HistoryBook()
    assert book.of("nobody") == ()
    assert book.gone() == []
    book.leave("nobody")
    assert book.gone() == []


def test_changes_come_oldest_first() -> None:
    book = HistoryBook()
    changes = book.enter("a")
    for number in range(3):
        changes.append(change(number))
    assert book.of("a") == (change(0), change(1), change(2))
    assert book.gone() == []


def test_the_last_hundred_are_kept() -> None:
    book = HistoryBook()
    changes = book.enter("a")
    for number in range(CHANGES + 5):
        changes.append(change(number))
    assert [kept.at for kept in book.of("a")] == [float(number) for number in range(5, CHANGES + 5)]


def test_what_was_given_out_does_not_move() -> None:
    book = HistoryBook()
    changes = book.enter("a")
    before = book.of("a")
    changes.append(change(1))
    assert before == ()


def test_a_client_that_left_keeps_its_history_and_goes_on_with_it() -> None:
    book = HistoryBook()
    book.enter("a").append(change(1))
    book.leave("a")
    assert book.of("a") == (change(1),)
    assert book.gone() == ["a"]
    book.enter("a").append(change(2))
    assert book.of("a") == (change(1), change(2))
    assert book.gone() == [], "it is here, not gone"


def test_entering_twice_is_one_history() -> None:
    # A takeover: the newer session enters before the older one has ended.
    book = HistoryBook()
    assert book.enter("a") is book.enter("a")


def test_the_latest_to_leave_is_first() -> None:
    book = HistoryBook()
    leave(book, "a", "b", "c")
    leave(book, "a")
    assert book.gone() == ["a", "c", "b"]


def test_the_one_that_left_first_is_forgotten_first() -> None:
    book = HistoryBook(clients=2)
    leave(book, "a", "b")
    leave(book, "a", "c")
    assert book.gone() == ["c", "a"]
    assert book.of("b") == ()
    assert len(book.of("a")) == 2


def test_who_is_here_does_not_count() -> None:
    book = HistoryBook(clients=1)
    for name in "abc":
        book.enter(name).append(change(0))
    leave(book, "x", "y")
    assert [len(book.of(name)) for name in "abcxy"] == [1, 1, 1, 0, 1]
