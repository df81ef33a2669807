"""UDP on the operating system: batches, errors that end nothing, closing, and the addresses."""

from __future__ import annotations

import errno
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from quicflow_trio.errors import ConfigurationError
from quicflow_trio.net.udp import DatagramSocket, Network, UdpNetwork, UdpSocket
from quicflow_trio.quic.engine import Address
from tests.malloc import malloc_info

pytestmark = pytest.mark.realtime

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")


@pytest.fixture
async def pair() -> AsyncIterator[tuple[UdpSocket, UdpSocket]]:
    network = UdpNetwork()
    one, two = await network.bind("127.0.0.1", 0), await network.bind("127.0.0.1", 0)
    yield one, two
    one.close()
    two.close()


class ScriptedSocket(socket.socket):
    """A socket whose next sends and receives fail as told: what loopback cannot be made to do."""

    def __init__(self, *errors: OSError) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.bind(("127.0.0.1", 0))
        self.errors = list(errors)

    def sendto(self, *args: Any) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return super().sendto(*args)

    def recvfrom_into(self, *args: Any) -> tuple[int, Any]:
        if self.errors:
            raise self.errors.pop(0)
        return super().recvfrom_into(*args)


async def receive_all(sock: DatagramSocket, count: int) -> list[bytes]:
    with trio.fail_after(5):
        received = await sock.receive()
        while len(received) < count:
            received += await sock.receive()
    return [data for data, _address in received]


