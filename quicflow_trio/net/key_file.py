"""The key that makes a server's stateless reset tokens, in a file, so that it is the same after a restart."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigurationError
from ..quic.resets import KEY_BYTES, ResetKey

__all__ = ["load_reset_key"]


def load_reset_key(path: Path) -> ResetKey:
    """Return the key in a file; one that does not exist is made, readable by its owner only.

    Raises:
        ConfigurationError: it cannot be read or made, or holds something else.
    """
    try:
        if not path.exists():
            _make(path)
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"reset_key_file = {str(path)!r}: cannot be used: {error}") from error
    try:
        return ResetKey(bytes.fromhex(text))
    except ValueError:
        # The content stays out of the message: it is, or was meant to be, a secret.
        raise ConfigurationError(
            f"reset_key_file = {str(path)!r}: expected {2 * KEY_BYTES} hexadecimal digits; remove the file to have a new one made"
        ) from None


def _make(path: Path) -> None:
    # Written aside and linked: of two servers that start together one makes the file, and no one reads half of it.
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, os.urandom(KEY_BYTES).hex().encode() + b"\n")
        os.fsync(descriptor)
        path.hardlink_to(draft)
    except FileExistsError:
        return
    finally:
        os.close(descriptor)
        draft.unlink()
