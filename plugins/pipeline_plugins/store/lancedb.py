"""`store.lancedb`: collections in LanceDB, a database for each owner, a table for each collection.

The database's folder is named by a digest of the owner, so no filter and no name of a
collection leads to another owner's chunks. A write is one commit for all who read: a document's
former chunks go when its new ones come, and a kill at any moment leaves the last commit readable.
Several processes may use the folder; each search sees what the others
have committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from time import time
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.problems import ConfigError, Problem
from pipeline_plugins.rag.chunk import Chunk, Passage
from pipeline_plugins.store import lancedb_search, lancedb_upkeep
from pipeline_plugins.store.lancedb_guard import OPENING, READING, WRITING, guarded
from pipeline_plugins.store.lancedb_place import place
from pipeline_plugins.store.lancedb_replacing import BLANK, replace
from pipeline_plugins.store.lancedb_sql import one_of, quote, sql
from pipeline_plugins.store.store import (
    NAME,
    Collection,
    NoSuchCollection,
    NoSuchVersion,
    Search,
    Version,
    check_name,
    other_embedding,
)

KEY = {"lance-schema:unenforced-primary-key": "true"}
"""Makes LanceDB notice that two processes add the same chunk at once: the second then overwrites it."""

DATABASES = 256
"""Owners whose database is held open."""

STORAGE = {"new_table_data_storage_version": "2.1"}
"""The format of new collections. In 2.2 reading five rows of a million takes 1 ms longer for every
column that has the same in all of them, such as the source of the rows of one file."""

DEPTH = 100
"""Candidates of each list that are fused, at least."""


class LanceDB:
    """Keeps collections in a folder, or below a URL of an object store."""

    class Config(BaseModel):
        """Where."""

        model_config = ConfigDict(extra="forbid")

        path: Annotated[str, AfterValidator(place)] = Field(
            min_length=1, description="Folder, or URL in an object store."
        )

    def __init__(self, config: Config) -> None:
        if find_spec("lancedb") is None:
            raise ImportError("this needs llm-pipeline's extra `rag`")
        self.config = config
        self._embedding: str | None = None
        self._databases: OrderedDict[str, Any] = OrderedDict()
        self._session: Any = None

    async def open(self, embedding: str | None) -> None:
        """Get ready for vectors of this model; None: none are put in or compared.

        Raises `ConfigError` for a folder that can't be made.
        """
        import lancedb

        self._embedding = embedding
        self._session = lancedb.Session()  # what it holds of indexes is bounded for all owners together
        try:
            self._where("")
        except OSError as error:
            raise ConfigError([Problem("path", f"no folder to use: {error}.")]) from None

    async def close(self) -> None:
        """Let go of the databases."""
        while self._databases:
            self._databases.popitem()[1].close()

    async def names(self, owner: str) -> list[str]:
        """The collections of an owner, in alphabetical order."""
        async with guarded(READING):
            return sorted(await self._names(await self._database(owner)))

    async def describe(self, owner: str, name: str) -> Collection:
        """What is known of a collection. Raises `NoSuchCollection`."""
        async with guarded(READING):
            table = await self.table(owner, name)
            metadata = (await table.schema()).metadata or {}
            return Collection(
                name,
                documents=await table.count_rows("ordinal = 0"),
                chunks=await table.count_rows() - await table.count_rows(BLANK),
                version=await table.version(),
                embedding=metadata[b"embedding"].decode(),
                created=int(metadata.get(b"created", b"0")),
                bytes=(await table.stats())["total_bytes"],
            )

    async def create(self, owner: str, name: str, dimensions: int) -> None:
        """Make a collection for vectors of so many numbers, unless there is one.

        Raises `InvalidRequest` for a name that can't be one, or where there is one of another model.
        """
        check_name(name)
        async with guarded():
            try:
                table = await self._fitting(owner, name, dimensions)
            except NoSuchCollection:
                database = await self._database(owner)
                with suppress(ValueError):  # another was first: the table is there
                    await database.create_table(name, schema=self._schema(dimensions))
                table = await self._fitting(owner, name, dimensions)
            await lancedb_upkeep.complete(table)

    async def drop(self, owner: str, name: str) -> None:
        """Delete a collection. Raises `NoSuchCollection`."""
        async with guarded(WRITING):
            database = await self._database(owner)
            if name not in await self._names(database):
                raise NoSuchCollection(name)
            await database.drop_table(name)

    async def digests(self, owner: str, name: str, documents: Sequence[str]) -> dict[str, str]:
        """The digest of each of these documents that the collection has."""
        if not documents:
            return {}
        async with guarded(READING):
            table = await self._fitting(owner, name)
            which = f"ordinal = 0 and {one_of('document', documents)}"
            found = await table.query().where(which).select(["document", "digest"]).to_arrow()
        return {row["document"]: row["digest"] for row in found.to_pylist()}

    async def all_digests(self, owner: str, name: str) -> AsyncIterator[list[tuple[str, str]]]:
        """All documents and their digests, some at a time."""
        async with guarded():
            table = await self._fitting(owner, name)
            rows = table.query().where("ordinal = 0").select(["document", "digest"])
            async for batch in await rows.to_batches():
                yield list(zip(*(batch.column(at).to_pylist() for at in range(2)), strict=True))

    async def replace(self, owner: str, name: str, documents: Mapping[str, Sequence[Chunk]]) -> None:
        """Put these chunks in the place of all that the documents had, at once for all who read."""
        if not documents:
            return
        chunks = next((chunks for chunks in documents.values() if chunks), None)
        async with guarded(WRITING):
            table = await self._fitting(owner, name, chunks[0].windows.shape[1] if chunks else None)
            await replace(table, documents)

    async def delete(self, owner: str, name: str, documents: Sequence[str]) -> int:
        """Delete documents; how many there were."""
        if not documents:
            return 0
        which = one_of("document", documents)
        async with guarded(WRITING):
            table = await self.table(owner, name)
            if known := await table.count_rows(f"ordinal = 0 and {which}"):
                await table.delete(which)
        return int(known)

    async def read_from(self, owner: str, name: str, root: str) -> AsyncIterator[list[tuple[str, str]]]:
        """The documents that were read from this file or from files below this folder: ids, and files."""
        which = f"ordinal = 0 and (file = {quote(root)} or starts_with(file, {quote(root + '/')}))"
        async with guarded():
            table = await self.table(owner, name)
            async for batch in await table.query().where(which).select(["document", "file"]).to_batches():
                yield list(zip(*(batch.column(at).to_pylist() for at in ("document", "file")), strict=True))

    async def version(self, owner: str, name: str) -> str:
        """What changes with every commit to a collection, and is never the same again.

        Empty where there is no such collection.
        """
        try:
            async with guarded(READING):
                table = await self.table(owner, name)
                metadata = (await table.schema()).metadata or {}
                return f"{metadata.get(b'made', b'').decode()}:{await table.version()}"
        except NoSuchCollection:
            return ""

    async def search(self, owner: str, name: str, search: Search) -> list[Passage]:
        """The passages that fit best, best first, without repeats of a text."""
        async with guarded(READING):
            table = await self._fitting(owner, name, None if search.vector is None else len(search.vector))
            where = None if search.filter is None else sql(search.filter)
            depth = max(DEPTH, 2 * search.k)
            ranked = await lancedb_search.ranked(
                table, search.text, search.vector, depth, where, search.words
            )
            fitting = [one for one in ranked if one.similarity is None or one.similarity >= search.least]
            return await lancedb_search.read(table, fitting, search.k)

    async def at(self, owner: str, name: str, places: Mapping[str, AbstractSet[int]]) -> list[Passage]:
        """The chunks of documents that have these ordinals, document by document, in order."""
        async with guarded(READING):
            return await lancedb_search.at(await self.table(owner, name), places)

    async def versions(self, owner: str, name: str) -> list[Version]:
        """The versions that can be gone back to, the latest first."""
        async with guarded(READING):
            found = await (await self.table(owner, name)).list_versions()
        return [Version(one["version"], one["timestamp"]) for one in reversed(found)]

    async def restore(self, owner: str, name: str, version: int) -> None:
        """Make a collection what it was; that is a new version. Raises `NoSuchVersion`."""
        async with guarded():
            table = await self.table(owner, name)
            if version not in {one["version"] for one in await table.list_versions()}:
                raise NoSuchVersion(name, version)
            await table.checkout(version)
            await table.restore()

    async def tidy(self, owner: str, name: str, keep: timedelta) -> None:
        """Put many small files into one, and what is new into the indexes; forget versions older than `keep`.

        Those of the last few minutes stay, for searches under way.
        """
        async with guarded():
            await lancedb_upkeep.tidy(await self.table(owner, name), keep)

    async def rebuild(self, owner: str, name: str) -> None:
        """Build all indexes of a collection anew; that of vectors only where there are enough for one."""
        async with guarded():
            await lancedb_upkeep.rebuild(await self.table(owner, name))

    async def _database(self, owner: str) -> Any:
        key = hashlib.blake2b(owner.encode(), digest_size=16, person=b"rag-owner").hexdigest()
        database = self._databases.get(key)
        if database is None:
            where = self._where(key)
            import lancedb

            async with asyncio.timeout(OPENING):
                database = await lancedb.connect_async(where, storage_options=STORAGE, session=self._session)
            self._databases[key] = database
            while len(self._databases) > DATABASES:
                self._databases.popitem(last=False)
        self._databases.move_to_end(key)
        return database

    def _where(self, key: str) -> str:
        """The place of an owner's database: below a folder, or below the URL of an object store."""
        if "://" in self.config.path:
            return f"{self.config.path.rstrip('/')}/{key}"
        folder = Path(self.config.path).expanduser() / key
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    async def _names(self, database: Any) -> list[str]:
        names: list[str] = []
        token = None
        while True:
            page = await database.list_tables(page_token=token)
            names += page.tables
            token = page.page_token
            if not token:
                return names

    async def table(self, owner: str, name: str) -> Any:
        """LanceDB's table of a collection as it is now.

        What others commit later is not in it: open it anew for each search. Raises `NoSuchCollection`.
        Use within `guarded`.
        """
        if re.fullmatch(NAME, name) is None:
            raise NoSuchCollection(name)
        database = await self._database(owner)
        try:
            async with asyncio.timeout(OPENING):
                return await database.open_table(name)
        except ValueError:  # what LanceDB says of a folder that has no first commit yet, too
            raise NoSuchCollection(name) from None

    async def _fitting(self, owner: str, name: str, dimensions: int | None = None) -> Any:
        """The same, seen to be of this store's model, and of so many numbers. Raises `InvalidRequest`."""
        table = await self.table(owner, name)
        if self._embedding is None:
            return table
        schema = await table.schema()
        kept = (schema.metadata or {}).get(b"embedding", b"").decode()
        if kept != self._embedding:
            raise other_embedding(name, kept, self._embedding)
        if dimensions not in (None, size := schema.field("vector").type.list_size):
            raise other_embedding(name, f"{kept} ({size})", f"{kept} ({dimensions})")
        return table

    def _schema(self, dimensions: int) -> Any:
        import pyarrow as arrow  # type: ignore[import-untyped]

        return arrow.schema(
            [
                arrow.field("id", arrow.string(), nullable=False, metadata=KEY),
                ("document", arrow.string()),
                ("ordinal", arrow.int32()),
                ("text", arrow.string()),
                ("vector", arrow.list_(arrow.float32(), dimensions)),
                ("windows", arrow.binary()),
                ("metadata", arrow.json_()),
                ("source", arrow.string()),
                ("page", arrow.int32()),
                ("heading", arrow.string()),
                ("start", arrow.int64()),
                ("end", arrow.int64()),
                ("digest", arrow.string()),
                ("file", arrow.string()),
                ("hash", arrow.string()),
            ],
            metadata={"embedding": self._embedding or "", "made": token_hex(8), "created": str(int(time()))},
        )
