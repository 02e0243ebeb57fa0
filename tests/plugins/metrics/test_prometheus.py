"""`/metrics`: what it says, in which form, and to whom."""

import asyncio
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from pipeline_plugins.metrics import prometheus
from pipeline_plugins.metrics.exposition import render
from pipeline_plugins.metrics.family import Family, Sampled

from benchmarks.processes import pipeline_server, post
from pipeline import Metric
from pipeline.config import compose
from pipeline.graph import Graph
from pipeline.plan import plan_graph
from tests.stages import registry

CALLS = Sampled(Family("calls", 'Say "how many".\nNow.', "counter", ("x", "y")), {("a\\b", 'c"d\n'): [3]})
UP = Sampled(Family("up", "Up.", "gauge"), {(): [0.5]})
TOOK = Sampled(Family("took", "Took.", "histogram", ("x",), (0.1, 2.0)), {("a",): [2.5, 1, 0, 2]})


def page(*sampled: Sampled, openmetrics: bool = False) -> str:
    return render({one.family.name: one for one in sampled}, openmetrics=openmetrics)


def test_the_text_format_is_escaped_and_ends_counters_in_total() -> None:
    assert page(UP, CALLS) == (
        '# HELP calls_total Say "how many".\\nNow.\n# TYPE calls_total counter\n'
        'calls_total{x="a\\\\b",y="c\\"d\\n"} 3\n# HELP up Up.\n# TYPE up gauge\nup 0.5\n'
    )


def test_buckets_hold_all_that_is_not_above_them() -> None:
    assert page(TOOK).splitlines()[2:] == [
        'took_bucket{x="a",le="0.1"} 1',
        'took_bucket{x="a",le="2.0"} 1',
        'took_bucket{x="a",le="+Inf"} 3',
        'took_sum{x="a"} 2.5',
        'took_count{x="a"} 3',
    ]


def test_an_empty_label_is_left_out() -> None:
    assert "\nm_total 1\n" in page(Sampled(Family("m", "M.", "counter", ("error",)), {("",): [1]}))


def test_openmetrics_names_the_counter_without_total_and_has_an_end() -> None:
    text = page(CALLS, openmetrics=True)
    assert "# TYPE calls counter\n" in text
    assert "\ncalls_total{" in text
    assert text.endswith("# EOF\n")


@pytest.mark.parametrize("public", [True, False])
def test_the_page_is_an_administrators_unless_the_configuration_says_otherwise(public: bool) -> None:
    config = {
        "graph": {"entry": "a", "stages": {"a": {}}},
        "a": {"plugin": "infer.answer"},
        "m": {"plugin": "metrics.prometheus", "public": public},
        "extensions": {"metrics": "m"},
    }
    graph = Graph.build(plan_graph(config, registry()))
    ((route,),) = graph.plugins.hook.pipeline_routes(graph=graph)
    assert (route.path, route.public, route.admin) == ("/metrics", public, not public)


def test_the_server_answers_with_what_its_stages_count() -> None:
    overrides = ["infer=echo", "infer@embed=none", "limit=token_bucket", "limit.requests_per_minute=2"]
    with pipeline_server(*overrides) as server:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        for _ in range(2):
            post(f"{server.url}/v1/chat/completions", body)
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(f"{server.url}/v1/chat/completions", body)
        refusal = caught.value
        assert refusal.code == 429
        assert refusal.headers["x-ratelimit-remaining-requests"] == "0"
        assert 0 < int(refusal.headers["retry-after"]) <= 30
        refusal.close()
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(f"{server.url}/v1/chat/completions", {"messages": 1})
        caught.value.close()
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            text = answer.read().decode()
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'pipeline_limit_calls_total{stage="limit",result="admitted"} 2\n' in text
        assert 'pipeline_limit_calls_total{stage="limit",result="refused"} 1\n' in text
        assert 'gen_ai_request_model="default",error_type="rate_limit_exceeded"} 1\n' in text
        refused = 'pipeline_requests_refused_total{gen_ai_operation_name="chat",error_type='
        assert refused in text
        assert re.search(r"process_resident_memory_bytes \d{7}", text)
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{server.url}/metrics", headers=accept)
        ) as answer:
            assert re.search(r"# EOF\n$", answer.read().decode())
        with urllib.request.urlopen(f"{server.url}/openapi.json") as answer:
            assert "get" in json.load(answer)["paths"]["/metrics"]


def test_a_worker_goes_on_to_write_down_what_stages_count_after_one_failed_to_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "EVERY", 0.01)
    asked = 0

    def ask() -> list[list[Metric]]:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise OSError(24, "Too many open files")
        return [[Metric("count", "Count.", "counter", {(): 7})]]

    async def go() -> list[Sampled]:
        plan, _ = compose(["infer=echo", "infer@embed=none", "price=none"]).plan()
        graph = Graph.build(plan, shared=tmp_path)
        await graph.open()
        own = graph.plugins.get_plugin("metrics")
        assert isinstance(own, prometheus.Prometheus)
        monkeypatch.setattr(own, "_ask", ask)
        found: list[Sampled] = []
        while not found:
            await asyncio.sleep(0.01)
            found = [one for one in own.collected.cells.read() if one.family.name == "count"]
        await graph.close()
        return found

    assert [one.samples for one in asyncio.run(go())] == [{(): [7]}]
