"""The prompt that a question and passages become, by a sandboxed Jinja2 template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import structlog
import yaml

from pipeline.config import config_root
from pipeline.errors import InternalError
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.rag.chunk import Passage

CHOSEN = "${oc.select:vars.prompt.passages,null}"
"""The default of a config field: the template of the config group `prompt`, null where there is none."""

QUESTION = "1234567890"
_PASSAGES = [
    Passage("", "", "2345678901", "source", 1, "heading", 0, 10, {}, 1.0),
    Passage("", "", "3456789012", "source", None, "", 0, 10, {}, 1.0),
]
TRIED = [[], *([one] for one in _PASSAGES)]
"""What a template is tried with: no passage, one that has all, and one that has no more than a text."""

log = structlog.get_logger("pipeline.rag")


def shipped(name: str = "cited") -> str:
    """A template of the shipped `conf/prompt`."""
    text = (config_root() / "prompt" / f"{name}.yaml").read_text("utf-8")
    template: str = yaml.safe_load(text)["passages"]
    return template


class Prompt:
    """A template that sees `question`, `passages` (number, text, source, page, heading) and `boundary`.

    `boundary` is a word that is in no passage, for tags that a passage cannot close.
    Raises `ConfigError` for a template that can't be read, fails, or leaves out the question or the passages.
    """

    def __init__(self, template: str) -> None:
        try:
            from jinja2 import StrictUndefined
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise ImportError(f"rag needs llm-pipeline's extra `rag` ({error})") from None
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        try:
            self._template = environment.from_string(template)
            written = [self._render(QUESTION, passages) for passages in TRIED]
        except Exception as error:  # of its expressions, too: they may divide, add and index
            raise ConfigError([Problem("template", f"is no template that works: {error}.")]) from None
        if not all(QUESTION in text for text in written):
            raise ConfigError(
                [Problem("template", "leaves the question out.", "Have `{{ question }}` in it.")]
            )
        if not all(one.text in text for one, text in zip(_PASSAGES, written[1:], strict=True)):
            hint = "Have `{{ passage.text }}` in it, for each of `passages`."
            raise ConfigError([Problem("template", "leaves the passages' text out.", hint)])

    def write(self, question: str, passages: Sequence[Passage]) -> str:
        """The prompt, equal for equal arguments. Raises `InternalError` where the template fails on them."""
        try:
            return self._render(question, passages)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.error("the template of the prompt fails", reason=reason[:200])
            raise InternalError(
                "The template of the prompt fails on what was found; the log says why."
            ) from None

    def _render(self, question: str, passages: Sequence[Passage]) -> str:
        text: str = self._template.render(
            question=question,
            boundary=_boundary([question, *(passage.text for passage in passages)]),
            passages=[
                {
                    "number": number,
                    "text": passage.text,
                    "source": passage.source,
                    "page": passage.page,
                    "heading": passage.heading,
                }
                for number, passage in enumerate(passages, 1)
            ],
        )
        return text


def _boundary(texts: Sequence[str]) -> str:
    """Eight hexadecimal digits that depend on all texts, so that none of them can have foreseen them."""
    digest = hashlib.blake2b(digest_size=4, person=b"rag-boundary")
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()


def asked(messages: Sequence[dict[str, Any]]) -> int | None:
    """Where the last message of the user is; None without one."""
    users = (at for at in range(len(messages) - 1, -1, -1) if messages[at].get("role") == "user")
    return next(users, None)


def replaced(messages: Sequence[dict[str, Any]], at: int, text: str) -> list[dict[str, Any]]:
    """The messages with another text in one of them; its images and the like stay."""
    message = messages[at]
    content: Any = text
    if not isinstance(message.get("content"), str):
        others = [part for part in message.get("content") or () if part.get("type") != "text"]
        content = [{"type": "text", "text": text}, *others]
    return [*messages[:at], {**message, "content": content}, *messages[at + 1 :]]
