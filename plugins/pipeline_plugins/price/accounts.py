"""Accounts of what was spent: every call's charges, durably, under its day, key, owner, model and tags.

A call's line goes into the journal before its reply, or a stream's end, is handed on. A task
off the way of calls adds journals to the store, each line exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orjson
import structlog

from pipeline import Call, ChunkStream, End, Record, Reply, Tenant
from pipeline.price import Charge, Spent
from pipeline.stage import StageCall
from pipeline_plugins.price import journal
from pipeline_plugins.price.journal import Batch, Journal, Sync, Totals
from pipeline_plugins.price.periods import Calendar

NANO = 1_000_000_000

FOLD = 1.0
"""Seconds between two times that the journal is added to the store."""

ADOPT = 30
"""Every how many of those times the files of ended processes are looked for."""

HEADER = "x-pipeline-cost"

log = structlog.get_logger("pipeline.price")


class Store(Protocol):
    """Where accounts are kept. `settles_reservations` where budgets' reservations are there, too."""

    settles_reservations: bool

    async def open(self) -> None:
        """Connect."""

    async def applied(self, file: str) -> int:
        """Bytes of a journal file that are in the accounts."""

    async def apply(self, batch: Batch) -> bool:
        """Add a batch if it begins where the last one of its file ended."""

    async def totals(self, since: str, until: str) -> Totals:
        """The accounts of some days, both ends included."""

    async def close(self) -> None:
        """Disconnect."""


