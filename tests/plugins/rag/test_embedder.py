"""The embedder: any plugin that serves embeddings, a real endpoint among them."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.processes import pipeline_server
from pipeline import Call, Reply
from pipeline.errors import APIError, InvalidRequest, UpstreamFailed
from pipeline.problems import ConfigError

pytest.importorskip("lancedb")
pytest.importorskip("onnxruntime")

from pipeline_plugins.rag.choice import Choice
from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.rag.documents import Documents, DocumentsConfig
from pipeline_plugins.rag.embedder import Embedder, _vectors

CATS = Document("cats", "Cats sleep for sixteen hours a day.")


def embedded(choice: Choice, texts: list[str]) -> Any:
    async def run() -> Any:
        embedder = Embedder(choice, batch=2, timeout=60)
        await embedder.open()
        try:
            return await embedder.embed(texts)
        finally:
            await embedder.close()

    return asyncio.run(run())


def test_vectors_are_of_length_one_and_in_the_order_of_their_texts() -> None:
    found = embedded(Choice(plugin="minilm"), ["cats", "taxes", "cats sleep"])
    assert found.shape == (3, 384)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[2] > found[0] @ found[1]


def test_a_text_that_is_too_long_is_cut_off() -> None:
    whole, cut = embedded(Choice(plugin="minilm"), ["cats " * 180, "cats " * 3000])
    assert whole @ cut > 0.9


def test_a_word_without_end_and_white_space_without_end_are_many_tokens(tmp_path: Path) -> None:
    async def run() -> list[int]:
        documents = Documents(DocumentsConfig(path=str(tmp_path)))
        await documents.open()
        try:
            found = [Document("word", "x" * 50_000), Document("gap", f"a{' ' * 50_000}b")]
            cut = await documents.in_thread(documents.cut_new, found, lambda *_: False)
            return [piece.end - piece.start for _, piece in cut.pieces]
        finally:
            await documents.close()

    assert max(asyncio.run(run())) <= 200 * 64


def test_an_endpoint_embeds_and_the_collection_remembers_its_model(tmp_path: Path) -> None:
    with pipeline_server("infer=none", "infer@embed=echo", "embed.name=e", "embed.dimensions=32") as server:
        remote = Choice.model_validate({"plugin": "openai", "base_url": f"{server.url}/v1", "model": "e"})

        async def run() -> Any:
            documents = Documents(DocumentsConfig(path=str(tmp_path), embed=remote))
            await documents.open()
            try:
                await documents.put("alice", "notes", [CATS])
                found = await documents.search("alice", "notes", CATS.text, mode="vector", least=-1)
                described = await documents.store.describe("alice", "notes")
            finally:
                await documents.close()
            other = Documents(DocumentsConfig(path=str(tmp_path), embed=Choice(plugin="echo")))
            await other.open()
            try:
                with pytest.raises(InvalidRequest, match=r"embedding model `e`.*`echo`"):
                    await other.search("alice", "notes", "cats", mode="vector")
            finally:
                await other.close()
            return [passage.document for passage in found], described.embedding

        assert asyncio.run(run()) == (["cats"], "e")


def test_a_plugin_that_embeds_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="serves no embeddings"):
        embedded(Choice.model_validate({"plugin": "openai", "operations": ["chat"]}), ["cats"])


@pytest.mark.parametrize("plugin", ["minlm", "infer.minlm"])
def test_a_plugin_that_is_not_there_is_told_with_what_is_near(plugin: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Embedder(Choice(plugin=plugin), batch=1, timeout=1)
    assert (raised.value.problems[0].path, "minilm" in raised.value.problems[0].hint) == (
        "embed.plugin",
        True,
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"data": []}',
        b'{"data": [{"index": 0, "embedding": "not base64"}]}',
        b'{"data": [{"index": 0, "embedding": [1, null]}]}',
        b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}',
    ],
)
def test_what_holds_no_vectors_is_an_upstreams_failure(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        _vectors(body, 1)


@pytest.mark.parametrize("form", ["[0.5, 1]", '"AAAAPwAAgD8="'])
def test_vectors_come_as_numbers_or_as_base64(form: str) -> None:
    assert _vectors(b'{"data": [{"index": 0, "embedding": %b}]}' % form.encode(), 1).tolist() == [[0.5, 1.0]]


def answering(*replies: Reply) -> Embedder:
    """An embedder whose model gives these replies, and the last one for ever."""
    embedder = Embedder(Choice(plugin="echo"), batch=1, timeout=60)
    left = list(replies)

    async def answer(call: Call) -> Reply:
        return left.pop(0) if len(left) > 1 else left[0]

    embedder._stage = answer
    return embedder


def vector(*numbers: float) -> Reply:
    return Reply.of({"data": [{"index": 0, "embedding": numbers}]})


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (400, 1), (503, 3), (429, 3)])
def test_what_is_refused_for_good_is_not_tried_again(
    status: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_plugins.rag.embedder.TRIES", 3)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("pipeline_plugins.rag.embedder.asyncio.sleep", sleep)
    embedder = answering(Reply(body=b'{"error": {"message": "no"}}', status=status))
    with pytest.raises(APIError, match=f"status {status}: no"):
        asyncio.run(embedder.embed(["a"], patient=True))
    assert len(waits) == tries - 1


def test_vectors_of_another_length_than_before_are_refused_in_words() -> None:
    embedder = answering(vector(1, 2), vector(1, 2, 3))
    with pytest.raises(UpstreamFailed, match="vectors of 2 and 3 numbers"):
        asyncio.run(embedder.embed(["a", "b"]))
    embedder = answering(vector(1, 2), vector(1, 2, 3))
    asyncio.run(embedder.embed(["a"]))
    with pytest.raises(UpstreamFailed, match="vectors of 2 and 3 numbers"):
        asyncio.run(embedder.embed(["b"]))


def test_what_the_model_refuses_in_its_configuration_is_told_with_its_place() -> None:
    with pytest.raises(ConfigError) as raised:
        embedded(Choice(plugin="minilm", model="package:not-here"), ["cats"])
    assert [problem.path.partition(".")[0] for problem in raised.value.problems] == ["embed"]
