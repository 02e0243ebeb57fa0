"""`pipeline eval -m`: points, what is shared between them, and what a failure or a kill leaves."""

import signal
import sqlite3
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import PIPELINE
from pipeline.cli.app import run
from tests.plugins.evaluate.runs import ECHO, command, examples, questions, read, rows

Capture = pytest.CaptureFixture[str]


def sweep(tmp_path: Path, *arguments: object, count: int = 20) -> int:
    data = questions(tmp_path, count)
    return command("eval", "-m", f"data={data}", "score=[exact_match]", "-o", tmp_path / "sweep", *arguments)


def points(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """By what tells each from the others."""
    return {point["folder"].rpartition("-")[0]: point for point in read(tmp_path / "sweep" / "index.json")}


def test_every_combination_is_a_run_of_its_own(tmp_path: Path) -> None:
    assert sweep(tmp_path, "cache=none,exact", "infer.failure_rate=0,0.5") == 0
    found = points(tmp_path)
    assert sorted(found) == [
        f"cache={cache},infer.failure_rate={rate}" for cache in ("exact", "none") for rate in ("0", "0.5")
    ]
    assert all(point["state"] == "complete" for point in found.values())
    assert found["cache=none,infer.failure_rate=0"]["means"]["exact_match"] == 0.5
    for point in found.values():
        assert len(examples(tmp_path / "sweep" / "points" / point["folder"])) == 20


def test_a_point_that_fails_stops_no_other_and_the_exit_says_so(tmp_path: Path, capfd: Capture) -> None:
    assert sweep(tmp_path, "infer.failure_rate=7,0") == 1
    found = points(tmp_path)
    assert found["infer.failure_rate=0"]["state"] == "complete"
    assert found["infer.failure_rate=7"]["state"] == "failed"
    assert "less than or equal to 1, got 7" in found["infer.failure_rate=7"]["error"]
    assert "FAILED" in capfd.readouterr().err


def test_a_model_answers_equal_requests_once_and_its_time_counts_for_all(tmp_path: Path) -> None:
    assert sweep(tmp_path, "cache=none,exact", "infer.latency=0.05", "eval.concurrency=20") == 0
    with sqlite3.connect(tmp_path / "sweep" / "answers.sqlite") as db:
        assert db.execute("SELECT count(*) FROM answers").fetchone() == (20,)
    db.close()
    found = points(tmp_path)
    assert sorted(point["reused"] for point in found.values()) == [0, 20]
    for point in found.values():
        rows = examples(tmp_path / "sweep" / "points" / point["folder"])
        assert all(row["seconds"] >= 0.05 for row in rows)
        assert [row["answer"] for row in rows] == [f"question {n}" for n in range(20)]


def test_streams_are_shared_with_the_time_to_their_first_chunk(tmp_path: Path) -> None:
    assert (
        sweep(tmp_path, "cache=none,exact", "infer.latency=0.05", "eval.stream=true", "eval.concurrency=20")
        == 0
    )
    for point in points(tmp_path).values():
        for row in examples(tmp_path / "sweep" / "points" / point["folder"]):
            assert 0.05 <= row["first"] <= row["seconds"]
            assert row["completion_tokens"] == 2


def test_another_model_is_asked_anew(tmp_path: Path) -> None:
    assert sweep(tmp_path, "infer.seed=1,2") == 0
    assert [point["reused"] for point in points(tmp_path).values()] == [0, 0]


def test_a_model_whose_file_has_changed_is_asked_anew(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    call = ["eval", "-m", f"data={questions(tmp_path, 1)}", "-o", tmp_path / "sweep"]
    call += ["infer=recorded", f"infer.path={answers}", *ECHO[1:]]
    for at_once, answer in (("1,2", "old"), ("3,4", "and new")):
        rows(answers, [{"prompt": "question 0", "answer": answer}])
        assert run([*map(str, call), f"eval.concurrency={at_once}"]) == 0
    said = [examples(folder)[0]["answer"] for folder in sorted((tmp_path / "sweep" / "points").iterdir())]
    assert said == ["old", "old", "and new", "and new"]


def test_sharing_can_be_turned_off(tmp_path: Path) -> None:
    assert sweep(tmp_path, "cache=none,exact", "eval.reuse=false") == 0
    assert not (tmp_path / "sweep" / "answers.sqlite").exists()


def complete(folders: Path) -> list[Path]:
    found = [path.parent for path in folders.glob("*/manifest.json") if read(path)["state"] == "complete"]
    return [folder for folder in found if not (folder / "examples.jsonl").exists()]


def test_a_sweep_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data = questions(tmp_path, 30)
    call = ["eval", "-m", f"data={data}", "score=[exact_match]", "infer.latency=0.05", "eval.concurrency=2"]
    call += ["infer.seed=1,2,3", "-o", str(tmp_path / "sweep")]
    folders = tmp_path / "sweep" / "points"
    with subprocess.Popen([PIPELINE, *call, *ECHO], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        # One point is complete, and another under way.
        while not (complete(folders) and list(folders.glob("*/examples.jsonl"))):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    tables = [folder / "examples.parquet" for folder in complete(folders)]
    before = {path: path.stat().st_mtime_ns for path in tables}
    assert 1 <= len(before) < 3
    assert command(*call) == 0
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    assert len(list(folders.glob("*/examples.parquet"))) == 3


def test_nothing_of_a_sweep_holds_a_secret_or_is_readable_by_others(tmp_path: Path) -> None:
    secret = [
        "infer=openai",
        "infer.base_url=http://127.0.0.1:9/v1",
        "infer.model=m,n",
        "infer.api_key=sk-the-key",
    ]
    data = questions(tmp_path, 2)
    call = [PIPELINE, "eval", "-m", f"data={data}", "-o", tmp_path / "sweep", *ECHO[1:], *secret]
    done = subprocess.run(call, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0
    paths = list((tmp_path / "sweep").rglob("*"))
    content = b"".join(path.read_bytes() for path in paths if path.is_file()) + done.stdout + done.stderr
    assert b"sk-the-key" not in content
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("infer.api_key=a,b", "A secret is not swept"),
        ("+hydra.sweeper.x={_target_: os.system}", "is not a class of an installed Hydra plugin"),
        ("+hydra.callbacks.x={_target_: subprocess.run}", "is not a class of an installed Hydra plugin"),
        ("hydra/launcher=nothing", "hydra/launcher"),
        ("infer=ecko", "Did you mean `echo`?"),
        ("--json", "are for single runs"),
    ],
)
def test_what_can_not_be_swept_is_the_users_mistake(
    tmp_path: Path, capfd: Capture, override: str, told: str
) -> None:
    assert sweep(tmp_path, override) == 2
    error = capfd.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_points_run_in_other_processes_by_the_joblib_launcher(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    data = questions(tmp_path)
    call = [PIPELINE, "eval", "-m", f"data={data}", "score=[exact_match]", "-o", tmp_path / "sweep", *ECHO]
    # Two points for each process: its second one finds what its launcher restored.
    call += ["cache=none,exact", "infer.seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    subprocess.run(call, check=True, capture_output=True, timeout=120)
    assert [point["state"] for point in points(tmp_path).values()] == ["complete"] * 4
    assert {point["means"]["exact_match"] for point in points(tmp_path).values()} == {0.5}


def test_a_sweeper_that_optimises_is_told_the_objective(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    data = questions(tmp_path, right=1)
    call = [PIPELINE, "eval", "-m", f"data={data}", "score=[exact_match]", "-o", tmp_path / "sweep", *ECHO]
    call += ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.direction=maximize"]
    call += ["infer.failure_rate=interval(0.0,1.0)", "hydra.sweeper.sampler.seed=1"]
    subprocess.run(call, check=True, capture_output=True, timeout=120)
    best = max(points(tmp_path).values(), key=lambda point: point["means"]["exact_match"])
    said = (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    assert str(best["means"]["exact_match"]) in said


def test_a_sweep_of_other_data_has_a_folder_of_its_own(tmp_path: Path) -> None:
    call = ["eval", "-m", f"data={tmp_path}/questions.jsonl", f"eval.dir={tmp_path}/runs", "infer.seed=1,2"]
    for count in (3, 4, 3):
        questions(tmp_path, count)
        assert command(*call) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_point_that_is_not_complete_makes_the_sweep_fail(tmp_path: Path) -> None:
    left = tmp_path / "sweep" / "points" / "infer.seed=9"
    left.mkdir(parents=True)
    (left / "manifest.json").write_text('{"state": "running", "overrides": ["infer.seed=9"]}')
    assert sweep(tmp_path, "infer.seed=1,2", count=2) == 1


def test_a_point_that_fails_is_a_failed_trial_for_a_sweeper_that_optimises(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    data = questions(tmp_path, right=1)
    call = [PIPELINE, "eval", "-m", f"data={data}", "score=[exact_match]", "-o", tmp_path / "sweep", *ECHO]
    call += ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.direction=maximize"]
    call += ["infer.failure_rate=interval(0.5,1.5)", "hydra.sweeper.sampler.seed=1"]
    done = subprocess.run(call, check=False, capture_output=True, timeout=120)
    assert done.returncode == 1
    states = [point["state"] for point in points(tmp_path).values()]
    assert len(states) == 6
    assert set(states) == {"complete", "failed"}
    assert (tmp_path / "sweep" / "optimization_results.yaml").is_file()


def test_a_launcher_that_breaks_is_told_beside_what_is_complete(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> None:
        raise RuntimeError("a worker was killed\nand more")

    monkeypatch.setattr("pipeline_plugins.evaluate.sweep._launch", breaks)
    assert sweep(tmp_path, "infer.seed=1,2") == 1
    told = capfd.readouterr()
    assert "The sweep broke off: RuntimeError: a worker was killed\n" in told.err
    assert "0 of 0 points complete" in told.out
    assert "Traceback" not in told.err


def test_a_point_that_failed_runs_once_what_was_wrong_is_mended(tmp_path: Path) -> None:
    data = tmp_path / "later.jsonl"
    call = ["eval", "-m", f"data={data}", "cache=none,exact", "-o", tmp_path / "sweep"]
    assert command(*call) == 1
    assert {point["state"] for point in points(tmp_path).values()} == {"failed"}
    questions(tmp_path, 3).rename(data)
    assert command(*call) == 0
    assert {point["state"] for point in points(tmp_path).values()} == {"complete"}


def test_a_point_that_is_swept_over_no_more_fails_no_sweep(tmp_path: Path) -> None:
    assert sweep(tmp_path, "infer.failure_rate=0,7") == 1
    assert sweep(tmp_path, "infer.failure_rate=0,1") == 0
    assert sorted(points(tmp_path)) == ["infer.failure_rate=0", "infer.failure_rate=1"]


def test_other_data_of_the_same_name_is_another_sweep_where_data_is_swept_over(tmp_path: Path) -> None:
    first, second = (rows(tmp_path / name, [{"prompt": "a"}]) for name in ("first.jsonl", "se cond.jsonl"))
    call = ["eval", "-m", f"data={first},'{second}'", f"eval.dir={tmp_path / 'runs'}"]
    assert command(*call) == command(*call) == 0
    rows(second, [{"prompt": "b"}])
    assert command(*call) == 0
    assert len(list((tmp_path / "runs").glob("sweep-*/index.json"))) == 2


def test_a_damaged_point_is_told_and_the_others_run(tmp_path: Path, capfd: Capture) -> None:
    assert sweep(tmp_path, "infer.failure_rate=0,1") == 0
    folder = tmp_path / "sweep" / "points" / points(tmp_path)["infer.failure_rate=1"]["folder"]
    for file in ("metrics.json", "manifest.json"):
        (folder / file).write_text("{")
        assert sweep(tmp_path, "infer.failure_rate=0,1") == 1
        assert file in capfd.readouterr().err
        assert points(tmp_path)["infer.failure_rate=0"]["state"] == "complete"


def test_a_sweep_into_a_file_is_told(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "sweep").write_text("")
    assert sweep(tmp_path, "infer.failure_rate=0,1") == 2
    assert f"{tmp_path / 'sweep'} is a file." in capfd.readouterr().err
