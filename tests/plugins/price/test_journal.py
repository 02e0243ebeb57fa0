"""The journal: whole lines count exactly once, whatever happens around them."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.price import journal
from pipeline_plugins.price.accounts import Accounts
from pipeline_plugins.price.journal import Journal
from pipeline_plugins.price.sqlite_store import SqliteStore

WHO = ("2026-11-25", "k", "o", "{}")


def line(nano: int) -> bytes:
    return journal.line(WHO, [], [["m", 1, 2, 0, 3, nano, 0, 0, 0]])


def accounts(folder: Path) -> Accounts:
    store = SqliteStore(folder / "spend.sqlite", durable=False)
    return Accounts(store, folder / "lines", sync="never", zone="UTC")


async def total(one: Accounts) -> int:
    return sum(counts[4] for counts in (await one.totals("2026-01-01", "2026-12-31")).values())


def left_behind(folder: Path, content: bytes, name: str = "dead.jsonl") -> Path:
    (folder / "lines").mkdir(exist_ok=True)
    path = folder / "lines" / name
    path.write_bytes(content)
    return path


@settings(max_examples=30, deadline=None)
@given(spent=st.lists(st.integers(1, 10**12), max_size=30), cut=st.integers(0, 80), folds=st.integers(1, 3))
def test_a_file_left_behind_counts_once_without_its_torn_end(
    spent: list[int], cut: int, folds: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("spend")
    whole = b"".join(map(line, spent))
    torn = line(7)[: min(cut, len(line(7)) - 1)]
    path = left_behind(folder, whole + torn)

    async def go() -> int:
        for _ in range(folds):
            one = accounts(folder)
            await one.open()
            await one.close()
        one = accounts(folder)
        await one.open()
        try:
            return await total(one)
        finally:
            await one.close()

    assert asyncio.run(go()) == sum(spent)
    assert not path.exists()


def test_processes_that_add_the_same_files_at_once_add_them_once(tmp_path: Path) -> None:
    for n in range(5):
        left_behind(tmp_path, line(10**n) * 1000, f"{n}.jsonl")

    async def go() -> int:
        several = [accounts(tmp_path) for _ in range(4)]
        await asyncio.gather(*(one.open() for one in several))
        await asyncio.gather(*(one.fold() for one in several))
        found = await total(several[0])
        await asyncio.gather(*(one.close() for one in several))
        return found

    assert asyncio.run(go()) == 11111 * 1000


def test_a_line_that_is_none_does_not_hide_those_after_it(tmp_path: Path) -> None:
    left_behind(tmp_path, line(1) + b'[["2026-11\n' + b"\0" * 100 + b"\n" + b"[1,2]\n" + line(2))

    async def go() -> int:
        one = accounts(tmp_path)
        await one.open()
        try:
            return await total(one)
        finally:
            await one.close()

    assert asyncio.run(go()) == 3


def test_the_file_of_a_living_process_is_not_removed(tmp_path: Path) -> None:
    async def go() -> int:
        first, second = accounts(tmp_path), accounts(tmp_path)
        await first.open()
        await second.open()
        first._journal.append(line(1))
        await second.fold()
        first._journal.append(line(2))
        await second.fold()
        await first.close()
        found = await total(second)
        await second.close()
        return found

    assert asyncio.run(go()) == 3
    assert journal.files(tmp_path / "lines") == []


@settings(max_examples=50, deadline=None)
@given(takes=st.lists(st.one_of(st.none(), st.integers(0, 200)), max_size=20))
def test_a_disk_that_takes_parts_of_lines_loses_and_doubles_none(
    takes: list[int | None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("spend")
    one = Journal(folder, "never")
    one.open()
    plan = iter(takes)
    write = os.write

    def grudging(file: int, data: bytes) -> int:
        take = next(plan, len(data))
        if take is None:
            raise OSError(28, "No space left on device")
        return write(file, data[:take])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", grudging)
        for n in range(10):
            one.append(line(10**n))
        while one.unwritten:
            one.retry()
    batches: list[Any] = list(journal.read(folder / one.name, 0))
    one.close()
    assert sum(counts[4] for batch in batches for counts in batch.totals.values()) == 1_111_111_111


def test_a_full_file_is_left_for_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "ROTATED", 500)
    one = Journal(tmp_path, "always")
    one.open()
    first = one.name
    while not one.full:
        one.append(line(1))
    one.open()
    assert one.name != first
    assert not one.full
    one.close()
