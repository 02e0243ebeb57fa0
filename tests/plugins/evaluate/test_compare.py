"""`pipeline compare`: figures that are known, and how they are shown."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from pipeline_plugins.evaluate import report
from pipeline_plugins.evaluate.compare import Comparison, compare, find
from pipeline_plugins.evaluate.example import DataError
from pipeline_plugins.evaluate.plot import svg

from pipeline.cli.app import run
from tests.plugins.evaluate.runs import evaluate, questions, rows

Capture = pytest.CaptureFixture[str]
CHEAP = ["price=genai", "+price.models.echo={prompt: 10}"]
DEAR = ["price=genai", "+price.models.echo={prompt: 1000}"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A good and dear run, a worse and cheap one, and one that is worse and dear."""
    data = questions(tmp_path, 40, right=1)
    score = "score=[exact_match]"
    evaluate(data, tmp_path / "good", score, *DEAR)
    evaluate(data, tmp_path / "cheap", score, *CHEAP, "infer.failure_rate=0.3")
    evaluate(data, tmp_path / "bad", score, *DEAR, "infer.failure_rate=0.3")
    return tmp_path


def compared(folder: Path, *names: str, metrics: list[str] | None = None) -> Comparison:
    return compare(find(folder / name for name in names), metrics, resamples=400, permutations=999)


def test_a_difference_is_that_of_the_means_and_is_sure_where_it_is_large(runs: Path) -> None:
    found = compared(runs, "good", "cheap", metrics=["quality"])
    good, cheap = (run.metrics["exact_match"]["mean"] for run in found.runs)
    (one,) = found.differences[1].values()
    assert one.mean == pytest.approx(cheap - good)
    assert one.low <= one.mean <= one.high < 0
    assert one.p < 0.05
    assert one.examples == 40


def test_runs_of_the_same_answers_have_no_difference(runs: Path) -> None:
    (one,) = compared(runs, "cheap", "bad", metrics=["quality"]).differences[1].values()
    assert (one.mean, one.low, one.high, one.p) == (0, 0, 0, 1)


def test_only_keys_that_differ_are_named(runs: Path) -> None:
    found = compared(runs, "good", "cheap", "bad").keys
    assert set(found) == {"infer.failure_rate", "price.models.echo.prompt"}
    assert found["infer.failure_rate"] == [0.0, 0.3, 0.3]


def test_fields_of_a_plugin_that_others_do_not_have_are_not_named(tmp_path: Path) -> None:
    data = questions(tmp_path)
    evaluate(data, tmp_path / "a", "cache=none")
    evaluate(data, tmp_path / "b", "cache=exact")
    evaluate(data, tmp_path / "c", "cache=exact", "cache.ttl=5")
    assert set(compared(tmp_path, "a", "b").keys) == {"cache.plugin"}
    assert set(compared(tmp_path, "a", "b", "c").keys) == {"cache.plugin", "cache.ttl"}


def test_a_run_that_another_beats_in_everything_is_not_on_the_front(runs: Path) -> None:
    for run_ in (runs / name for name in ("good", "cheap", "bad")):
        # Times are not what this is about.
        metrics = (run_ / "metrics.json").read_text()
        (run_ / "metrics.json").write_text(metrics.replace('"latency_s"', '"latency_of_the_test"'))
    assert compared(runs, "good", "cheap", "bad").front == {0, 1}


def test_only_examples_that_all_have_are_compared(tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 5)):
        made = ({"id": n, "prompt": f"p{n}", "expected": f"p{n}"} for n in range(start, start + 20))
        evaluate(rows(tmp_path / f"{name}.jsonl", made), tmp_path / name, "score=[exact_match]")
    found = compared(tmp_path, "a", "b", metrics=["quality"])
    assert found.differences[1]["exact_match"].examples == 15
    assert "15 examples are in all runs, of up to 20." in found.notes
    other = rows(tmp_path / "c.jsonl", [{"id": "x", "prompt": "p"}])
    evaluate(other, tmp_path / "c", "score=[exact_match]")
    with pytest.raises(DataError, match="no example in common"):
        compared(tmp_path, "a", "c")


