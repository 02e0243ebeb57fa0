"""Which calls are answered and remembered, by config, key and headers."""

from dataclasses import replace
from typing import Any

import pytest
from pipeline_plugins.cache.policy import Policy, Terms

from pipeline import ANONYMOUS, Call
from pipeline.errors import InvalidRequest


def terms(
    body: dict[str, Any],
    *,
    when: Any = "deterministic",
    operation: str = "chat",
    own: Any = None,
    **headers: str,
) -> Terms | None:
    tenant = replace(ANONYMOUS, policy={"cache": own} if own else {})
    call = Call(
        id="r",
        operation=operation,
        body=body,
        deadline=1e9,
        received=0,
        tenant=tenant,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    return Policy(when=when, ttl=60).terms(call)


@pytest.mark.parametrize(
    "body", [{"temperature": 0}, {"temperature": 0.09}, {"seed": 0}, {"temperature": 1, "seed": 3}]
)
def test_deterministic_calls_are_cacheable(body: dict[str, Any]) -> None:
    assert terms(body) == Terms(ttl=60)


@pytest.mark.parametrize("body", [{}, {"temperature": 0.1}, {"temperature": None, "seed": None}])
def test_other_calls_are_cacheable_only_if_the_config_says_always(body: dict[str, Any]) -> None:
    assert terms(body) is None
    assert terms(body, when="always") is not None
    assert terms(body, when="never", operation="embedding") is None


def test_embeddings_are_always_deterministic() -> None:
    assert terms({"input": "x"}, operation="embedding") is not None


def test_a_key_replaces_when_and_ttl() -> None:
    assert terms({}, own={"when": "always", "ttl": 5}) == Terms(ttl=5)
    assert terms({"seed": 1}, own={"when": "never"}) is None
    assert terms({"seed": 1}, own={"when": "nonsense", "ttl": -1}) == Terms(ttl=60)


def test_headers_say_whether_to_read_and_to_write() -> None:
    def asked(control: str) -> Terms | None:
        return terms({"seed": 1}, cache_control=control)

    assert asked("no-cache") == Terms(read=False, ttl=60)
    assert asked("No-Store") == Terms(write=False, ttl=60)
    assert asked("no-cache, no-store") is None
    assert asked("max-age=30") == Terms(max_age=30, ttl=60)
    assert asked("max-age = x, private") == Terms(ttl=60)


def test_tags_are_bounded() -> None:
    assert terms({"seed": 1}, x_pipeline_cache_tags="a, b,a,") == Terms(tags=("a", "b"), ttl=60)
    for wrong in ("a b", "x" * 65, ",".join("abcdefghi"), "a\x00"):
        with pytest.raises(InvalidRequest, match="x-pipeline-cache-tags"):
            terms({"seed": 1}, x_pipeline_cache_tags=wrong)
