"""Opening SQLite files that several processes share."""

from __future__ import annotations

import sqlite3
import time


def write_ahead(db: sqlite3.Connection, wait: float) -> None:
    """Let readers and a writer of the file go on side by side, from now on and for good.

    SQLite does not wait its turn where several processes make one file's first connection, so it
    is tried for up to `wait` seconds. Raises sqlite3.OperationalError.
    """
    until = time.monotonic() + wait
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return
