"""`kill -9` under load: no spend that a client was told of is lost, and none counts twice."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

PIPELINE = str(Path(sys.executable).parent / "pipeline")

TOKEN = 1_500_000
"""Nano-USD of a token here: echo's price is the same for prompt and answer."""


class Server:
    """`pipeline serve`, which is killed and not stopped."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        command = [PIPELINE, "serve", "server.port=0", "infer=echo", "infer@embed=none", "monitor=none"]
        command += [f"vars.state={folder}", "+price.models.echo={prompt: 1500, completion: 1500}", *overrides]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        assert self.process.stderr is not None
        said = []
        for one in self.process.stderr:
            said.append(one)
            if "http://127.0.0.1:" in one:
                self.port = int(one.split("http://127.0.0.1:")[1].split('"')[0].split("/")[0].split()[0])
                break
        else:
            raise RuntimeError("".join(said))
        self._drain = threading.Thread(target=self.process.stderr.read, daemon=True)
        self._drain.start()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("not ready")

    def kill(self) -> None:
        """End every process of it at once, as the kernel would."""
        own = psutil.Process(self.process.pid)
        for one in [own, *own.children(recursive=True)]:
            one.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self._drain.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


async def client(port: int, told: list[int], *, stream: bool) -> None:
    """Ask until the server is gone; note the nano-USD of each answer that came whole."""
    body = {"model": "default", "messages": [{"role": "user", "content": "a b c d e"}], "stream": stream}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(data)}\r\n"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return
    try:
        while True:
            writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + data)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            lines = dict(one.split(": ", 1) for one in answer.split("\r\n")[1:] if ": " in one)
            if " 503 " in answer.split("\r\n")[0]:  # a worker that is not ready yet
                await reader.readexactly(int(lines["content-length"]))
                await asyncio.sleep(0.05)
                continue
            assert " 200 " in answer.split("\r\n")[0], answer
            if stream:
                await reader.readuntil(b"[DONE]")
                told.append(10 * TOKEN)
                await reader.readuntil(b"0\r\n\r\n")
                continue
            await reader.readexactly(int(lines["content-length"]))
            told.append(round(float(lines["x-pipeline-cost"]) * 1e9))
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


CLIENTS = 8


async def load(server: Server, seconds: float, told: list[int]) -> None:
    clients = [asyncio.create_task(client(server.port, told, stream=n % 2 == 0)) for n in range(CLIENTS)]
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.kill)
    await asyncio.gather(*clients)


def spent(folder: Path, store: list[str]) -> tuple[int, int]:
    """What `pipeline cost` says: nano-USD and calls."""
    command = [PIPELINE, "cost", "--json", "infer=echo", "infer@embed=none", f"vars.state={folder}", *store]
    environment = {**os.environ, "PIPELINE_STATE": str(folder)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    total = json.loads(done.stdout)["total"]
    return round(total["usd"] * 1e9), total["calls"]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_spend_that_a_client_was_told_of_is_lost(tmp_path: Path, store: list[str], workers: int) -> None:
    told: list[int] = []
    chance = random.Random()
    kills = 3
    for _ in range(kills):
        server = Server(tmp_path, f"server.workers={workers}", *store)
        asyncio.run(load(server, chance.uniform(0.2, 1.8), told))
    total, calls = spent(tmp_path, store)
    assert (total, calls) == spent(tmp_path, store)
    assert len(told) > 10 * kills
    # What was written down and not yet read by its client is one call for each at most.
    assert sum(told) <= total <= sum(told) + kills * CLIENTS * 10 * TOKEN
    assert len(told) <= calls <= len(told) + kills * CLIENTS
