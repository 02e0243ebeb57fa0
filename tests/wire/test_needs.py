"""What a request asks of a model."""

from typing import Any, get_args

import pytest

from pipeline import Call, Model
from pipeline.wire.needs import PARAMS, Capability, needs_of

TOOLS = [{"type": "function", "function": {"name": "f"}}]


def part(kind: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind}]}]


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, set()),
        ({"tools": TOOLS}, {"tools"}),
        ({"tools": TOOLS, "tool_choice": "none"}, set()),
        ({"tools": []}, set()),
        ({"response_format": {"type": "json_schema"}}, {"json_schema"}),
        ({"response_format": {"type": "json_object"}}, {"json_object"}),
        ({"response_format": {"type": "text"}}, set()),
        ({"logprobs": True}, {"logprobs"}),
        ({"logprobs": 0}, {"logprobs"}),
        ({"logprobs": False}, set()),
        ({"messages": part("image_url")}, {"vision"}),
        ({"messages": part("input_audio")}, {"audio"}),
        ({"messages": part("file")}, set()),
        ({"modalities": ["text", "audio"]}, {"audio"}),
        ({"tools": TOOLS, "logprobs": 2}, {"tools", "logprobs"}),
    ],
)
def test_a_request_needs_what_its_fields_ask_for(body: dict[str, Any], needs: set[str]) -> None:
    assert needs_of("chat", body, streaming=False) == needs
    assert needs_of("chat", body, streaming=True) == needs | {"streaming"}
    assert needs_of("embedding", body, streaming=True) == set()


@pytest.mark.parametrize("garbage", [5, "audio", [], [5], [[]], {}, {"type": []}, True, None])
def test_fields_that_nobody_has_checked_do_no_harm(garbage: Any) -> None:
    for field in ("messages", "modalities", "prompt", "response_format"):
        assert needs_of("completion", {field: garbage}, streaming=False) == set()
    for field in ("modalities", "prompt"):
        assert needs_of("chat", {field: garbage}, streaming=False) == set()


def test_every_need_has_the_field_that_asks_for_it() -> None:
    assert set(PARAMS) == set(get_args(Capability))


def test_a_call_reads_its_needs_once_and_a_derived_one_anew() -> None:
    call = Call(id="1", operation="chat", body={"logprobs": True, "stream": True}, deadline=0, received=0)
    assert call.needs == {"logprobs", "streaming"}
    assert call.needs is call.needs
    assert call.derive(logprobs=None).needs == {"streaming"}


def test_a_model_is_offered_what_it_can_do_and_one_that_does_not_say_everything() -> None:
    call = Call(id="1", operation="chat", body={"logprobs": True}, deadline=0, received=0)
    chat = frozenset({"chat"})
    assert Model("m", chat).offered(call)
    assert Model("m", chat, capabilities=frozenset({"logprobs", "tools"})).offered(call)
    assert not Model("m", chat, capabilities=frozenset({"tools"})).offered(call)
