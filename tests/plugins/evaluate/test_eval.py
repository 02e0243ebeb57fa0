"""`pipeline eval`: what a run leaves behind, and that it survives being stopped."""

import os
import resource
import signal
import stat
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from pipeline_plugins.evaluate.example import Outcome
from pipeline_plugins.evaluate.files import Digests, write_json
from pipeline_plugins.evaluate.journal import Busy, Journal
from pipeline_plugins.evaluate.prepare import prepare
from pipeline_plugins.evaluate.run import Runner

from benchmarks.processes import PIPELINE
from tests.plugins.evaluate.runs import ECHO, command, evaluate, examples, questions, read, rows

Capture = pytest.CaptureFixture[str]
FILES = {"config.yaml", "overrides.yaml", "manifest.json", "metrics.json", "examples.parquet"}


def test_a_run_leaves_its_configuration_figures_and_examples(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = evaluate(questions(tmp_path), out, "score=[exact_match,f1]")
    assert {path.name for path in out.iterdir()} == FILES
    assert done.metrics["exact_match"]["mean"] == 0.5
    assert read(out / "metrics.json") == done.metrics
    manifest = read(out / "manifest.json")
    assert manifest["state"] == "complete"
    assert manifest["quality"] == "exact_match"
    assert manifest["data"]["examples"] == 20
    assert {"infer.echo", "score.f1", "data.file"} <= set(manifest["plugins"])
    assert manifest["hardware"]["cores"] >= 1
    assert "score=[exact_match,f1]" in yaml.safe_load((out / "overrides.yaml").read_text())
    found = examples(out)
    assert [row["id"] for row in found] == [f"q{n}" for n in range(20)]
    assert found[3]["answer"] == "question 3"
    assert (found[2]["score.exact_match"], found[3]["score.exact_match"]) == (1.0, 0.0)
    assert found[0]["outcome"] == "completed"


def test_only_their_owner_can_read_a_runs_files(tmp_path: Path) -> None:
    evaluate(questions(tmp_path), tmp_path / "run")
    paths = [tmp_path / "run", *(tmp_path / "run").iterdir()]
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths)


def test_no_secret_is_in_any_file_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TEST", "sk-from-the-environment")
    data = questions(tmp_path, 2)
    remote = ["infer=openai", "infer.base_url=http://127.0.0.1:9/v1", "infer.model=m"]
    remote.append("vars.redis=redis://user:sk-in-a-url@127.0.0.1:9/0")
    for number, key in enumerate(("sk-on-the-command-line", "'${oc.env:SECRET_OF_THE_TEST}'")):
        evaluate(data, tmp_path / f"run{number}", *remote, f"infer.api_key={key}")
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (b"sk-on-the-command-line", b"sk-in-a-url", b"sk-from-the-environment"):
        assert secret not in content
    assert b"infer.api_key=***" in content
    assert b"${oc.env:SECRET_OF_THE_TEST}" in content


def test_an_example_that_fails_counts_as_wrong_and_stops_nothing(tmp_path: Path) -> None:
    done = evaluate(
        questions(tmp_path, 40, right=1), tmp_path / "run", "score=[exact_match]", "infer.failure_rate=0.5"
    )
    failed = [row for row in examples(tmp_path / "run") if row["outcome"] == "failed"]
    assert 0 < len(failed) < 40
    assert {row["status"] for row in failed} == {503}
    assert {row["score.exact_match"] for row in failed} == {0.0}
    assert done.metrics["error_rate"]["mean"] == len(failed) / 40
    assert done.metrics["exact_match"]["mean"] == pytest.approx(1 - len(failed) / 40)
    assert done.metrics["latency_s"]["n"] == 40 - len(failed)


def test_a_row_that_is_no_request_is_an_example_that_failed(tmp_path: Path) -> None:
    made = [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "nobody", "content": "a"}]},
    ]
    done = evaluate(rows(tmp_path / "a.jsonl", made), tmp_path / "run")
    assert done.metrics["error_rate"]["mean"] == 0.5
    assert examples(tmp_path / "run")[1]["status"] == 400


def test_streams_are_put_together_and_have_a_time_to_the_first_chunk(tmp_path: Path) -> None:
    data = questions(tmp_path, right=1)
    done = evaluate(data, tmp_path / "run", "score=[exact_match]", "eval.stream=true", "infer.latency=0.01")
    assert done.metrics["exact_match"]["mean"] == 1
    assert 0.01 <= done.metrics["ttft_s"]["mean"] <= done.metrics["latency_s"]["mean"]
    assert done.metrics["completion_tokens"]["mean"] == 2


def test_cost_and_cache_hits_are_measured(tmp_path: Path) -> None:
    data = rows(tmp_path / "a.jsonl", [{"prompt": "the same"}] * 10)
    price = ["price=genai", "+price.models.echo={prompt: 1000000}", "cache=exact"]
    done = evaluate(data, tmp_path / "run", *price, "eval.request={temperature: 0}", "eval.concurrency=1")
    assert done.metrics["cache_hit_rate"]["mean"] == 0.9
    assert done.metrics["cost_usd"]["mean"] == pytest.approx(0.2)


