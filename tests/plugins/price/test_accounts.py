"""Charges, the header, and accounts: the same on every store."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_plugins.infer.echo import Echo
from pipeline_plugins.price.accounts import HEADER, Accounts, decimal
from pipeline_plugins.price.sqlite_store import SqliteStore
from pipeline_plugins.rag.chunk import Document

from pipeline import Reply, Tenant, Usage
from pipeline.errors import APIError
from pipeline.price import Charge, Spent
from tests.plugins.price.accounts import asks, chat, kept, nano, opened, until

ACME = Tenant("k1", "acme", tags=(("team", "red"), ("app", "bot")))


def test_a_reply_says_its_cost_and_the_accounts_have_it(tmp_path: Path, store: list[str]) -> None:
    async def go() -> Any:
        async with opened(tmp_path, *store) as graph:
            call = chat("a b c", tenant=ACME)
            await graph(call)
            await kept(graph).fold()
            return call.record.headers[HEADER], await kept(graph).totals("2000-01-01", "2999-12-31")

    cost, totals = asyncio.run(go())
    assert cost == "0.009"
    ((account, counts),) = totals.items()
    assert (account.key, account.owner, account.model) == ("k1", "acme", "echo")
    assert account.tags == '{"app":"bot","team":"red"}'
    assert counts == [1, 3, 0, 3, 9_000_000, 0, 0, 0]


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_judge_costs_is_its_calls_and_the_call_counts_for_the_model_that_answered(
    tmp_path: Path, store: list[str], stream: bool
) -> None:
    judged = ["graph=judged", "infer@judge=echo", "judge.name=jury", "judged.on_failure=flag"]
    price = "+price.models.jury={prompt: 1000, completion: 0}"

    async def go() -> Any:
        async with opened(tmp_path, *store, *judged, price) as graph:
            call = chat("a b c", tenant=ACME, stream=stream)
            async for _ in await graph(call):
                pass
            await kept(graph).fold()
            spent = call.record.decision(Spent)
            assert spent is not None
            return spent, call.record.headers, await kept(graph).totals("2000-01-01", "2999-12-31")

    spent, headers, totals = asyncio.run(go())
    assert [(charge.stage, charge.aside) for charge in spent.charges] == [("infer", False), ("judge", True)]
    assert spent.model == "echo"
    jury = spent.charges[1]
    assert jury.usd == jury.usage.prompt_tokens / 1000 > 0
    assert {account.model: counts[0] for account, counts in totals.items()} == {"echo": 1, "jury": 0}
    assert sum(counts[4] for counts in totals.values()) == round(spent.usd * 1e9)
    if not stream:
        assert float(headers[HEADER]) == pytest.approx(spent.usd)


def test_what_embedding_a_question_for_rag_costs_is_its_calls(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    rag = ["rag=hybrid", "rag.collection=notes", f"rag.path={tmp_path}/rag", "rag.embed.plugin=echo"]
    price = ["+rag.embed.name=vectors", "+price.models.vectors={prompt: 1000, completion: 0}"]

    async def go() -> Any:
        async with opened(tmp_path, *rag, *price) as graph:
            documents: Any = graph.stages["rag"].documents
            await documents.put("acme", "notes", [Document("cats", "Cats sleep.")])
            call = chat("Do cats sleep?", tenant=ACME)
            await graph(call)
            return call.record.decision(Spent), call.record.headers

    spent, headers = asyncio.run(go())
    embedding, answer = spent.charges
    assert (embedding.stage, embedding.model, embedding.aside) == ("rag.embed", "vectors", True)
    assert embedding.usd == embedding.usage.prompt_tokens / 1000 > 0
    assert spent.model == answer.model == "echo"
    assert float(headers[HEADER]) == pytest.approx(embedding.usd + answer.usd)


def test_a_stream_is_charged_before_its_last_chunk_is_handed_on(tmp_path: Path, store: list[str]) -> None:
    async def go() -> tuple[int, int]:
        async with opened(tmp_path, *store) as graph:
            chunks = aiter(await graph(chat("a b", stream=True)))
            while b"[DONE]" not in await anext(chunks):
                before = await nano(graph)
            return before, await nano(graph)

    assert asyncio.run(go()) == (0, 6_000_000)


def test_a_stream_that_is_cut_off_is_charged_by_an_estimate(tmp_path: Path, store: list[str]) -> None:
    async def go() -> Any:
        async with opened(tmp_path, *store, "infer.tokens_per_second=50") as graph:
            call = chat("word " * 50, stream=True)
            call.record.decide(spent := Spent())
            reply = await graph(call)
            chunks: Any = aiter(reply)
            for _ in range(4):
                await anext(chunks)
            await chunks.aclose()
            return spent, await nano(graph)

    spent, total = asyncio.run(go())
    (charge,) = spent.charges
    assert charge.usage.completion_tokens > 0
    assert total == round(charge.usd * 1e9)


def test_a_cancelled_call_is_charged_its_prompt_as_an_estimate(tmp_path: Path) -> None:
    async def go() -> Any:
        async with opened(tmp_path, "infer.latency=60") as graph:
            call = chat("a b c")
            task = asyncio.create_task(graph(call))  # type: ignore[arg-type]
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.wait([task])
            return call.record.decision(Spent), await nano(graph)

    spent, total = asyncio.run(go())
    (charge,) = spent.charges
    assert charge.estimated
    assert charge.usage.prompt_tokens > 0
    assert charge.usage.completion_tokens == 0
    assert total == round(charge.usd * 1e9)


@pytest.mark.parametrize("choice", ["text", {"message": "text"}])
def test_an_answer_of_a_strange_form_is_charged_its_prompt_and_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: Any
) -> None:
    async def strange(*given: Any) -> Reply:
        return Reply(body=orjson.dumps({"choices": [choice]}), model="echo")

    monkeypatch.setattr(Echo, "__call__", strange)

    async def go() -> Any:
        async with opened(tmp_path) as graph:
            call = chat("a b c")
            assert (await graph(call)).status == 200
            return call.record.decision(Spent)

    (charge,) = asyncio.run(go()).charges
    assert charge.usage.prompt_tokens > 0
    assert charge.usage.completion_tokens == 0


def test_a_refused_call_costs_nothing_and_leaves_no_account(tmp_path: Path) -> None:
    async def go() -> int:
        async with opened(tmp_path) as graph:
            with pytest.raises(APIError):
                await graph(chat(model="no-such-model"))
            return int(kept(graph).calls)

    assert asyncio.run(go()) == 0


def test_a_model_without_price_is_free_or_refused_as_configured(tmp_path: Path) -> None:
    async def go(unknown: str) -> str | None:
        async with opened(tmp_path, f"price.unknown={unknown}", "infer.name=nobody-knows") as graph:
            call = chat(model="nobody-knows")
            try:
                await graph(call)
            except APIError as error:
                return error.error_code
            return call.record.headers[HEADER]

    assert asyncio.run(go("free")) == "0"
    assert asyncio.run(go("refuse")) == "model_not_priced"


def test_a_hit_costs_nothing_and_what_it_saved_is_in_the_accounts(tmp_path: Path, store: list[str]) -> None:
    async def hit(call: Any) -> Reply:
        call.record.decision(Spent).saved["cache"] = 0.25
        return Reply(body=b"{}", model="m")

    async def go() -> Any:
        async with opened(tmp_path, *store) as graph:
            call = chat()
            await kept(graph).layer(hit)(call)
            await kept(graph).fold()
            return call.record.headers[HEADER], await kept(graph).totals("2000-01-01", "2999-12-31")

    cost, totals = asyncio.run(go())
    assert cost == "0"
    assert list(totals.values()) == [[1, 0, 0, 0, 0, 0, 250_000_000, 0]]


def test_an_attempt_that_ends_after_its_call_is_in_the_accounts(tmp_path: Path) -> None:
    async def go() -> Any:
        async with opened(tmp_path) as graph:
            call = chat("a")
            await graph(call)
            graph.plugins.get_plugin("price").charging.add(call, "infer", None, Usage(1, 1), 0.0)
            await graph(chat("a"))
            await kept(graph).fold()
            return await kept(graph).totals("2000-01-01", "2999-12-31")

    assert [counts[:5] for counts in asyncio.run(go()).values()] == [[2, 3, 0, 3, 9_000_000]]


def test_a_call_whose_client_left_is_in_the_accounts_once_what_was_asked_for_it_is_given_up(
    tmp_path: Path, store: list[str]
) -> None:
    async def go() -> Any:
        overrides = ["limit=budget", "limit.usd_per_day=100", "infer.latency=60"]
        async with opened(tmp_path, *store, *overrides) as graph:
            # The cache asks in a task of its own, which others may join.
            call = chat("a b c", temperature=0)
            task = asyncio.create_task(graph(call))  # type: ignore[arg-type]
            await until(lambda: asks(call))
            task.cancel()
            await asyncio.wait([task])
            await until(lambda: bool(call.record.growing(Spent).charges))
            await kept(graph).fold()
            keeper, left = kept(graph).store, None
            if keeper.settles_reservations:
                left = await keeper.link.command("HLEN", "{spend}:reserved")
            return call, await keeper.totals("2000-01-01", "2999-12-31"), left

    call, totals, left = asyncio.run(go())
    (charge,) = call.record.decision(Spent).charges
    ((calls, prompt, _, _, nano, *_),) = totals.values()
    assert (calls, prompt) == (1, charge.usage.prompt_tokens)
    assert nano == round(charge.usd * 1e9) > 0
    assert not left


def test_text_that_looks_like_a_streams_end_holds_nothing_back(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'data: {"choices":[{"text":"[DONE]"}]}\n\n'
        yield b'data: {"choices":[{"text":"more"}]}\n\n'
        yield b"data: [DONE]\n\n"

    async def answer(call: Any) -> Reply:
        return Reply(chunks=chunks())

    async def go() -> list[bytes]:
        async with opened(tmp_path) as graph:
            return [chunk async for chunk in await kept(graph).layer(answer)(chat())]

    assert len(asyncio.run(go())) == 3


def test_a_record_that_goes_through_twice_is_charged_for_each_time(tmp_path: Path) -> None:
    async def go() -> int:
        async with opened(tmp_path) as graph:
            call = chat("a")
            await graph(call)
            await graph(call)
            return await nano(graph)

    assert asyncio.run(go()) == 6_000_000


def test_accounts_outlive_a_restart(tmp_path: Path, store: list[str]) -> None:
    async def go() -> int:
        for _ in range(3):
            async with opened(tmp_path, *store) as graph:
                await graph(chat("a"))
        async with opened(tmp_path, *store) as graph:
            return await nano(graph)

    assert asyncio.run(go()) == 9_000_000


@pytest.mark.parametrize("others", [0, 1])
def test_what_is_spent_on_a_call_that_its_client_left_is_in_the_accounts_and_settles_its_reservation(
    tmp_path: Path, redis_process: Any, others: int
) -> None:
    store = ["price.store=redis", f"price.url={redis_process.url}", "limit.redis_timeout=20"]

    async def go() -> tuple[int, int, int]:
        async with opened(
            tmp_path, *store, "cache=exact", "limit=budget", "limit.usd_per_day=9", "infer.latency=0.3"
        ) as graph:
            flights = graph.stages["cache"].flights
            calls = [chat("a", temperature=0, max_tokens=5) for _ in range(1 + others)]
            tasks = [asyncio.create_task(graph(call)) for call in calls]
            await until(lambda: any(step.stage == "infer" for step in calls[0].record.steps))
            await until(lambda: all(len(one.seats) == 1 + others for one in flights._flights.values()))
            tasks[0].cancel()
            await asyncio.wait(tasks)
            while flights._tasks:
                await asyncio.wait(flights._tasks)
            spent = await nano(graph)
            accounts = kept(graph)
            return spent, accounts.calls, int(await accounts.store.link.command("HLEN", "{spend}:reserved"))

    # Alone, the prompt is estimated at 5 tokens and charged; else the call went on for the other.
    assert asyncio.run(go()) == ((5_000_000, 1, 0) if not others else (3_000_000, 2, 0))


def test_what_a_full_disk_never_took_is_said_at_the_end_with_its_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    async def go() -> list[Any]:
        async with opened(tmp_path, "price.store=sqlite") as graph:
            await graph(chat("a"))
            monkeypatch.setattr("pipeline_plugins.price.journal.os.write", full)
            for _ in range(2):
                await graph(chat("a"))
            with structlog.testing.capture_logs() as logs:
                await kept(graph).close()
        return logs

    said = {"calls": 2, "usd": "0.006", "log_level": "error"}
    assert asyncio.run(go()) == [{"event": "the disk took no more of what was spent, it is lost", **said}]


def test_spend_waits_in_the_journal_while_redis_is_down(tmp_path: Path, redis_process: Any) -> None:
    async def go() -> tuple[bool, int]:
        async with opened(tmp_path, "price.store=redis", f"price.url={redis_process.url}") as graph:
            await graph(chat("a"))
            redis_process.freeze()
            await graph(chat("a"))
            await kept(graph).fold()
            failing = kept(graph).failing
            redis_process.thaw()
            for _ in range(100):
                await asyncio.sleep(0.1)
                await kept(graph).fold()
                if not kept(graph).failing:
                    break
            return failing, await nano(graph)

    assert asyncio.run(go()) == (True, 6_000_000)


CHARGES = st.lists(
    st.builds(
        Charge,
        stage=st.just("infer"),
        model=st.sampled_from(["m1", "m2", "m/3"]),
        usage=st.builds(Usage, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**3)),
        usd=st.floats(0, 1e4),
        estimated=st.booleans(),
    ),
    max_size=5,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.tuples(CHARGES, st.sampled_from([ACME, Tenant("k2", "acme")])), max_size=8))
def test_the_accounts_are_the_sum_of_all_charges(
    calls: list[tuple[list[Charge], Tenant]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def go() -> tuple[int, int, int]:
        folder = tmp_path_factory.mktemp("spend")
        accounts = Accounts(
            SqliteStore(folder / "spend.sqlite", durable=False), folder / "lines", sync="never", zone="UTC"
        )
        await accounts.open()
        written = sum(accounts.write(chat(tenant=tenant), Spent(charges), "m1") for charges, tenant in calls)
        await accounts.fold()
        await accounts.fold()
        totals = (await accounts.totals("2000-01-01", "2999-12-31")).values()
        await accounts.close()
        return written, sum(counts[4] for counts in totals), sum(counts[0] for counts in totals)

    written, total, count = asyncio.run(go())
    exact = sum(round(charge.usd * 1e9) for charges, _ in calls for charge in charges)
    assert written == total == exact
    assert count == len(calls)


@given(st.integers(0, 10**13))
def test_the_header_is_plain_decimal_and_exact(nano: int) -> None:
    text = decimal(nano)
    assert "e" not in text
    whole, _, rest = text.partition(".")
    assert int(whole) * 10**9 + int(rest.ljust(9, "0") or "0") == nano
