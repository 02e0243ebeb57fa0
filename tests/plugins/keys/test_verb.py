"""`pipeline keys` as a person types it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli.app import run
from pipeline.config import compose
from pipeline.problems import ConfigError

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def state(tmp_path: Path) -> str:
    return f"vars.state={tmp_path}/state"


def create(state: str, capfd: Capture, *arguments: str) -> str:
    assert run(["keys", "create", "--name", "ci", "--owner", "alice", *arguments, state, "keys=sqlite"]) == 0
    return capfd.readouterr().out.strip()


def listed(state: str, capfd: Capture) -> list[dict[str, object]]:
    assert run(["keys", "list", "--json", state, "keys=sqlite"]) == 0
    found: list[dict[str, object]] = json.loads(capfd.readouterr().out)
    return found


def test_piped_it_prints_the_key_alone(state: str, capfd: Capture) -> None:
    assert create(state, capfd).startswith("sk-")


def test_every_option_is_kept(state: str, capfd: Capture) -> None:
    options = "--model small --model large --rpm 60 --tpm 10000 --concurrent 4 --usd-per-day 5"
    options += " --usd-per-month 50.5 --expires 30d --tag team=search --cache ttl=60 --cache when=always"
    held = create(state, capfd, *options.split())
    (key,) = listed(state, capfd)
    assert held not in json.dumps(key)
    assert key["id"] == held.split("-")[1]
    assert key["models"] == ["small", "large"]
    assert key["limits"] == {
        "requests_per_minute": 60,
        "tokens_per_minute": 10_000,
        "concurrent": 4,
        "usd_per_day": 5.0,
        "usd_per_month": 50.5,
    }
    assert key["tags"] == {"team": "search"}
    assert key["cache"] == {"ttl": 60, "when": "always"}
    assert isinstance(key["expires_at"], int)
    assert 29.9 < (key["expires_at"] - time.time()) / 86_400 < 30.1


def test_without_keys_in_the_config_it_works_on_the_file_and_says_so(state: str, capfd: Capture) -> None:
    assert run(["keys", "list", state]) == 0
    assert "pipeline serve keys=sqlite" in capfd.readouterr().err


def test_an_unknown_id_is_told_with_the_nearest(state: str, capfd: Capture) -> None:
    id = create(state, capfd).split("-")[1]
    typo = ("0" if id[0] != "0" else "1") + id[1:]
    for verb in ("revoke", "rotate"):
        assert run(["keys", verb, typo, state, "keys=sqlite"]) == 2
        assert f"Did you mean `{id}`?" in capfd.readouterr().err
    assert run(["keys", "revoke", "ci", state, "keys=sqlite"]) == 2
    assert f"That is the name of `{id}`." in capfd.readouterr().err


def test_a_key_in_the_place_of_its_id_is_refused_and_not_repeated(state: str, capfd: Capture) -> None:
    held = create(state, capfd)
    assert run(["keys", "revoke", held, state, "keys=sqlite"]) == 2
    said = capfd.readouterr().err
    assert "Expected a key's id" in said
    assert held not in said


def test_revoked_keys_are_listed_when_asked_for(state: str, capfd: Capture) -> None:
    id = create(state, capfd).split("-")[1]
    assert run(["keys", "revoke", id, state, "keys=sqlite"]) == 0
    capfd.readouterr()
    assert run(["keys", "list", state, "keys=sqlite"]) == 0
    out, err = capfd.readouterr()
    assert id not in out
    assert "1 more" in err
    assert run(["keys", "list", "--all", state, "keys=sqlite"]) == 0
    assert id in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rpm", "0"], "--rpm"),
        (["--usd-per-day", "-1"], "--usd-per-day"),
        (["--expires", "soon"], "30d"),
        (["--expires", "2001-01-01"], "in the past"),
        (["--expires", "9999-12-31T23:59:59-23:00"], "after 9999"),
        (["--tag", "team"], "NAME=VALUE"),
        (["--cache", "tll=60"], "--cache: There is no field `cache.tll`. Did you mean `ttl`?"),
        (["--cache", "when=alwas"], "'never', not \"alwas\""),
        (["--owner", "x" * 200], "--owner"),
    ],
)
def test_a_wrong_option_is_named(state: str, capfd: Capture, arguments: list[str], said: str) -> None:
    assert run(["keys", "create", "--name", "ci", "--owner", "alice", *arguments, state, "keys=sqlite"]) == 2
    assert said in capfd.readouterr().err


def test_a_store_that_is_down_is_said_in_a_line(capfd: Capture) -> None:
    redis = "vars.redis=redis://user:geheim@127.0.0.1:1/0"
    assert run(["keys", "list", "keys=redis", redis]) == 1
    err = capfd.readouterr().err
    assert "Error: The keys in the Redis at 127.0.0.1:1" in err
    assert "geheim" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["", "create", "list", "revoke", "rotate"])
def test_help_has_examples(verb: str, capfd: Capture) -> None:
    assert run(["keys", *([verb] if verb else []), "--help"]) == 0
    assert f"pipeline keys {verb}".rstrip() in capfd.readouterr().out.partition("Examples:")[2]


def test_the_verb_is_listed_by_what_it_does_without_heavy_imports() -> None:
    heavy = ("hydra", "yaml", "rich", "structlog", "sqlite3", "redis")
    code = "import sys; from pipeline.cli.app import run; run(['--help']); "
    code += f"print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Issue, list, rotate and revoke" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("key", ["too-short", "with spaces in it and long", "n\u00f6n-ascii-and-long-enough"])
def test_a_weak_admin_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose(["infer=echo", "infer@embed=echo", "keys=sqlite", f"keys.admin_key='{key}'"]).plan()
    (problem,) = raised.value.problems
    assert problem.path == "keys.admin_key"
    assert key not in str(raised.value)


def test_how_long_an_admin_key_must_be_is_said_in_characters() -> None:
    with pytest.raises(ConfigError, match="an admin key has 16 to 256 characters, not 9"):
        compose(["infer=echo", "infer@embed=echo", "keys=sqlite", "keys.admin_key=too-short"]).plan()
