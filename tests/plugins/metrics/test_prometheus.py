"""`/metrics`: what it says, in which form, and to whom."""

import re
import urllib.error
import urllib.request

import pytest
from pipeline_plugins.metrics.prometheus import merge, render

from benchmarks.processes import pipeline_server, post
from pipeline import Metric
from pipeline.graph import Graph
from pipeline.plan import plan_graph
from tests.stages import registry

CALLS = Metric("calls", 'Say "how many".\nNow.', "counter", {("a\\b", 'c"d\n'): 3}, ("x", "y"))
UP = Metric("up", "Up.", "gauge", {(): 0.5})


def test_the_text_format_is_escaped_and_ends_counters_in_total() -> None:
    assert render([CALLS, UP]) == (
        '# HELP calls_total Say "how many".\\nNow.\n# TYPE calls_total counter\n'
        'calls_total{x="a\\\\b",y="c\\"d\\n"} 3\n# HELP up Up.\n# TYPE up gauge\nup 0.5\n'
    )


def test_openmetrics_names_the_counter_without_total_and_has_an_end() -> None:
    text = render([CALLS], openmetrics=True)
    assert "# TYPE calls counter\n" in text
    assert "\ncalls_total{" in text
    assert text.endswith("# EOF\n")


def test_metrics_of_one_name_are_one() -> None:
    one = Metric("m", "M.", "gauge", {("a",): 1}, ("stage",))
    two = Metric("m", "M.", "gauge", {("b",): 2}, ("stage",))
    (merged,) = merge([one, two])
    assert merged.samples == {("a",): 1, ("b",): 2}


@pytest.mark.parametrize("public", [True, False])
def test_the_page_is_public_only_where_the_configuration_says_so(public: bool) -> None:
    config = {
        "graph": {"entry": "a", "stages": {"a": {}}},
        "a": {"plugin": "infer.answer"},
        "m": {"plugin": "metrics.prometheus", "public": public},
        "extensions": {"metrics": "m"},
    }
    graph = Graph.build(plan_graph(config, registry()))
    ((route,),) = graph.plugins.hook.pipeline_routes(graph=graph)
    assert (route.path, route.public) == ("/metrics", public)


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
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            text = answer.read().decode()
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'pipeline_limit_calls_total{stage="limit",result="admitted"} 2\n' in text
        assert 'pipeline_limit_calls_total{stage="limit",result="refused"} 1\n' in text
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{server.url}/metrics", headers=accept)
        ) as answer:
            assert re.search(r"# EOF\n$", answer.read().decode())
