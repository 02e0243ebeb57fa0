"""What a store of keys keeps, and what its changes are, in a file as in Redis."""

import asyncio
import concurrent.futures
import os
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipeline_plugins.keys.key import KeyChange, digest_of
from pipeline_plugins.keys.redis_store import RedisStore
from pipeline_plugins.keys.sqlite_store import SQLiteStore
from pipeline_plugins.keys.store import Conflict, NoSuchKey, Store, StoreDown, change, create, revoke, rotate

from tests.plugins.keys.stores import Shop, redis_shop, spec, sqlite_shop


@pytest.fixture(params=["sqlite", "redis"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    if request.param == "sqlite":
        return sqlite_shop(tmp_path)
    return redis_shop(request.getfixturevalue("redis_url"))


def test_a_key_comes_back_as_it_was_created(shop: Shop) -> None:
    wanted = spec(
        models=["small"],
        limits={"requests_per_minute": 60, "usd_per_day": 0.5},
        cache={"ttl": 60, "when": "always"},
        tags={"team": "Süd \N{LLAMA}", 'quote"': "}"},
        expires_at=4_000_000_000,
    )
    key, held = shop.run(lambda store: create(store, wanted))
    found = shop.run(lambda store: store.find(key.id))
    assert found == key
    assert found is not None
    assert found.digest == digest_of(held).hex()
    assert found.tenant().policy["limit"] == {"requests_per_minute": 60, "usd_per_day": 0.5}
    assert held not in found.model_dump_json()


def test_what_is_shown_has_no_digest(shop: Shop) -> None:
    key, held = shop.run(lambda store: create(store, spec()))
    rotated, _ = shop.run(lambda store: rotate(store, key.id, 60))
    shown = str(rotated.shown(time.time()))
    assert rotated.former is not None
    for hidden in (held, key.digest, rotated.digest, rotated.former.digest):
        assert hidden not in shown


def test_changes_are_told_once_and_in_their_order(shop: Shop) -> None:
    async def go(store: Store) -> None:
        start, _ = await store.changes(0)
        first, _ = await create(store, spec())
        second, _ = await create(store, spec())
        newest, ids = await store.changes(start)
        assert sorted(ids) == sorted([first.id, second.id])
        assert await store.changes(newest) == (newest, [])
        await revoke(store, first.id)
        assert (await store.changes(newest))[1] == [first.id]

    shop.run(go)


def test_a_stale_key_is_not_written_over_a_newer_one(shop: Shop) -> None:
    async def go(store: Store) -> None:
        key, _ = await create(store, spec())
        await revoke(store, key.id)
        with pytest.raises(Conflict):
            await store.save(key.model_copy(update={"owner": "bob"}))
        found = await store.find(key.id)
        assert found is not None
        assert found.revoked_at is not None

    shop.run(go)


def test_changes_of_one_key_by_many_all_count(shop: Shop) -> None:
    async def go(store: Store) -> None:
        other = shop.make()
        await other.open()
        key, _ = await create(store, spec())
        changes = [
            change(at, key.id, KeyChange.model_validate(what))
            for at in (store, other)
            for what in ({"name": "n"}, {"owner": "o"}, {"tags": {"t": "v"}}, {"models": ["m"]})
        ]
        await asyncio.gather(*changes)
        found = await store.find(key.id)
        await other.close()
        assert found is not None
        assert (found.name, found.owner, found.tags, found.models) == ("n", "o", {"t": "v"}, ["m"])
        assert found.revision == key.revision + len(changes)

    shop.run(go)


def test_a_revoked_key_stays_revoked_and_is_not_rotated(shop: Shop) -> None:
    key, _ = shop.run(lambda store: create(store, spec()))
    once = shop.run(lambda store: revoke(store, key.id))
    assert shop.run(lambda store: revoke(store, key.id)) == once
    with pytest.raises(ValueError, match="revoked"):
        shop.run(lambda store: rotate(store, key.id))


def test_an_id_that_is_none_is_said(shop: Shop) -> None:
    with pytest.raises(NoSuchKey):
        shop.run(lambda store: revoke(store, "0123456789ab"))
    with pytest.raises(NoSuchKey):
        shop.run(lambda store: revoke(store, "' or 1=1 --"))


def test_all_are_listed(shop: Shop) -> None:
    made = [shop.run(lambda store: create(store, spec()))[0].id for _ in range(5)]
    assert {key.id for key in shop.run(lambda store: store.all())} == set(made)


def test_file_and_folder_are_the_owners_alone(tmp_path: Path) -> None:
    shop = sqlite_shop(tmp_path)

    async def go(store: Store) -> None:
        await create(store, spec())
        files = list((tmp_path / "state").iterdir())
        assert {file.name for file in files} == {"keys.sqlite", "keys.sqlite-wal", "keys.sqlite-shm"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700

    before = os.umask(0)
    try:
        shop.run(go)
    finally:
        os.umask(before)


CREATOR = """
import asyncio, sys
from pathlib import Path
from pipeline_plugins.keys.sqlite_store import SQLiteStore
from pipeline_plugins.keys.store import create
from tests.plugins.keys.stores import spec

async def main():
    store = SQLiteStore(Path(sys.argv[1]))
    await store.open()
    while True:
        key, held = await create(store, spec())
        print(key.id, flush=True)

asyncio.run(main())
"""


def test_processes_that_are_killed_lose_no_key_that_they_told_of(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys.sqlite"

    def lived(seconds: float) -> list[str]:
        with subprocess.Popen(
            [sys.executable, "-c", CREATOR, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            told = [process.stdout.readline().strip()]
            time.sleep(seconds)
            process.kill()
            return [*told, *process.stdout.read().split("\n")[:-1]]

    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        told = {id for ids in threads.map(lived, (0.1, 0.2, 0.3)) for id in ids}
    with sqlite3.connect(path) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
    keys = sqlite_shop(tmp_path).run(lambda store: store.all())
    assert told <= {key.id for key in keys}
    assert sorted(key.revision for key in keys) == list(range(1, len(keys) + 1))


def test_a_file_that_is_no_database_is_said_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreDown, match="not a database") as raised:
        asyncio.run(SQLiteStore(path).open())
    assert str(path) in str(raised.value)


def test_a_redis_that_is_gone_is_said_without_its_password() -> None:
    async def go() -> None:
        store = RedisStore("redis://user:geheim@127.0.0.1:1/0?password=geheim", "p")
        await store.open()
        try:
            with pytest.raises(StoreDown) as raised:
                await store.find("0123456789ab")
        finally:
            await store.close()
        assert "127.0.0.1:1" in str(raised.value)
        assert "geheim" not in str(raised.value)

    asyncio.run(go())
