"""The command line. Verbs are loaded when they are used, so that `--help` is instant."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line, and exit with its status."""
    _occupy_standard_descriptors()

    from pipeline.cli.app import run

    sys.exit(run(sys.argv[1:]))


def _occupy_standard_descriptors() -> None:
    """Open what is closed of 0 to 2: the next file would have its number, and what is logged in it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
