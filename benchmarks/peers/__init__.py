"""The same work done by other messaging libraries: ``python -m benchmarks.peers --help``.

One module per peer, each a server and a client process of its own, both with the same protocol: ``python -m benchmarks.peers.NAME server``
prints one JSON line and runs until its standard input closes; ``... client --hello LINE --work WORK --count N`` prints one JSON line.
Every peer is written as its own documentation would, by the best idiom found there; each module's docstring says what was tried.
"""
