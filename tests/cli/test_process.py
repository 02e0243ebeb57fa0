"""The command as a shell runs it: start-up, pipes, signals, completion."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PIPELINE = Path(sys.executable).with_name("pipeline")
ECHO = ("infer=echo", "infer@embed=echo", "embed.name=e")
HEAVY = ("hydra", "omegaconf", "yaml", "rich", "structlog", "uvicorn", "aiohttp", "numpy", "torch")


@pytest.mark.parametrize(
    ("verb", "heavy"), [("--help", HEAVY), ("check", ("rich", "uvicorn", "aiohttp", "numpy", "torch"))]
)
def test_a_command_imports_nothing_heavy_that_it_does_without(verb: str, heavy: tuple[str, ...]) -> None:
    code = (
        f"import sys; from pipeline.cli.app import run; status = run([{verb!r}]); "
        f"print(status, *(m for m in {heavy!r} if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "0"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    with subprocess.Popen(
        [PIPELINE, "ask", "word " * 20_000, *ECHO, "monitor.success=false"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as asked:
        assert asked.stdout is not None
        assert asked.stderr is not None
        assert asked.stdout.read(5) == b"word "
        asked.stdout.close()
        errors = asked.stderr.read()
        asked.wait(timeout=30)
    assert b"Traceback" not in errors
    assert b"BrokenPipe" not in errors


def test_ask_streams_and_an_interrupt_ends_it_at_once() -> None:
    with subprocess.Popen(
        [PIPELINE, "ask", "one two three four", *ECHO, "infer.tokens_per_second=2", "infer.latency=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as asked:
        assert asked.stdout is not None
        assert asked.stderr is not None
        assert asked.stdout.read(4) == b"one "
        asked.send_signal(signal.SIGINT)
        rest, errors = asked.stdout.read(), asked.stderr.read()
        assert asked.wait(timeout=10) == 130
    assert b"four" not in rest
    assert b"Traceback" not in errors


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_serve_ends_on_a_signal_with_its_status(number: int, status: int) -> None:
    with subprocess.Popen(
        [PIPELINE, "serve", *ECHO, "server.port=0"], stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        said = []
        for line in server.stderr:
            said.append(line)
            if '"ready"' in line:
                break
        server.send_signal(number)
        errors = server.stderr.read()
        assert server.wait(timeout=20) == status, "".join(said)
    assert "Traceback" not in errors


def completions(*words: str) -> list[str]:
    """What bash offers for these words, of which the last is to be completed."""
    script = f"""
        eval "$(_PIPELINE_COMPLETE=bash_source {PIPELINE} | grep -v '^_pipeline_completion_setup;$')"
        pipeline() {{ {PIPELINE} "$@"; }}
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _pipeline_completion {PIPELINE}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh (Debian's package `zsh`)")
def test_zsh_adds_a_space_after_an_option_and_none_after_a_key() -> None:
    script = f"""
        compdef() {{ : }}
        compadd() {{ print -r -- "$@"; print -rl -- ${{(P)${{@[-1]}}}} }}
        eval "$(_PIPELINE_COMPLETE=zsh_source {PIPELINE})"
        path=({PIPELINE.parent} $path)
        words=(pipeline serve "$1") CURRENT=3
        _pipeline_completion
    """

    def offered(word: str) -> list[str]:
        command = ["zsh", "-f", "-c", script, "zsh", word]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return [line for line in done.stdout.splitlines() if line]

    assert offered("infer.slo") == [
        "-U -V unsorted -S  -a keys",
        "infer.slots=",
        "-U -V unsorted -a whole",
    ]
    assert offered("infer=ec") == ["-U -V unsorted -S  -a keys", "-U -V unsorted -a whole", "infer=echo"]


def test_bash_completes_verbs() -> None:
    assert {*completions("pipeline", "c")} == {"check", "collections", "compare", "config", "cost"}


def test_bash_completes_keys_and_options_though_it_splits_words_at_equals() -> None:
    assert completions("pipeline", "serve", "server.po") == ["server.port="]
    assert completions("pipeline", "serve", "infer", "=", "ec") == ["echo"]


@pytest.mark.parametrize(
    ("words", "current", "expected"),
    [
        ("pipeline serve infer=ec", 2, "plain,infer=echo"),
        ("pipeline serve infer = ec", 4, "plain,echo"),
        ("pipeline serve infer@embed = ec", 4, "plain,echo"),
        ("pipeline serve infer = echo infer.dim", 5, "plain,infer.dimensions="),
        ("pipeline serve graph =", 3, "plain,default"),
    ],
)
def test_completion_sees_the_overrides_given_so_far(
    words: str,
    current: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from pipeline.cli.app import run

    monkeypatch.setenv("_PIPELINE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(current))
    with pytest.raises(SystemExit) as ended:
        run([])
    assert ended.value.code == 0
    assert expected in capfd.readouterr().out.splitlines()
