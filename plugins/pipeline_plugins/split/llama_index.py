"""`split.llama_index`: llama-index's own node parsers, for collections that are to be cut as there.

    rag.splitter.plugin=llama_index rag.splitter.parser=markdown
    rag.splitter.plugin=llama_index \\
      'rag.splitter.transformations=[{use: llama_index.core.node_parser.MarkdownNodeParser}]'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline_plugins.llama_index import CLASS, made
from pipeline_plugins.rag.chunk import Document, Piece
from pipeline_plugins.split.splitter import Size, packed, trimmed

BLACK = re.compile(r"\S")

HEADINGS = 1000
"""Characters that are kept of the headings above a node."""

STEP = "core.schema.TransformComponent"
"""What steps of a pipeline are derived from, below `llama_index`."""


class Transformation(BaseModel):
    """A step of an `IngestionPipeline`; all keys but `use` are what its class is made with."""

    model_config = ConfigDict(extra="allow")

    use: str = Field(pattern=CLASS, description="A class derived from llama-index's `TransformComponent`.")


class LlamaIndex:
    """Cuts as llama-index's `SentenceSplitter`, `TokenTextSplitter` or `MarkdownNodeParser` does.

    With `transformations` documents go through an `IngestionPipeline` of those instead; of the nodes
    that it makes their text and headings are taken. What comes out longer than a chunk may be is cut
    between sentences, and so is a document whose text is changed: then nothing of it could be cited.
    """

    class Config(BaseModel):
        """Which parser, or which transformations."""

        model_config = ConfigDict(extra="forbid")

        parser: Literal["sentence", "token", "markdown"] = Field("sentence", description="How to cut.")
        transformations: list[Transformation] = Field(
            default_factory=list, description="What to run in its place, one after the other."
        )

    def __init__(self, config: Config) -> None:
        try:
            from llama_index.core.ingestion import IngestionPipeline
        except ImportError as error:
            raise ImportError(f"this needs llm-pipeline's extra `llama-index` ({error})") from None
        self.config = config
        steps = [made(one.use, STEP, one.model_extra or {}) for one in config.transformations]
        self._pipeline = IngestionPipeline(transformations=steps, disable_cache=True) if steps else None

    def __call__(self, document: Document, size: Size) -> list[Piece]:
        """The pieces of a document."""
        from llama_index.core.schema import Document as Text

        text = document.text
        texts = [Text(text=text)]
        if self._pipeline is not None:
            nodes = self._pipeline.run(documents=texts)
        else:
            nodes = self._parser(size).get_nodes_from_documents(texts)
        pieces: list[Piece] = []
        for piece in _placed(text, nodes) or [Piece(0, len(text))]:
            if size.count([text[piece.start : piece.end]])[0] <= size.tokens:
                pieces.append(trimmed(text, piece))
            else:
                pieces += packed(text, piece, size)
        return [piece for piece in pieces if piece.end > piece.start]

    def _parser(self, size: Size) -> Any:
        from llama_index.core import node_parser

        def tokens(text: str) -> range:
            return range(size.count([text])[0])  # only its length is looked at

        if self.config.parser == "markdown":
            return node_parser.MarkdownNodeParser()
        kinds: dict[str, Callable[..., Any]] = {
            "sentence": node_parser.SentenceSplitter,
            "token": node_parser.TokenTextSplitter,
        }
        return kinds[self.config.parser](
            chunk_size=size.tokens, chunk_overlap=size.overlap, tokenizer=tokens, include_metadata=False
        )


def _placed(text: str, nodes: Any) -> list[Piece]:
    """Where the nodes stand in the text, each after the start of the one before; nothing if one does not."""

    def places() -> Iterator[Piece]:
        at = covered = 0
        for node in nodes:
            content = node.get_content()
            beyond = BLACK.search(text, covered)
            follows = beyond is not None and text.startswith(content, beyond.start())
            start = beyond.start() if beyond is not None and follows else text.find(content, at)
            if start < 0 or text[covered:start].strip():
                raise LookupError
            headings = tuple(filter(None, node.metadata.get("header_path", "")[:HEADINGS].split("/")))
            yield Piece(start, start + len(content), headings)
            at, covered = start + 1, max(covered, start + len(content))
        if text[covered:].strip():
            raise LookupError

    try:
        return list(places())
    except LookupError:
        return []
