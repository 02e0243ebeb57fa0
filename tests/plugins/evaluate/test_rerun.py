"""`pipeline rerun`: the same figures again, and what is said where they are not."""

from pathlib import Path

import pytest

from pipeline.cli.app import run
from tests.plugins.evaluate.runs import evaluate, questions, read, rows

Capture = pytest.CaptureFixture[str]


def test_a_deterministic_run_repeated_agrees_in_every_figure_and_answer(
    tmp_path: Path, capfd: Capture
) -> None:
    again = tmp_path / "again"
    evaluate(questions(tmp_path), tmp_path / "run", "score=[exact_match,f1]", "infer.failure_rate=0.2")
    assert run(["rerun", str(tmp_path / "run"), "--out", str(again)]) == 0
    assert "The figures agree." in capfd.readouterr().out
    before, after = read(tmp_path / "run" / "manifest.json"), read(again / "manifest.json")
    assert before["digest"] == after["digest"]
    old, new = read(tmp_path / "run" / "metrics.json"), read(again / "metrics.json")
    assert {name: one for name, one in old.items() if name != "latency_s"} == {
        name: one for name, one in new.items() if name != "latency_s"
    }


def test_a_repeated_run_goes_beside_the_first(tmp_path: Path) -> None:
    evaluate(questions(tmp_path, 3), tmp_path / "run")
    assert run(["rerun", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run-again-1" / "examples.parquet").is_file()


def test_what_differs_is_named(tmp_path: Path, capfd: Capture) -> None:
    evaluate(questions(tmp_path), tmp_path / "run", "score=[exact_match]")
    questions(tmp_path, right=4)
    assert run(["rerun", str(tmp_path / "run")]) == 1
    out = capfd.readouterr().out
    assert "changed since: data" in out
    assert "The figures do not agree." in out


def test_an_answer_that_differs_is_seen_where_no_figure_does(tmp_path: Path, capfd: Capture) -> None:
    data = rows(tmp_path / "a.jsonl", [{"id": "x", "prompt": "one two"}])
    evaluate(data, tmp_path / "run")
    rows(tmp_path / "a.jsonl", [{"id": "x", "prompt": "two one"}])
    assert run(["rerun", str(tmp_path / "run")]) == 1
    assert "answers that differ: 1, the first of `x`" in capfd.readouterr().out


def test_a_secret_has_to_be_given_again(tmp_path: Path, capfd: Capture) -> None:
    remote = ["infer=openai", "infer.base_url=http://127.0.0.1:9/v1", "infer.model=m", "infer.api_key=sk-one"]
    evaluate(questions(tmp_path, 2), tmp_path / "run", *remote)
    assert run(["rerun", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err
    assert "infer.api_key" in error
    assert "It was a secret, and is not kept." in error
    assert run(["rerun", str(tmp_path / "run"), "infer.api_key=sk-two"]) == 0


def test_a_folder_without_a_complete_run_is_refused(tmp_path: Path, capfd: Capture) -> None:
    assert run(["rerun", str(tmp_path)]) == 2
    assert "has no complete run" in capfd.readouterr().err


def test_a_run_repeated_at_once_differs_in_nothing_that_it_was_made_from(
    tmp_path: Path, capfd: Capture
) -> None:
    evaluate(questions(tmp_path, 3), tmp_path / "run")
    capfd.readouterr()
    assert run(["rerun", str(tmp_path / "run")]) == 0
    assert "changed since" not in capfd.readouterr().out
    again = (tmp_path / "run-again-1" / "overrides.yaml").read_text()
    assert again == (tmp_path / "run" / "overrides.yaml").read_text()


def test_a_point_that_is_repeated_is_no_point_of_its_sweep(tmp_path: Path) -> None:
    evaluate(questions(tmp_path, 3), tmp_path / "sweep" / "points" / "one")
    assert run(["rerun", str(tmp_path / "sweep" / "points" / "one")]) == 0
    assert (tmp_path / "sweep" / "one-again-1" / "examples.parquet").is_file()


def test_what_was_recorded_can_not_be_repeated(tmp_path: Path, capfd: Capture) -> None:
    evaluate(questions(tmp_path, 3), tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("{}\n")
    assert run(["rerun", str(tmp_path / "run")]) == 2
    assert "there is no configuration to repeat it from" in capfd.readouterr().err


@pytest.mark.parametrize("file", ["config.yaml", "metrics.json", "examples.parquet"])
@pytest.mark.parametrize("content", [None, "{"])
def test_a_damaged_run_is_told_before_anything_runs(
    tmp_path: Path, capfd: Capture, file: str, content: str | None
) -> None:
    damaged = tmp_path / "run"
    evaluate(questions(tmp_path, 3), damaged)
    (damaged / file).unlink()
    if content is not None:
        (damaged / file).write_text(content)
    assert run(["rerun", str(damaged)]) == 2
    told = capfd.readouterr().err
    assert file in told
    assert str(damaged) in told
    assert not (tmp_path / "run-again-1").exists()
