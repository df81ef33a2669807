"""Regenerate the protobuf classes, and compare them with the committed ones.

python protos/generate.py            exits with 1 and shows the difference when the committed classes are stale
python protos/generate.py --write    puts the regenerated classes in their place
"""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
TARGET = SOURCE.parent / "quicflow_trio" / "wire" / "proto"


def generate(directory: Path) -> None:
    """Generate the classes of every schema into ``directory``.

    Raises:
        subprocess.CalledProcessError: a schema is wrong, or the compiler is missing; it has said why.
    """
    schemas = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.proto"))
    # The plugin and the formatter that it calls stand beside this interpreter, which need not be on the path.
    environment = os.environ | {"PATH": os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={SOURCE}",
            f"--python_betterproto2_out={directory}",
            "--python_betterproto2_opt=client_generation=none,server_generation=none",
            *schemas,
        ],
        check=True,
        env=environment,
        # Away from the project, whose formatter settings would change the result.
        cwd=directory,
    )
    # The one name that the compiler leaves without a type; a package that ships `py.typed` must not have any.
    pool = directory / "message_pool.py"
    text = pool.read_text(encoding="utf-8")
    pool.write_text(text.replace("_pool = ", "_pool: betterproto2.MessagePool = "), encoding="utf-8")


def read(directory: Path) -> dict[str, str]:
    """Return the text of every generated file under ``directory``, by relative path."""
    files = [path for path in directory.rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
    return {path.relative_to(directory).as_posix(): path.read_text(encoding="utf-8") for path in sorted(files)}


def difference(committed: dict[str, str], generated: dict[str, str]) -> list[str]:
    """Return what would change, as lines of a unified diff; a file that only one side has is named even when empty."""
    lines = []
    for name in sorted(committed.keys() | generated.keys()):
        if (name in committed) != (name in generated):
            lines.append(f"{'stale' if name in committed else 'missing'}: {name}\n")
        before = committed.get(name, "").splitlines(keepends=True)
        after = generated.get(name, "").splitlines(keepends=True)
        lines += difflib.unified_diff(before, after, f"committed/{name}", f"generated/{name}")
    return lines


def main() -> int:
    """Compare, or write when asked to; return the exit status."""
    parser = argparse.ArgumentParser(description="Regenerate the protobuf classes and compare them with the committed ones.")
    parser.add_argument("--write", action="store_true", help="overwrite the committed classes")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        generate(directory)
        if write:
            shutil.rmtree(TARGET, ignore_errors=True)
            shutil.copytree(directory, TARGET)
            return 0
        lines = difference(read(TARGET), read(directory))
    sys.stdout.writelines(lines)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
