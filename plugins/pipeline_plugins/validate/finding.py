"""What a check looks at, and what it says: texts with their places, and findings in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal

from pipeline import Call
from pipeline.errors import UpstreamFailed

Path = tuple[str | int, ...]
"""Where a text is in a body: keys and indices from the outside in."""

Kind = Literal["content", "arguments", "reasoning"]

CONTENT = {
    "content": "content",
    "refusal": "content",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
}
"""Keys of a message that hold text, and of which kind it is."""

ARGUMENTS = {"function": "arguments", "custom": "input"}
"""What a tool's call may be of, and where what it is called with is in that."""


@dataclass(slots=True, frozen=True)
class Text:
    """One text of a request or a reply.

    `role` is its message's (`user`, `assistant`, …), of a completion's prompt `user`.
    `arguments` are those of a tool's call, `reasoning` is what a model thinks aloud.
    """

    path: Path
    text: str
    role: str
    kind: Kind = "content"

    @property
    def where(self) -> str:
        """The place as people write it: `messages[0].content`."""
        return place(self.path)


@dataclass(slots=True, frozen=True)
class Finding:
    """What a check has against a text.

    `what` never quotes the text, for it is recorded and logged; `detail` may, and is told to
    the client and the model only. `span` are the characters of the text concerned, and
    `replacement` what to write there, where a check can tell.
    """

    path: Path
    what: str
    span: tuple[int, int] | None = None
    replacement: str = ""
    detail: str = ""

    @property
    def at(self) -> tuple[int, int]:
        """The span of a finding that is known to have one."""
        return self.span or (0, 0)

    @property
    def label(self) -> str:
        """Where and what, without any of the text."""
        return f"{place(self.path)} {self.what}" if self.path else self.what

    def __str__(self) -> str:
        return f"{self.label}: {self.detail}" if self.detail else self.label


@dataclass(slots=True)
class Subject:
    """What is checked: the texts of a call's request, or those of a reply to it.

    `score` is set by a check that gives one, of the worst text: it is recorded, passed or not.
    """

    side: Literal["request", "reply"]
    call: Call
    texts: list[Text] = field(default_factory=list)
    score: float | None = None

    @property
    def content(self) -> list[Text]:
        """The texts that are said to somebody: no tool's arguments, no thinking aloud."""
        return [text for text in self.texts if text.kind == "content"]

    def scored(self, score: float) -> None:
        """Note a text's score; what is no number is none."""
        if isfinite(score):
            self.score = score if self.score is None else min(self.score, score)

    @property
    def size(self) -> int:
        """Characters of all texts."""
        return sum(len(text.text) for text in self.texts)


def place(path: Path) -> str:
    """A path as people write it."""
    written = ""
    for key in path:
        written += f"[{key}]" if isinstance(key, int) else f".{key}" if written else key
    return written


def texts_of_request(body: Mapping[str, Any]) -> list[Text]:
    """The texts of a chat's messages, a completion's prompts or an embedding's inputs.

    With what the client expects of the answer (`prediction`), which is sent along.
    """
    texts: list[Text] = []
    for index, message in enumerate(body.get("messages") or ()):
        texts += _of_message(message, ("messages", index), message.get("role") or "user")
    if isinstance(expected := body.get("prediction"), dict):
        texts += _of_message(expected, ("prediction",), "assistant")
    for key in ("prompt", "input", "suffix"):
        given = body.get(key)
        if isinstance(given, str):
            texts.append(Text((key,), given, "user"))
        elif isinstance(given, list):
            texts += [Text((key, i), one, "user") for i, one in enumerate(given) if isinstance(one, str)]
    return texts


def token_ids_of(body: Mapping[str, Any]) -> Path | None:
    """Where a request gives token ids in place of text, None where it does not."""
    for key in ("prompt", "input"):
        given = body.get(key)
        for index, one in enumerate(given if isinstance(given, list) else ()):
            if not isinstance(one, str):
                return (key, index) if isinstance(one, list) else (key,)
    return None


def texts_of_reply(body: Mapping[str, Any]) -> list[Text]:
    """The texts of a reply's choices. Raises `UpstreamFailed` for what is no reply."""
    texts: list[Text] = []
    for index, choice in enumerate(objects(body, "choices")):
        path: Path = ("choices", index)
        if isinstance(choice.get("text"), str):
            texts.append(Text((*path, "text"), choice["text"], "assistant"))
        message = choice.get("message") or {}
        if not isinstance(message, dict):
            raise strange("message")
        objects(message, "tool_calls")
        texts += _of_message(message, (*path, "message"), "assistant")
    return texts


