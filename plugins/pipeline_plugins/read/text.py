"""`read.text`: Markdown and plain text, as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.read.reader import File


class Text:
    """Reads UTF-8 text as one document."""

    class Config(BaseModel):
        """Nothing to be told."""

        model_config = ConfigDict(extra="forbid")

    suffixes: ClassVar[frozenset[str]] = frozenset({".md", ".markdown", ".txt", ".text", ".rst"})
    types: ClassVar[dict[str, str]] = {"text/plain": ".txt", "text/markdown": ".md"}

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, file: File) -> Iterator[Document]:
        """The document of a file."""
        yield Document(file.id, file.text(), source=file.id)
