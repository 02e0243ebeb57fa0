"""`--fail-if`: its grammar, and when it fails a run."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.evaluate.gate import Condition, ConditionError, parse

from tests.plugins.evaluate.runs import command, evaluate, questions

Capture = pytest.CaptureFixture[str]


@settings(deadline=None)
@given(
    st.sampled_from(["quality", "f1", "retrieval.nDCG@5", "cost_usd", "judge.unable"]),
    st.sampled_from(["", ".p95", ".low"]),
    st.sampled_from("<>"),
    st.floats(-1e6, 1e6),
    st.booleans(),
)
def test_every_condition_that_is_written_is_read_back(
    metric: str, figure: str, sign: str, bound: float, percent: bool
) -> None:
    found = parse(f"{metric}{figure} {sign} {bound!r}{'%' if percent else ''}")
    assert (found.metric, found.figure, found.sign) == (metric, figure[1:] or "mean", sign)
    assert found.bound == (bound / 100 if percent else bound)


@pytest.mark.parametrize(
    "text", ["", "quality", "quality<", "<0.1", "quality<=0.1", "quality<<1", "a<1 b<2", "q<nan"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ConditionError, match="expected METRIC<NUMBER"):
        parse(text)


def test_a_condition_is_kept_as_it_was_written() -> None:
    assert parse("quality<-2%") == Condition("quality<-2%", "quality", "mean", "<", -0.02, True)


def test_a_run_that_got_worse_fails_and_one_that_did_not_passes(tmp_path: Path, capfd: Capture) -> None:
    data = questions(tmp_path)
    evaluate(data, tmp_path / "main", "score=[exact_match]")
    worse = ["eval", f"data={data}", "score=[exact_match]", "infer.failure_rate=0.5"]
    gate = ["--baseline", tmp_path / "main", "--fail-if", "quality<-0.02"]
    assert command(*worse, "-o", tmp_path / "worse", *gate) == 1
    assert "FAILED  quality<-0.02: exact_match changed by -" in capfd.readouterr().err
    assert command(*worse[:3], "-o", tmp_path / "same", *gate) == 0
    assert "passed" in capfd.readouterr().err


def test_without_a_baseline_a_condition_is_on_the_figure_itself(tmp_path: Path) -> None:
    run = ["eval", f"data={questions(tmp_path)}", "score=[exact_match]", "-o", tmp_path / "run", "--fail-if"]
    assert command(*run, "quality<0.4") == 0
    assert command(*run, "quality<0.6") == 1


@pytest.mark.parametrize("condition", ["nothing<1", "error_rate>5%"])
def test_a_condition_that_can_not_be_held_to_the_run_is_the_users_mistake(
    tmp_path: Path, capfd: Capture, condition: str
) -> None:
    run = ["eval", f"data={questions(tmp_path)}", "score=[exact_match]", "-o", tmp_path / "run"]
    assert command(*run, "--fail-if", condition) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_a_baseline_of_other_data_is_refused(tmp_path: Path, capfd: Capture) -> None:
    evaluate(questions(tmp_path), tmp_path / "main", "score=[exact_match]")
    other = questions(tmp_path, 21)
    run = [
        "eval",
        f"data={other}",
        "score=[exact_match]",
        "--baseline",
        tmp_path / "main",
        "--fail-if",
        "quality<0",
    ]
    assert command(*run, "-o", tmp_path / "run") == 2
    assert "is of other data" in capfd.readouterr().err


@pytest.mark.parametrize(
    "gate", [["--fail-if", "qualty<0"], ["--baseline", "none", "--fail-if", "quality<0"]]
)
def test_what_can_not_be_judged_is_told_before_anything_runs(tmp_path: Path, gate: list[str]) -> None:
    run = ["eval", f"data={questions(tmp_path)}", "score=[exact_match]", "-o", tmp_path / "run"]
    assert command(*run, *gate) == 2
    assert not (tmp_path / "run").exists()


def test_a_percentage_of_nothing_and_a_damaged_baseline_are_refused_before_anything_runs(
    tmp_path: Path, capfd: Capture
) -> None:
    data = questions(tmp_path)
    evaluate(data, tmp_path / "main", "score=[exact_match]")
    call = ["eval", f"data={data}", "score=[exact_match]", "-o", tmp_path / "new"]
    gate = ["--baseline", tmp_path / "main", "--fail-if", "quality<-0.02", "--fail-if"]
    assert command(*call, *gate, "error_rate>10%") == 2
    assert "the baseline's error_rate is 0, of which nothing is a percent" in capfd.readouterr().err
    (tmp_path / "main" / "metrics.json").write_text("{")
    assert command(*call, *gate, "error_rate>0.1") == 2
    assert f"the run {tmp_path / 'main'} is damaged: metrics.json" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()
