"""`split.auto`: source code by its structure, all else by headings and sentences."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pipeline_plugins.rag.chunk import Document, Piece
from pipeline_plugins.split.code import Code
from pipeline_plugins.split.sentences import Sentences
from pipeline_plugins.split.splitter import Size


class Auto:
    """Cuts source code as `code` does, and all other documents as `sentences` does."""

    class Config(BaseModel):
        """Nothing to be told."""

        model_config = ConfigDict(extra="forbid")

    def __init__(self, config: Config) -> None:
        self.config = config
        self._code = Code(Code.Config())
        self._text = Sentences(Sentences.Config())

    def __call__(self, document: Document, size: Size) -> list[Piece]:
        """The pieces of a document."""
        return self._code(document, size) if document.language else self._text(document, size)
