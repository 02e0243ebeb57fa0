"""Routers between two targets, as `pipeline serve` runs them from the shipped graphs."""

import concurrent.futures
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import PIPELINE, Process, pipeline_server

PLAIN = ["limit=none", "cache=none", "price=none", "infer@embed=none"]
"""No cache that answers before the router, and nothing that other tests share."""

PAIR = [
    "graph=pair",
    *PLAIN,
    "infer@small=echo",
    "small.name=small",
    "infer@large=echo",
    "large.name=large",
]
VISION = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]


def ask(server: Process, path: str = "chat/completions", **body: Any) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON (or the stream's text) of one request; a `session` becomes its header."""
    headers = {"content-type": "application/json"}
    if session := body.pop("session", None):
        headers["x-session-id"] = session
    body = {"model": "auto", **body}
    if path == "chat/completions":
        body.setdefault("messages", [{"role": "user", "content": "one two three"}])
    request = urllib.request.Request(f"{server.url}/v1/{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            content, status, given = answer.read(), answer.status, answer.headers
    except urllib.error.HTTPError as error:
        with error:
            content, status, given = error.read(), error.code, error.headers
    streamed = "event-stream" in given["content-type"]
    return status, dict(given), content.decode() if streamed else json.loads(content)


def routes(server: Process, count: int, **body: Any) -> Counter[str]:
    """Where so many requests go, eight at a time."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: ask(server, **body)[1]["x-pipeline-route"], range(count))
        return Counter(answers)


@pytest.fixture(scope="module")
def weighted() -> Iterator[Process]:
    embed = ["infer@embed=echo", "embed.name=embed"]
    options = [*embed, "route.weights={small:3,large:1,embed:0}", "route.aliases={gpt-4o:large,fast:small}"]
    with pipeline_server(*PAIR, "route=weighted", *options) as server:
        yield server


def test_weights_share_out_the_calls(weighted: Process) -> None:
    found = routes(weighted, 200)
    assert set(found) == {"small", "large"}
    assert 115 < found["small"] < 185


def test_names_and_aliases_lead_to_their_target(weighted: Process) -> None:
    for name, target in {"gpt-4o": "large", "fast": "small", "small": "small", "large": "large"}.items():
        for stream in (False, True):
            status, headers, _ = ask(weighted, model=name, stream=stream)
            assert (status, headers["x-pipeline-route"]) == (200, target)


def test_aliases_are_listed(weighted: Process) -> None:
    with urllib.request.urlopen(f"{weighted.url}/v1/models", timeout=10) as answer:
        models = {model["id"]: model["aliases"] for model in json.load(answer)["data"]}
    assert models == {"small": ["fast"], "large": ["gpt-4o"], "embed": []}
    with urllib.request.urlopen(f"{weighted.url}/v1/models/gpt-4o", timeout=10) as answer:
        assert json.load(answer)["id"] == "large"


def test_embeddings_stay_with_one_model(weighted: Process) -> None:
    assert len(routes(weighted, 20, path="embeddings", input="hi")) == 1


def test_an_unknown_model_is_not_found(weighted: Process) -> None:
    status, _, body = ask(weighted, model="nope")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "fast" in body["error"]["message"]


def test_turns_are_fair_under_concurrency() -> None:
    with pipeline_server(*PAIR, "route=round_robin") as server:
        assert routes(server, 100) == {"small": 50, "large": 50}


def test_a_slow_target_is_left_alone_but_seen() -> None:
    slow = ["large.latency=0.1", "route.explore=0.2"]
    with pipeline_server(*PAIR, "route=latency", *slow) as server:
        found = routes(server, 120)
        assert found["small"] > found["large"] > 0


def test_calls_pile_up_nowhere() -> None:
    both = ["large.latency=0.05", "small.latency=0.05"]
    with pipeline_server(*PAIR, "route=least_busy", *both) as server:
        found = routes(server, 80, stream=True)
        assert 30 <= found["small"] <= 50


def test_a_session_stays_and_an_experiment_is_told() -> None:
    with pipeline_server(*PAIR, "route=ab", "route.experiment=size") as server:
        seen = set()
        for number in range(12):
            answers = [ask(server, session=f"s{number}")[1] for _ in range(3)]
            (target,) = {headers["x-pipeline-route"] for headers in answers}
            assert {headers["x-pipeline-experiment"] for headers in answers} == {f"size={target}"}
            seen.add(target)
        assert seen == {"small", "large"}
        assert "x-pipeline-experiment" not in ask(server, model="small")[1]


def alert_of(server: Process) -> str:
    """What the dashboard says of the experiment that somebody should act on."""
    with urllib.request.urlopen(f"{server.url}/dashboard/api/panels", timeout=10) as answer:
        (panel,) = json.loads(answer.read())
    return str(panel["alert"])


def test_a_variant_that_fails_is_stopped_and_the_status_says_why(tmp_path: Path) -> None:
    guards = "route.guards=[{metric: failed, worse_by: 0.05}]"
    experiment = ["route=ab", "route.experiment=size", guards]
    kept = ["ledger=sqlite", "ledger.flush=0.05", f"vars.state={tmp_path}"]
    with pipeline_server(*PAIR, *experiment, "route.stop=true", "large.failure_rate=0.8", *kept) as server:

        def routed(number: int) -> str:
            content = [{"role": "user", "content": f"question {number}"}]
            return ask(server, session=f"s{number}", messages=content)[1].get("x-pipeline-experiment", "")

        found = [routed(number) for number in range(300)]
        assert {"size=small", "size=large"} <= set(found)
        assert set(found[-50:]) == {""}
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
            assert 'pipeline_experiment_stopped{experiment="size"} 1' in answer.read().decode()
        until = time.monotonic() + 30
        while "Stop: failed of large" not in (alert := alert_of(server)):
            assert time.monotonic() < until, alert
            time.sleep(0.1)
        assert "This process has stopped the experiment: all calls go to the control." in alert
    command = [PIPELINE, "ab", "status", "--json", *PAIR, *experiment, *kept]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    (told,) = json.loads(done.stdout)
    assert (told["control"], told["guards_broken"]) == ("small", ["failed of large"])
    assert sum(one["calls"] for one in told["variants"]) == sum(bool(one) for one in found)


def test_the_cheapest_is_taken_and_what_it_saved_is_in_the_accounts(tmp_path: Path) -> None:
    rates = "{small:{prompt:1,completion:1},large:{prompt:1000,completion:1000}}"
    options = [f"route.prices={rates}", f"vars.state={tmp_path}", "price=genai"]
    with pipeline_server(*PAIR, "route=cheapest", *options) as server:
        for stream in (False, True):
            assert ask(server, stream=stream)[1]["x-pipeline-route"] == "small"
    done = subprocess.run(
        [PIPELINE, "cost", "--json", f"vars.state={tmp_path}"], capture_output=True, check=True, timeout=60
    )
    # Three words read and three written, twice: 12 tokens at 999 USD per million less.
    assert json.loads(done.stdout)["total"]["saved_route_usd"] == pytest.approx(12 * 999 / 1e6)


def test_a_wrong_estimator_is_told_at_its_key_in_the_whole_configuration(tmp_path: Path) -> None:
    command = [PIPELINE, "serve", "server.port=0", *PAIR, "route=capable", f"route.model={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "\n  route.model\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hanging_shadow_delays_nothing() -> None:
    overrides = [
        *PLAIN,
        "graph=shadow",
        "infer=echo",
        "infer@candidate=echo",
        "candidate.latency=600",
        "candidate.name=candidate",
        "mirror.share=1",
        "mirror.drain=0",
    ]
    with pipeline_server(*overrides) as server:
        for stream in (False, True):
            status, headers, body = ask(server, stream=stream)
            assert (status, headers["x-pipeline-route"]) == (200, "infer")
            assert "three" in str(body)
        with urllib.request.urlopen(f"{server.url}/v1/models", timeout=10) as answer:
            assert [model["id"] for model in json.load(answer)["data"]] == ["echo"]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Process]:
    with pipeline_server(*PLAIN, "infer=echo", "infer.aliases=[a,b]") as server:
        yield server


def test_what_a_target_can_do_and_hold_decides_where_a_call_goes(upstream: Process) -> None:
    url = f"{upstream.url}/v1"
    able = {
        "small": ["small.model=a", "small.capabilities=[streaming,tools]", "small.context_window=300"],
        "large": ["large.model=b", "large.capabilities=[streaming,json_schema]", "large.context_window=3000"],
    }
    options = [f"{name}.base_url={url}" for name in able] + [one for some in able.values() for one in some]
    with pipeline_server(
        *PLAIN,
        "graph=pair",
        "route=round_robin",
        "infer@small=openai",
        "infer@large=openai",
        *options,
    ) as server:
        asked = {"response_format": {"type": "json_object"}}
        assert set(routes(server, 6, **asked)) == {"large"}
        long = [{"role": "user", "content": "word " * 1000}]
        assert set(routes(server, 6, messages=long)) == {"large"}
        assert set(routes(server, 6)) == {"small", "large"}
        status, _, body = ask(server, messages=VISION)
        assert (status, body["error"]["code"]) == (400, "unsupported_capability")
        status, _, body = ask(server, messages=[{"role": "user", "content": "word " * 9000}])
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(("least", "target"), [(0.01, "small"), (1, "large")])
def test_a_real_models_confidence_decides_who_answers(least: float, target: str) -> None:
    with pipeline_server(
        *PLAIN,
        "graph=cascade",
        f"cascade.min_confidence={least}",
        "infer@large=echo",
        "large.name=large",
        "small.slots=2",
        "small.context=512",
    ) as server:
        for stream in (False, True):
            asked = [{"role": "user", "content": "What is 2+2?"}]
            status, headers, body = ask(server, messages=asked, max_tokens=8, temperature=0, stream=stream)
            assert (status, headers["x-pipeline-route"]) == (200, target)
            assert '"logprobs": {' not in str(body)
            assert '"logprobs":{' not in str(body)


def test_a_target_that_is_down_is_escalated_from() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pipeline_server(
        *PLAIN,
        "graph=cascade",
        "infer@small=openai",
        f"small.base_url=http://127.0.0.1:{port}/v1",
        "small.model=m",
        "infer@large=echo",
    ) as server:
        assert ask(server, model="auto")[1]["x-pipeline-route"] == "large"
