"""What the proofs measure with would notice a breach: the ledgers' account, the slope, the report, the proxy."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from quicflow_trio.background import open_background
from quicflow_trio.net.udp import UdpNetwork, UdpSocket
from quicflow_trio.testing import PathFaults
from tests.endurance.conduct import balance
from tests.endurance.ledger import Account, Ledger, What
from tests.endurance.proxy import open_proxy
from tests.endurance.report import Report
from tests.endurance.soak import slope


def message(number: int) -> bytes:
    return number.to_bytes(16, "big")


def account(folder: Path, *notes: tuple[What, int]) -> Account:
    with Ledger(folder / "one.ledger") as ledger:
        for what, number in notes:
            ledger.note(what, message(number))
    return Account([folder / "one.ledger"])


GOOD = (What.BEGUN, What.STARTED, What.ENDED, What.ACKED)


@pytest.mark.parametrize(
    ("notes", "broken"),
    [
        (GOOD, set()),
        ((What.BEGUN, What.STARTED, What.ACKED), {"acked and not handled"}),
        ((*GOOD, What.STARTED), {"handled twice", "handler runs beyond distinct ids"}),
        ((What.BEGUN, What.STARTED, What.ENDED, What.MIXED_UP), {"answered with another's result"}),
        ((What.STARTED, What.ENDED), {"handled and never sent"}),
        ((What.BEGUN, What.STARTED, What.ENDED), {"calls without one end"}),
        ((*GOOD, What.FAILED), {"calls without one end"}),
        ((*GOOD, What.STARTED_AGAIN), {"redelivered unasked", "handler runs beyond distinct ids"}),
        ((What.BEGUN, What.DELIVERED), {"delivered and not handled"}),
    ],
)
def test_each_breach_has_its_name(tmp_path: Path, notes: tuple[What, ...], broken: set[str]) -> None:
    account(tmp_path, *((what, 7) for what in notes))
    report = Report("one", {})
    balance(report, tmp_path, errors={})
    assert {check.what for check in report.checks if not check.held} == broken
    assert report.held is not bool(broken)


def test_messages_that_go_out_again_must_be_handled_over_all_lives(tmp_path: Path) -> None:
    begun = account(
        tmp_path,
        (What.BEGUN_REDELIVER, 1),
        (What.STARTED, 1),
        (What.STARTED_AGAIN, 1),
        (What.ENDED, 1),
        (What.ACKED, 1),
        (What.BEGUN_REDELIVER, 2),
        (What.STARTED, 2),
        (What.FAILED, 2),
        (What.BEGUN, 3),
        (What.FAILED, 3),
    )
    assert (begun.redeliver_lost(), begun.failed_though_redeliver()) == (1, 1)
    assert (begun.handled_twice(), begun.again_unasked(), begun.without_end()) == (0, 0, 0)


def test_a_report_without_a_check_proves_nothing() -> None:
    report = Report("one", {})
    verdicts = [report.held]
    report.at_most("figure", 3, 3)
    verdicts.append(report.held)
    report.nothing_left("here", ["a task"])
    assert [*verdicts, report.held] == [False, True, False]
    assert report.notes == ["left over here: a task"]


def test_the_slope_is_that_of_the_line_and_its_error_that_of_the_noise() -> None:
    flat = slope([(second / 60, 100 + second % 2) for second in range(600)])
    assert abs(flat.value) < 0.01
    rising = slope([(second / 60, 100 + second) for second in range(600)])
    assert abs(rising.value - 60) < 0.01
    assert rising.error < 0.01
    stairs = slope([(minute, minute % 2 * 10) for minute in range(10)])
    assert abs(stairs.value) < stairs.error


async def test_the_proxy_loses_doubles_and_cuts_what_it_is_told_to() -> None:
    network = UdpNetwork()
    server, first, second = [await network.bind("127.0.0.1", 0) for _ in range(3)]
    faults = PathFaults(loss=0.3, duplicate=0.2, delay=0.001)
    heard: list[bytes] = []

    async def echo() -> None:
        while True:
            server.send_nowait(await server.receive())

    async def listen(client: UdpSocket) -> None:
        while True:
            heard.extend([data for data, _ in await client.receive()])

    async with open_proxy((server.address[0], server.address[1]), 1, faults, seed=3) as proxy, open_background() as background:
        door = proxy.doors[0]
        for task in (echo, partial(listen, first), partial(listen, second)):
            background.start_soon(task)

        async def send(client: UdpSocket, count: int) -> int:
            heard.clear()
            for number in range(count):
                client.send_nowait([(number.to_bytes(2, "big"), ("127.0.0.1", door.port))])
                await trio.sleep(0.0005)
            await trio.sleep(0.1)
            return len(heard)

        with trio.fail_after(20):
            back = await send(first, 1000)
            assert 600 < back < 820, "0.7 * 1.2 of them in each direction"
            assert len(set(heard)) < back
            assert not proxy.counts["overflowed"]
            door.cut = "down"
            assert await send(first, 50) == 0
            door.cut = "none"
            assert await send(first, 50) > 0
            door.forget()
            assert await send(first, 50) == 0
            assert await send(second, 50) > 0
    for socket in (server, first, second):
        socket.close()
