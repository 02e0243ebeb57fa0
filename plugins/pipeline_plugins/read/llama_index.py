"""`read.llama_index`: files by one of llama-index's readers, for what no other plugin reads.

rag.readers.pptx.plugin=llama_index rag.readers.pptx.reader=llama_index.readers.file.PptxReader
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline_plugins.llama_index import CLASS, made
from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.read.reader import File, Unreadable
from pipeline_plugins.read.rows import KEY, MAX_KEYS, MAX_VALUE


class LlamaIndex:
    """Reads the suffixes that it is chosen for, by the reader that it is told.

    What the reader gives as one document is one here; several have `FILE#NUMBER` as their ids,
    and the page that llama-index calls `page_label`.
    """

    class Config(BaseModel):
        """Which reader."""

        model_config = ConfigDict(extra="forbid")

        reader: str = Field(
            pattern=CLASS, description="Its class, such as `llama_index.readers.file.PptxReader`."
        )
        options: dict[str, Any] = Field(default_factory=dict, description="What the class is made with.")

    suffixes: ClassVar[frozenset[str]] = frozenset()
    types: ClassVar[dict[str, str]] = {}

    def __init__(self, config: Config) -> None:
        self.config = config
        self._reader = made(config.reader, "core.readers.base.BaseReader", config.options)

    def __call__(self, file: File) -> Iterator[Document]:
        """The documents of a file."""
        if file.size > file.limit:
            raise Unreadable(f"larger than {file.limit} bytes")
        try:
            found = self._reader.load_data(file.path)
            texts = [(one.get_content(), dict(one.metadata)) for one in found]
        except Exception as error:  # foreign code: what it raises for a damaged file is not known
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise Unreadable(f"`{self.config.reader}` fails with {reason}") from None
        for number, (text, metadata) in enumerate(texts, 1):
            id = file.id if len(texts) == 1 else f"{file.id}#{number}"
            yield Document(id, text, source=file.id, page=_page(metadata), metadata=_kept(metadata))


def _page(metadata: Mapping[str, Any]) -> int | None:
    label = str(metadata.get("page_label", ""))
    return int(label) if label.isdecimal() and len(label) < 10 else None


def _kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What filters can name; not where the file was, which may be a temporary copy."""
    kept = [
        (name, value)
        for name, value in metadata.items()
        if KEY.fullmatch(name)
        and not name.startswith("file_")
        and isinstance(value, (str, int, float))
        and len(str(value)) <= MAX_VALUE
    ]
    return dict(kept[:MAX_KEYS])
