"""QUIC without sockets, clocks or Trio: the engine contract, its implementation on aioquic, TLS settings and routing.

Only this layer imports aioquic. What stands above knows `engine` (the contract and its events), `aioquic_engine` (the two factories),
`tls`, `certificates` and `routing`.
"""
