"""Sockets and engines: `udp` reads and sends in batches, `endpoint` routes, `pump` owns an engine's clock. Knows no messages."""
