"""`read.pdf`: the text of a PDF, and where each of its pages begins."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.read.reader import File, Unreadable


class PDF:
    """Reads a PDF as one document; a passage has the page on which it begins.

    A page without text, such as a scanned one, is empty. A file of such pages alone is not read, nor is
    one that only a password opens.
    """

    class Config(BaseModel):
        """How much of a PDF is read."""

        model_config = ConfigDict(extra="forbid")

        max_pages: int = Field(10_000, ge=1, description="A PDF with more pages is not read.")

    suffixes: ClassVar[frozenset[str]] = frozenset({".pdf"})
    types: ClassVar[dict[str, str]] = {"application/pdf": ".pdf"}

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, file: File) -> Iterator[Document]:
        """The document of a file."""
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError

        logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of what it mends
        content = file.content()
        try:
            reader = PdfReader(io.BytesIO(content))
            if reader.is_encrypted and not reader.decrypt(""):
                raise Unreadable("it is locked by a password")
            if len(reader.pages) > self.config.max_pages:
                raise Unreadable(f"more than {self.config.max_pages} pages")
            pages = [page.extract_text().strip() for page in reader.pages]
            about = reader.metadata
            title = str((about and about.title) or "").strip()[:1024]
        except Unreadable:
            raise
        except (
            PyPdfError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            RecursionError,
        ) as error:
            # A damaged file fails wherever its structure is first relied on.
            raise Unreadable(
                f"no PDF that can be read ({type(error).__name__}: {str(error)[:100]})"
            ) from None
        if pages and not any(pages):
            raise Unreadable("there is no text in it: scanned pages need OCR first")
        starts, at = [], 0
        for page in pages:
            starts.append(at)
            at += len(page) + 2
        metadata = {"title": title} if title else {}
        yield Document(file.id, "\n\n".join(pages), source=file.id, metadata=metadata, pages=tuple(starts))
