"""A relay of its own for a test."""

import contextlib
import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def relay(binary, *flags):
    """The address of a relay that ends with the block."""
    command = [os.environ.get("LANDLINE", ROOT / binary), "serve", "--listen", "127.0.0.1:0"]
    child = subprocess.Popen(
        [*command, "--log-level", "error", *flags], stdout=subprocess.PIPE, text=True
    )
    try:
        said = child.stdout.readline()
        found = re.match(r"listening on http://(127\.0\.0\.1:\d+)", said)
        if not found:
            raise RuntimeError(f"the relay does not listen, it says {said!r}")
        yield found[1]
    finally:
        child.terminate()
        child.communicate()
    if child.returncode != 0:
        raise RuntimeError(f"the relay ended with {child.returncode}")