def test_markdown_has_a_row_for_each_run_and_each_key(runs: Path, capfd: Capture) -> None:
    assert run(["compare", *(str(runs / name) for name in ("good", "cheap")), "--markdown"]) == 0
    lines = capfd.readouterr().out.splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert tables[0] == "|  | run | exact_match | cost_usd | latency_s |"
    assert len(tables) == 4 + 4
    assert "| infer.failure_rate | 0.0 | 0.3 |" in tables
    assert all(line.count("|") == tables[0].count("|") for line in tables[:4])


def test_pictures_are_drawn(runs: Path) -> None:
    html, png = runs / "c.html", runs / "c.png"
    pytest.importorskip("matplotlib")
    call = ["compare", str(runs / "good"), str(runs / "cheap"), "--html", str(html), "--png", str(png)]
    assert run(call) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert html.read_text().count("<svg") == 2


def test_a_picture_is_well_formed_whatever_runs_are_called(runs: Path) -> None:
    found = compared(runs, "good", "cheap", "bad")
    found.runs[0].label = '<script>"&|'
    picture = ElementTree.fromstring(svg(found, "cost_usd"))
    assert len(picture.findall(".//{*}circle")) == 3
    assert "<script>" not in report.page(found)
    assert '| &lt;script&gt;"&amp;\\| |' in report.markdown(found)


def test_runs_without_a_result_are_refused(tmp_path: Path, capfd: Capture) -> None:
    assert run(["compare", str(tmp_path)]) == 2
    assert "has no complete run" in capfd.readouterr().err


def test_runs_can_be_logged_to_mlflow(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("mlflow.tracking").MlflowClient
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(runs)  # where it keeps artifacts
    uri = (runs / "mlflow").as_uri()
    for _ in range(2):
        assert run(["compare", str(runs / "good"), "--mlflow", uri]) == 0
    known = client(tracking_uri=uri)
    (logged,) = known.search_runs([known.get_experiment_by_name("llm-pipeline").experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["exact_match"] == 1
    assert logged.data.metrics["exact_match.low"] <= 1
    assert logged.data.params["infer.plugin"] == "infer.echo"
    assert "manifest.json" in {file.path for file in known.list_artifacts(logged.info.run_id)}


def test_an_mlflow_that_takes_nothing_is_told(runs: Path, capfd: Capture) -> None:
    pytest.importorskip("mlflow.tracking")
    assert run(["compare", str(runs / "good"), "--mlflow", "nonsense://here"]) == 1
    error = capfd.readouterr().err
    assert "MLflow at nonsense://here" in error
    assert "Traceback" not in error


def test_a_metric_that_the_first_run_lacks_is_shown_of_the_others(runs: Path, capfd: Capture) -> None:
    evaluate(runs / "questions.jsonl", runs / "cached", "score=[exact_match]", "cache=exact")
    evaluate(runs / "questions.jsonl", runs / "plain", "score=[exact_match]", "cache=none")
    found = compared(runs, "plain", "cached", metrics=["exact_match", "cache_hit_rate"])
    assert found.metrics == ["exact_match", "cache_hit_rate"]
    assert list(found.differences[1]) == ["exact_match"]
    with pytest.raises(DataError, match="no run measures `nothing`, but exact_match"):
        compared(runs, "plain", "cached", metrics=["nothing"])


def test_a_baseline_that_is_among_the_runs_is_shown_once(runs: Path, capfd: Capture) -> None:
    given = [str(runs / "bad"), str(runs / "good"), "--baseline", str(runs / "good")]
    assert run(["compare", *given, "--markdown"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert sum(line.startswith(("| 1", "| 2", "| 3")) for line in lines) == 2


def test_brackets_in_what_a_run_is_called_are_shown(runs: Path, capfd: Capture) -> None:
    evaluate(runs / "questions.jsonl", runs / "strict", "score=[exact_match,f1]")
    capfd.readouterr()
    assert run(["compare", str(runs / "good"), str(runs / "strict")]) == 0
    assert "score=[exact_match,f1]" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("file", "content"),
    [("manifest.json", "[]"), ("metrics.json", "{"), ("config.yaml", "a: ["), ("examples.parquet", "x")],
)
def test_a_damaged_run_is_named(runs: Path, capfd: Capture, file: str, content: str) -> None:
    (runs / "bad" / file).write_text(content)
    assert run(["compare", str(runs / "good"), str(runs / "bad")]) == 2
    error = capfd.readouterr().err
    assert str(runs / "bad") in error
    assert "Traceback" not in error
