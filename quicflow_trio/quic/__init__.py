"""QUIC without sockets, clocks or Trio: the engine contract, its implementations, TLS settings and routing.

Only this layer imports aioquic and qh3. What stands above knows `engine` (the contract and its events), `engines` (which library stands
behind it), `tls`, `certificates`, `probes` and `routing`.

- aioquic: `aioquic_engine` fulfils the contract on `hardened`, which takes its sending half from `sender`, its loss recovery from
  `recovery`, and less memory by `lean`.
- qh3: `qh3_engine`, with the modules whose names begin like it. Imported when it is asked for.
"""
