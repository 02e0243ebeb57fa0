"""The dashboard for Grafana and the alerts for Prometheus: what they name is there, and alerts do alert."""

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.processes import Process, pipeline_server
from pipeline.config import compose, config_root

ALERTS = config_root() / "prometheus" / "alerts.yml"
DASHBOARD = config_root() / "grafana" / "pipeline.json"

NAME = re.compile(r"\b(?:pipeline|gen_ai|process)_[a-z_]+")
RULE = re.compile(r"\bpipeline:[a-z:_0-9]+")
MATCHED = re.compile(r"(\w+)\{([^}]*)\}")
GROUPED = re.compile(r"\bby \(([^)]*)\)")


def alerts() -> list[dict[str, str]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> dict[str, str]:
    """Every expression, by whose it is."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    return found | {rule.get("alert", rule.get("record", "")): rule["expr"] for rule in alerts()}


@pytest.fixture(scope="module")
def exposed(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every metric of a server that does all there is to show, with the labels of its samples."""
    state = tmp_path_factory.mktemp("state")
    overrides = ["graph=pair", "route=weighted", "route.weights={small: 1, large: 1}", "infer@small=echo"]
    overrides += ["infer@large=openai", "large.base_url=http://127.0.0.1:9/v1", "large.model=m"]
    overrides += [
        "infer@embed=none",
        "resilience=standard",
        "resilience.retry.backoff=0.001",
        "validate=regex",
        "validate.forbid=[nothing]",
    ]
    overrides += ["limit@budget=budget", "budget.usd_per_day=1000", "limit@concurrency=concurrency"]
    overrides += ["cache=semantic", "cache.threads=1", "limit.store=redis", f"limit.redis={redis_url}"]
    overrides += ["price.models={echo: {prompt: 1, completion: 1}}"]
    overrides += ["ledger=sqlite", "trace=otlp", "trace.endpoint=http://127.0.0.1:9", f"vars.state={state}"]
    with pipeline_server(*overrides) as server:
        drive(server)
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            return dict(samples(answer.read().decode()))


def drive(server: Process) -> None:
    """Calls that go well, streams, calls that fail, and requests that never become calls."""
    for number in range(12):
        user = {"role": "user", "content": f"What is the number {number} good for?"}
        body = {"messages": [user], "stream": number % 2 == 0, "temperature": 0}
        for sent in (body, {"messages": 1} if number == 0 else body):
            data = json.dumps(sent).encode()
            fields = {"content-type": "application/json"}
            request = urllib.request.Request(f"{server.url}/v1/chat/completions", data, fields)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    answer.read()
            except urllib.error.HTTPError as error:
                error.close()


def samples(text: str) -> Iterator[tuple[str, set[str]]]:
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition(" ")[0].partition("{")
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', rest))
    return iter(found.items())


@pytest.mark.parametrize("whose", queries())
def test_every_metric_and_label_that_is_named_is_exposed(whose: str, exposed: dict[str, set[str]]) -> None:
    query = queries()[whose]
    named = set(NAME.findall(GROUPED.sub("", MATCHED.sub(r"\1", query))))
    assert named | set(RULE.findall(query))
    assert named <= set(exposed)
    for name, matchers in MATCHED.findall(query):
        assert set(re.findall(r"(\w+)=?[=!~]", matchers)) <= exposed[name] | {"error_type"}
    labels = {label.strip() for group in GROUPED.findall(query) for label in group.split(",")}
    assert labels <= {"le", "error_type"}.union(*(exposed[name] for name in named))


def test_rules_that_alerts_name_are_recorded() -> None:
    recorded = {rule["record"] for rule in alerts() if "record" in rule}
    named = {name for rule in alerts() if "alert" in rule for name in RULE.findall(rule["expr"])}
    assert named == recorded


def test_the_dashboards_panels_have_their_own_numbers_and_places() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize(("what", "file"), [("check", "alerts.yml"), ("test", "alerts_test.yml")])
def test_promtool_accepts_the_rules_and_their_tests_pass(what: str, file: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs `promtool` (Debian's package `prometheus`) on the PATH")
    command = [promtool, what, "rules", file]
    done = subprocess.run(command, cwd=Path(ALERTS).parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_of_other_programs_are_no_options() -> None:
    groups = compose(["infer=echo"]).groups
    assert not [option for name in ("grafana", "prometheus") for option in groups.get(name, ())]
