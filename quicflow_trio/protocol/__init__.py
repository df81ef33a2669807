"""The message protocol without IO: states, hello and welcome, lanes, waiting acks, credit. ``now`` and bytes come in."""
