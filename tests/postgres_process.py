"""A real PostgreSQL for tests: it can be stopped, killed, frozen and started again on the same port."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

BINARIES = next(
    (
        Path(found).resolve().parent
        for found in (shutil.which("postgres"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")))
        if found is not None
    ),
    Path("/usr/lib/postgresql"),
)

MISSING = "needs PostgreSQL's server (Debian's package `postgresql`)"


def available() -> bool:
    """Whether a cluster can be made and run here."""
    return (BINARIES / "initdb").is_file()


class PostgresProcess:
    """A cluster of its own in a folder of its own; run by another user where this one is root."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        if os.geteuid() == 0:
            own = pwd.getpwnam("postgres") if _known("postgres") else pwd.getpwnam("nobody")
            os.chown(self._folder, own.pw_uid, own.pw_gid)
            self._as = {"user": own.pw_uid, "group": own.pw_gid, "extra_groups": []}
        else:
            self._as = {}
        self._run(
            "initdb", "-D", str(self._data), "-U", "test", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"
        )
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://test@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        given = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        given |= {"shared_buffers": "16MB", "max_connections": "40"}
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        with Path(self._folder, "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(BINARIES / "postgres"), "-D", str(self._data), "-p", str(self.port), *options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._as,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            ready = [str(BINARIES / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
            if subprocess.run(ready, check=False).returncode == 0:
                return
            time.sleep(0.02)
        raise RuntimeError(Path(self._folder, "log").read_text())

    def stop(self) -> None:
        """End it in order, its connections closed."""
        self._signal(signal.SIGINT, children=False)
        self._wait()

    def freeze(self) -> None:
        """Stop all of it from answering; connections stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it at once, and remove what it wrote."""
        self._signal(signal.SIGKILL)
        self._wait()
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(BINARIES / program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self._folder,
            **self._as,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)

    def _signal(self, number: signal.Signals, *, children: bool = True) -> None:
        """Each of its processes has a session of its own: no group has them all."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            for one in [own, *(own.children(recursive=True) if children else ())]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(number)

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait(timeout=30)
            self._process = None


def _known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
