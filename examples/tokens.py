"""Who may connect: signed tokens, permissions, a rate limit, a session that outlives its token. Run it: ``python examples/tokens.py``.

It needs PyJWT: ``pip install 'quicflow_trio[auth]'``.
"""

from __future__ import annotations

import logging
import time
from functools import partial

import jwt
import trio

from quicflow_trio import (
    AuthenticationFailed,
    Message,
    MessageType,
    PermissionDenied,
    RateLimit,
    RateLimited,
    Request,
    Router,
    ServerConfig,
    Session,
    SignedTokens,
    open_client,
    serve,
)
from quicflow_trio.testing import throwaway_tls

# In production a secret of your issuer, or better its public key with algorithms=["EdDSA"]: who checks tokens need not be able to
# make them.
SECRET = "32 random bytes from a secret store"

router = Router()


@router.on(MessageType.QUERY)
async def who_am_i(request: Request) -> bytes:
    # On a server every peer is a session. What the authenticator has found out stays with it.
    assert isinstance(request.peer, Session)
    return str(request.peer.identity.claims["team"]).encode()


@router.on(MessageType.COMMAND)
async def work(request: Request) -> bytes:
    return request.message.payload.upper()


def issue(client_id: str, *, valid_for: float = 600) -> bytes:
    """Make a token, as a login service of yours would."""
    claims = {
        "sub": client_id,
        "aud": "backbone",
        "iss": "login.example",
        "exp": time.time() + valid_for,
        "permissions": ["query", "command:jobs/*"],
        "team": "kitchen",
    }
    return jwt.encode(claims, SECRET).encode()


async def talk(host: str, port: int) -> None:
    tls = throwaway_tls()[1]

    # 1. A token for another client id, and one that nobody signed.
    for bad in (issue("somebody-else"), b"guessed"):
        async with open_client(host, port, client_id="worker-1", tls=tls, credentials=bad) as client:
            try:
                await client.wait_connected()
            except AuthenticationFailed as exc:
                print(f"refused: {exc}")

    # 2. A function is asked for each attempt, and again before the token ends. This one is good for two seconds.
    issued = 0

    async def fresh() -> bytes:
        nonlocal issued
        issued += 1
        return issue("worker-1", valid_for=2)

    async with open_client(host, port, client_id="worker-1", tls=tls, credentials=fresh) as client:
        ack = await client.request(Message.query())
        print(f"team: {ack.result.decode()}")

        # 3. Commands are permitted on lanes whose names begin with jobs/.
        ack = await client.lane("jobs/cooking").request(Message.command(b"soup"))
        print(f"permitted: {ack.result.decode()}")
        try:
            await client.request(Message.command(b"soup"))
        except PermissionDenied as exc:
            print(f"denied: {exc}")

        # 4. The limit is 20 messages at once, and 20 per second. The refusal says when there is room again.
        try:
            while True:
                await client.request(Message.query())
        except RateLimited as exc:
            await trio.sleep(exc.retry_after)
            await client.request(Message.query())
            print("limited, and then let through")

        await trio.sleep(3)
        await client.request(Message.query())
        print(f"renewed without a reconnect: {issued > 1 and client.statistics().connects == 1}")


async def main() -> None:
    # Refusals are warnings in the server's log.
    logging.getLogger("quicflow_trio").setLevel(logging.CRITICAL)
    authenticate = SignedTokens(SECRET, algorithms=["HS256"], audience="backbone", issuer="login.example", leeway=0)
    config = ServerConfig(rate=RateLimit(messages=20))
    server_tls, _ = throwaway_tls()
    async with trio.open_nursery() as nursery:
        run = partial(serve, router, host="127.0.0.1", port=0, tls=server_tls, authenticate=authenticate, config=config)
        server = await nursery.start(run)
        await talk(*server.address)
        await server.drain(grace=5)
    print("done")


if __name__ == "__main__":
    trio.run(main)
