"""This repository's own docs, ingested as a user would, and asked about through the real model."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from benchmarks.processes import PIPELINE, pipeline_server

pytest.importorskip("lancedb")
pytest.importorskip("onnxruntime")
pytest.importorskip("jinja2")
pytest.importorskip("xllamacpp")

DOCS = Path(__file__).parents[2] / "docs"
QUESTIONS = [
    ("How can I revoke a key?", "docs/keys.md"),
    ("How do I limit requests per minute in Redis?", "docs/limits.md"),
    ("When does a circuit breaker open?", "docs/resilience.md"),
    ("How do I project what this month will cost?", "docs/cost.md"),
    ("How are equal requests that come at once answered by the cache?", "docs/cache.md"),
]


def test_five_questions_about_these_docs_are_answered_with_the_right_passages(tmp_path: Path) -> None:
    named = sorted({source for _, source in QUESTIONS})
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in named:
        (folder / Path(name).name).write_bytes((DOCS / Path(name).name).read_bytes())
    kept = f"rag.path={tmp_path}/rag"
    command = [PIPELINE, "ingest", str(folder), "--collection", "docs", kept]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ}, check=True
    )
    assert f"{len(named)} documents in" in done.stdout
    with (
        pipeline_server("rag=hybrid", "rag.collection=docs", "rag.k=3", kept, "infer@embed=none") as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client,
    ):
        for question, source in QUESTIONS:
            messages: Any = [{"role": "user", "content": question}]
            reply = client.chat.completions.create(
                model="default", messages=messages, temperature=0, max_tokens=24
            )
            cited = [one["source"] for one in (reply.model_extra or {})["citations"]]
            assert source in cited, (question, cited)
            assert reply.choices[0].message.content
