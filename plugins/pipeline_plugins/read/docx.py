"""`read.docx`: the text of a Word document, its headings as Markdown's, its tables row by row."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.read.reader import File, Unreadable

HEADING = re.compile(r"Heading ([1-9])|Title")
TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


class DOCX:
    """Reads a Word document as one document."""

    class Config(BaseModel):
        """Nothing to be told."""

        model_config = ConfigDict(extra="forbid")

    suffixes: ClassVar[frozenset[str]] = frozenset({".docx"})
    types: ClassVar[dict[str, str]] = {TYPE: ".docx"}

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, file: File) -> Iterator[Document]:
        """The document of a file."""
        import docx
        from docx.opc.exceptions import OpcError
        from lxml.etree import LxmlError  # type: ignore[import-untyped]

        content = file.content()
        _check(content, file.limit)
        try:
            word = docx.Document(io.BytesIO(content))
            text = "\n\n".join(part for item in word.iter_inner_content() if (part := _shown(item)))
            title = (word.core_properties.title or "").strip()[:1024]
        except (OpcError, LxmlError, ValueError, KeyError, AttributeError) as error:
            raise Unreadable(f"no Word document ({type(error).__name__}: {str(error)[:100]})") from None
        yield Document(file.id, text, source=file.id, metadata={"title": title} if title else {})


def _check(content: bytes, limit: int) -> None:
    """Refuse what is no archive, and one that unpacks to far more than a file may have."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist() if entry.filename.endswith(".xml"))
    except zipfile.BadZipFile:
        raise Unreadable("no Word document: it is no archive") from None
    if size > limit:
        raise Unreadable(f"unpacked larger than {limit} bytes")


def _shown(item: Any) -> str:
    rows = getattr(item, "rows", None)
    if rows is not None:
        return "\n".join(" | ".join(cell.text.strip() for cell in row.cells) for row in rows)
    text: str = item.text.strip()
    found = HEADING.fullmatch(item.style.name or "") if text and item.style is not None else None
    return f"{'#' * min(int(found[1] or 1), 6)} {text}" if found else text