# -- sending and receiving ---------------------------------------------------------------------------------------------
async def test_datagrams_arrive_in_order_with_the_address_to_answer(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    assert one.send_nowait([(b"a", two.address), (b"bc", two.address)]) == 2
    with trio.fail_after(5):
        assert await two.receive() == [(b"a", one.address), (b"bc", one.address)]
    sent, received = one.statistics(), two.statistics()
    assert (sent.datagrams_out, sent.bytes_out, sent.datagrams_in, sent.bytes_in) == (2, 3, 0, 0)
    assert (received.datagrams_out, received.bytes_out, received.datagrams_in, received.bytes_in) == (0, 0, 2, 3)
    assert sent.send_errors == received.receive_errors == {}


async def test_one_wakeup_takes_at_most_64(pair: tuple[UdpSocket, UdpSocket]) -> None:
    # Without the limit a flood would keep the task from its checkpoint for as long as it lasts.
    one, two = pair
    one.send_nowait([(bytes([number]), two.address) for number in range(100)])
    with trio.fail_after(5):
        assert [len(await two.receive()), len(await two.receive())] == [64, 36]


async def test_receive_waits_for_a_datagram(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_all, two, 1)
        await wait_all_tasks_blocked()
        one.send_nowait([(b"late", two.address)])
    assert two.statistics().datagrams_in == 1


async def test_receive_is_a_checkpoint_also_when_something_is_there(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    one.send_nowait([(b"x", two.address)])
    with trio.fail_after(5), assert_checkpoints():
        await two.receive()


async def test_a_cancelled_receive_takes_nothing(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    one.send_nowait([(b"x", two.address)])
    with trio.CancelScope() as scope:
        scope.cancel()
        await two.receive()
    assert scope.cancelled_caught
    assert await receive_all(two, 1) == [b"x"]


async def test_wait_writable_returns_while_there_is_room(pair: tuple[UdpSocket, UdpSocket]) -> None:
    with trio.fail_after(5), assert_checkpoints():
        await pair[0].wait_writable()


async def test_one_task_at_a_time_receives(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_all, two, 1)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await two.receive()
        one.send_nowait([(b"x", two.address)])


# -- errors ------------------------------------------------------------------------------------------------------------
async def test_a_datagram_that_is_too_long_is_dropped_and_the_next_one_sent(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    assert one.send_nowait([(bytes(70_000), two.address), (b"next", two.address)]) == 2
    assert await receive_all(two, 1) == [b"next"]
    assert one.statistics().send_errors == {"EMSGSIZE": 1}
    assert one.statistics().datagrams_out == 1


@linux
async def test_a_refused_datagram_ends_neither_loop() -> None:
    # Only a connected socket is told about ICMP errors by Linux; other systems tell every socket.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed_port: Address = nobody.getsockname()
    raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    raw.connect(closed_port)
    sock = UdpSocket(raw)
    assert sock.send_nowait([(b"x", closed_port)] * 2) == 2
    assert sock.statistics().send_errors == {"ECONNREFUSED": 1}
    assert sock.send_nowait([(b"x", closed_port)]) == 1
    with trio.move_on_after(0.02):
        await sock.receive()
    assert sock.statistics().receive_errors == {"ECONNREFUSED": 1}
    sock.close()


async def test_errors_in_place_of_datagrams_are_read_over() -> None:
    raw = ScriptedSocket(*[ConnectionResetError(errno.ECONNRESET, "reset") for _ in range(200)])
    sock = UdpSocket(raw)
    socket.socket.sendto(raw, b"after", sock.address)
    assert await receive_all(sock, 1) == [b"after"]
    assert sock.statistics().receive_errors == {"ECONNRESET": 200}
    sock.close()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
async def test_a_full_buffer_stops_the_batch(number: int) -> None:
    sock = UdpSocket(ScriptedSocket(OSError(errno.ENETUNREACH, ""), OSError(errno.EPERM, ""), OSError(number, "")))
    datagrams = [(bytes([index]), sock.address) for index in range(4)]
    assert sock.send_nowait(datagrams) == 2
    with trio.fail_after(5), assert_checkpoints():
        await sock.wait_writable()
    assert sock.send_nowait(datagrams[2:]) == 2
    assert await receive_all(sock, 2) == [b"\x02", b"\x03"]
    assert sock.statistics().send_errors == {"ENETUNREACH": 1, "EPERM": 1}
    sock.close()


async def test_waiting_after_enobufs_pauses(autojump_clock: trio.testing.MockClock) -> None:
    # The descriptor polls as writable all the while: without the pause the pump would spin.
    sock = UdpSocket(ScriptedSocket(OSError(errno.ENOBUFS, "")))
    assert sock.send_nowait([(b"x", sock.address)]) == 0
    before = trio.current_time()
    await sock.wait_writable()
    assert trio.current_time() > before
    paused = trio.current_time()
    await sock.wait_writable()
    assert trio.current_time() == paused
    sock.close()


async def test_closing_during_that_pause_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    sock = UdpSocket(ScriptedSocket(OSError(errno.ENOBUFS, "")))
    sock.send_nowait([(b"x", sock.address)])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await sock.wait_writable()

        await wait_all_tasks_blocked()
        sock.close()


async def test_an_address_that_no_errno_describes_is_counted_by_its_exception(pair: tuple[UdpSocket, UdpSocket]) -> None:
    assert pair[0].send_nowait([(b"x", ("::1", 9)), (b"next", pair[1].address)]) == 2
    assert await receive_all(pair[1], 1) == [b"next"]
    assert pair[0].statistics().send_errors == {"gaierror": 1}


@linux
async def test_the_kernels_drops_are_reported_also_after_closing(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    assert two.statistics().receive_drops == 0
    datagrams = [(b"x", two.address)] * 1000
    for _ in range(60):
        one.send_nowait(datagrams)
    drops = two.statistics().receive_drops
    assert drops
    assert drops < 60_000
    assert len(await two.receive()) == 64
    two.close()
    assert two.statistics().receive_drops == drops


async def test_a_system_that_does_not_tell_its_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = ScriptedSocket()
    sock = UdpSocket(raw)

    def refuse(*args: object) -> bytes:
        raise OSError(errno.ENOPROTOOPT, "no such option")

    monkeypatch.setattr(ScriptedSocket, "getsockopt", refuse, raising=False)
    sock.send_nowait([(b"x", sock.address)])
    assert await receive_all(sock, 1) == [b"x"]
    assert sock.statistics().receive_drops is None
    sock.close()
    assert sock.statistics().receive_drops is None


@pytest.mark.skipif(malloc_info() is None, reason="asks glibc 2.33 or newer")
def test_datagrams_that_stay_for_a_while_leave_no_holes_that_nothing_fits_in() -> None:
    # A process of its own: this one's heap has seen too much.
    command = [sys.executable, "-m", "tests.net.churn"]
    grown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    # 300 KB are kept; it was 2.3 MB.
    assert int(grown) < 1_000_000


# -- closing -----------------------------------------------------------------------------------------------------------
async def test_close_wakes_the_receiver(pair: tuple[UdpSocket, UdpSocket]) -> None:
    sock = pair[0]
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await sock.receive()

        await wait_all_tasks_blocked()
        sock.close()


async def test_a_closed_socket_refuses_everything_but_closing(pair: tuple[UdpSocket, UdpSocket]) -> None:
    sock = pair[0]
    address = sock.address
    sock.close()
    sock.close()
    assert sock.address == address
    with pytest.raises(trio.ClosedResourceError):
        await sock.receive()
    sock._more = False  # as after a read that has emptied it
    with pytest.raises(trio.ClosedResourceError):
        await sock.receive()
    with pytest.raises(trio.ClosedResourceError):
        sock.send_nowait([(b"x", address)])
    with pytest.raises(trio.ClosedResourceError):
        await sock.wait_writable()


# -- addresses ---------------------------------------------------------------------------------------------------------
async def test_the_contract_is_fulfilled() -> None:
    network: Network = UdpNetwork()
    assert network.for_client("anybody") is network
    sock: DatagramSocket = await network.bind("127.0.0.1", 0)
    sock.close()


async def test_literals_are_resolved_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_threads(*args: object, **kwargs: object) -> None:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_threads)
    network = UdpNetwork()
    assert await network.resolve("127.0.0.1", 8474) == [("127.0.0.1", 8474)]
    assert await network.resolve("::1", 8474) == [("::1", 8474, 0, 0)]


class Resolver(trio.abc.HostnameResolver):
    """Answers every name with the same list, and so needs no name server."""

    def __init__(self, *answer: tuple[Any, Address]) -> None:
        self.answer = answer

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        await trio.lowlevel.checkpoint()
        return [(family, socket.SOCK_DGRAM, 17, "", address) for family, address in self.answer]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_a_name_gives_its_addresses_once_each_and_only_those_of_ip() -> None:
    v4, v6 = (socket.AF_INET, ("192.0.2.1", 1)), (socket.AF_INET6, ("2001:db8::1", 1, 0, 0))
    trio.socket.set_custom_hostname_resolver(Resolver(v6, v4, v4, (socket.AF_UNIX, ("x", 1))))
    assert await UdpNetwork().resolve("backbone.example", 1) == [("2001:db8::1", 1, 0, 0), ("192.0.2.1", 1)]


async def test_a_name_without_addresses_is_an_oserror() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    with pytest.raises(OSError, match=r"'backbone\.example' has no IPv4 or IPv6 address"):
        await UdpNetwork().resolve("backbone.example", 1)


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".example"])
async def test_what_is_no_name_is_an_oserror(host: str) -> None:
    with pytest.raises(OSError, match="is not a host name"):
        await UdpNetwork().resolve(host, 1)


@pytest.mark.parametrize("port", [-1, 65_536])
async def test_a_port_outside_its_range_is_named(port: int) -> None:
    # `sendto` would answer it with an OverflowError from deep inside the endpoint.
    with pytest.raises(ConfigurationError, match=f"port = {port}"):
        await UdpNetwork().resolve("127.0.0.1", port)
    with pytest.raises(ConfigurationError, match=f"port = {port}"):
        await UdpNetwork().bind("127.0.0.1", port)


async def test_a_port_that_is_taken_is_named(pair: tuple[UdpSocket, UdpSocket]) -> None:
    taken = pair[0].address[1]
    with pytest.raises(OSError, match=rf"cannot bind UDP 127\.0\.0\.1 port {taken}: ") as caught:
        await UdpNetwork().bind("127.0.0.1", taken)
    assert caught.value.errno == errno.EADDRINUSE


async def test_bind_tries_the_next_address_of_a_name() -> None:
    # "localhost" is ::1 first on many machines without IPv6. The first one here belongs to nobody (RFC 5737).
    trio.socket.set_custom_hostname_resolver(Resolver((socket.AF_INET, ("192.0.2.1", 0)), (socket.AF_INET, ("127.0.0.1", 0))))
    sock = await UdpNetwork().bind("backbone.example", 0)
    assert sock.address[0] == "127.0.0.1"
    sock.close()


async def test_running_out_of_descriptors_says_what_to_do() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="ulimit -n") as caught:
            await UdpNetwork().bind("127.0.0.1", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_bind_for_takes_the_family_of_the_remote_address(host: str) -> None:
    network = UdpNetwork()
    server = await network.bind(host, 0)
    with assert_checkpoints():
        client = await network.bind_for(server.address)
    client.send_nowait([(b"x", server.address)])
    with trio.fail_after(5):
        [(data, source)] = await server.receive()
    assert (data, source[0], source[1]) == (b"x", host, client.address[1])
    client.close()
    server.close()


async def test_only_the_double_colon_takes_both_families() -> None:
    network = UdpNetwork()
    both, only6 = await network.bind("::", 0), await network.bind("::1", 0)
    client = await network.bind("127.0.0.1", 0)
    client.send_nowait([(b"to both", ("127.0.0.1", both.address[1])), (b"to v6 only", ("127.0.0.1", only6.address[1]))])
    with trio.fail_after(5):
        [(data, source)] = await both.receive()
    assert (data, source[0]) == (b"to both", "::ffff:127.0.0.1")
    both.send_nowait([(b"answer", source)])
    assert await receive_all(client, 1) == [b"answer"]
    with trio.move_on_after(0.02) as scope:
        await only6.receive()
    assert scope.cancelled_caught
    for sock in (both, only6, client):
        sock.close()


# -- options -----------------------------------------------------------------------------------------------------------
class SpySocket(socket.socket):
    """A socket that refuses the options it is told to, like another kernel, and notes the rest."""

    refused: Callable[[int, int, int], bool]
    granted: list[tuple[int, int, int]]

    def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]
        if type(self).refused(level, option, value):
            raise PermissionError(errno.EPERM, "refused")
        self.granted.append((level, option, int(value)))
        super().setsockopt(level, option, value)


async def granted_options(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[[int, int, int], bool]
) -> list[tuple[int, int, int]]:
    monkeypatch.setattr(SpySocket, "refused", staticmethod(refused), raising=False)
    monkeypatch.setattr(SpySocket, "granted", [], raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", SpySocket)
        sock = await UdpNetwork().bind("127.0.0.1", 0)
    sock.close()
    return SpySocket.granted


@linux
async def test_datagrams_are_never_fragmented(monkeypatch: pytest.MonkeyPatch) -> None:
    # A fragment lost is the whole datagram lost, and RFC 9000 section 14 forbids it.
    assert (socket.IPPROTO_IP, 10, 3) in await granted_options(monkeypatch, lambda level, option, value: False)


async def test_smaller_buffers_are_taken_where_8_mb_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # macOS refuses what is over its limit, instead of granting the limit.
    sizes = await granted_options(monkeypatch, lambda level, option, value: value > 1_000_000 or option in (10, 32, 33))
    assert (socket.SOL_SOCKET, socket.SO_RCVBUF, 512 * 1024) in sizes
    assert (socket.SOL_SOCKET, socket.SO_SNDBUF, 512 * 1024) in sizes


async def test_no_option_is_needed_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await granted_options(monkeypatch, lambda level, option, value: True) == []


async def test_a_socket_for_one_peer_is_told_that_nobody_listens_there() -> None:
    network = UdpNetwork()
    gone = await network.bind("127.0.0.1", 0)
    client = await network.bind_for(gone.address)
    gone.close()
    client.send_nowait([(b"anybody?", gone.address)])
    with trio.fail_after(5):
        assert await client.receive() == []
    assert client.statistics().receive_errors == {"ECONNREFUSED": 1}
    # And it goes on: somebody may listen there later.
    back = await network.bind(*gone.address[:2])
    assert client.send_nowait([(b"anybody now?", gone.address)]) == 1
    with trio.fail_after(5):
        [(data, source)] = await back.receive()
        back.send_nowait([(b"yes", source)])
        assert data == b"anybody now?"
        assert await client.receive() == [(b"yes", back.address)]
    client.close()
    back.close()