class Accounts:
    """Writes what calls spent, and reads what was spent.

    `meters` are the sums in memory that budgets keep beside them, by stage. Whoever uses them
    opens and closes them: the first one and the last one do so indeed.
    """

    def __init__(self, store: Store, folder: Path, *, sync: Sync, zone: str) -> None:
        self.store = store
        self.calendar = Calendar(zone)
        self.calls = 0
        self.nano = 0
        self.failing = False
        self.meters: dict[str, Any] = {}
        self._users = 0
        self._journal = Journal(folder, sync)
        self._folding: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._alone = -1
        self._written, self._unwritten = Written(self), Written(self)
        self._tags: dict[tuple[tuple[str, str], ...], str] = {}

    @property
    def unwritten(self) -> int:
        """Lines that wait for a disk that takes them."""
        return len(self._journal.unwritten)

    async def open(self, *, write: bool = True) -> None:
        """Open the store, add what earlier processes left, and begin a journal."""
        self._users += 1
        if self._users > 1:
            return
        await self.store.open()
        await self._fold(everything=True)
        if write:
            self._journal.open()
            self._folding = asyncio.create_task(self._fold_often())

    async def close(self) -> None:
        """Add what is left, and close. What the store does not take stays in the journal."""
        self._users -= 1
        if self._users > 0:
            return
        if self._folding is not None:
            self._folding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._folding
            self._folding = None
            self._journal.retry()
            if lost := self._journal.unwritten:
                usd = decimal(journal.spent(lost))
                log.error("the disk took no more of what was spent, it is lost", calls=len(lost), usd=usd)
            self._journal.flush()
            await self._fold(everything=False)
            self._journal.close()
            await self._fold(everything=True)
        if self._alone >= 0:
            os.close(self._alone)
            self._alone = -1
        await self.store.close()

    def layer(self, entry: StageCall) -> StageCall:
        """What goes around the graph's entry."""

        async def accounted(call: Call) -> Reply:
            record = call.record
            spent: Spent | None = record.decisions.get(Spent)
            if spent is None:
                record.decisions[Spent] = spent = Spent()
            record.decisions.pop(Written, None)
            before = len(spent.charges)
            try:
                reply = await entry(call)
            except BaseException:
                if len(spent.charges) > before or spent.saved:
                    record.headers[HEADER] = decimal(self.write(call, spent, None, before))
                else:
                    record.decisions[Written] = self._unwritten
                raise
            if reply.body is not None:
                if len(spent.charges) > before or reply.status < 400:
                    record.headers[HEADER] = decimal(self.write(call, spent, reply.model, before))
                else:
                    record.decisions[Written] = self._unwritten
                return reply

            def ended(end: End) -> None:
                self.write(call, spent, reply.model, before)
                outer.usage = end.usage

            reply.on_end(ended)
            outer = Reply(chunks=Whole(reply), status=reply.status, headers=reply.headers, model=reply.model)
            return outer

        return accounted

    def write(self, call: Call, spent: Spent, model: str | None, before: int = 0) -> int:
        """Write a call's line to the journal: its charges from `before` on.

        Returns the nano-USD that they come to.
        """
        charges = spent.charges[before:] if before else spent.charges
        return self._line(call, call.record, *_rows(charges, spent.saved, model or call.model[:256]))

    def add(self, call: Call, charge: Charge) -> None:
        """Write a line for an attempt that ended after its call: the call's own if it has none yet."""
        record = call.record.whole
        if record.decisions.get(Written) is self._unwritten:
            self._line(call, record, *_rows([charge], {}, charge.model))
            return
        cost, rows = _rows([charge], {}, charge.model, calls=0)
        self._append(call.tenant, rows, [])
        self.nano += cost

    def _line(self, call: Call, record: Record, cost: int, rows: list[list[Any]]) -> int:
        """Write the line that counts a call and settles its reservations."""
        reserved: Reserved | None = record.decisions.get(Reserved)
        self._append(call.tenant, rows, reserved.ids if reserved is not None else [])
        record.decisions[Written] = self._written
        self.calls += 1
        self.nano += cost
        return cost

    def _append(self, tenant: Tenant, rows: list[list[Any]], reservations: list[str]) -> None:
        who = (self.calendar.today, tenant.key, tenant.owner, self._tags_of(tenant))
        self._journal.append(journal.line(who, reservations, rows))

    async def totals(self, since: str, until: str) -> Totals:
        """What was spent on the days from `since` to `until`, both included."""
        return await self.store.totals(since, until)

    async def fold(self) -> None:
        """Add to the store what is in the journals of all processes."""
        await self._fold(everything=True)

    def alone(self) -> bool:
        """Whether no other process that uses these accounts has asked this; none can from now on."""
        if self._alone < 0:
            path = self._journal.folder / "alone"
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(file)
                return False
            self._alone = file
        return True

    def _tags_of(self, tenant: Tenant) -> str:
        if not tenant.tags:
            return "{}"
        found = self._tags.get(tenant.tags)
        if found is None:
            if len(self._tags) > 4096:
                self._tags.clear()
            found = orjson.dumps(dict(sorted(tenant.tags))).decode()
            self._tags[tenant.tags] = found
        return found

    async def _fold_often(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(FOLD)
            turn += 1
            if self._journal.unwritten:
                self._journal.retry()
            if self._journal.full:
                # A disk that takes no new file may still take lines.
                with contextlib.suppress(OSError):
                    self._journal.open()
                    turn = ADOPT
            if self._journal.sync == "interval":
                await asyncio.to_thread(self._journal.flush)
            await self._fold(everything=turn % ADOPT == 0)

    async def _fold(self, *, everything: bool) -> None:
        """Add this process's journal, or those of all; a store that fails gets them another time."""
        folder = self._journal.folder
        async with self._lock:
            try:
                for path in journal.files(folder) if everything else [folder / self._journal.name]:
                    await self._fold_file(path)
            except Exception as error:
                # Whatever it is: the journal has it all, and calls go on.
                if not self.failing:
                    log.error("what was spent waits in the journal", error=repr(error)[:200])
                self.failing = True
            else:
                if self.failing:
                    log.warning("what was spent is in the accounts again")
                self.failing = False

    async def _fold_file(self, path: Path) -> None:
        start = await self.store.applied(path.name)
        with contextlib.suppress(FileNotFoundError):
            batches = journal.read(path, start)
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                if not await self.store.apply(batch):
                    return  # another process is at it
                start = batch.end
            if path.name != self._journal.name or self._journal.closed:
                with journal.claimed(path) as mine:
                    if mine and next(journal.read(path, start), None) is None:
                        # The store keeps how far it was read: another process may be about to
                        # add what it read before the file went.
                        await asyncio.to_thread(path.unlink)


@dataclass(slots=True, frozen=True, eq=False)
class Written:
    """Marks a call that is over. An attempt that ends after it has a line of its own.

    Such as a lost race, or what a cache asked for several clients of whom the last one left.
    """

    accounts: Accounts


@dataclass(slots=True)
class Reserved:
    """The reservations of budgets for a call, which its journal line settles."""

    ids: list[str] = field(default_factory=list)


class Whole(ChunkStream):
    """A stream whose `[DONE]` is handed on only when all of it has ended, and is written down.

    A class and not a generator function: closing one that was never started closes `reply`.
    """

    __slots__ = ("_chunks", "_ended", "_reply")

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._chunks = aiter(reply)
        self._ended = False

    async def __anext__(self) -> bytes:
        """The next chunk."""
        if self._ended:
            raise StopAsyncIteration
        chunk = await anext(self._chunks)
        if chunk[-24:].rstrip().endswith(b"[DONE]"):
            self._ended = True
            async for more in self._chunks:
                chunk += more
        return chunk

    async def aclose(self) -> None:
        """Close the stream."""
        self._ended = True
        await self._reply.aclose()


def _rows(
    charges: list[Charge], saved: dict[str, float], model: str, calls: int = 1
) -> tuple[int, list[list[Any]]]:
    """A call's counts by model, and its nano-USD; the call counts for the model that it ended with."""
    by_model: dict[str, list[Any]] = {}
    cost = 0
    for charge in charges:
        usage = charge.usage
        nano = round(charge.usd * NANO)
        cost += nano
        row = by_model.get(charge.model)
        if row is None:
            by_model[charge.model] = row = [charge.model, 0, 0, 0, 0, 0, 0, 0, 0]
        row[2] += usage.prompt_tokens
        row[3] += usage.cached_tokens
        row[4] += usage.completion_tokens
        row[5] += nano
        if charge.estimated:
            row[6] += nano
    own = next((charge.model for charge in reversed(charges) if not charge.aside), model)
    last = by_model.setdefault(own, [own, 0, 0, 0, 0, 0, 0, 0, 0])
    last[1] = calls
    if saved:
        last[7] = round(saved.get("cache", 0.0) * NANO)
        last[8] = round(saved.get("route", 0.0) * NANO)
    return cost, list(by_model.values())


def decimal(nano: int) -> str:
    """Nano-USD as USD, in plain decimal: exactly what is written to the accounts."""
    if nano == 0:
        return "0"
    return f"{nano // NANO}.{nano % NANO:09d}".rstrip("0").removesuffix(".")
