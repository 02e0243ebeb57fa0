"""`limit=budget`: what may be spent is never exceeded, and outlives the process."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_plugins.infer import echo
from pipeline_plugins.limit.budget import BudgetExceeded, Counted

from pipeline import Charge, Record, Spent, Tenant, Usage
from pipeline.config import compose
from pipeline.errors import Overloaded
from pipeline.graph import Graph
from pipeline.price import charge
from pipeline.problems import ConfigError
from tests.plugins.price.accounts import asks, chat, kept, nano, opened, until

TOKEN = 1_000_000
"""Nano-USD of a prompt's token; an answer's is twice that."""


async def asked(graph: Any, *calls: Any) -> list[Any]:
    """The answers and errors of calls that are made at once, streams read to their end."""

    async def one(call: Any) -> Any:
        reply = await graph(call)
        async for _ in reply:
            pass
        return reply

    return await asyncio.gather(*(one(call) for call in calls), return_exceptions=True)


def refusals(answers: list[Any]) -> list[BudgetExceeded]:
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, BudgetExceeded):
            raise answer
    return [answer for answer in answers if isinstance(answer, BudgetExceeded)]


def test_a_refusal_says_which_budget_and_when_it_begins_anew(tmp_path: Path, store: list[str]) -> None:
    async def go() -> Any:
        async with opened(
            tmp_path, *store, "limit=budget", "limit.usd_per_day=0.05", "limit.scope=key"
        ) as graph:
            found: list[BudgetExceeded] = []
            while not found:
                refused = refusals(await asked(graph, chat("a", max_tokens=10)))
                # Until what an ended call reserved is settled, a refusal may be for a moment.
                found = [one for one in refused if b"x-should-retry" in dict(one.headers)]
            return found[0], kept(graph).calendar.seconds_left(kept(graph).calendar.today)

    refused, left = asyncio.run(go())
    assert refused.status == 429
    assert refused.error_code == "insufficient_quota"
    assert refused.envelope()["error"]["type"] == "insufficient_quota"
    assert "key `anonymous` is 0.05 USD a day" in refused.message
    headers = dict(refused.headers)
    assert left <= int(headers[b"retry-after"]) <= left + 10
    assert headers[b"x-should-retry"] == b"false"


def test_a_call_that_costs_more_than_its_budget_is_not_told_to_come_back(
    tmp_path: Path, store: list[str]
) -> None:
    async def go() -> list[BudgetExceeded]:
        async with opened(tmp_path, *store, "limit=budget", "limit.usd_per_day=0.05") as graph:
            return refusals(await asked(graph, chat("a", max_tokens=100)))

    (refused,) = asyncio.run(go())
    assert "it can never pass" in refused.message
    assert dict(refused.headers) == {b"x-should-retry": b"false"}


@pytest.mark.parametrize("stream", [False, True])
def test_calls_at_once_can_not_exceed_a_budget_together(
    tmp_path: Path, store: list[str], stream: bool
) -> None:
    async def go() -> tuple[int, int]:
        # Each call may cost 24 + 2 * 5 thousandths: 8 bytes and 16 of a message, 5 tokens.
        overrides = ["limit=budget", "limit.usd_per_day=0.2", "infer.latency=0.05"]
        async with opened(tmp_path, *store, *overrides) as graph:
            calls = [chat("a b c d e", max_tokens=5, stream=stream) for _ in range(40)]
            refused = refusals(await asked(graph, *calls))
            return len(refused), await nano(graph)

    refused, total = asyncio.run(go())
    assert 0 < refused < 40
    assert total <= 200_000_000


def test_what_was_reserved_and_not_used_comes_back(tmp_path: Path, store: list[str]) -> None:
    async def go() -> list[Any]:
        async with opened(tmp_path, *store, "limit=budget", "limit.usd_per_day=0.5") as graph:
            answers = []
            for _ in range(20):
                answers += await asked(graph, chat("a", max_tokens=100))
                await kept(graph).fold()
                await asyncio.sleep(0.01)
            return answers

    assert not refusals(asyncio.run(go()))


def test_a_call_that_fails_gives_its_reservation_back(tmp_path: Path, store: list[str]) -> None:
    async def go() -> list[Any]:
        overrides = ["limit=budget", "limit.usd_per_day=0.3", "infer.failure_rate=1"]
        async with opened(tmp_path, *store, *overrides) as graph:
            answers = []
            for _ in range(10):
                answers += await asked(graph, chat("a", max_tokens=100))
                await asyncio.sleep(0.02)
            return answers

    assert all(isinstance(answer, Overloaded) for answer in asyncio.run(go()))


def test_a_restart_forgets_nothing_that_was_spent(tmp_path: Path, store: list[str]) -> None:
    async def go() -> list[Any]:
        answers = []
        for _ in range(4):
            overrides = ["limit=budget", "limit.usd_per_month=0.045"]
            async with opened(tmp_path, *store, *overrides) as graph:
                answers += await asked(graph, chat("a b c d e", max_tokens=5))
        return answers

    assert len(refusals(asyncio.run(go()))) == 3


def test_a_clock_that_jumps_ahead_and_is_set_back_forgets_nothing_that_was_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> list[Any]:
        answers = []
        async with opened(tmp_path, "limit=budget", "limit.usd_per_month=0.045") as graph:
            for day in ("2026-11-30", "2027-02-01", "2026-11-30"):
                monkeypatch.setattr("pipeline_plugins.price.periods.Calendar.today", day)
                answers += await asked(graph, chat("a b c d e", max_tokens=5))
        return answers

    assert [type(answer).__name__ for answer in asyncio.run(go())] == ["Reply", "Reply", "BudgetExceeded"]


def test_keys_are_held_to_their_own_budget_and_not_to_each_others(tmp_path: Path, store: list[str]) -> None:
    poor = Tenant("poor", "acme", policy={"limit": {"usd_per_day": 0.01}})
    rich = Tenant("rich", "acme", policy={"limit": {"usd_per_day": 100}})

    async def go() -> list[bool]:
        async with opened(tmp_path, *store, "limit=budget") as graph:
            found = []
            for tenant in (poor, rich, poor):
                answers = await asked(graph, chat("a b c", tenant=tenant, max_tokens=3))
                found.append(bool(refusals(answers)))
            return found

    assert asyncio.run(go()) == [True, False, True]


def test_rules_name_models_and_owners(tmp_path: Path, store: list[str]) -> None:
    owner = "{scope: owner, name: 'ac*', usd_per_day: 0}"
    rules = f"limit.rules=[{owner}, {{scope: model, name: other, usd_per_day: 0}}]"

    async def go() -> list[bool]:
        async with opened(tmp_path, *store, "limit=budget", rules) as graph:
            found = []
            for owner in ("acme", "others"):
                answers = await asked(graph, chat("a", tenant=Tenant("k", owner), max_tokens=3))
                found.append(bool(refusals(answers)))
            return found

    assert asyncio.run(go()) == [True, False]


def test_an_answer_without_a_bound_gets_one(tmp_path: Path) -> None:
    async def go() -> Any:
        overrides = ["limit=budget", "limit.usd_per_day=100", "limit.max_tokens=2"]
        async with opened(tmp_path, *overrides) as graph:
            (reply,) = await asked(graph, chat("a b c d"))
            return reply.json

    assert asyncio.run(go())["usage"]["completion_tokens"] == 2


def test_a_second_process_on_sqlite_is_told_to_share_by_redis(tmp_path: Path) -> None:
    async def go() -> None:
        overrides = ["limit=budget", "limit.usd_per_day=1"]
        async with opened(tmp_path, *overrides), opened(tmp_path, *overrides):
            pass

    with pytest.raises(ConfigError, match=r"^limit: .*price\.store=redis"):
        asyncio.run(go())


async def reloaded(graph: Any, folder: Path, *overrides: str) -> Any:
    """The graph that takes the place of another, which is closed when its calls have ended."""
    given = ["infer=echo", "infer@embed=none", "monitor=none", f"vars.state={folder}"]
    made = Graph.build(compose([*given, *overrides]).plan()[0], graph)
    await made.open()
    made.take_over(graph)
    return made


def test_prices_change_by_a_reload_while_a_budget_is_kept(tmp_path: Path, store: list[str]) -> None:
    budget = ["limit=budget", "limit.usd_per_day=1", "limit.redis_timeout=20", *store]
    dearer = [*budget, "+price.models.echo={prompt: 2000, completion: 4000}"]

    async def go() -> int:
        async with opened(tmp_path, *budget) as graph:
            await asked(graph, chat("a", max_tokens=5))
            second = await reloaded(graph, tmp_path, *dearer)
            await graph.close()
            await asked(second, chat("a", max_tokens=5))
            third = await reloaded(second, tmp_path, *dearer)
            await second.close()
            await asked(third, chat("a", max_tokens=5))
            spent = await nano(third)
            await third.close()
            return spent

    assert asyncio.run(go()) == (3 + 6 + 6) * TOKEN


@pytest.mark.parametrize("price", [1000, 2000])
def test_a_call_that_outlasts_a_reload_counts_for_the_budget(
    tmp_path: Path, store: list[str], price: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = ["limit=budget", "limit.redis_timeout=20", *store, "infer.latency=1"]
    answer = asyncio.Event()

    async def waits(seconds: float, call: Any) -> None:
        if len(call.body["messages"][0]["content"]) > 1:
            await answer.wait()

    monkeypatch.setattr(echo, "_pause", waits)

    async def go() -> tuple[list[Any], list[Any]]:
        async with opened(tmp_path, *budget, "limit.usd_per_day=0.07") as graph:
            call = chat("a b c d e f g h i j", max_tokens=10)
            under_way = asyncio.create_task(asked(graph, call))
            await until(lambda: asks(call))
            models = f"+price.models.echo={{prompt: {price}, completion: 2000}}"
            # It may cost 55 thousandths, and costs 30. The others may 19 and 47, or 36 and 64.
            second = await reloaded(graph, tmp_path, *budget, "limit.usd_per_day=0.07", models)
            first = await asked(second, chat("a", max_tokens=1))
            answer.set()
            await under_way
            await kept(second).fold()
            await graph.close()
            later = await asked(second, chat("a", max_tokens=15))
            await second.close()
            return first, later

    first, later = asyncio.run(go())
    assert [refused.status for refused in refusals(first)] == [429]
    assert [refused.status for refused in refusals(later)] == [429]


def test_the_redis_that_has_the_sums_is_watched(tmp_path: Path, redis_process: Any) -> None:
    async def go() -> dict[str, Any]:
        overrides = [
            "limit=budget",
            "limit.usd_per_day=1",
            "price.store=redis",
            f"price.url={redis_process.url}",
        ]
        async with opened(tmp_path, *overrides) as graph:
            await asked(graph, chat("a", max_tokens=1))
            return {one.name: one.samples for one in graph.plugins.get_plugin("limit").pipeline_metrics()}

    assert asyncio.run(go())["pipeline_redis_up"] == {("limit",): 1}


def test_without_accounts_it_says_so(tmp_path: Path) -> None:
    async def go() -> None:
        async with opened(tmp_path, "limit=budget", "extensions.price=null"):
            pass

    with pytest.raises(ConfigError, match=r"^limit: .*price=genai"):
        asyncio.run(go())


def test_several_processes_on_redis_can_not_exceed_a_budget_together(
    tmp_path: Path, redis_process: Any
) -> None:
    async def go() -> tuple[int, int]:
        overrides = ["limit=budget", "limit.usd_per_day=0.3", "price.store=redis"]
        overrides += [f"price.url={redis_process.url}", "infer.latency=0.02", "limit.redis_timeout=20"]
        async with opened(tmp_path / "a", *overrides) as one, opened(tmp_path / "b", *overrides) as two:
            answers = await asyncio.gather(
                *(asked(graph, *[chat("a b c", max_tokens=3) for _ in range(20)]) for graph in (one, two))
            )
            await nano(one)
            return sum(len(refusals(some)) for some in answers), await nano(two)

    refused, total = asyncio.run(go())
    assert refused
    assert total <= 300_000_000


def test_a_reservation_of_a_call_that_left_or_was_refused_meanwhile_comes_back(
    tmp_path: Path, redis_process: Any
) -> None:
    store = ["price.store=redis", f"price.url={redis_process.url}", "limit.redis_timeout=0.3"]

    async def go() -> list[int]:
        async with opened(tmp_path, *store, "limit=budget", "limit.usd_per_day=9") as graph:
            meter = graph.stages["limit"]._meter
            link, found = meter.link, []

            async def reserved() -> int:
                while meter._settling:
                    await asyncio.wait(meter._settling)
                await kept(graph).fold()
                return int(await link.command("HLEN", "{spend}:reserved"))

            await graph(chat("a", max_tokens=5))
            found.append(await reserved())
            left = asyncio.create_task(graph(chat("a", max_tokens=5)))
            while not link._connection.waiting:  # noqa: ASYNC110  it is for a moment only
                await asyncio.sleep(0)
            left.cancel()
            await asyncio.wait([left])
            found.append(await reserved())
            redis_process.freeze()
            with pytest.raises(Overloaded):
                await graph(chat("a", max_tokens=5))
            redis_process.thaw()
            await until(lambda: link.up)
            found.append(await reserved())
            return found

    assert asyncio.run(go()) == [0, 0, 0]


def test_without_redis_calls_are_refused_or_held_to_what_is_known(tmp_path: Path, redis_process: Any) -> None:
    async def go(down: str) -> list[Any]:
        overrides = ["limit=budget", "limit.usd_per_day=0.06", f"limit.redis_down={down}"]
        overrides += ["price.store=redis", f"price.url={redis_process.url}"]
        async with opened(tmp_path / down, *overrides) as graph:
            redis_process.freeze()
            try:
                answers = []
                for _ in range(5):
                    answers += await asked(graph, chat("a b c", max_tokens=3))
                return answers
            finally:
                redis_process.thaw()

    assert all(isinstance(answer, Overloaded) for answer in asyncio.run(go("refuse")))
    answers = asyncio.run(go("local"))
    assert 0 < len(refusals(answers)) < 5


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(0, 300),
    words=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.booleans()), min_size=1, max_size=25),
)
def test_no_order_of_calls_exceeds_a_budget(
    limit: int, words: list[tuple[int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def go() -> int:
        folder = tmp_path_factory.mktemp("spend")
        overrides = ["limit=budget", f"limit.usd_per_day={limit / 1000}", "infer.tokens_per_second=5000"]
        async with opened(folder, *overrides) as graph:
            calls = [chat("a " * n, max_tokens=most, stream=stream) for n, most, stream in words]
            refusals(await asked(graph, *calls))
            return await nano(graph)

    assert asyncio.run(go()) <= limit * 1_000_000


def test_calls_on_the_way_of_one_are_each_counted_once_by_a_budget_that_they_pass() -> None:
    counted = Counted()
    client, first, second = Record(), Record(), Record()
    first.helps = second.helps = client
    made = [Charge("judge", "m", Usage(1, 1), 1.0, aside=True) for _ in range(2)]
    for record, one in zip((first, second), made, strict=True):
        assert charge(record, one) is client
    spent = [record.decision(Spent) for record in (client, first, second)]
    assert [one.charges if one is not None else None for one in spent] == [made, made[:1], made[1:]]
    assert counted.new("budget", made[:1]) == made[:1]
    assert counted.new("budget", made) == made[1:]
    assert counted.new("another", made) == made
