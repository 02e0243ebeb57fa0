"""`rag.store=acme`: collections in memory, every commit kept whole."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline_plugins.rag.chunk import Passage
from pipeline_plugins.rag.ranking import Candidate, distinct, fuse
from pipeline_plugins.rag.windows import packed, similarities
from pipeline_plugins.store.store import (
    Collection,
    NoSuchCollection,
    NoSuchVersion,
    Version,
    check_name,
    other_embedding,
)
from pydantic import BaseModel, ConfigDict


@dataclass
class Shelf:
    """A collection: the chunks of its documents at each commit."""

    embedding: str
    dimensions: int
    commits: list


class Store:
    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")

    def __init__(self, config):
        self.config, self.embedding, self.shelves = config, None, {}

    async def open(self, embedding):
        self.embedding = embedding

    async def close(self):
        self.shelves.clear()

    def shelf(self, owner, name):
        if (shelf := self.shelves.get((owner, name))) is None:
            raise NoSuchCollection(name)
        return shelf

    def fitting(self, owner, name):
        if self.embedding not in (None, kept := self.shelf(owner, name).embedding):
            raise other_embedding(name, kept, self.embedding)
        return self.documents(owner, name)

    def documents(self, owner, name):
        return self.shelf(owner, name).commits[-1][1]

    def commit(self, owner, name, documents):
        self.shelf(owner, name).commits.append((datetime.now(UTC), documents))

    async def names(self, owner):
        return sorted(name for whose, name in self.shelves if whose == owner)

    async def describe(self, owner, name):
        shelf, documents = self.shelf(owner, name), self.documents(owner, name)
        return Collection(
            name, len(documents), sum(map(len, documents.values())), len(shelf.commits), shelf.embedding
        )

    async def create(self, owner, name, dimensions):
        check_name(name)
        fresh = Shelf(self.embedding, dimensions, [(datetime.now(UTC), {})])
        self.shelves.setdefault((owner, name), fresh)
        self.fitting(owner, name)
        if (kept := self.shelf(owner, name).dimensions) != dimensions:
            raise other_embedding(name, f"{self.embedding} ({kept})", f"{self.embedding} ({dimensions})")

    async def drop(self, owner, name):
        self.shelf(owner, name)
        del self.shelves[owner, name]

    async def digests(self, owner, name, documents):
        kept = self.fitting(owner, name)
        return {one: kept[one][0].digest for one in documents if one in kept}

    async def all_digests(self, owner, name):
        yield [(one, chunks[0].digest) for one, chunks in self.fitting(owner, name).items()]

    async def replace(self, owner, name, documents):
        whole = {**self.fitting(owner, name), **documents}
        self.commit(owner, name, {one: list(chunks) for one, chunks in whole.items() if chunks})

    async def delete(self, owner, name, documents):
        kept = self.documents(owner, name)
        self.commit(owner, name, {one: chunks for one, chunks in kept.items() if one not in set(documents)})
        return len(kept) - len(self.documents(owner, name))

    async def read_from(self, owner, name, root):
        files = ((one, chunks[0].document.file) for one, chunks in self.documents(owner, name).items())
        yield [(one, file) for one, file in files if file == root or file.startswith(f"{root}/")]

    async def search(self, owner, name, search):
        chunks = [one for chunks in self.fitting(owner, name).values() for one in enumerate(chunks)]
        chunks = [one for one in chunks if search.filter is None or holds(search.filter, one[1])]
        fits = [None] * len(chunks)
        if search.vector is not None:
            fits = similarities(search.vector, [packed(chunk.windows) for _, chunk in chunks])
        near = [Candidate(row, fit, fit) for row, fit in enumerate(fits) if fit is not None]
        found = sorted(near, key=lambda one: -one.score)
        if search.text is not None:
            words = [len(terms(chunk.text) & terms(search.text)) for _, chunk in chunks]
            match = [Candidate(row, score, fits[row]) for row, score in enumerate(words) if score]
            match.sort(key=lambda one: -one.score)
            found = match if search.vector is None else fuse(found, match, search.words)
        good = [one for one in found if one.similarity is None or one.similarity >= search.least]
        return distinct(passage(*chunks[one.row], one) for one in good)[: search.k]

    async def at(self, owner, name, places):
        kept, none = self.documents(owner, name), Candidate(0, 0.0)
        wanted = [(one, at) for one in sorted(places) for at in sorted(places[one])]
        return [passage(at, kept[one][at], none) for one, at in wanted if at < len(kept.get(one, ()))]

    async def version(self, owner, name):
        shelf = self.shelves.get((owner, name))
        return f"{shelf.commits[0][0]}:{len(shelf.commits)}" if shelf else ""

    async def versions(self, owner, name):
        commits = self.shelf(owner, name).commits
        return [Version(number, at) for number, (at, _) in enumerate(commits, 1)][::-1]

    async def restore(self, owner, name, version):
        commits = self.shelf(owner, name).commits
        if version > len(commits):
            raise NoSuchVersion(name, version)
        self.commit(owner, name, commits[version - 1][1])

    async def tidy(self, owner, name, keep):
        self.shelf(owner, name)

    async def rebuild(self, owner, name):
        self.shelf(owner, name)


def terms(text):
    return set(re.findall(r"\w+", text.lower()))


def holds(filter, chunk):
    if filter.every or filter.some:
        return (all if filter.every else any)(holds(one, chunk) for one in filter.every or filter.some)
    document = chunk.document
    fields = {"document": document.id, "source": document.source or document.id, "page": chunk.page}
    own = fields.get(filter.field, document.metadata.get(filter.field.removeprefix("metadata.")))
    values = filter.value if isinstance(filter.value, list) else [filter.value]
    if own is None or filter.op not in ("=", "in"):
        return False
    return any(str(own) == str(value) for value in values)


def passage(ordinal, chunk, found):
    document, piece = chunk.document, chunk.piece
    return Passage(
        f"{document.id}:{ordinal}",
        document.id,
        chunk.text,
        document.source or document.id,
        chunk.page,
        " > ".join(piece.headings),
        piece.start,
        piece.end,
        document.metadata,
        found.score,
        found.similarity,
        ordinal,
    )
