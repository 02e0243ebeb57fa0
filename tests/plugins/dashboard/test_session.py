"""Tokens that nobody else can make, and wrong keys that nobody may send without end."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.dashboard.session import ALL, CLIENTS, Attempts, Sessions, signing_key
from pydantic import BaseModel, ConfigDict, SecretStr

from pipeline import hookimpl
from pipeline.graph import Graph
from pipeline.plan import plan_graph
from tests.stages import registry

KEY = b"k" * 32


class Asks:
    """Something that authenticates, by a secret of its configuration."""

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")

        admin_key: SecretStr = SecretStr("")

    def __init__(self, config: Config) -> None:
        pass

    @hookimpl
    def pipeline_authenticate(self, headers: Any) -> None:
        return None


class Other:
    """Something that does not."""

    Config = Asks.Config

    def __init__(self, config: Asks.Config) -> None:
        pass


def graph(admin_key: str, other: str = "") -> Graph:
    config = {
        "graph": {"entry": "small", "stages": {"small": {}}},
        "small": {"plugin": "infer.answer"},
        "asks": {"plugin": "keys.asks", "admin_key": admin_key},
        "other": {"plugin": "keys.other", "admin_key": other},
        "extensions": {"asks": "asks", "other": "other"},
    }
    known = registry(keys_asks=f"{__name__}:Asks", keys_other=f"{__name__}:Other")
    return Graph.build(plan_graph(config, known))


def test_a_token_is_good_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(KEY, 60)
    token = sessions.begin()
    assert sessions.good(token)
    later = time.time() + 61
    monkeypatch.setattr("pipeline_plugins.dashboard.session.time.time", lambda: later)
    assert not sessions.good(token)


def test_a_token_of_another_key_is_not_good() -> None:
    assert not Sessions(KEY, 60).good(Sessions(b"j" * 32, 60).begin())


@given(st.data())
def test_a_token_that_was_changed_is_not_good(data: st.DataObject) -> None:
    sessions = Sessions(KEY, 60)
    token = sessions.begin()
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters().filter(lambda c: c != token[at]))
    assert not sessions.good(token[:at] + other + token[at + 1 :])
    assert not sessions.good(token[:at])


@given(st.text())
def test_what_is_no_token_is_not_good(text: str) -> None:
    assert not Sessions(KEY, 60).good(text)


def test_wrong_keys_of_one_client_are_bounded_and_those_of_another_are_not() -> None:
    attempts = Attempts(3)
    for _ in range(3):
        assert attempts.wait("a") == 0
        attempts.begin("a")
    assert 0 < attempts.wait("a") <= 60
    assert attempts.wait("b") == 0


def test_the_right_key_makes_wrong_ones_forgotten() -> None:
    attempts = Attempts(1)
    attempts.begin("a")
    assert attempts.wait("a") > 0
    attempts.succeeded("a")
    assert attempts.wait("a") == 0


def test_wrong_keys_of_all_clients_are_bounded_too() -> None:
    attempts = Attempts(1)
    for n in range(ALL):
        assert attempts.wait(f"c{n}") == 0
        attempts.begin(f"c{n}")
    assert attempts.wait("somebody") > 0


def test_clients_that_fail_take_bounded_memory() -> None:
    attempts = Attempts(1)
    for n in range(2 * CLIENTS):
        attempts.begin(str(n))
    assert len(attempts._wrong) == CLIENTS


def test_every_process_has_the_same_signing_key_and_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "dashboard.key"
    assert signing_key(path, graph("a")) == signing_key(path, graph("a"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert signing_key(tmp_path / "other.key", graph("a")) != signing_key(path, graph("a"))


def test_a_new_admin_key_ends_all_sessions_and_other_changes_end_none(tmp_path: Path) -> None:
    path = tmp_path / "dashboard.key"
    before = signing_key(path, graph("an-old-key"))
    assert signing_key(path, graph("a-new-key")) != before
    assert signing_key(path, graph("an-old-key", other="changed")) == before


def test_a_file_that_holds_no_key_is_told(tmp_path: Path) -> None:
    (tmp_path / "dashboard.key").write_bytes(b"short")
    with pytest.raises(OSError, match="holds no key"):
        signing_key(tmp_path / "dashboard.key", graph("a"))
