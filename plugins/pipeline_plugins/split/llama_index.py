"""`split.llama_index`: llama-index's own node parsers, for collections that are to be cut as there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline_plugins.rag.chunk import Document, Piece
from pipeline_plugins.split.splitter import Size, packed, trimmed


class LlamaIndex:
    """Cuts as llama-index's `SentenceSplitter`, `TokenTextSplitter` or `MarkdownNodeParser` does.

    What it makes longer than a chunk may be is cut between sentences, and so is a document whose
    text it changes: then nothing of it could be cited.
    """

    class Config(BaseModel):
        """Which parser."""

        model_config = ConfigDict(extra="forbid")

        parser: Literal["sentence", "token", "markdown"] = Field("sentence", description="How to cut.")

    def __init__(self, config: Config) -> None:
        try:
            import llama_index.core.node_parser  # noqa: F401
        except ImportError as error:
            raise ImportError(f"this needs llm-pipeline's extra `llama-index` ({error})") from None
        self.config = config

    def __call__(self, document: Document, size: Size) -> list[Piece]:
        """The pieces of a document."""
        from llama_index.core.schema import Document as Text

        text = document.text
        nodes = self._parser(size).get_nodes_from_documents([Text(text=text)])
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
            start = text.find(content, at)
            if start < 0 or text[covered:start].strip():
                raise LookupError
            headings = tuple(filter(None, node.metadata.get("header_path", "").split("/")))
            yield Piece(start, start + len(content), headings)
            at, covered = start + 1, max(covered, start + len(content))
        if text[covered:].strip():
            raise LookupError

    try:
        return list(places())
    except LookupError:
        return []
