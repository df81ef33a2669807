"""The transport against a QUIC stack that shares nothing with ours, not even a language: ngtcp2's client, from Debian's `ngtcp2-client`.

Its exit code is 0 whatever happens: what counts are the bytes that it has stored, and what our side has seen.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from tests.net.web import WebConnection, WebServer, content, open_web_server

CLIENT = "gtlsclient"
QUIET = ("--quiet", "--no-quic-dump", "--no-http-dump", "--exit-on-all-streams-close")
SIZE = 5_000_000

pytestmark = [
    pytest.mark.realtime,
    pytest.mark.skipif(shutil.which(CLIENT) is None, reason=f"{CLIENT} is not installed (Debian's ngtcp2-client)"),
]


async def download(server: WebServer, folder: Path, *options: str, files: int = 1, size: int = SIZE) -> WebConnection:
    """Fetch so many files at once, compare every byte, and return the server's side of it."""
    urls = [f"https://localhost:{server.port}/{number}.bin" for number in range(files)]
    command = [CLIENT, *QUIET, f"--download={folder}", *options, "127.0.0.1", str(server.port), *urls]
    with trio.fail_after(150):
        run = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT)
        said = run.stdout.decode(errors="replace")
        stored = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}  # noqa: ASYNC240  nobody waits
        assert list(stored) == [f"{number}.bin" for number in range(files)], said
        for number in range(files):
            assert stored[f"{number}.bin"] == content(number, size), f"file {number}: {said}"
    (connection,) = server.connections
    assert connection.alpn == "h3"
    assert len(connection.requests) == files
    return connection


async def test_5_megabytes_arrive(tmp_path: Path) -> None:
    async with open_web_server(SIZE) as server:
        connection = await download(server, tmp_path)
        assert (len(connection.addresses), connection.key_updates) == (1, 0)
        assert server.endpoint.statistics().dropped == {}


async def test_streams_side_by_side_do_not_mix(tmp_path: Path) -> None:
    async with open_web_server(200_000) as server:
        await download(server, tmp_path, files=10, size=200_000)


@pytest.mark.parametrize("cipher", ["AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305"])
async def test_every_cipher(tmp_path: Path, cipher: str) -> None:
    async with open_web_server(100_000) as server:
        await download(server, tmp_path, f"--ciphers=NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+{cipher}", size=100_000)


async def test_the_client_changes_the_keys_half_way(tmp_path: Path) -> None:
    async with open_web_server(SIZE) as server:
        connection = await download(server, tmp_path, "--key-update=20ms")
        assert connection.key_updates == 1


async def test_we_change_the_keys_again_and_again(tmp_path: Path) -> None:
    async with open_web_server(SIZE, new_keys_every=100) as server:
        connection = await download(server, tmp_path)
        assert connection.key_updates >= 2


async def test_the_client_moves_to_another_address(tmp_path: Path) -> None:
    async with open_web_server(SIZE) as server:
        connection = await download(server, tmp_path, "--change-local-addr=50ms")
        assert len(connection.addresses) == 2


async def test_a_nat_gives_the_client_another_address(tmp_path: Path) -> None:
    # Before its request: a client that only listens is not heard from its new address, and nobody can follow it there.
    async with open_web_server(SIZE) as server:
        options = ("--change-local-addr=100ms", "--nat-rebinding", "--delay-stream=300ms")
        connection = await download(server, tmp_path, *options)
        assert len(connection.addresses) == 2


async def test_a_fifth_of_all_packets_is_lost_both_ways(tmp_path: Path) -> None:
    async with open_web_server(1_000_000) as server:
        connection = await download(server, tmp_path, "--tx-loss=0.2", "--rx-loss=0.2", size=1_000_000)
        assert connection.engine.packets_lost > 50


async def test_a_retry_is_taken(tmp_path: Path) -> None:
    async with open_web_server(100_000, retry=True) as server:
        await download(server, tmp_path, size=100_000)
        assert server.endpoint.statistics().retries == 1


async def test_a_version_nobody_speaks_is_negotiated(tmp_path: Path) -> None:
    async with open_web_server(100_000) as server:
        await download(server, tmp_path, "--version=0x1a2a3a4a", "--preferred-versions=v1", size=100_000)
        assert server.endpoint.statistics().negotiations == 1


async def test_a_client_without_a_connection_id_of_its_own(tmp_path: Path) -> None:
    async with open_web_server(100_000) as server:
        await download(server, tmp_path, "--scid=", size=100_000)
