"""The network in memory: delivery in virtual time, each fault, partitions, and the books that must balance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from quicflow_trio.errors import ConfigurationError
from quicflow_trio.net.udp import DatagramSocket, Network
from quicflow_trio.testing.network import MemoryNetwork, NetworkStatistics, SentDatagram
from quicflow_trio.testing.path import PathFaults


async def bind_two(network: MemoryNetwork) -> tuple[DatagramSocket, DatagramSocket]:
    """A client's socket and a server's."""
    server = await network.bind("0.0.0.0", 8474)
    client = await network.for_client("client-1").bind_for(server.address)
    return client, server


async def read_for(sock: DatagramSocket, seconds: float) -> list[bytes]:
    """Everything that arrives within so many seconds."""
    received: list[bytes] = []
    with trio.move_on_after(seconds):
        while True:
            received += [data for data, _address in await sock.receive()]
    return received


def numbered(count: int, sock: DatagramSocket) -> Sequence[tuple[bytes, tuple[str, int] | tuple[str, int, int, int]]]:
    return [(number.to_bytes(2, "big"), sock.address) for number in range(count)]


def assert_balanced(statistics: NetworkStatistics) -> None:
    fates = statistics.delivered + statistics.lost + statistics.cut + statistics.unroutable
    fates += statistics.in_flight + statistics.overflowed
    assert statistics.sent + statistics.duplicated == fates


# -- delivery ----------------------------------------------------------------------------------------------------------
async def test_a_datagram_arrives_with_the_address_to_answer(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    client, server = await bind_two(network)
    assert client.send_nowait([(b"a", server.address), (b"bc", server.address)]) == 2
    [(first, source), (second, _)] = await server.receive()
    assert (first, second, source) == (b"a", b"bc", client.address)
    server.send_nowait([(b"answer", source)])
    assert await client.receive() == [(b"answer", ("server", 8474))]
    assert network.statistics() == NetworkStatistics(
        sent=3, delivered=3, lost=0, duplicated=0, reordered=0, cut=0, unroutable=0, in_flight=0, overflowed=0
    )
    counters = client.statistics()
    assert (counters.datagrams_out, counters.bytes_out, counters.datagrams_in, counters.bytes_in) == (2, 3, 1, 6)


async def test_the_delay_passes_in_virtual_time(autojump_clock: MockClock) -> None:
    client, server = await bind_two(MemoryNetwork(delay=7.5))
    start = trio.current_time()
    client.send_nowait([(b"x", server.address)])
    assert await server.receive() == [(b"x", client.address)]
    assert trio.current_time() - start == 7.5


async def test_jitter_spreads_the_arrivals_up_to_its_value(autojump_clock: MockClock) -> None:
    client, server = await bind_two(MemoryNetwork(delay=1.0, jitter=0.5))
    start = trio.current_time()
    client.send_nowait(numbered(100, server))
    arrivals: list[float] = []
    while len(arrivals) < 100:
        batch = await server.receive()
        arrivals += [trio.current_time() - start] * len(batch)
    assert 1.0 <= arrivals[0] < 1.05
    assert 1.45 < arrivals[-1] <= 1.5


async def test_an_earlier_arrival_wakes_a_receiver_that_waits_for_a_later_one(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=10.0)
    client, server = await bind_two(network)
    start = trio.current_time()
    client.send_nowait([(b"slow", server.address)])
    seen: list[tuple[bytes, float]] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            for _ in range(3):
                [(data, _address)] = await server.receive()
                seen.append((data, trio.current_time() - start))

        await wait_all_tasks_blocked()
        network.delay = 3.0
        client.send_nowait([(b"fast", server.address)])
        network.delay = 0.0
        client.send_nowait([(b"at once", server.address)])
    assert seen == [(b"at once", 0.0), (b"fast", 3.0), (b"slow", 10.0)]


async def test_one_call_takes_at_most_64(autojump_clock: MockClock) -> None:
    client, server = await bind_two(MemoryNetwork())
    client.send_nowait(numbered(100, server))
    assert [len(await server.receive()), len(await server.receive())] == [64, 36]


async def test_sending_and_receiving_are_checkpoints_where_the_real_ones_are(autojump_clock: MockClock) -> None:
    client, server = await bind_two(MemoryNetwork())
    with assert_checkpoints():
        await client.wait_writable()
    client.send_nowait([(b"x", server.address)])
    with assert_checkpoints():
        await server.receive()


async def test_a_cancelled_receive_takes_nothing(autojump_clock: MockClock) -> None:
    client, server = await bind_two(MemoryNetwork())
    client.send_nowait([(b"x", server.address)])
    with trio.CancelScope() as scope:
        scope.cancel()
        await server.receive()
    assert scope.cancelled_caught
    assert await server.receive() == [(b"x", client.address)]


async def test_a_receiver_cancelled_as_its_datagram_arrives_takes_nothing(autojump_clock: MockClock) -> None:
    client, server = await bind_two(MemoryNetwork(delay=2.0))
    client.send_nowait([(b"x", server.address)])
    with trio.move_on_after(2.0) as scope:
        await server.receive()
    assert scope.cancelled_caught
    assert await server.receive() == [(b"x", client.address)]


async def test_one_task_at_a_time_receives(autojump_clock: MockClock) -> None:
    client, server = await bind_two(MemoryNetwork())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await server.receive()
        client.send_nowait([(b"x", server.address)])


@pytest.mark.realtime
async def test_it_works_in_real_time_too() -> None:
    client, server = await bind_two(MemoryNetwork(delay=0.001))
    client.send_nowait([(b"x", server.address)])
    with trio.fail_after(5):
        assert await server.receive() == [(b"x", client.address)]


# -- faults ------------------------------------------------------------------------------------------------------------
async def test_loss_takes_its_share(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(seed=1, loss=0.2)
    client, server = await bind_two(network)
    client.send_nowait(numbered(1000, server))
    received = await read_for(server, 1)
    statistics = network.statistics()
    assert 150 < statistics.lost < 250
    assert statistics.delivered == len(received) == 1000 - statistics.lost
    assert_balanced(statistics)


async def test_duplicates_are_delivered_twice_each_with_its_own_jitter(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(duplicate=1.0, jitter=1.0)
    client, server = await bind_two(network)
    client.send_nowait([(b"x", server.address)])
    assert await server.receive() == [(b"x", client.address)]
    first = trio.current_time()
    assert await server.receive() == [(b"x", client.address)]
    assert trio.current_time() > first
    assert network.statistics().duplicated == 1
    assert_balanced(network.statistics())


async def test_reordering_changes_the_order_and_nothing_else(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(reorder=0.1)
    client, server = await bind_two(network)
    sent = numbered(500, server)
    client.send_nowait(sent)
    received = await read_for(server, 0.010)
    assert received != [data for data, _address in sent]
    assert sorted(received) == [data for data, _address in sent]
    assert 20 < network.statistics().reordered < 90


async def test_without_faults_datagrams_of_one_instant_stay_in_order(autojump_clock: MockClock) -> None:
    client, server = await bind_two(MemoryNetwork(delay=1.0))
    sent = numbered(500, server)
    client.send_nowait(sent)
    assert await read_for(server, 2) == [data for data, _address in sent]


async def test_the_same_seed_draws_the_same_faults_whoever_listens(autojump_clock: MockClock) -> None:
    # Unbound ports draw as bound ones do, so that one host more or less does not change the luck of the others.
    async def fate(seed: int, *, listening: bool) -> tuple[int, int, int]:
        network = MemoryNetwork(seed=seed, loss=0.1, duplicate=0.1, reorder=0.1, jitter=0.1)
        client, server = await bind_two(network)
        if not listening:
            server.close()
        client.send_nowait(numbered(1000, server))
        statistics = network.statistics()
        return statistics.lost, statistics.duplicated, statistics.reordered

    assert await fate(5, listening=True) == await fate(5, listening=False)
    assert await fate(5, listening=True) != await fate(6, listening=True)


async def test_faults_can_change_during_a_run(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    client, server = await bind_two(network)
    network.loss = 1.0
    client.send_nowait([(b"lost", server.address)])
    network.loss = 0.0
    client.send_nowait([(b"kept", server.address)])
    assert await server.receive() == [(b"kept", client.address)]


@pytest.mark.parametrize("name", ["loss", "delay", "jitter", "duplicate", "reorder"])
@pytest.mark.parametrize("value", [-0.1, 1e9, math.nan, "0.5", None])
def test_a_fault_outside_its_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"MemoryNetwork\.{name} = "):
        setattr(MemoryNetwork(), name, value)


async def test_a_full_queue_drops_and_counts(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(queue_limit=3)
    client, server = await bind_two(network)
    assert client.send_nowait(numbered(5, server)) == 5
    assert len(await server.receive()) == 3
    assert network.statistics().overflowed == 2
    assert server.statistics().receive_drops == 2
    assert_balanced(network.statistics())


async def test_what_is_too_long_for_udp_is_dropped_like_there(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    client, server = await bind_two(network)
    assert client.send_nowait([(bytes(65_508), server.address), (bytes(65_507), server.address)]) == 2
    [(data, _address)] = await server.receive()
    assert len(data) == 65_507
    assert client.statistics().send_errors == {"EMSGSIZE": 1}
    assert client.statistics().datagrams_out == network.statistics().sent == 1


# -- partitions --------------------------------------------------------------------------------------------------------
async def three_hosts(network: MemoryNetwork) -> tuple[DatagramSocket, DatagramSocket, DatagramSocket]:
    one = await network.host("one").bind("one", 1)
    two = await network.host("two").bind("two", 2)
    three = await network.host("three").bind("three", 3)
    return one, two, three


async def who_hears_whom(sockets: Sequence[DatagramSocket]) -> set[str]:
    await trio.lowlevel.checkpoint()
    for sender in sockets:
        sender.send_nowait([(b"x", sock.address) for sock in sockets if sock is not sender])
    heard: set[str] = set()
    for sock in sockets:
        with trio.move_on_after(1):
            while True:
                heard |= {f"{source[0]}>{sock.address[0]}" for _data, source in await sock.receive()}
    return heard


EVERYBODY = {"one>two", "two>one", "one>three", "three>one", "two>three", "three>two"}


async def test_a_partition_cuts_both_directions_until_healed(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    sockets = await three_hosts(network)
    network.partition("one", "two")
    assert await who_hears_whom(sockets) == EVERYBODY - {"one>two", "two>one"}
    assert network.statistics().cut == 2
    network.heal("two", "one")
    assert await who_hears_whom(sockets) == EVERYBODY
    assert_balanced(network.statistics())


async def test_a_host_cut_from_everybody_still_hears_itself(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    sockets = await three_hosts(network)
    network.partition("one")
    assert await who_hears_whom(sockets) == {"two>three", "three>two"}
    sockets[0].send_nowait([(b"myself", sockets[0].address)])
    assert await sockets[0].receive() == [(b"myself", sockets[0].address)]
    network.heal("one")
    assert await who_hears_whom(sockets) == EVERYBODY


async def test_healing_one_cut_leaves_the_others_and_healing_without_names_none(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    sockets = await three_hosts(network)
    network.partition("one")
    network.partition("two", "three")
    network.heal("one")
    assert await who_hears_whom(sockets) == EVERYBODY - {"two>three", "three>two"}
    network.partition("one")
    network.heal()
    assert await who_hears_whom(sockets) == EVERYBODY


async def test_a_partition_takes_what_is_in_flight_between_the_two_but_not_what_arrived(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=1.0)
    one, two, three = await three_hosts(network)
    one.send_nowait([(b"arrived", two.address)])
    await trio.sleep(1)
    one.send_nowait([(b"in flight", two.address)])
    three.send_nowait([(b"from a third", two.address)])
    network.partition("one", "two")
    assert network.statistics().cut == 1
    assert await read_for(two, 5) == [b"arrived", b"from a third"]
    assert_balanced(network.statistics())


async def test_a_receiver_whose_next_datagram_was_cut_goes_on_waiting(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=1.0)
    one, two, three = await three_hosts(network)
    one.send_nowait([(b"cut", two.address)])
    received: list[bytes] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            received.extend(await read_for(two, 10))

        await wait_all_tasks_blocked()
        network.partition("one", "two")
        await trio.sleep(5)
        three.send_nowait([(b"later", two.address)])
    assert received == [b"later"]


def test_partitions_can_be_made_before_anything_runs() -> None:
    network = MemoryNetwork()
    network.partition("one", "two")

    async def main() -> None:
        one, two, _three = await three_hosts(network)
        one.send_nowait([(b"x", two.address)])

    trio.run(main)
    assert network.statistics().cut == 1


def test_healing_half_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="name both hosts"):
        MemoryNetwork().heal(b="one")


# -- closing -----------------------------------------------------------------------------------------------------------
async def test_close_wakes_the_receiver(autojump_clock: MockClock) -> None:
    client, _server = await bind_two(MemoryNetwork())
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await client.receive()

        await wait_all_tasks_blocked()
        client.close()


async def test_a_closed_socket_refuses_everything_but_closing(autojump_clock: MockClock) -> None:
    client, server = await bind_two(MemoryNetwork())
    client.close()
    client.close()
    with pytest.raises(trio.ClosedResourceError):
        await client.receive()
    with pytest.raises(trio.ClosedResourceError):
        client.send_nowait([(b"x", server.address)])
    with pytest.raises(trio.ClosedResourceError):
        await client.wait_writable()
    assert client.statistics().datagrams_out == 0


async def test_a_closed_port_swallows_what_is_sent_to_it_and_what_was_unread(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=1.0)
    client, server = await bind_two(network)
    client.send_nowait([(b"unread", server.address)])
    server.close()
    assert client.send_nowait([(b"nobody", server.address), (b"nowhere", ("192.0.2.1", 9))]) == 2
    assert network.statistics().unroutable == 3
    assert_balanced(network.statistics())
    again = await network.bind("0.0.0.0", 8474)
    assert await read_for(again, 5) == []


# -- hosts and names ---------------------------------------------------------------------------------------------------
async def test_the_contract_is_fulfilled(autojump_clock: MockClock) -> None:
    memory = MemoryNetwork()
    network: Network = memory
    client = network.for_client("client-1")
    assert client is memory.host("client-1")
    assert client.for_client("another") is client
    sock: DatagramSocket = await network.bind_for(("client-1", 1))
    assert sock.address[0] == "server"


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "0.0.0.0", "::"])
async def test_localhost_is_the_server_to_ask_for_and_oneself_to_bind(autojump_clock: MockClock, name: str) -> None:
    network = MemoryNetwork()
    client = network.host("client-1")
    assert await client.resolve(name, 8474) == [("server", 8474)]
    assert await network.resolve(name, 8474) == [("server", 8474)]
    assert (await client.bind(name, 5)).address == ("client-1", 5)
    assert (await network.bind(name, 5)).address == ("server", 5)
    with pytest.raises(ConfigurationError, match="localhost"):
        network.host(name)


async def test_every_other_name_resolves_to_itself(autojump_clock: MockClock) -> None:
    assert await MemoryNetwork().resolve("backbone.example", 1) == [("backbone.example", 1)]


async def test_an_empty_name_is_refused(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    with pytest.raises(OSError, match="empty host name"):
        await network.resolve("", 1)
    with pytest.raises(ConfigurationError, match="host = ''"):
        network.host("")


async def test_another_hosts_name_cannot_be_bound(autojump_clock: MockClock) -> None:
    with pytest.raises(OSError, match="cannot bind server port 1 on host client-1"):
        await MemoryNetwork().host("client-1").bind("server", 1)


async def test_a_port_that_is_taken_is_named_and_free_again_after_closing(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    sock = await network.bind("::", 8474)
    with pytest.raises(OSError, match="cannot bind server port 8474: "):
        await network.bind("::", 8474)
    sock.close()
    await network.bind("::", 8474)


async def test_a_port_outside_its_range_is_named(autojump_clock: MockClock) -> None:
    with pytest.raises(ConfigurationError, match="port = 65536"):
        await MemoryNetwork().bind("::", 65_536)
    with pytest.raises(ConfigurationError, match="port = -1"):
        await MemoryNetwork().resolve("server", -1)


async def test_free_ports_are_not_reused_at_once_and_run_out(autojump_clock: MockClock) -> None:
    # A reconnecting client comes from a new port: the server must not take it for the old connection.
    network = MemoryNetwork()
    first = await network.bind("::", 0)
    first.close()
    second = await network.bind("::", 0)
    assert second.address != first.address
    others = [await network.bind("::", 0) for _ in range(65_536 - 49_152 - 1)]
    assert others[-1].address == first.address
    with pytest.raises(OSError, match="cannot bind server port 0: "):
        await network.bind("::", 0)
    others[0].close()
    assert (await network.bind("::", 0)).address == others[0].address


# -- recording ---------------------------------------------------------------------------------------------------------
async def test_a_recording_has_every_datagram_sent_from_there_on(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(loss=1.0)
    client, server = await bind_two(network)
    client.send_nowait([(b"before", server.address)])
    recording = network.record()
    await trio.sleep(2)
    start = trio.current_time()
    client.send_nowait([(b"lost", server.address), (b"unroutable", ("nobody", 9))])
    assert recording == [
        SentDatagram(at=start, source=client.address, destination=server.address, length=4),
        SentDatagram(at=start, source=client.address, destination=("nobody", 9), length=10),
    ]


# -- faults of one path, and what becomes of hosts ---------------------------------------------------------------------
async def test_a_path_loses_in_its_own_direction_only(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=1.0)
    client, server = await bind_two(network)
    network.set_path("client-1", "server", PathFaults(loss=1.0))
    client.send_nowait([(b"up", server.address)])
    server.send_nowait([(b"down", client.address)])
    assert await read_for(client, 2) == [b"down"]
    assert await read_for(server, 2) == []
    network.set_path("client-1", "server", None)
    start = trio.current_time()
    client.send_nowait([(b"up", server.address)])
    assert await server.receive() == [(b"up", client.address)]
    assert trio.current_time() - start == 1.0
    assert_balanced(network.statistics())


async def test_corruption_flips_one_bit(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(corrupt=1.0, duplicate=0.5)
    client, server = await bind_two(network)
    client.send_nowait([(bytes(20), server.address)] * 50)
    received = await read_for(server, 1)
    assert {int.from_bytes(data, "big").bit_count() for data in received} == {1}
    assert len({*received}) > 20
    assert network.statistics().corrupted == 50
    assert_balanced(network.statistics())
    network.corrupt = 0.0
    client.send_nowait([(b"whole", server.address)])
    assert await read_for(server, 1) == [b"whole"]


def test_a_path_refuses_what_the_network_refuses() -> None:
    with pytest.raises(ConfigurationError, match=r"PathFaults.loss = 1.5: expected a number from 0 to 1"):
        PathFaults(loss=1.5)


async def test_a_host_that_moves_is_seen_from_a_new_port(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=1.0)
    client, server = await bind_two(network)
    old = client.address
    client.send_nowait([(b"before", server.address)])
    server.send_nowait([(b"under way", old)])
    network.readdress("client-1")
    assert client.address == old
    client.send_nowait([(b"after", server.address)])
    [(_, first), (_, second)] = await server.receive()
    assert first == old != second
    server.send_nowait([(b"to the old", old), (b"to the new", second)])
    assert await read_for(client, 3) == [b"to the new"]
    assert_balanced(network.statistics())
    client.close()
    assert network.open_sockets() == [server.address]


async def test_a_killed_host_says_and_hears_nothing_and_its_port_is_free(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    client, server = await bind_two(network)
    client.send_nowait([(b"unread", server.address)])
    network.kill("server")
    server.send_nowait([(b"last word", client.address)])
    heir = await network.bind("server", 8474)
    client.send_nowait([(b"for the heir", server.address)])
    assert await read_for(server, 1) == []
    assert await read_for(client, 1) == []
    assert await read_for(heir, 1) == [b"for the heir"]
    server.close()
    assert sorted(network.open_sockets()) == sorted([client.address, heir.address])
    assert_balanced(network.statistics())
