"""What a chat template puts around messages, learned from conversations that it renders.

Most templates write a conversation as text between contents, and that text depends only on
the roles at its two ends. Such a one need not be run to know its output; any other is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline_plugins.infer.llamacpp_loopback import LoopbackError

Render = Callable[[list[dict[str, Any]]], str]

SEQUENCES: Sequence[Sequence[str]] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    ("user", "user"),
    ("user", "assistant"),
    ("user", "assistant", "assistant", "user"),
    ("system",),
    ("system", "system", "user"),
    ("assistant", "user"),
    ("user", "system", "user"),
    ("user", "assistant", "system", "user"),
    ("user", "assistant", "tool"),
    ("user", "assistant", "tool", "tool"),
    ("user", "assistant", "tool", "assistant", "user"),
)
"""Conversations that are rendered, those first that every template must know."""

REQUIRED = 5
BEFORE, AFTER = " \n", "\n "
"""Whitespace around every content: a template may strip it."""

SPACE = " \t\n\v\f\r"
"""What llama.cpp's templates strip: a template's `trim` knows ASCII alone."""


@dataclass(slots=True)
class Frames:
    """Text between contents by the roles on both sides, None for the conversation's ends.

    `strips` holds for each role whether its contents lose whitespace at the left, the right.
    """

    between: dict[tuple[str | None, str | None], str] = field(default_factory=dict)
    strips: dict[str, tuple[bool, bool]] = field(default_factory=dict)

    def render(self, messages: Sequence[dict[str, Any]], tools: tuple[str, str] = ("", "")) -> str:
        """The prompt of a conversation: its contents and all that is around them.

        `tools` is the text of the tool that the frames were learned with, and what to put there.
        """
        usual = self.between["assistant", "user"]
        parts: list[str] = []
        previous: str | None = None
        for message in messages:
            role, content = message["role"], message["content"]
            left, right = self.strips.get(role, (False, False))
            if left:
                content = content.lstrip(SPACE)
            if right:
                content = content.rstrip(SPACE)
            parts += (self.between.get((previous, role), usual), content)
            previous = role
        parts.append(self.between.get((previous, None), self.between["user", None]))
        if tools[0]:
            parts[::2] = [part.replace(*tools) for part in parts[::2]]
        return "".join(parts)

    def contain(self, text: str) -> bool:
        """Whether this text is between contents somewhere."""
        return any(text in between for between in self.between.values())

    def take(self, roles: Sequence[str], render: Render) -> bool:
        """Learn from one conversation; False where the template refuses it, or contradicts itself."""
        marks = [f"mark{chr(ord('A') + index)}content" for index in range(len(roles))]
        messages: list[dict[str, Any]] = [
            {"role": role, "content": f"{BEFORE}{mark}{AFTER}"}
            for role, mark in zip(roles, marks, strict=True)
        ]
        for message in messages:
            if message["role"] == "tool":
                message["tool_call_id"] = "call00001"
        try:
            text = render(messages)
        except LoopbackError:
            return False
        return self._cut(text, roles, marks)

    def _cut(self, text: str, roles: Sequence[str], marks: Sequence[str]) -> bool:
        learned = Frames()
        at = 0
        previous: str | None = None
        for role, mark in zip(roles, marks, strict=True):
            start = text.find(mark, at)
            if start < 0:
                return False
            end = start + len(mark)
            left, right = not text.endswith(BEFORE, at, start), not text.startswith(AFTER, end)
            start -= 0 if left else len(BEFORE)
            if not learned._note((previous, role), text[at:start], role, (left, right)):
                return False
            at = end + (0 if right else len(AFTER))
            previous = role
        if not learned._note((previous, None), text[at:]):
            return False
        for pair, between in learned.between.items():
            if self.between.get(pair, between) != between:
                return False
        for role, strips in learned.strips.items():
            if self.strips.get(role, strips) != strips:
                return False
        self.between |= learned.between
        self.strips |= learned.strips
        return True

    def _note(
        self,
        pair: tuple[str | None, str | None],
        text: str,
        role: str | None = None,
        strips: tuple[bool, bool] = (False, False),
    ) -> bool:
        """Keep what is around one content; False where it was another before."""
        if role is not None and self.strips.setdefault(role, strips) != strips:
            return False
        return self.between.setdefault(pair, text) == text


def learn(render: Render) -> Frames | None:
    """The frames of a template, None for one that is not made like that.

    `render` gives the prompt of a conversation and raises `LoopbackError` for one that the
    template refuses; a conversation like that is counted by its nearest kin.
    """
    frames = Frames()
    for index, roles in enumerate(SEQUENCES):
        known = frames.take(roles, render)
        # Some refuse a system message; a conversation without one they must know.
        if not known and index < REQUIRED and "system" not in roles:
            return None
    return frames
