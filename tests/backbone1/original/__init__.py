"""The original's client and server of `quic-backbone-v1` once more: on another QUIC stack's asyncio API, in a process of its own.

It shares none of our code, so that a mistake in it shows: the frames are encoded and decoded by hand (`wire`), the streams are driven
the way the original drives them, its weaknesses included (`streams`, `roles`). `python -m tests.backbone1.original JSON` runs one peer
(`__main__` lists what it takes); tests start it through `tests.backbone1.peers`.
"""
