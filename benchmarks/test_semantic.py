"""The semantic cache: what a lookup takes, what the index finds, hits against wrong hits.

`BENCH_LONG=1` tries each index with 100,000 entries, a million in memory, and the bound on 20 shuffles
(`SEMANTIC_SHUFFLES`); `SEMANTIC_ROWS` plays more of the stream; `GPTCACHE_PYTHON=/path/to/python` (one
that has gptcache, faiss-cpu and sqlalchemy<2.1) compares with the peer, on `GPTCACHE_PAIRS` pairs.
The curve is drawn into `runs/semantic.svg`, its figures are in `runs/semantic.csv`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from pipeline_plugins.cache.semantic_candidates import NEIGHBOURS, History, weigh
from pipeline_plugins.cache.semantic_decision import Threshold, Verified
from pipeline_plugins.cache.semantic_guard import difference, facts_of
from pipeline_plugins.cache.semantic_index import Neighbours
from pipeline_plugins.cache.semantic_indexes import IndexConfig, make_index
from pipeline_plugins.cache.semantic_known import Known
from pipeline_plugins.cache.store import Key
from pipeline_plugins.infer.minilm_embedder import Embedder

from benchmarks.long import LONG, long
from benchmarks.semantic_stream import (
    DATA,
    Corpus,
    Lookups,
    Played,
    Static,
    Stream,
    at_same_error,
    possible,
    read,
    read_pairs,
    scored,
    zipf,
)
from tests.redis_process import RedisProcess

Note = Callable[..., None]
ROWS = int(os.environ.get("SEMANTIC_ROWS", "10000"))
SHUFFLED_ROWS = 20_000
THRESHOLDS = (0.70, 0.74, 0.78, 0.82, 0.85, 0.88, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
ERRORS = (0.01, 0.02, 0.05)
QUERIES = 500

needs_data = pytest.mark.skipif(not DATA.is_file(), reason=f"no data at {DATA.name}")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    """As the stage has it by default."""
    return Embedder(integers=True)


@pytest.fixture(scope="module")
def corpus(embedder: Embedder) -> Corpus:
    """A prefix, or all of the stream for the shuffles."""
    texts, meanings = read(10**6 if LONG else ROWS)
    kept = os.environ.get("SEMANTIC_VECTORS")
    if kept and Path(kept).is_file():
        return Corpus(texts, meanings, np.load(kept)[: len(texts)])
    return Corpus(texts, meanings, embedder.embed(texts, truncate=True))


def synthetic(count: int, random: np.random.Generator) -> Any:
    """Unit vectors of 384 dimensions in clusters of about 50, as near as MiniLM's: 0.6 to 0.8."""
    centres = random.standard_normal((count // 50, 384), dtype=np.float32)
    chosen = centres[random.integers(len(centres), size=count)]
    chosen += 0.7 * random.standard_normal(chosen.shape, dtype=np.float32)
    return chosen / np.linalg.norm(chosen, axis=1, keepdims=True)


def nearest(rows: Any, queries: Any) -> Any:
    """The brute force: which row is nearest to each query."""
    best = np.full(len(queries), -1)
    value = np.full(len(queries), -2.0)
    for start in range(0, len(rows), 50_000):
        found = queries @ rows[start : start + 50_000].T
        at = found.argmax(axis=1)
        better = found[np.arange(len(queries)), at] > value
        best[better], value[better] = at[better] + start, found.max(axis=1)[better]
    return best


@pytest.mark.parametrize("size", [10_000, 100_000, pytest.param(1_000_000, marks=long(20))])
def test_lookup(benchmark: Any, note: Note, embedder: Embedder, size: int) -> None:
    random = np.random.default_rng(0)
    rows = synthetic(size, random)
    known: Neighbours[History] = Neighbours(384, size)
    started = time.perf_counter()
    for row in rows:
        known.add(b"partition", row, History())
    adding = (time.perf_counter() - started) / size
    queries = rows[random.integers(size, size=QUERIES)]
    queries = queries + 0.02 * random.standard_normal(queries.shape, dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    text = "How long does it take to learn to play the piano well?"
    asked = facts_of(text)

    def lookups() -> tuple[list[float], list[float], list[int]]:
        bare, whole, found = [], [], []
        for query in queries:
            began = time.perf_counter()
            facts_of(text)
            embedder.embed([text])
            searching = time.perf_counter()
            near = known.search(b"partition", query, NEIGHBOURS)
            bare.append(time.perf_counter() - searching)
            weigh(asked, [(s, asked, history) for _, s, history in near], lambda at: difference(asked, asked))
            whole.append(time.perf_counter() - began)
            found.append(near[0][0])
        return bare, whole, found

    bare, whole, found = benchmark.pedantic(lookups, rounds=1)
    recall = float(np.mean(np.array(found) == nearest(rows, queries)))
    middle, slow = np.percentile(bare, [50, 99]) * 1e3
    note(f"semantic search, {size:,} entries, p50", middle, "ms", None, f"p99 {slow:.2f} ms")
    middle, slow = np.percentile(whole, [50, 99]) * 1e3
    budget = 5.0 if size == 100_000 else None
    beside = f"p99 {slow:.2f} ms, least {min(whole) * 1e3:.2f} ms"
    note(f"with embedding and guard, {size:,} entries, p50", middle, "ms", budget, beside)
    beside = f"brute force 1; an entry is added in {adding * 1e3:.2f} ms"
    note(f"recall of the nearest, {size:,} entries", recall, "", 0.95, beside, more_is_better=True)


@pytest.mark.parametrize("kind", ["memory", "lancedb", "redis"])
@pytest.mark.parametrize("size", [10_000, pytest.param(100_000, marks=long(3))])
def test_index(benchmark: Any, note: Note, kind: str, size: int, tmp_path: Path) -> None:
    """Each index as the stage uses it, opened anew where it outlives its process."""
    random = np.random.default_rng(0)
    rows = synthetic(size, random)
    queries = rows[random.integers(size, size=QUERIES // 2)]
    queries = queries + 0.02 * random.standard_normal(queries.shape, dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    facts = facts_of("How long does it take to learn to play the piano well?")
    partition = b"p" * 32
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(contextlib.closing(RedisProcess())) if kind == "redis" else None
        place = {"redis": redis.url if redis else "", "index_path": str(tmp_path), "redis_timeout": 5}
        store = "redis" if kind == "redis" else "disk"
        config = IndexConfig(index=kind, store=store, path=str(tmp_path), entries=size, **place)

        async def go() -> tuple[float, float, list[float], list[int]]:
            index = make_index(config, 384, lambda lesson: None)
            await index.open()
            began = time.perf_counter()
            for start in range(0, size, 500):
                known = [(at, at.to_bytes(32, "big")) for at in range(start, start + 500)]
                items = [(at, Known(Key(n, b"s"), facts, None, None, History(), n, 2e9)) for at, n in known]
                await asyncio.gather(*(index.add(partition, rows[at], item) for at, item in items))
            adding = (time.perf_counter() - began) / size
            opening = time.perf_counter()
            if kind != "memory":
                await index.close()
                index = make_index(config, 384, lambda lesson: None)
                await index.open()
                while len(index) < size:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            opening = time.perf_counter() - opening
            taken, found = [], []
            for query in queries:
                began = time.perf_counter()
                near = await index.search(partition, query, NEIGHBOURS)
                taken.append(time.perf_counter() - began)
                found.append(int.from_bytes(near[0][1].key.digest, "big"))
            await index.close()
            return adding, opening, taken, found

        adding, opening, taken, found = benchmark.pedantic(lambda: asyncio.run(go()), rounds=1)
    middle, slow = np.percentile(taken, [50, 99]) * 1e3
    recall = float(np.mean(np.array(found) == nearest(rows, queries)))
    beside = f"p99 {slow:.2f} ms, least {min(taken) * 1e3:.2f} ms; {adding * 1e3:.2f} ms an addition"
    if kind != "memory":
        beside += f", {opening:.1f} s until all are known again"
    note(f"index={kind}, {size:,} entries, p50", middle, "ms", None, beside)
    note(f"index={kind}, {size:,} entries, recall", recall, "", 0.95, "brute force 1", more_is_better=True)


@needs_data
def test_hits_against_errors(benchmark: Any, note: Note, corpus: Corpus) -> None:
    count = min(ROWS, len(corpus.facts))
    orders = {
        "as it is": np.arange(count),
        "Zipf": zipf(count, count, np.random.default_rng(0)),
    }
    curves: dict[str, list[Played]] = {}

    def play() -> None:
        for name, order in orders.items():
            stream = Stream(corpus, order)
            curves[f"{name}: threshold, no guard"] = [Static(at).play(stream) for at in THRESHOLDS]
            curves[f"{name}: threshold"] = [stream.play(Threshold(at)) for at in THRESHOLDS]
            curves[f"{name}: verified"] = [stream.play(Verified(e, random=Random(0))) for e in ERRORS]

    benchmark.pedantic(play, rounds=1)
    for name, order in orders.items():
        most = possible(corpus.meanings[order])
        for error, verified in zip(ERRORS, curves[f"{name}: verified"], strict=True):
            bare, guarded = (
                at_same_error(curves[f"{name}: threshold{which}"], verified.wrong)
                for which in (", no guard", "")
            )
            beside = (
                f"{verified.hits:.2f} % hits; a threshold {bare:.2f} %, guarded {guarded:.2f} %; possible"
            )
            note(
                f"{name}, verified {error}: wrong", verified.wrong, "%", 100 * error, f"{beside} {most:.1f} %"
            )
    draw({name: curve for name, curve in curves.items() if name.startswith("as")}, Path("runs/semantic.svg"))
    write(curves, Path("runs/semantic.csv"))


@needs_data
@long(10)
@pytest.mark.parametrize("kind", ["shuffled", "Zipf"])
def test_bound_in_every_shuffle(benchmark: Any, note: Note, corpus: Corpus, kind: str) -> None:
    shuffles = int(os.environ.get("SEMANTIC_SHUFFLES", "20"))
    found: dict[float, list[tuple[Played, float]]] = {error: [] for error in ERRORS}

    def play() -> None:
        for seed in range(shuffles):
            random = np.random.default_rng(seed)
            order = random.permutation(len(corpus.facts))[:SHUFFLED_ROWS]
            if kind == "Zipf":
                order = order[zipf(SHUFFLED_ROWS, len(order), random)]
            stream = Stream(corpus, order)
            curve = [Static(at).play(stream) for at in THRESHOLDS]
            for error in ERRORS:
                played = stream.play(Verified(error, random=Random(seed)))
                found[error].append((played, at_same_error(curve, played.wrong)))

    benchmark.pedantic(play, rounds=1)
    for error, played in found.items():
        wrong = [one.wrong for one, _ in played]
        kept = sum(value <= 100 * error for value in wrong)
        hits, static = np.mean([one.hits for one, _ in played]), np.mean([other for _, other in played])
        beside = f"{hits:.2f} % hits, {np.mean(wrong):.2f} % wrong, most {max(wrong):.2f} %"
        beside += f"; a threshold with the same error {static:.2f} %"
        what = f"{kind}, verified {error}: shuffles of {shuffles} within the bound"
        note(what, kept, "", shuffles, beside, more_is_better=True)


@needs_data
@pytest.mark.skipif(
    not os.environ.get("GPTCACHE_PYTHON"), reason="needs GPTCACHE_PYTHON, a Python with gptcache"
)
def test_gptcache(benchmark: Any, note: Note, embedder: Embedder, tmp_path: Path) -> None:
    """Pairs of questions: the first ones are known, the second ones asked, by the same vectors."""
    pairs, meanings = read_pairs(int(os.environ.get("GPTCACHE_PAIRS", "500")))
    known, asked = (list(texts) for texts in zip(*pairs, strict=True))
    vectors = embedder.embed([*known, *asked], truncate=True)
    (tmp_path / "questions.json").write_text(json.dumps({"known": known, "asked": asked}))
    np.save(tmp_path / "vectors.npy", vectors)
    script = str(Path(__file__).with_name("gptcache_peer.py"))
    # Its threshold t is a cosine of 2t - 1: it scales the squared distance to 0…4. 0.8 is its default.
    command = [os.environ["GPTCACHE_PYTHON"], script, str(tmp_path), "0.8", "0.9", "0.925", "0.95", "0.975"]
    ran = benchmark.pedantic(
        lambda: subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True), rounds=1
    )
    ours = Lookups(known, asked, vectors)
    for line in ran.stdout.splitlines():
        its = json.loads(line)
        cosine = 2 * its["threshold"] - 1
        began = time.perf_counter()
        answers = ours.at(cosine)
        taken = (time.perf_counter() - began) / len(asked)
        theirs, own = (scored(found, asked, meanings) for found in (its["answers"], answers))
        beside = (
            f"{theirs.hits:.1f} % hits in {its['seconds'] * 1e3:.1f} ms each; threshold {cosine:.2f} here: "
        )
        beside += f"{own.hits:.1f} % hits, {own.wrong:.1f} % wrong in {taken * 1e3:.1f} ms"
        note(f"GPTCache at {its['threshold']}, {len(asked)} pairs: wrong", theirs.wrong, "%", None, beside)


STYLE = """<style>
svg { font: 12px sans-serif; --ink: #444; --a: #8a8a8a; --b: #1f77b4; --c: #c62828; }
@media (prefers-color-scheme: dark) { svg { --ink: #bbb; --a: #999; --b: #64b5f6; --c: #ff8a80; } }
polyline { fill: none; stroke-width: 2; } text { fill: var(--ink); }
</style>"""


def draw(curves: dict[str, Sequence[Played]], path: Path) -> None:
    """Hits over wrong hits as SVG, a line for each curve; the last one's points are named by `ERRORS`."""
    width, height, edge = 640, 420, 50
    far = max(1.0, *(min(one.wrong, 6.0) for curve in curves.values() for one in curve))
    most = max(one.hits for curve in curves.values() for one in curve if one.wrong <= far) * 1.05

    def place(one: Played) -> tuple[float, float]:
        x, y = one.wrong / far, one.hits / most
        return round(edge + x * (width - 2 * edge), 1), round(height - edge - y * (height - 2 * edge), 1)

    def text(x: float, y: float, what: str, more: str = "") -> str:
        return f'<text x="{x}" y="{y}" {more}>{what}</text>'

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">', STYLE]
    corners = f"{edge},{edge} {edge},{height - edge} {width - edge},{height - edge}"
    parts.append(f'<polyline points="{corners}" style="stroke: var(--ink); stroke-width: 1"/>')
    parts += [text(place(Played(0, at))[0] - 8, height - edge + 16, f"{at} %") for at in range(int(far) + 1)]
    parts += [text(edge - 36, place(Played(at, 0))[1] + 4, f"{at} %") for at in range(2, int(most) + 1, 2)]
    parts += [text(width / 2 - 60, height - 14, "wrong hits per request"), text(6, edge - 20, "hits")]
    for number, (name, curve) in enumerate(curves.items()):
        colour = f"var(--{'abc'[number % 3]})"
        shown = sorted((one for one in curve if one.wrong <= far), key=lambda one: one.wrong)
        line = " ".join("{},{}".format(*place(one)) for one in shown)
        parts.append(f'<polyline points="{line}" style="stroke: {colour}"/>')
        parts.append(text(edge + 20, edge + 16 * number, name, f'style="fill: {colour}"'))
    for one, error in zip(list(curves.values())[-1], ERRORS, strict=True):
        x, y = place(one)
        parts += [
            f'<circle cx="{x}" cy="{y}" r="4" style="fill: var(--c)"/>',
            text(x + 8, y + 12, f"{error}"),
        ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>\n"]))


def write(curves: dict[str, Sequence[Played]], path: Path) -> None:
    """Each curve's settings, hits and wrong hits as CSV, in per cent of the requests."""
    lines = ["curve,setting,hits,wrong"]
    for name, curve in curves.items():
        settings = ERRORS if len(curve) == len(ERRORS) else THRESHOLDS
        lines += [
            f'"{name}",{at},{one.hits:.2f},{one.wrong:.2f}' for at, one in zip(settings, curve, strict=True)
        ]
    path.write_text("\n".join([*lines, ""]))
