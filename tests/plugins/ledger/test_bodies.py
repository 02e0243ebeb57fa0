"""What is kept of bodies: by policy, and in the form in which it can be sent again."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.ledger.bodies import Bodies
from pipeline_plugins.ledger.sqlite import SQLiteLedger

from pipeline.problems import ConfigError
from tests.plugins.ledger.test_writer import ended

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def shape(value: Any) -> Any:
    """A value with each text made one letter."""
    match value:
        case str():
            return "x"
        case list():
            return [shape(one) for one in value]
        case dict():
            return {name: shape(one) for name, one in value.items()}
    return value


@given(st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_redacting_changes_texts_alone(body: dict[str, Any]) -> None:
    raw = orjson.dumps(body)
    kept = Bodies("redacted", lambda text: "#" * len(text)).of(replace(ended(), request=raw))
    assert kept is not None
    policy, request, reply = kept
    assert (policy, reply) == ("redacted", None)
    assert request is not None
    assert shape(orjson.loads(request)) == shape(body)


def test_a_full_request_is_kept_byte_for_byte() -> None:
    raw = b'{"model":  "m", "messages": []}'
    assert Bodies("full").of(replace(ended(), request=raw)) == ("full", raw.decode(), None)


def test_data_in_texts_is_left_out_of_what_is_redacted() -> None:
    raw = b'{"image_url": {"url": "data:image/png;base64,AAAA"}}'
    kept = Bodies("redacted", lambda text: text).of(replace(ended(), request=raw))
    assert kept == ("redacted", '{"image_url":{"url":"data:,"}}', None)


def test_nothing_is_kept_by_none() -> None:
    assert Bodies("none").of(replace(ended(), request=b"{}", reply=b"{}")) is None


@pytest.mark.parametrize(
    ("bodies", "host", "can", "policy"),
    [
        ("auto", "127.0.0.1", True, "redacted"),
        ("auto", "127.0.0.1", False, "none"),
        ("auto", "0.0.0.0", True, "none"),
        ("full", "0.0.0.0", False, "full"),
        ("redacted", "0.0.0.0", True, "redacted"),
    ],
)
def test_the_policy_goes_by_where_the_server_listens(bodies: Any, host: str, can: bool, policy: str) -> None:
    ledger = SQLiteLedger(SQLiteLedger.Config(bodies=bodies, host=host))
    assert ledger.policy(can_redact=can) == policy


def test_redacting_needs_a_check_that_can() -> None:
    with pytest.raises(ConfigError, match="can redact"):
        SQLiteLedger(SQLiteLedger.Config(bodies="redacted")).policy(can_redact=False)
