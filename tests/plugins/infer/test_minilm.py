"""The packaged embedding model, for real. One stage on one event loop serves most tests."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from pipeline_plugins.infer import minilm_device
from pipeline_plugins.infer.minilm import Embedder, MiniLM, TooLong
from pipeline_plugins.infer.minilm_device import CPU, CUDA, session_on
from pipeline_plugins.infer.minilm_embedder import PACKAGED, Batches
from pipeline_plugins.infer.minilm_graph import Shape, read_weights
from pipeline_plugins.infer.models import ModelError, locate

from pipeline import Call, Reply, Usage
from pipeline.errors import (
    APIError,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from pipeline.problems import ConfigError

pytest.importorskip("onnxruntime")
np = pytest.importorskip("numpy")

REFERENCE = {
    "hello world": [-0.03447721, 0.03102321, 0.00673498, 0.02610898],
    "What is the capital of France?": [0.08204816, 0.0360555, -0.00389288, -0.00488108],
    "a": [-0.0364329, 0.03470351, -0.04595986, 0.03432556],
    "Ünïcödé tëxt with ácçents": [-0.0195218, -0.0085321, -0.02248175, -0.02554787],
    "日本語のテキスト": [0.00165372, 0.14298032, 0.068165, -0.02277785],
}
"""The first numbers of vectors that torch 2.13 and transformers 5.23 give in float32, by
`AutoModel`, the mean of `last_hidden_state` over the mask, and division by its length."""


class Model:
    """The open stage and the loop it lives on, asked from synchronous tests."""

    def __init__(self, **config: Any) -> None:
        self.runner = asyncio.Runner()
        self.stage = MiniLM(MiniLM.Config(**config))
        self.runner.run(self.stage.open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(work, 60))

    async def call(self, input: Any, *, seconds: float = 30, **body: Any) -> Reply:
        deadline = asyncio.get_running_loop().time() + seconds
        body = {"model": "default", "input": input, **body}
        return await self.stage(
            Call(id="c", operation="embedding", body=body, deadline=deadline, received=time.perf_counter())
        )

    def answer(self, input: Any, **body: Any) -> dict[str, Any]:
        return self.run(self.call(input, **body)).json  # type: ignore[no-any-return]

    def vectors(self, input: Any, **body: Any) -> Any:
        answer = self.answer(input, **body)
        assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
        return np.array([one["embedding"] for one in answer["data"]], dtype=np.float32)

    def refusal(self, input: Any, **body: Any) -> APIError:
        with pytest.raises(APIError) as raised:
            self.answer(input, **body)
        return raised.value

    @property
    def embedder(self) -> Embedder:
        assert self.stage._embedder is not None
        return self.stage._embedder

    def close(self) -> None:
        self.runner.run(self.stage.close())
        self.runner.run(self.stage.close())
        self.runner.close()


@contextmanager
def opened(**config: Any) -> Iterator[Model]:
    model = Model(**config)
    try:
        yield model
    finally:
        model.close()


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with opened(passes=2, aliases=["small"]) as model:
        yield model
    assert not [t for t in threading.enumerate() if t.name.startswith("minilm")]


def texts(count: int, longest: int = 12) -> list[str]:
    drawn = random.Random(count)
    words = [
        "a",
        "model",
        "東京",
        "of",
        "café",
        "42",
        "naïve",
        "москва",
        "🚀",
        "unbelievably",
        "http://a.b/c?d=e",
    ]
    return [
        " ".join(drawn.choice(words) for _ in range(drawn.randint(1, longest))) + f" {i}"
        for i in range(count)
    ]


def cosines(left: Any, right: Any) -> Any:
    return (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))


def test_the_model_is_known_before_it_is_loaded() -> None:
    (one,) = MiniLM(MiniLM.Config()).models
    assert (one.id, one.operations, one.aliases) == ("all-MiniLM-L6-v2", {"embedding"}, ())


def test_nothing_heavy_is_imported_before_the_model_is_opened() -> None:
    code = (
        "import sys, pipeline_plugins.infer.minilm as m; m.MiniLM(m.MiniLM.Config()); "
        "print([n for n in ('numpy', 'onnx', 'onnxruntime', 'tokenizers', 'torch') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", REFERENCE)
def test_vectors_are_those_of_the_reference(model: Model, text: str) -> None:
    (vector,) = model.vectors(text)
    assert vector.shape == (384,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert vector[:4] == pytest.approx(REFERENCE[text], abs=1e-6)


def test_vectors_agree_with_transformers_on_many_texts(model: Model) -> None:
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers")
    folder = locate(PACKAGED, (".safetensors",)).parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = transformers.AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    given = texts(100, 60)
    with torch.inference_mode():
        batch = tokenizer(given, padding=True, truncation=True, max_length=256, return_tensors="pt")
        states = reference(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].float()
        expected = ((states * mask).sum(1) / mask.sum(1)).numpy()
    assert cosines(model.embedder.embed(given, truncate=True), expected).min() >= 0.9999


def test_a_batch_of_any_lengths_gives_each_text_its_own_vector(model: Model) -> None:
    given = texts(150, 60)
    together = model.vectors(given)
    assert together.shape == (150, 384)
    alone = np.concatenate([model.embedder.embed([text]) for text in given[::10]])
    assert cosines(together[::10], alone).min() > 0.99999


def test_vectors_by_integers_are_near_those_by_floats(model: Model) -> None:
    given = list(REFERENCE)
    vectors = Embedder(integers=True).embed(given)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert 0.98 < cosines(vectors, model.embedder.embed(given)).min() < 0.9999


def test_the_plain_embedder_gives_what_the_stage_gives(model: Model) -> None:
    given = texts(20)
    vectors = model.embedder.embed(given)
    assert vectors.dtype == np.float32
    assert cosines(vectors, model.vectors(given)).min() > 0.99999
    assert model.embedder.embed([]).shape == (0, 384)


def test_token_ids_are_taken_with_or_without_their_frame(model: Model) -> None:
    rows = model.embedder.tokenize(["hello world", "a"])
    assert rows[0] == [101, 7592, 2088, 102]
    expected = model.vectors(["hello world", "a"])
    assert np.allclose(model.vectors(rows), expected, atol=1e-6)
    assert np.allclose(model.vectors([row[1:-1] for row in rows]), expected, atol=1e-6)
    assert np.allclose(model.vectors(rows[0][1:-1]), expected[:1], atol=1e-6)


def test_base64_holds_the_same_floats(model: Model) -> None:
    answer = model.answer(["hello world", "a"], encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]]
    assert np.array_equal(np.stack(decoded), model.vectors(["hello world", "a"]))


def test_the_answer_has_openais_shape_and_counts_tokens(model: Model) -> None:
    reply = model.run(model.call(["hello world", "a"], model="small", dimensions=384))
    answer = reply.json
    assert {k: v for k, v in answer.items() if k != "data"} == {
        "object": "list",
        "model": "all-MiniLM-L6-v2",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert [set(one) for one in answer["data"]] == [{"object", "index", "embedding"}] * 2
    assert reply.usage == Usage(7)


@pytest.mark.parametrize("name", ["default", "auto", "all-MiniLM-L6-v2", "small"])
def test_known_names_are_answered(model: Model, name: str) -> None:
    assert model.answer("hi", model=name)["model"] == "all-MiniLM-L6-v2"


def test_an_unknown_model_is_told_which_exist(model: Model) -> None:
    refusal = model.refusal("hi", model="text-embedding-3-large")
    assert isinstance(refusal, ModelNotFound)
    assert "`all-MiniLM-L6-v2`, `small`, `default`" in refusal.message


@pytest.mark.parametrize(
    ("input", "message"),
    [
        ("", "`input[0]` must not be empty"),
        (["a", ""], "`input[1]` must not be empty"),
        ([], "must be a text"),
        ([[]], "`input[0]` must not be empty"),
        (["a", [1]], "`input[1]` must be a text or token ids"),
        ([[1, "a"]], "token id"),
        ([[1, 30522]], "`input[0]` has a token id"),
        ([5, -1], "`input[0]` has a token id"),
        (None, "must be a text"),
        (["a"] * 2049, "2048"),
    ],
)
def test_bad_inputs_are_refused_with_their_place(model: Model, input: Any, message: str) -> None:
    refusal = model.refusal(input)
    assert isinstance(refusal, InvalidRequest)
    assert (refusal.status, refusal.param) == (400, "input")
    assert message in refusal.message


def test_other_dimensions_are_refused_with_the_reason(model: Model) -> None:
    refusal = model.refusal("hi", dimensions=256)
    assert (refusal.status, refusal.param) == (400, "dimensions")
    assert "384" in refusal.message
    assert model.refusal("hi", encoding_format="int8").param == "encoding_format"


def test_another_operation_is_refused(model: Model) -> None:
    call = Call(id="c", operation="chat", body={"messages": []}, deadline=1e12, received=0)
    with pytest.raises(InvalidRequest, match="embeds"):
        model.run(model.stage(call))


@pytest.mark.parametrize("input", ["word " * 400, "x " * 100_000, [7592] * 300, "a\n" * 2_000_000])
def test_an_input_that_is_too_long_is_refused_with_the_counts(model: Model, input: Any) -> None:
    refusal = model.refusal(input)
    assert isinstance(refusal, ContextTooLong)
    assert refusal.error_code == "context_length_exceeded"
    assert "at most 256 tokens" in refusal.message
    assert "`input[0]`" in refusal.message


def test_the_longest_input_that_fits_is_taken(model: Model) -> None:
    assert model.answer("word " * 254)["usage"]["total_tokens"] == 256
    with pytest.raises(TooLong) as raised:
        model.embedder.embed(["fine", "word " * 255])
    assert (raised.value.index, raised.value.tokens, raised.value.limit) == (1, "257", 256)


def test_longer_inputs_are_cut_off_where_the_config_says_so() -> None:
    with opened(truncate=True, max_tokens=16, passes=1) as model:
        answer = model.answer("word " * 400)
        assert answer["usage"]["total_tokens"] == 16
        assert np.allclose(model.vectors("word " * 400), model.vectors([[2773] * 400]), atol=1e-6)


def test_a_call_past_its_deadline_is_given_up(model: Model) -> None:
    with pytest.raises(DeadlineExceeded):
        model.answer(texts(500), seconds=0.05)
    assert model.answer("hi")["data"]


def test_a_cancelled_call_leaves_nothing_to_do(model: Model) -> None:
    async def go() -> None:
        task = asyncio.create_task(model.call(texts(2000)))
        await asyncio.sleep(0.15)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert model.stage._waiting == 0
        await model.call("hi")

    model.run(go())


def test_a_small_call_is_not_held_up_by_a_large_one(model: Model) -> None:
    async def go() -> None:
        large = asyncio.create_task(model.call(texts(1000)))
        await asyncio.sleep(0.1)
        await model.call("hi")
        assert not large.done()
        await large

    model.run(go())


def test_the_event_loop_goes_on_while_a_large_call_is_answered(model: Model) -> None:
    async def go() -> int:
        task = asyncio.create_task(model.call(texts(500)))
        beats = 0
        while not task.done():
            await asyncio.sleep(0.01)
            beats += 1
        await task
        return beats

    assert model.run(go()) > 10


def test_calls_at_the_same_time_get_each_their_own_answer(model: Model) -> None:
    given = texts(60)

    async def go() -> list[Reply]:
        return await asyncio.gather(*(model.call(text) for text in given))

    vectors = [reply.json["data"][0]["embedding"] for reply in model.run(go())]
    assert cosines(np.array(vectors), model.embedder.embed(given)).min() > 0.99999


def test_more_inputs_than_may_wait_are_refused() -> None:
    async def go(model: Model) -> None:
        first = asyncio.create_task(model.call(texts(150)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await model.call(texts(10))
        await first
        await model.call(texts(10))

    with opened(queue=100, passes=1) as model:
        model.run(go(model))


class Passes:
    """An encoder that notes the lengths of what each pass is given."""

    def __init__(self, fails: bool = False) -> None:
        self.seen: list[list[int]] = []
        self.fails = fails
        self.go = threading.Event()

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        self.go.wait(10)
        if self.fails:
            raise RuntimeError("out of memory")
        self.seen.append([len(row) for row in rows])
        return [list(row) for row in rows]


def batched(passes: Passes, *calls: list[list[int]]) -> list[list[bytes]]:
    async def go() -> list[list[bytes]]:
        with ThreadPoolExecutor(1) as executor:
            batches = Batches(passes, executor, 1)
            tasks = [asyncio.create_task(batches.answer(rows, bytes)) for rows in calls]
            await asyncio.sleep(0.01)
            passes.go.set()
            return list(await asyncio.gather(*tasks))

    return asyncio.run(go())


def test_small_calls_that_wait_share_a_pass() -> None:
    passes = Passes()
    answers = batched(passes, [[1] * 9], [[2] * 8], [[3] * 7], [[4] * 100])
    assert passes.seen == [[9], [8, 7], [100]]
    assert answers == [[b"\1" * 9], [b"\2" * 8], [b"\3" * 7], [b"\4" * 100]]


def test_large_calls_take_turns() -> None:
    passes = Passes()
    batched(passes, [[1] * 200] * 6, [[2] * 250] * 2)
    assert passes.seen == [[200, 200], [200, 200], [250, 250], [200, 200]]


def test_a_pass_that_fails_fails_the_calls_in_it() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        batched(Passes(fails=True), [[1]])


def test_closing_refuses_what_waits() -> None:
    async def go() -> None:
        passes = Passes()
        with ThreadPoolExecutor(1) as executor:
            batches = Batches(passes, executor, 1)
            tasks = [asyncio.create_task(batches.answer([[1] * 300], bytes)) for _ in range(3)]
            await asyncio.sleep(0.01)
            batches.close()
            passes.go.set()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in ended[1:]] == [Overloaded, Overloaded]

    asyncio.run(go())


def folder_with(path: Path, **changes: Any) -> Path:
    source = locate(PACKAGED, (".safetensors",)).parent
    config = json.loads((source / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return path


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds a `llama` model"):
        Shape.read(folder_with(tmp_path, model_type="llama"))
    with pytest.raises(ModelError, match="no usable `hidden_size`"):
        Shape.read(folder_with(tmp_path, hidden_size=10**9))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    shape = Shape(10, 8, 4, 8, 2, 1, 1e-12)
    path = tmp_path / "model.safetensors"
    save_file({"embeddings.word_embeddings.weight": np.zeros((9, 4), np.float32)}, path)
    with pytest.raises(ModelError, match=r"is \(9, 4\), expected \(10, 4\)"):
        read_weights(path, shape)
    save_file({"embeddings.word_embeddings.weight": np.zeros((10, 4), np.float32)}, path)
    with pytest.raises(ModelError, match="has no tensor `embeddings"):
        read_weights(path, shape)
    path.write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(ModelError, match="can't be read as safetensors"):
        read_weights(path, shape)


def test_a_model_that_is_not_there_is_refused_with_alternatives() -> None:
    stage = MiniLM(MiniLM.Config(model="package:no-such-model"))

    async def go() -> None:
        try:
            await stage.open()
        finally:
            await stage.close()

    with pytest.raises(ConfigError, match="no-such-model"):
        asyncio.run(go())
    assert not [t for t in threading.enumerate() if t.name.startswith("minilm-gone")]


def test_a_missing_library_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="onnxruntime") as raised:
        Embedder()
    assert "llm-pipeline[minilm]" in str(raised.value)


def test_nothing_is_reported_to_the_makers_of_the_runtime(tmp_path: Path) -> None:
    # Its reporting begins with a device's number and a queue of events on the disk.
    code = "from pipeline_plugins.infer.minilm import Embedder; Embedder().embed(['hello'])"
    hushed = ("CI", "GITHUB_ACTIONS", "ORT_", "TF_BUILD", "XDG_")
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(hushed)}
    subprocess.run([sys.executable, "-c", code], env={**quiet, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("input", ["a model", ["one", "two three"], [[7, 8, 9]]])
def test_it_counts_its_inputs_as_its_reply_will(model: Model, input: Any) -> None:
    call = Call(id="c", operation="embedding", body={"input": input}, deadline=1e9, received=0)
    (served,) = model.stage.models
    assert served.count is not None
    assert served.count(call) == model.answer(input)["usage"]["prompt_tokens"]


class _Session:
    """A session that got these providers, and fails as it runs if it is told to."""

    def __init__(self, *providers: str, fails: str = "") -> None:
        self.get_providers = lambda: list(providers)
        self._fails = fails

    def run(self, outputs: None, inputs: dict[str, Any]) -> None:
        if self._fails:
            raise RuntimeError(self._fails)


class _Runtime:
    """An onnxruntime with CUDA that gives this session for it."""

    __file__ = "/nowhere/onnxruntime/__init__.py"

    def __init__(self, session: _Session | None) -> None:
        self._session = session
        self.severity = 2

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU] if self._session is not None else [CPU]

    def preload_dlls(self, **options: Any) -> None:
        sys.stdout.write("Failed to load libmany.so\n")

    def set_default_logger_severity(self, severity: int) -> None:
        self.severity = severity

    def make(self, providers: list[Any]) -> _Session:
        return _Session(CPU) if providers == [CPU] else self._session or _Session(CPU)


WELL = _Session(CUDA, CPU)
OLD_DRIVER = "cuda_call.cc:154 [with a] CUDA failure 35: CUDA driver version is insufficient ; GPU=-1"


def test_a_gpu_is_used_where_there_is_one_and_it_is_not_forbidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(minilm_device, "_without_gpu", str)
    gpu, cpu = _Runtime(WELL), _Runtime(None)
    with structlog.testing.capture_logs() as lines:
        assert session_on("auto", gpu, gpu.make) is WELL
        assert session_on("cuda", gpu, gpu.make) is WELL
        assert session_on("cpu", gpu, gpu.make).get_providers() == [CPU]
        assert session_on("auto", cpu, cpu.make).get_providers() == [CPU]
    assert (lines, gpu.severity, capsys.readouterr().out) == ([], 2, "")


@pytest.mark.parametrize(
    ("session", "driver", "reason"),
    [
        (WELL, "there is no driver", "there is no driver"),
        (_Session(CPU), "", "libonnxruntime_providers_cuda.so"),
        (_Session(CUDA, CPU, fails=OLD_DRIVER), "", "CUDA failure 35: CUDA driver version is insufficient"),
        (_Session(CUDA, CPU, fails="no kernel image."), "", "no kernel image"),
    ],
)
def test_without_a_usable_gpu_the_reason_is_told(
    session: _Session, driver: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm_device, "_without_gpu", lambda: driver)
    runtime = _Runtime(session)
    with structlog.testing.capture_logs() as lines:
        assert session_on("auto", runtime, runtime.make).get_providers() == [CPU]
    (line,) = lines
    assert (line["log_level"], line["event"]) == ("warning", "embedding by the CPU")
    assert reason in line["reason"]
    with pytest.raises(ConfigError) as raised:
        session_on("cuda", runtime, runtime.make)
    (problem,) = raised.value.problems
    assert (problem.path, reason in problem.message, runtime.severity) == ("device", True, 2)


def test_an_onnxruntime_for_cpus_is_told_where_cuda_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="onnxruntime-gpu") as raised:
        session_on("cuda", _Runtime(None), _Runtime(None).make)
    assert raised.value.problems[0].path == "device"


def test_a_driver_that_shows_no_gpu_is_told_with_what_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        cuInit = staticmethod(lambda flags: 100)

    monkeypatch.setattr(minilm_device.ctypes, "CDLL", lambda name: Driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "its status is 100; CUDA_VISIBLE_DEVICES is `7`" in minilm_device._without_gpu()


def test_a_pass_takes_as_many_tokens_as_it_is_told() -> None:
    passes = Passes()
    passes.go.set()

    async def go() -> None:
        with ThreadPoolExecutor(1) as executor:
            await Batches(passes, executor, 1, tokens=2000).answer([[1] * 200] * 11, bytes)

    asyncio.run(go())
    assert passes.seen == [[200] * 10, [200]]
