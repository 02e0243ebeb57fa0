"""What the verbs print and how they exit, run in this process."""

import io
import json
from importlib.metadata import EntryPoint
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.cli import app
from pipeline.cli.app import VERBS, run
from pipeline.errors import APIError, NotFound, Overloaded, RateLimited
from pipeline.plugins import Registry

ECHO = ("infer=echo", "infer@embed=echo", "embed.name=e")
Capture = pytest.CaptureFixture[str]


def test_help_lists_every_verb(capfd: Capture) -> None:
    assert run(["--help"]) == 0
    out = capfd.readouterr().out
    assert all(f"  {verb} " in out and about in out for verb, (_, about) in VERBS.items())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_examples(verb: str, capfd: Capture) -> None:
    assert run([verb, "--help"]) == 0
    assert f"pipeline {verb}" in capfd.readouterr().out.partition("Examples:")[2]


def test_an_unknown_verb_is_refused_with_the_nearest(capfd: Capture) -> None:
    assert run(["chek"]) == 2
    assert "Did you mean `check`?" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["check", "--nope"], ["ask"], ["graph", "--format", "png"]])
def test_a_wrong_command_line_is_told_with_its_usage(arguments: list[str], capfd: Capture) -> None:
    assert run(arguments) == 2
    assert "Usage: pipeline" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotFound("There is none."), 2), (RateLimited("Later."), 1), (Overloaded("Full."), 1)],
)
def test_what_another_refuses_for_now_is_no_mistake_of_the_user(
    error: APIError, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(app.cli, "main", fail)
    assert run(["check"]) == status


def test_an_interrupt_has_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.config.Registry", interrupted)
    assert run(["check", *ECHO]) == 130


def test_check_names_the_stages(capfd: Capture) -> None:
    assert run(["check", *ECHO]) == 0
    out = capfd.readouterr().out
    assert out.startswith("ok: monitor, limit, cache, route, ")
    assert "left out (none): " in out


def test_check_tells_every_problem_in_words(capfd: Capture) -> None:
    assert run(["check", *ECHO, "infer.nam=x", "server.port=99999", "infre=1"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "The configuration has 3 problems." in err
    assert "server.port  (override server.port)" in err
    assert "Did you mean `name`?" in err
    assert "Traceback" not in err


def test_a_syntax_error_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("a: 1\nb: [\n")
    assert run(["check", "-c", "mine.yaml"]) == 2
    err = capfd.readouterr().err
    assert "(mine.yaml:3)" in err
    assert "Not valid YAML" in err


MINE = """
defaults:
  - pipeline
  - override infer: echo
  - override infer@embed: echo
  - _self_
embed: {name: e}
"""


def test_a_file_as_config_needs_no_overrides_and_takes_them(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    check = ["check", "-c", str(tmp_path / "mine.yaml")]
    assert run(check) == 0
    assert "embed" in capfd.readouterr().out
    assert run([*check, "graph.stages.route.next.embed=null", "~graph.stages.embed"]) == 0
    assert "embed" not in capfd.readouterr().out


def test_graph_draws_as_text(capfd: Capture) -> None:
    assert run(["graph", *ECHO]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "monitor  [monitor.log]",
        "└─ next -> limit  [limit.token_bucket]",
        "   └─ next -> cache  [cache.exact]",
        "      └─ next -> route  [route.direct]",
        "         ├─ next.infer -> infer  [infer.echo]",
        "         └─ next.embed -> embed  [infer.echo]",
        "left out (none): validate, rag, concurrency, budget",
    ]


def test_graph_draws_as_mermaid(capfd: Capture) -> None:
    assert run(["graph", "--format", "mermaid", *ECHO]) == 0
    first, *lines = capfd.readouterr().out.splitlines()
    assert first == "flowchart LR"
    assert '  s_infer["infer<br/><small>infer.echo</small>"]' in lines
    assert "  s_route -->|infer| s_infer" in lines
    assert "  s_cache --> s_route" in lines


def test_graph_draws_as_svg_of_boxes_and_edges(capfd: Capture) -> None:
    assert run(["graph", "--format", "svg", *ECHO]) == 0
    svg = ElementTree.fromstring(capfd.readouterr().out)
    boxes = svg.findall("{*}rect")
    assert len(boxes) == 6
    assert len(svg.findall("{*}path[@marker-end]")) == 5
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for box in boxes:
        assert float(box.attrib["x"]) + float(box.attrib["width"]) <= width
        assert float(box.attrib["y"]) + float(box.attrib["height"]) <= height


def test_config_prints_values_with_their_origin(capfd: Capture) -> None:
    assert run(["config", "--key", "server", "server.port=81", *ECHO]) == 0
    lines = [" ".join(line.split()) for line in capfd.readouterr().out.splitlines()]
    assert "port: 81 # override server.port" in lines
    assert "backlog: 2048 # default of server" in lines


def test_what_config_prints_can_be_used_as_config(tmp_path: Path, capfd: Capture) -> None:
    assert run(["config", "--no-origin", *ECHO, "infer.dimensions=7"]) == 0
    text = capfd.readouterr().out
    (tmp_path / "all.yaml").write_text(text)
    assert run(["config", "--no-origin", "-c", str(tmp_path / "all.yaml")]) == 0
    assert capfd.readouterr().out == text


def test_config_refuses_an_unknown_key_with_the_nearest(capfd: Capture) -> None:
    assert run(["config", "--key", "infer.nme", *ECHO]) == 2
    assert "Did you mean `name`?" in capfd.readouterr().err


def test_plugins_lists_broken_ones_with_their_error(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    entries = {"infer.good": "tests.stages:Answer", "infer.bad": "no_such_module:X", "audit.x": "json:loads"}
    found = [EntryPoint(name, value, "pipeline") for name, value in entries.items()]
    monkeypatch.setattr("pipeline.plugins.entry_points", lambda group: found)
    assert run(["plugins", "--json"]) == 0
    listed = {f"{one['kind']}.{one['name']}": one for one in json.loads(capfd.readouterr().out)}
    assert "ModuleNotFoundError: No module named 'no_such_module'" in listed["infer.bad"]["error"]
    assert "is not a class" in listed["audit.x"]["error"]
    assert listed["infer.good"]["config"]["properties"]["times"]["maximum"] == 5
    assert run(["plugins"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "infer.good" in out
    assert "No module named 'no_such_module'" in out
    assert "audit: a kind of a plugin's own" in out


def test_plugins_shows_the_fields_of_one(capfd: Capture) -> None:
    assert run(["plugins", "infer.echo"]) == 0
    out = capfd.readouterr().out
    assert "429 or 502 or 503" in out
    assert "Model name to answer to." in out


def test_plugins_refuses_an_unknown_kind_with_the_nearest(capfd: Capture) -> None:
    assert run(["plugins", "infre"]) == 2
    assert "Did you mean `infer`?" in capfd.readouterr().err


def test_ask_prints_the_answer(capfd: Capture) -> None:
    assert run(["ask", "hello big world", *ECHO]) == 0
    assert capfd.readouterr().out == "hello big world\n"


def test_ask_reads_the_question_from_standard_input(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a file"))
    assert run(["ask", "-", *ECHO]) == 0
    assert capfd.readouterr().out == "from a file\n"


@pytest.mark.parametrize(
    ("stdin", "words"), [(None, "no standard input"), (io.StringIO("\udcff"), "not UTF-8")]
)
def test_ask_refuses_a_question_that_can_not_be_read(
    stdin: io.StringIO | None, words: str, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setattr("sys.stdin", stdin)
    assert run(["ask", "-", *ECHO]) == 2
    err = capfd.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_ask_takes_utf_8_whatever_the_locale_made_of_it(capfd: Capture) -> None:
    assert run(["ask", "grüße €".encode().decode("ascii", "surrogateescape"), *ECHO]) == 0
    assert capfd.readouterr().out == "grüße €\n"


def test_ask_prints_the_whole_response_as_json(capfd: Capture) -> None:
    assert run(["ask", "one two three", "--json", "--max-tokens", "2", *ECHO]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["choices"][0]["message"]["content"] == "one two"
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--model", "gpt-9"], 2, "The model `gpt-9` does not exist. Available: echo"),
        (["infer.failure_rate=1"], 1, "failure_rate"),
        (["infer.nam=x"], 2, "Did you mean `name`?"),
    ],
)
def test_ask_tells_what_failed_and_whose_mistake_it_is(
    arguments: list[str], status: int, words: str, capfd: Capture
) -> None:
    assert run(["ask", "hi", *ECHO, *arguments]) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_a_bug_is_not_taken_for_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Registry, "find", broken)
    with pytest.raises(ZeroDivisionError):
        run(["check", *ECHO])


def test_a_verb_that_can_not_be_imported_is_listed_by_its_package(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    entry = EntryPoint("verb.broken", "no_such_module:command", "pipeline")
    monkeypatch.setattr(app, "entry_points", lambda group: [entry])
    assert run(["--help"]) == 0
    assert "broken From a package." in " ".join(capfd.readouterr().out.split())


def test_verbs_of_packages_are_listed_and_run(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    entry = EntryPoint("verb.chek-mate", "pipeline.cli.check:command", "pipeline")
    monkeypatch.setattr(app, "entry_points", lambda group: [entry])
    assert run(["--help"]) == 0
    assert "chek-mate Compose the configuration and check all of it" in " ".join(
        capfd.readouterr().out.split()
    )
    assert run(["chek-mate", *ECHO]) == 0


def test_check_finds_what_a_stage_refuses_when_it_is_built(capfd: Capture) -> None:
    given = ["graph=pair", "infer@small=echo", "infer@large=echo", "large.name=l", "infer@embed=echo"]
    assert run(["check", *given, "embed.name=e", "route=weighted", "route.weights={smal: 1}"]) == 2
    assert "route.weights.smal" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module:command", "`verb.acme` of a package fails to import: ModuleNotFoundError"),
        ("json:dumps", "`verb.acme` of a package is no click command but function."),
    ],
)
def test_a_verb_of_a_package_that_is_none_says_whose_it_is(
    value: str, said: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = [EntryPoint("verb.acme", value, "pipeline"), EntryPoint("verb.serve", value, "pipeline")]
    monkeypatch.setattr("pipeline.cli.app.entry_points", lambda group: added)
    assert run(["acme"]) == 1
    assert said in capfd.readouterr().err
    assert run(["--help"]) == 0
    assert capfd.readouterr().out.count("\n  serve ") == 1