def test_a_run_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data, out = questions(tmp_path, 60), tmp_path / "run"
    slow = [f"data={data}", "score=[exact_match]", "infer.latency=0.1", "eval.concurrency=4"]
    with subprocess.Popen([PIPELINE, "eval", *slow, "-o", out, *ECHO], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        journal = out / "examples.jsonl"
        while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 8):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    kept = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"id": "q59", "outco')  # a line that the kill cut short
    assert read(out / "manifest.json")["state"] == "running"
    prepared = prepare([*slow, *ECHO])
    with Runner() as runner:
        done = runner.run(prepared, out)
    assert done.resumed == kept.count(b"\n")
    found = examples(out)
    assert len(found) == 60
    assert done.metrics["exact_match"]["mean"] == 0.5
    before = [line.split(b'"seconds":')[1].split(b",")[0] for line in kept.splitlines()]
    assert {float(one) for one in before} <= {row["seconds"] for row in found}


def test_a_complete_run_is_not_run_again(tmp_path: Path) -> None:
    data = questions(tmp_path)
    evaluate(data, tmp_path / "run")
    written = (tmp_path / "run" / "examples.parquet").stat().st_mtime_ns
    assert evaluate(data, tmp_path / "run").resumed == 20
    assert (tmp_path / "run" / "examples.parquet").stat().st_mtime_ns == written


def test_without_a_folder_given_each_complete_run_gets_its_own(tmp_path: Path) -> None:
    data = questions(tmp_path)
    for _ in range(2):
        assert command("eval", f"data={data}", f"eval.dir={tmp_path}/runs") == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_folder_of_another_run_is_not_written_to(tmp_path: Path, capfd: Capture) -> None:
    evaluate(questions(tmp_path), tmp_path / "run")
    assert command("eval", f"data={questions(tmp_path, 3)}", "-o", tmp_path / "run") == 2
    assert "has a run of another configuration or other data" in capfd.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    assert command("eval", f"data={questions(tmp_path)}", "-o", tmp_path / "other") == 2


def test_a_folder_in_which_a_run_was_stopped_before_its_first_example_is_free(tmp_path: Path) -> None:
    data, out = questions(tmp_path), tmp_path / "run"
    out.mkdir()
    (out / "examples.jsonl").touch()  # killed while models loaded
    assert command("eval", f"data={data}", "-o", out) == 0
    other = tmp_path / "other"
    no_stage = ["score=[judge]", "score.judge.stage=nobody"]
    assert command("eval", f"data={data}", "-o", other, *no_stage) == 2
    assert command("eval", f"data={data}", "-o", other, "score=[exact_match]") == 0


def test_a_run_begins_anew_in_its_folder_when_it_is_told_to(tmp_path: Path) -> None:
    data, out = questions(tmp_path, 4), tmp_path / "run"
    evaluate(data, out)
    for known, given in ((0, ["--fresh"]), (4, [])):
        (out / "manifest.json").write_text((out / "manifest.json").read_text().replace("complete", "running"))
        journal = Journal(out / "examples.jsonl")
        for number in range(4):
            journal.add(Outcome(f"q{number}", "completed", 200, answer="of before"))
        journal.close()
        assert command("eval", f"data={data}", "-o", out, *given) == 0
        assert sum(row["answer"] == "of before" for row in examples(out)) == known


def test_a_run_that_is_interrupted_says_where_it_goes_on(tmp_path: Path) -> None:
    data, out = questions(tmp_path, 60), tmp_path / "run"
    call = [PIPELINE, "eval", f"data={data}", "infer.latency=0.2", "eval.concurrency=2", "-o", out, *ECHO]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not ((out / "examples.jsonl").is_file() and (out / "examples.jsonl").stat().st_size):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"Stopped. The same command goes on in {out}." in said
    assert "Traceback" not in said


def test_a_scorer_that_finds_nothing_to_measure_is_named(tmp_path: Path, capfd: Capture) -> None:
    data = rows(tmp_path / "a.jsonl", [{"prompt": "hello", "expcted": "hello"}])
    assert command("eval", f"data={data}", "score=[exact_match]", "-o", tmp_path / "run") == 0
    assert "`exact_match` has no value for any example" in capfd.readouterr().out