def objects(holder: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of objects in a model's answer, which may be left out. Raises `UpstreamFailed`."""
    found = holder.get(key) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise strange(key)
    return found


def strange(key: str) -> UpstreamFailed:
    """The error for an answer that can't be checked, since it has not the form of one."""
    return UpstreamFailed(f"The model's answer can't be checked: its `{key}` has not OpenAI's form.")


def _of_message(message: Mapping[str, Any], path: Path, role: str) -> Iterator[Text]:
    for key, kind in CONTENT.items():
        value = message.get(key)
        if isinstance(value, str):
            yield Text((*path, key), value, role, kind)  # type: ignore[arg-type]
        elif isinstance(value, list):
            for index, part in enumerate(value):
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    yield Text((*path, key, index, "text"), part["text"], role, kind)  # type: ignore[arg-type]
    calls = message.get("tool_calls")
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        for key, given in arguments_of(call):
            at = (*path, "tool_calls", index, key, ARGUMENTS[key])
            yield Text(at, given[ARGUMENTS[key]], role, "arguments")
    # The form that calls of tools had until 2023.
    for key, given in arguments_of({"function": message.get("function_call")}):
        yield Text((*path, "function_call", ARGUMENTS[key]), given[ARGUMENTS[key]], role, "arguments")


def arguments_of(call: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a call of a tool has texts: of what it is, and the object that holds them."""
    for key, inner in ARGUMENTS.items():
        given = call.get(key) if isinstance(call, dict) else None
        if isinstance(given, dict) and isinstance(given.get(inner), str):
            yield key, given


def redacted(text: str, findings: Iterable[Finding], start: int = 0) -> str:
    """A text, or the piece of one that begins at `start`, with what was found replaced.

    A finding that began before the piece was replaced there; here its rest is left out.
    """
    parts: list[str] = []
    at = 0
    for finding in joined(findings):
        first, last = finding.at[0] - start, finding.at[1] - start
        if last <= at or first >= len(text):
            continue
        parts.append(text[at : max(first, 0)])
        if first >= 0:
            parts.append(finding.replacement)
        at = min(last, len(text))
    parts.append(text[at:])
    return "".join(parts)


def joined(findings: Iterable[Finding]) -> list[Finding]:
    """Findings with a span in the order of the text, those that overlap made one."""
    result: list[Finding] = []
    for one in sorted((f for f in findings if f.span), key=lambda f: (f.at[0], -f.at[1])):
        if result and one.at[0] < result[-1].at[1]:
            last = result[-1]
            result[-1] = replace(last, span=(last.at[0], max(last.at[1], one.at[1])))
        else:
            result.append(one)
    return result


class Copy:
    """A copy of a body, made only along the paths that are written to."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._copied: dict[Path, Any] = {(): dict(body)}

    @property
    def body(self) -> dict[str, Any]:
        """The copy; what was not written to is shared with the original."""
        return self._copied[()]  # type: ignore[no-any-return]

    def write(self, path: Path, value: Any) -> None:
        """Put a value at a place."""
        self._container(path[:-1])[path[-1]] = value

    def _container(self, path: Path) -> Any:
        found = self._copied.get(path)
        if found is None:
            parent = self._container(path[:-1])
            inner = parent[path[-1]]
            found = dict(inner) if isinstance(inner, dict) else list(inner)
            parent[path[-1]] = self._copied[path] = found
        return found


def by_path(findings: Iterable[Finding]) -> dict[Path, list[Finding]]:
    """Findings by the text that they are in."""
    grouped: dict[Path, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(finding.path, []).append(finding)
    return grouped


def without(body: Mapping[str, Any], texts: Iterable[Text], findings: Iterable[Finding]) -> dict[str, Any]:
    """A copy of a body with what was found in its texts replaced.

    Log probabilities of a choice that changed are dropped: they spell out its tokens.
    """
    found = by_path(findings)
    copy = Copy(body)
    for text in texts:
        if text.path in found:
            copy.write(text.path, redacted(text.text, found[text.path]))
            if text.path[0] == "choices":
                copy.write((*text.path[:2], "logprobs"), None)
    return copy.body
