"""Files in a request, `multipart/form-data`: bounded, and on disk rather than in memory."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.errors import InvalidRequest, RequestTimeout
from pipeline.server.exchange import CLOSING, too_large
from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.read.reader import File, Readers, Unreadable
from pipeline_plugins.read.rows import KEY, MAX_KEYS

if TYPE_CHECKING:
    from pipeline_plugins.rag.documents import Documents

Receive = Callable[[], Awaitable[dict[str, Any]]]

MAX_FILES = 64
MAX_DOCUMENTS = 1024
MAX_FIELD = 64 * 1024
SECONDS = 300.0
"""How long a request with files may take to arrive."""

FRAMING = 64 * 1024
"""Bytes that a body may have besides the content of its files."""


@dataclass(slots=True, frozen=True)
class Upload:
    """The files of a request, each with the name that its documents get, and its other fields."""

    files: list[File]
    fields: dict[str, str]


async def receive_files(
    receive: Receive, content_type: str, into: Path, readers: Readers, *, limit: int, seconds: float
) -> Upload:
    """Write the files of a body into a folder.

    All of it may have `limit` bytes and take so many seconds. Raises `InvalidRequest` for what is
    no form, `BodyTooLarge` and `RequestTimeout`; is cancelled if the client leaves.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import FormParser

    form = _Form(into, readers, limit)
    size = 0
    try:
        parser = FormParser(
            "multipart/form-data", form.field, form.file, boundary=_boundary(content_type), config=form.bounds
        )
        async with asyncio.timeout(seconds):
            async for part in _parts(receive):
                if (size := size + len(part)) > limit + FRAMING:
                    raise too_large(limit)
                parser.write(part)
        parser.finalize()
        parser.close()
    except TimeoutError:
        raise RequestTimeout("The body did not arrive in time.", headers=CLOSING) from None
    except (FormParserError, ValueError) as error:
        raise InvalidRequest(f"The body is no form with files: {str(error)[:200]}.") from None
    if not form.files:
        raise InvalidRequest("The form has no file.", code="missing_field")
    return Upload(form.files, form.fields)


def form_type(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The content type of a request that brings files; None for any other."""
    found = next((value for name, value in headers if name == b"content-type"), b"")
    return found.decode("latin-1") if found.lower().startswith(b"multipart/form-data") else None


async def uploaded(
    documents: Documents, content_type: str, receive: Receive
) -> tuple[list[Document], list[str]]:
    """The documents of the files in a request, and the files' names.

    Raises what `receive_files` and `documents_in` do.
    """
    readers, limit = documents.readers, documents.config.max_file_bytes
    with tempfile.TemporaryDirectory(prefix="upload-") as path:
        upload = await receive_files(receive, content_type, Path(path), readers, limit=limit, seconds=SECONDS)
        found = await documents.in_thread(documents_in, upload, readers)
        return found, [file.id for file in upload.files]


def documents_in(upload: Upload, readers: Readers) -> list[Document]:
    """The documents of all files, with the form's `metadata`. Blocks.

    Raises `InvalidRequest` for a file that can't be read, and for too many documents.
    """
    extra = _metadata(upload.fields)
    found: dict[str, Document] = {}
    for file in upload.files:
        try:
            for document in readers.read(file):
                if document.id in found:
                    raise InvalidRequest(f"The id `{document.id[:200]}` comes twice.", param="file")
                merged = {**document.metadata, **extra}
                found[document.id] = replace(document, metadata=merged, file=file.id)
                if len(found) > MAX_DOCUMENTS:
                    raise InvalidRequest(
                        f"`{file.id}` has more than {MAX_DOCUMENTS} documents; `pipeline ingest` takes them.",
                        param="file",
                    )
        except Unreadable as error:
            raise InvalidRequest(f"`{file.id}` can't be read: {error}.", param="file") from None
    return list(found.values())


class _Form:
    """Takes in the parts of a form as they are complete."""

    def __init__(self, into: Path, readers: Readers, limit: int) -> None:
        self.files: list[File] = []
        self.fields: dict[str, str] = {}
        self.bounds = {"MAX_FIELDS": MAX_FILES, "MAX_FIELD_SIZE": MAX_FIELD, "UPLOAD_DIR": str(into)}
        self._into = into
        self._readers = readers
        self._limit = limit

    def field(self, field: Any) -> None:
        """Keep a field."""
        self.fields[_text(field.field_name)] = _text(field.value)

    def file(self, file: Any) -> None:
        """Keep a file, under a name of ours: the client's is its document's id."""
        if len(self.files) == MAX_FILES:
            raise ValueError(f"more than {MAX_FILES} files")
        name = PurePosixPath(_text(file.file_name).replace("\\", "/")).name
        if not name or len(name) > 255 or not name.isprintable():
            raise ValueError("a file needs a name that can be shown")
        path = self._into / f"{len(self.files)}"
        file.file_object.seek(0)
        with path.open("wb") as copy:
            shutil.copyfileobj(file.file_object, copy)
        file.close()
        suffix = PurePosixPath(name).suffix.lower()
        if not self._readers.reads(suffix):
            suffix = self._readers.types.get(str(file.content_type or "").partition(";")[0].strip(), suffix)
        self.files.append(File(path, name, suffix, self._limit))


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    """A body as it arrives; is cancelled if the client leaves."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _boundary(content_type: str) -> str:
    message = Message()
    message["content-type"] = content_type
    return str(message.get_param("boundary") or "")


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _metadata(fields: Mapping[str, str]) -> dict[str, Any]:
    """The form's `metadata`, a flat JSON object. Raises `InvalidRequest`."""
    if unknown := set(fields) - {"metadata"}:
        raise InvalidRequest(
            f"Unknown field `{min(unknown)[:64]}`; there is `metadata`.", code="unknown_field"
        )
    try:
        found = orjson.loads(fields.get("metadata", "{}"))
    except orjson.JSONDecodeError:
        found = None
    flat = isinstance(found, dict) and all(isinstance(value, (str, int, float)) for value in found.values())
    if not flat or len(found) > MAX_KEYS or not all(KEY.fullmatch(key) for key in found):
        raise InvalidRequest(
            f"`metadata` must be a JSON object of up to {MAX_KEYS} texts and numbers.", param="metadata"
        )
    return dict(found)
