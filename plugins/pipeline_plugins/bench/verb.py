"""`pipeline bench`: load on a gateway, and its latencies, throughput and cost."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import Number
from pipeline.cli.options import overrides as with_overrides

if TYPE_CHECKING:
    from pipeline_plugins.bench.processes import Spec
    from pipeline_plugins.bench.result import Result

REQUESTS = 200
"""How many are sent where nothing else bounds the load."""

EPILOG = """\b
Examples:
  pipeline bench infer=echo --rate 200 --requests 2000
  pipeline bench --rate 2 --seconds 60 --prompt-tokens 200 --output-tokens 100
  pipeline bench --trace azure-2023-conv.csv.gz --speed 0.5 --seconds 300
  pipeline bench --url http://127.0.0.1:8001/v1 --model qwen3-8b --rate 20 --processes 2
  pipeline bench --in-process infer=echo cache=none --arrivals constant --json

The load is an open loop: requests are sent when they are due, and times count from then. A trace is
CSV, plain or .gz, with the columns TIMESTAMP, ContextTokens and GeneratedTokens."""


@click.command("bench", epilog=EPILOG)
@with_overrides
@click.option(
    "--url", help="Base URL of a server, say http://127.0.0.1:8000/v1; without it the graph is served."
)
@click.option("--key", envvar="PIPELINE_BENCH_KEY", show_envvar=True, help="Key for the server at `--url`.")
@click.option("--in-process", is_flag=True, help="Send through the graph in this process, without HTTP.")
@click.option(
    "--trace", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Send a trace's requests."
)
@click.option("--speed", type=Number(0, min_open=True), default=1.0, help="How much faster than its pace.")
@click.option("--shrink", type=Number(0, min_open=True), default=1.0, help="Multiplies a trace's tokens.")
@click.option(
    "--rate",
    type=Number(0, 1e6, min_open=True),
    default=10.0,
    show_default=True,
    help="Requests per second, without a trace.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant"]),
    default="poisson",
    show_default=True,
    help="How they are spaced.",
)
@click.option(
    "--requests", type=click.IntRange(1), help="How many at most; 200 unless a trace or --seconds says."
)
@click.option("--seconds", type=Number(0, min_open=True), help="For how long at most.")
@click.option("--prompt-tokens", type=click.IntRange(1, 32_768), default=64, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1), default=32, show_default=True, help="`max_tokens`.")
@click.option("--model", default="default", show_default=True)
@click.option("--no-stream", is_flag=True, help="Ask for whole answers.")
@click.option("--same", is_flag=True, help="Send equal prompts, which a cache may answer.")
@click.option(
    "--extra", default="{}", help="Further fields of each request, as JSON: '{\"ignore_eos\": true}'."
)
@click.option(
    "--timeout",
    type=Number(0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds for an answer.",
)
@click.option(
    "--in-flight", type=click.IntRange(1), default=4096, show_default=True, help="Requests under way at most."
)
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Generators.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of arrivals and prompts.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def command(overrides: tuple[str, ...], config: Path | None, as_json: bool, **options: Any) -> int:
    """Put load on a gateway and report throughput, latencies, errors and cost."""
    from pipeline import logging

    logging.configure(beside_an_answer=True)
    spec = _spec(options)
    if options["url"] is not None:
        if overrides or options["in_process"]:
            raise click.UsageError(
                "With `--url` the server has its own configuration: no overrides, no --in-process."
            )
        result = _remote(spec, options["processes"])
    elif options["in_process"]:
        if options["processes"] > 1:
            raise click.UsageError("A graph in this process has one generator: leave --processes out.")
        result = _local(spec, overrides, config)
    else:
        result = _served(spec, options["processes"], overrides, config)
    report = result.report()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        from pipeline_plugins.bench.table import show

        show(report)
    return 0 if result.completed else 1


def _spec(options: dict[str, Any]) -> Spec:
    from pipeline_plugins.bench.arrivals import Load
    from pipeline_plugins.bench.processes import Spec

    requests, seconds, trace = options["requests"], options["seconds"], options["trace"]
    load = Load(
        trace=trace,
        speed=options["speed"],
        shrink=options["shrink"],
        rate=options["rate"],
        arrivals=options["arrivals"],
        prompt_tokens=options["prompt_tokens"],
        output_tokens=options["output_tokens"],
        requests=requests if requests or seconds or trace else REQUESTS,
        seconds=seconds,
        seed=options["seed"],
    )
    if next(iter(load), None) is None:
        raise click.UsageError(f"There is nothing to send: {trace} has no row.")
    return Spec(
        load=load,
        prompts={
            "model": options["model"],
            "streaming": not options["no_stream"],
            "same": options["same"],
            "seed": options["seed"],
            "extra": _extra(options["extra"]),
        },
        url=options["url"] or "",
        key=options["key"],
        seconds=options["timeout"],
        most=options["in_flight"],
    )


def _extra(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise click.UsageError(f"--extra must be a JSON object such as '{{\"top_p\": 0.9}}', not {text!r}.")
    return found


def _remote(spec: Spec, processes: int) -> Result:
    from pipeline_plugins.bench.processes import generate_remote

    try:
        return generate_remote(spec, processes)
    except ValueError as error:
        raise click.UsageError(f"--url {error}.") from None


def _served(spec: Spec, processes: int, overrides: tuple[str, ...], config: Path | None) -> Result:
    from pipeline.config import compose
    from pipeline_plugins.bench.processes import cost, generate_remote, served

    compose(overrides, config=config).plan()  # mistakes are told here, and not by the server
    with served(overrides, config) as address:
        before = cost(address)
        result = generate_remote(replace(spec, url=f"{address}/v1"), processes)
        after = cost(address)
    result.usd = None if after is None else after - (before or 0.0)
    return result


def _local(spec: Spec, overrides: tuple[str, ...], config: Path | None) -> Result:
    from pipeline.config import compose
    from pipeline.graph import Graph
    from pipeline_plugins.bench.processes import generate, run
    from pipeline_plugins.bench.targets import Local

    plan, _ = compose(overrides, config=config).plan()

    async def go() -> Result:
        graph = Graph.build(plan)
        await graph.open()
        return await generate(spec, Local(graph, seconds=spec.seconds), time.monotonic() + 0.05)

    found: Result = run(go())
    return found
