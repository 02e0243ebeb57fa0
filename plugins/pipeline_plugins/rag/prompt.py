"""The prompt that a question and passages become, by a sandboxed Jinja2 template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.config import config_root
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.rag.chunk import Passage

CHOSEN = "${oc.select:vars.prompt.passages,null}"
"""The default of a config field: the template of the config group `prompt`, null where there is none."""


def shipped(name: str = "cited") -> str:
    """A template of the shipped `conf/prompt`."""
    text = (config_root() / "prompt" / f"{name}.yaml").read_text("utf-8")
    template: str = yaml.safe_load(text)["passages"]
    return template


class Prompt:
    """A template that sees `question`, `passages` (number, text, source, page, heading) and `boundary`.

    `boundary` is a word that is in no passage, for tags that a passage cannot close.
    Raises `ConfigError` for a template that can't be read.
    """

    def __init__(self, template: str) -> None:
        try:
            from jinja2 import StrictUndefined, TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise ImportError(f"rag needs llm-pipeline's extra `rag` ({error})") from None
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        try:
            self._template = environment.from_string(template)
            self.write("question", [])
            self.write("question", [Passage("", "", "text", "source", 1, "heading", 0, 4, {}, 1.0)])
        except TemplateError as error:
            raise ConfigError([Problem("template", f"is no template that works: {error}.")]) from None

    def write(self, question: str, passages: Sequence[Passage]) -> str:
        """The prompt, equal for equal arguments."""
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
