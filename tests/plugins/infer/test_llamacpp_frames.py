"""Frames of chat templates, learned from conversations; the templates here are functions."""

from __future__ import annotations

from typing import Any

import pytest
from pipeline_plugins.infer.llamacpp_frames import learn
from pipeline_plugins.infer.llamacpp_loopback import LoopbackError

Messages = list[dict[str, Any]]


def said(*pairs: tuple[str, str]) -> Messages:
    return [{"role": role, "content": content} for role, content in pairs]


LONG = said(("system", " s "), ("user", "\nu"), ("assistant", "a\t"), ("user", "v\u00a0"), ("user", ""))


def plain(messages: Messages) -> str:
    """Frames that depend on the role, and a system message where there is none."""
    opening = "" if messages[0]["role"] == "system" else "<system>be good</>"
    return opening + "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"


def stripping(messages: Messages) -> str:
    """Contents of users lose their whitespace, as ASCII knows it."""
    strip = {"user": " \t\n\v\f\r"}
    return "".join(f"[{m['content'].strip(strip.get(m['role'], ''))}]" for m in messages)


def alternating(messages: Messages) -> str:
    """Refuses all but users and assistants in turns."""
    for index, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[index % 2]:
            raise LoopbackError("refused")
    return "".join(f"[{m['role']}]{m['content']}" for m in messages)


def forgetful(messages: Messages) -> str:
    """Leaves out what assistants said earlier."""
    return "".join(f"[{m['content'] if m['role'] == 'user' else ''}]" for m in messages)


def counting(messages: Messages) -> str:
    """Writes the number of messages first."""
    return f"{len(messages)}:" + "".join(f"[{m['content']}]" for m in messages)


@pytest.mark.parametrize("template", [plain, stripping])
def test_what_was_learned_renders_a_longer_conversation_alike(template: Any) -> None:
    frames = learn(template)
    assert frames is not None
    assert frames.render(LONG) == template(LONG)
    assert frames.render(LONG[1:]) == template(LONG[1:])


def test_a_template_may_refuse_conversations() -> None:
    frames = learn(alternating)
    assert frames is not None
    turns = said(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert frames.render(turns) == alternating(turns)


@pytest.mark.parametrize("template", [forgetful, counting])
def test_a_template_that_looks_elsewhere_than_at_two_neighbours_has_no_frames(template: Any) -> None:
    assert learn(template) is None


def test_a_server_that_is_gone_leaves_no_frames() -> None:
    def gone(messages: Messages) -> str:
        raise LoopbackError("gone")

    assert learn(gone) is None


def test_text_in_frames_is_replaced_and_the_same_in_contents_is_not() -> None:
    frames = learn(lambda messages: "TOOL" + "".join(f"[{m['content']}]" for m in messages))
    assert frames is not None
    assert frames.render(said(("user", "TOOL")), ("TOOL", "a\nb")) == "a\nb[TOOL]"
    assert frames.contain("TOOL")
