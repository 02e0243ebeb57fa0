"""Who is admitted, from memory and from the store, and what happens while that is down."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.keys.key import Key, KeyChange, digest_of, mint
from pipeline_plugins.keys.ring import Ring
from pipeline_plugins.keys.store import change, create, revoke, rotate

from pipeline import Tenant
from pipeline.errors import Forbidden, Overloaded, Unauthorized
from tests.plugins.keys.stores import (
    Flaky,
    Shop,
    admitted,
    outcome,
    redis_shop,
    ring,
    spec,
    sqlite_shop,
    until,
)
from tests.redis_process import RedisProcess

ADMIN = "an-administrators-key"


@pytest.fixture(params=["sqlite", "redis"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    if request.param == "sqlite":
        return sqlite_shop(tmp_path)
    return redis_shop(request.getfixturevalue("redis_url"))


def with_ring(shop: Shop, work: Callable[[Ring, Flaky], Awaitable[None]], **changes: object) -> None:
    async def go() -> None:
        store = Flaky(shop.make())
        keys = ring(store, **changes)
        await keys.open()
        try:
            await work(keys, store)
        finally:
            await keys.close()

    asyncio.run(go())


async def refused(keys: Ring, held: str) -> str:
    with pytest.raises(Unauthorized) as raised:
        await admitted(keys, held)
    assert held not in raised.value.message
    return raised.value.message


async def eventually_refused(keys: Ring, held: str) -> str:
    async def over() -> bool:
        return await outcome(keys, held) == "invalid_api_key"

    await until(over)
    return await refused(keys, held)


def test_a_key_says_who_asks_and_what_they_may(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        wanted = spec(
            models=["small", "large"], limits={"concurrent": 2}, cache={"ttl": 5}, tags={"b": "2", "a": "1"}
        )
        keys.enforced = frozenset({"concurrent"})
        key, held = await create(store, wanted)
        assert await admitted(keys, held) == Tenant(
            key=key.id, owner="alice", tags=(("a", "1"), ("b", "2")), models=frozenset({"small", "large"})
        )
        tenant = keys.admit(held)
        assert isinstance(tenant, Tenant)
        assert tenant.policy == {"limit": {"concurrent": 2}, "cache": {"ttl": 5}}
        assert not tenant.admin

    with_ring(shop, go)


def test_a_key_with_a_limit_that_nothing_enforces_is_refused(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        keys.enforced = frozenset({"concurrent"})
        _, held = await create(store, spec(limits={"concurrent": 2, "usd_per_day": 1.0}))
        with pytest.raises(Forbidden, match="does not enforce: `usd_per_day`"):
            await admitted(keys, held)

    with_ring(shop, go)


def test_while_models_load_a_key_with_limits_is_told_to_come_again(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        _, held = await create(store, spec(limits={"concurrent": 2}))
        assert await outcome(keys, held) == "not_ready"
        keys.enforced = frozenset({"concurrent"})
        assert (await admitted(keys, held)).owner == "alice"

    with_ring(shop, go)


def test_a_known_key_is_answered_without_the_store(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        _, held = await create(store, spec())
        await admitted(keys, held)
        before = store.finds
        for _ in range(100):
            assert isinstance(keys.admit(held), Tenant)
        assert store.finds == before

    with_ring(shop, go)


def test_a_right_id_with_a_wrong_secret_is_refused(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        key, held = await create(store, spec())
        await refused(keys, mint(key.id)[1])
        await admitted(keys, held)
        await refused(keys, held[:-1] + ("A" if held[-1] != "A" else "B"))

    with_ring(shop, go)


def test_an_unknown_key_is_looked_up_once_and_in_bounded_memory(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        _, stranger = mint()
        for _ in range(3):
            await refused(keys, stranger)
        assert store.finds == 1
        for _ in range(30):
            await refused(keys, mint()[1])
        assert len(keys._unknown) == 10

    with_ring(shop, go, size=10)


def test_a_key_that_was_refused_is_admitted_once_it_exists(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        id, held = mint()
        await refused(keys, held)
        digest = digest_of(held).hex()
        await store.save(Key(id=id, digest=digest, created_at=1, name="late", owner="bob"))

        async def admitted_now() -> bool:
            return await outcome(keys, held) == "admitted"

        await until(admitted_now)
        assert (await admitted(keys, held)).owner == "bob"

    with_ring(shop, go)


def test_what_another_process_changes_holds_here(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        key, held = await create(store, spec())
        await admitted(keys, held)
        await change(store, key.id, KeyChange(models=["tiny"]))

        async def changed() -> bool:
            return (await admitted(keys, held)).models == frozenset({"tiny"})

        await until(changed)
        await revoke(store, key.id)
        assert "has been revoked" in await eventually_refused(keys, held)

    with_ring(shop, go)


def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_admitted(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        key, held = await create(store, spec())
        store.gate = asyncio.Event()
        asking = asyncio.create_task(admitted(keys, held))
        await until(lambda: store.finds == 1)
        await asyncio.sleep(0.1)  # the old record is read, and not yet answered
        revoked = (await store.store.find(key.id)).model_copy(update={"revoked_at": 1})  # type: ignore[union-attr]
        await store.save(revoked)
        await keys._look()
        store.gate.set()
        with pytest.raises(Unauthorized, match="revoked"):
            await asking

    with_ring(shop, go, refresh=60.0)


def test_an_expired_key_is_refused_though_it_is_known(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        soon = int(time.time()) + 1000
        _, held = await create(store, spec(expires_at=soon))
        await admitted(keys, held)
        monkeypatch.setattr(time, "time", lambda: soon + 0.5)
        assert "has expired" in await refused(keys, held)

    with_ring(shop, go)


def test_after_rotation_the_old_secret_is_good_for_the_grace_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        key, old = await create(store, spec())
        rotated, new = await rotate(store, key.id, 1000)
        assert (await admitted(keys, old)).key == (await admitted(keys, new)).key == key.id
        assert rotated.former is not None
        until = rotated.former.until
        monkeypatch.setattr(time, "time", lambda: until + 0.5)
        await refused(keys, old)
        await admitted(keys, new)
        _, newest = await rotate(store, key.id)
        await eventually_refused(keys, new)
        await admitted(keys, newest)

    with_ring(shop, go)


def test_many_requests_with_one_new_key_make_one_look_up_that_none_can_cancel(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        _, held = await create(store, spec())
        store.gate = asyncio.Event()
        asking = [asyncio.create_task(admitted(keys, held)) for _ in range(50)]
        await asyncio.sleep(0.05)
        asking[0].cancel()
        store.gate.set()
        done = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
        assert {who.owner for who in done[1:] if isinstance(who, Tenant)} == {"alice"}
        assert store.finds == 1

    with_ring(shop, go, refresh=60.0)


def test_while_the_store_is_down_known_keys_work_and_of_others_nothing_is_said(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        _, held = await create(store, spec())
        _, other = await create(store, spec())
        _, stranger = mint()
        await admitted(keys, held)
        await refused(keys, stranger)
        store.down = True
        await until(lambda: keys._down)
        for unknown in (other, stranger):
            assert await outcome(keys, unknown) == "keys_unavailable"
        await admitted(keys, held)
        assert await admitted(keys, ADMIN) == Tenant("admin", "admin", admin=True)
        store.down = False
        await until(lambda: not keys._down)
        await admitted(keys, other)

    with_ring(shop, go, admin=ADMIN)


def test_known_keys_end_with_the_grace(shop: Shop) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        _, held = await create(store, spec())
        await admitted(keys, held)
        store.down = True

        async def over() -> bool:
            return await outcome(keys, held) == "keys_unavailable"

        await until(over)

    with_ring(shop, go, grace=0.1)


def test_a_store_that_lost_its_keys_takes_them_from_memory(
    shop: Shop, redis_url: str, tmp_path: Path
) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        _, held = await create(store, spec())
        await create(store, spec())
        await admitted(keys, held)
        await until(lambda: keys._revision >= 2)
        await store.store.close()
        store.store = redis_shop(redis_url).make()
        await store.store.open()
        await eventually_refused(keys, held)

    with_ring(shop, go)


def test_a_file_that_was_replaced_takes_its_keys_from_memory_and_admits_the_new_ones(tmp_path: Path) -> None:
    async def go(keys: Ring, store: Flaky) -> None:
        _, held = await create(store, spec())
        await admitted(keys, held)
        (tmp_path / "state").rename(tmp_path / "former")
        other = sqlite_shop(tmp_path).make()  # which has as many changes as the former had
        await other.open()
        _, new = await create(other, spec())
        await other.close()
        await eventually_refused(keys, held)

        async def known() -> bool:
            return await outcome(keys, new) == "admitted"

        await until(known)

    with_ring(sqlite_shop(tmp_path), go)


def test_redis_killed_and_back_is_known_of_without_a_restart(redis_process: RedisProcess) -> None:
    shop = redis_shop(redis_process.url)

    async def go(keys: Ring, store: Flaky) -> None:
        _, held = await create(store, spec())
        await admitted(keys, held)
        redis_process.kill()
        await until(lambda: keys._down)
        await admitted(keys, held)
        with pytest.raises(Overloaded):
            await admitted(keys, mint()[1])
        redis_process.start()  # without what it had: nothing was on disk
        await until(lambda: not keys._down)
        await refused(keys, held)

    with_ring(shop, go)


@given(st.text(max_size=400) | st.from_regex(r"sk-[0-9a-f]{11,13}-[\w-]{40,46}", fullmatch=True))
def test_what_is_no_key_is_refused_and_never_repeated(text: str) -> None:
    keys = ring(None, admin=ADMIN)  # type: ignore[arg-type]
    keys._unknown = dict.fromkeys([text[3:15]])
    with pytest.raises(Unauthorized) as raised:
        keys.admit(text)
    assert len(text) < 20 or text not in raised.value.message
    assert raised.value.error_code == "invalid_api_key"
