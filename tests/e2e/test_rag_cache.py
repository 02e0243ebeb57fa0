"""Answers from documents in caches: given again while the documents stay, whoever changes them."""

import json
import os
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from benchmarks.processes import PIPELINE, pipeline_server

pytest.importorskip("lancedb")
pytest.importorskip("onnxruntime")
pytest.importorskip("jinja2")

CATS = "How long do cats sleep?"


def asked(url: str, question: str = CATS) -> tuple[str, list[str]]:
    """How the cache answered, and which documents the answer cites."""
    messages: Any = [{"role": "user", "content": question}]
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="default", messages=messages, temperature=0, extra_body={"rag": {"collection": "notes"}}
        )
    extra = raw.parse().model_extra or {}
    return raw.headers["x-pipeline-cache"], sorted(one["document"] for one in extra["citations"])


def send(url: str, method: str, body: dict[str, Any]) -> None:
    address = f"{url}/v1/rag/collections/notes/documents"
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


@pytest.mark.parametrize("store", ["memory", "disk", "redis", "semantic"])
def test_a_document_that_is_gone_is_in_no_later_answer(store: str, tmp_path: Path, redis_url: str) -> None:
    options = ["infer=echo", "infer@embed=none", "rag=hybrid", f"rag.path={tmp_path}/rag", "rag.embed=echo"]
    options += ["rag.least=-1"]  # the echo's vectors mean nothing
    if store == "semantic":
        options += ["cache=semantic", "cache.decision=threshold", "cache.threshold=0.9", "cache.explore=0"]
    else:
        options += [f"cache.store={store}", f"cache.path={tmp_path}/cache", f"cache.redis={redis_url}"]
        options += ["cache.redis_timeout=5", f"cache.version={tmp_path}"]
    texts = {"cats": "Cats sleep for sixteen hours.", "more": "Cats sleep by day.", "tax": "Tax is due."}
    with pipeline_server(*options) as server:
        send(server.url, "POST", {"documents": [{"id": id, "text": text} for id, text in texts.items()]})
        assert asked(server.url) == ("miss", ["cats", "more", "tax"])
        assert asked(server.url) == ("hit", ["cats", "more", "tax"])
        if store == "semantic":
            assert asked(server.url, "How long does a cat sleep?") == ("semantic", ["cats", "more", "tax"])
        send(server.url, "DELETE", {"ids": ["cats"]})
        assert asked(server.url) == ("miss", ["more", "tax"])
        if store == "semantic":
            assert asked(server.url, "How long will cats sleep?") == ("semantic", ["more", "tax"])


def test_another_process_that_ingests_is_noticed_by_a_cache_in_memory(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "cats.md").write_text("Cats sleep for sixteen hours.")
    (notes / "more.md").write_text("Cats sleep by day.")
    kept = [f"rag.path={tmp_path}/rag", "rag.embed=echo"]
    command = [PIPELINE, "ingest", str(notes), "--collection", "notes", "--sync", *kept]

    def ingest() -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=120, env={**os.environ})

    ingest()
    with pipeline_server("infer=echo", "infer@embed=none", "rag=hybrid", "rag.least=-1", *kept) as server:
        assert asked(server.url) == ("miss", ["notes/cats.md", "notes/more.md"])
        assert asked(server.url) == ("hit", ["notes/cats.md", "notes/more.md"])
        (notes / "cats.md").unlink()
        ingest()
        assert asked(server.url) == ("miss", ["notes/more.md"])
