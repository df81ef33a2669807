"""Measurements over loopback, server and client in separate processes: ``python -m benchmarks --help``."""
