"""The command line. Verbs are loaded when they are used, so that `--help` is instant."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, and exit with its status."""
    from pipeline.cli.app import run

    sys.exit(run(sys.argv[1:]))