def test_two_processes_do_not_write_to_one_run(tmp_path: Path) -> None:
    first = Journal(tmp_path / "examples.jsonl")
    with pytest.raises(Busy, match="another process"):
        Journal(tmp_path / "examples.jsonl")
    first.add(Outcome("a", passages=("p",)))
    first.close()
    again = Journal(tmp_path / "examples.jsonl")
    assert again.known == {"a": Outcome("a", passages=("p",))}
    again.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "There is no data set to run."),
        (["data=nothing.jsonl"], "nothing.jsonl: it can't be read: No such file or directory."),
        (["data=fil"], "Did you mean `file`?"),
        (["data={data}", "score=[exactmatch]"], "Did you mean `exact_match`?"),
        (["data={data}", "score=[f1]", "score.f1.feild=x"], "Did you mean `field`?"),
        (["data={data}", "eval.quality=f1"], "Nothing measures `f1`."),
        (["data={data}", "eval.concurrency=0"], "greater than or equal to 1, got 0"),
        (["data={data}", "infer=ecko"], "Did you mean `echo`?"),
        (["data={data}", "score=[judge]", "score.judge.stage=no"], "score.judge.stage"),
        (["data={data}", "score=[pairwise]", "score.pairwise.against=no"], "no complete run in `no`"),
        (["data={data}", "-o", "{data}"], "questions.jsonl is a file."),
        (["data={data}", "--baseline", "none"], "`--baseline` is for `--fail-if`"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(
    tmp_path: Path, capfd: Capture, arguments: list[str], told: str
) -> None:
    data = questions(tmp_path, 2)
    given = [argument.replace("{data}", str(data)) for argument in arguments]
    assert command("eval", f"eval.dir={tmp_path}/runs", *(one for one in given)) == 2
    error = capfd.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_two_scorers_of_a_kind_have_names_of_their_own(tmp_path: Path) -> None:
    data = questions(tmp_path, right=1)
    two = ["score=[exact_match]", "+score@score.strict=exact_match", "score.strict.normalise=false"]
    done = evaluate(data, tmp_path / "run", *two)
    assert {"exact_match", "strict"} <= set(done.metrics)


def test_piped_output_has_no_control_characters(tmp_path: Path) -> None:
    call = [PIPELINE, "eval", f"data={questions(tmp_path)}", "-o", tmp_path / "run", *ECHO]
    done = subprocess.run(
        call, capture_output=True, check=True, timeout=60, env={**os.environ, "TERM": "xterm"}
    )
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"error_rate" in done.stdout


def test_a_complete_run_that_is_damaged_is_told(tmp_path: Path, capfd: Capture) -> None:
    call = ["eval", f"data={questions(tmp_path, 3)}", "-o", tmp_path / "run"]
    assert command(*call) == 0
    (tmp_path / "run" / "metrics.json").unlink()
    assert command(*call) == 2
    assert "is damaged: metrics.json: No such file or directory." in capfd.readouterr().err


@pytest.mark.parametrize(
    "name", ["back\\slash", "end\\", "it's", "it\\'s", "${home}", "\\${home}", "a=b,{c}"]
)
def test_a_file_of_any_name_is_read(tmp_path: Path, name: str) -> None:
    data = rows(tmp_path / f"{name}.jsonl", [{"prompt": "hello"}])
    evaluate(data, tmp_path / "run")
    assert read(tmp_path / "run" / "manifest.json")["data"]["name"] == name


def test_whoever_waited_for_a_run_that_ended_meanwhile_does_not_begin_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    with closing(Journal(path)) as journal:
        waiting = os.open(path, os.O_RDWR)
        journal.remove()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda *_: waiting)
        with pytest.raises(Busy, match="has just ended"):
            Journal(path)


def test_a_full_disk_is_told_with_the_file_that_it_had_no_room_for(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("before")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    journal = Journal(tmp_path / "examples.jsonl")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.raises(OSError, match=r"kept\.json"):
            write_json(kept, ["x" * 2000])
        with pytest.raises(OSError, match=r"examples\.jsonl"):
            journal.add(Outcome("a", answer="x" * 2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
        journal.close()
    assert kept.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples.jsonl", "kept.json"]


def test_an_example_that_failed_counts_nowhere_where_nothing_is_expected_of_it(tmp_path: Path) -> None:
    made: list[dict[str, object]] = [{"prompt": "a", "request": {"model": "none"}}, {"prompt": "b"}]
    made += [{**row, "expected": "b", "relevant": "b", "pattern": "b"} for row in made]
    data, scorers = rows(tmp_path / "q.jsonl", made), ("exact_match", "retrieval", "regex")
    evaluate(data, tmp_path / "run", f"score=[{','.join(scorers)}]", "score.retrieval.measures=[RR]")
    for name in ("exact_match", "retrieval.RR", "regex"):
        found = [row[f"score.{name}"] for row in examples(tmp_path / "run")]
        assert found[:3] == [None, None, 0.0]
        assert found[3] is not None


def test_why_examples_failed_is_told(tmp_path: Path, capfd: Capture) -> None:
    made = [{"id": n, "prompt": "a", "request": {"model": "none"} if n else {}} for n in range(3)]
    data = rows(tmp_path / "q.jsonl", made)
    assert command("eval", f"data={data}", "-o", tmp_path / "run") == 0
    told = capfd.readouterr().out
    assert "2 of 3 examples failed: model_not_found 2. examples.parquet says why." in told
    assert "The first, `1`: The model `none` does not exist." in told


@pytest.mark.parametrize("content", ["[1]", "{", "null"])
def test_known_digests_that_are_damaged_are_made_anew(tmp_path: Path, content: str) -> None:
    known = tmp_path / "digests.json"
    known.write_text(content)
    assert Digests(known).of(questions(tmp_path, 1)) == Digests(known).of(questions(tmp_path, 1))
    assert list(read(known)) == [str(tmp_path / "questions.jsonl")]
