"""The worked experiments of `conf/experiment`, run for real: `make experiments`, `ARGS=rag` for one.

    python -m benchmarks.experiments [NAME…] [--markdown FILE] [-- OVERRIDES…]

Data is read from `../shared/data`, an experiment whose data is absent is skipped, and what is
made of it is kept in `runs/experiments`. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.processes import PIPELINE

HOME = Path(os.environ.get("PIPELINE_EXPERIMENTS", "runs/experiments"))
_FOLDER = "shared/data"
DATA = next(
    (path for folder in Path(__file__).parents if (path := folder / _FOLDER).is_dir()),
    Path(__file__).parents[2] / _FOLDER,
)

MEANINGS = 3000
"""Meanings of the questions that the semantic cache is asked, all texts of each."""


def read(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a gzipped CSV."""
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pipeline(*arguments: object) -> None:
    """`pipeline …`, its output for whoever watches. Raises `CalledProcessError`."""
    print("$ pipeline", *arguments, flush=True)
    subprocess.run([PIPELINE, *map(str, arguments)], check=True)


def rag() -> list[Path]:
    """Ingest the corpora, see what each way of searching finds, then ask without passages and with them."""
    rows = read(DATA / "rag" / "questions.csv.gz")
    made = (
        {
            "id": f"{row['corpus_id']}-{number}",
            "prompt": row["question"],
            "relevant": [reference["content"] for reference in json.loads(row["references"])],
        }
        for number, row in enumerate(rows)
    )
    write(HOME / "rag.jsonl", made)
    pipeline("ingest", DATA / "rag" / "corpora", "--collection", "corpora", "experiment=rag", "rag=hybrid")
    found = folder("rag-found")
    searching = ["infer=echo", "score=[retrieval]", "~score.rouge_l", "eval.quality=retrieval.nDCG@3"]
    ways = ["rag=fulltext,vector,hybrid", "hydra.sweeper.params={}", *OVERRIDES]
    pipeline("eval", "-m", "experiment=rag", *searching, *ways, "-o", found)
    pipeline("compare", found, "--metric", "retrieval.R@3", "--metric", "retrieval.nDCG@3")
    return sweep("rag")


def semantic_cache() -> list[Path]:
    """Ask questions in many words, of a model whose answers are on record."""
    texts: dict[str, list[str]] = defaultdict(list)
    rows = [row for row in read(DATA / "semantic-cache" / "stream.csv.gz") if int(row["meaning"]) % 2]
    for row in rows:
        texts[row["meaning"]].append(row["text"])
    chosen = set(random.Random(0).sample(sorted(texts), MEANINGS))
    kept = [row for row in rows if row["meaning"] in chosen]
    write(
        HOME / "semantic_cache.jsonl",
        (
            {
                "prompt": row["text"],
                "answer": f"Answer {row['meaning']}.",
                "expected": f"Answer {row['meaning']}.",
            }
            for row in kept
        ),
    )
    none = HOME / "semantic_cache-none"
    pipeline("eval", "experiment=semantic_cache", "cache=none", "-o", none)
    return [none, *sweep("semantic_cache")]


def cheapest_capable() -> list[Path]:
    """Train a router on one half of the prompts, and send it the other half."""
    rows = list(read(DATA / "routing" / "prompts.csv.gz"))
    prompts = sorted({row["prompt"] for row in rows})
    held = set(random.Random(0).sample(prompts, len(prompts) // 2))
    train = HOME / "routing-train.jsonl"
    write(train, (row for row in rows if row["prompt"] not in held))
    write(HOME / "cheapest_capable.jsonl", (row for row in rows if row["prompt"] in held))
    if not (HOME / "router").is_dir():
        pipeline("route", "train", train, "--out", HOME / "router", "--by", "set")
    found = []
    for name, weights in (("large", "{small: 0, large: 1}"), ("small", "{small: 1, large: 0}")):
        out = HOME / f"cheapest_capable-{name}"
        only = ["experiment=cheapest_capable", "route=weighted", f"route.weights={weights}"]
        only += ["~route.model", "~route.trained_as"]
        pipeline("eval", *only, "-o", out)
        found.append(out)
    return [*found, *sweep("cheapest_capable")]


def folder(name: str) -> Path:
    """Where a sweep goes: with other overrides it is another one."""
    said = "-".join([name, *(re.sub(r"[^\w.=]+", "_", one) for one in OVERRIDES)])
    return HOME / said[:120]


def sweep(name: str) -> list[Path]:
    """Run an experiment's sweep; its folder."""
    out = folder(name)
    pipeline("eval", "-m", f"experiment={name}", "-o", out, *OVERRIDES)
    return [out]


EXPERIMENTS: dict[str, tuple[str, Callable[[], list[Path]], tuple[str, ...]]] = {
    "cheapest_capable": ("routing", cheapest_capable, ("recorded", "cost_usd")),
    "semantic_cache": ("semantic-cache", semantic_cache, ("exact_match", "cost_usd", "cache_hit_rate")),
    "rag": ("rag", rag, ("rouge_l", "retrieval.R@3", "retrieval.nDCG@3", "groundedness", "latency_s")),
}
"""The folder of data that each needs, what runs it, and what is compared."""

OVERRIDES: list[str] = []


def main(arguments: list[str]) -> int:
    """Run those named, or all. Returns 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments")
    parser.add_argument("names", nargs="*", choices=[*EXPERIMENTS, []], metavar="NAME")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = [one for one in arguments if "=" not in one]
    OVERRIDES.extend(one for one in arguments if "=" in one)
    names = parser.parse_args(given).names or list(EXPERIMENTS)
    HOME.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names:
        data, run, metrics = EXPERIMENTS[name]
        if not (DATA / data).is_dir():
            print(f"skipped {name}: there is no {DATA / data}")
            continue
        try:
            runs = run()
            shown = [option for metric in metrics for option in ("--metric", metric)]
            pipeline("compare", *runs, *shown, "--html", HOME / f"{name}.html", "--png", HOME / f"{name}.png")
        except subprocess.CalledProcessError as error:
            print(f"{name} failed with {error.returncode}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
