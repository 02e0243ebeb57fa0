"""`pipeline replay`: recorded traffic through another configuration, and what that would have changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import Number
from pipeline.cli.options import overrides as with_overrides
from pipeline_plugins.ledger.options import filters

if TYPE_CHECKING:
    from pipeline_plugins.evaluate.prepare import Prepared
    from pipeline_plugins.evaluate.run import Done

EPILOG = """\b
Examples:
  pipeline replay ledger=sqlite --since 2026-11-01 cache=semantic cache.max_error=0.02
  pipeline replay ledger=sqlite --owner alice graph=pair route=cheapest 'data.request={model: auto}'
  pipeline replay ledger=sqlite --speed 1 infer.slots=16        # when each was due, however slow answers are
  pipeline replay ledger=postgres 'ledger.url=${oc.env:LEDGER}' infer=openai infer.base_url=http://vllm:8001/v1

`ledger=` is where calls were recorded, with `ledger.bodies=full`; it is read, and not written into.
All other overrides are the configuration to try."""


@click.command("replay", epilog=EPILOG)
@with_overrides
@filters
@click.option("--limit", type=click.IntRange(1), help="Calls at most: the first ones.")
@click.option(
    "--speed",
    type=Number(0, 1e6, min_open=True),
    help="Send when due, at this many times the recorded pace; as fast as `eval.concurrency` allows without.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder of the run; below `eval.dir` without."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    overrides: tuple[str, ...],
    config: Path | None,
    limit: int | None,
    speed: float | None,
    out: Path | None,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Send recorded calls through the composed graph, in this process, and compare.

    What was recorded and what became of it now are paired call by call: answers, cost, latency,
    tokens, hits. The folder of the run is that of `pipeline eval`, the recorded calls beside it as a
    run of their own. Exits with 1 if no call was answered.
    """
    from pipeline_plugins.evaluate.example import DataError
    from pipeline_plugins.evaluate.prepare import prepare
    from pipeline_plugins.evaluate.quiet import quiet
    from pipeline_plugins.evaluate.run import Runner, Taken, folder_for, read_manifest

    if any(override.partition("=")[0] in ("data", "eval.speed") for override in overrides):
        raise click.UsageError("The data is the ledger's, and its pace is `--speed`: see `pipeline eval`.")
    given = {**{f"data.{name}": value for name, value in wanted.items()}, "data.limit": limit}
    quiet()
    try:
        prepared = prepare([*_own({**given, "eval.speed": speed}, overrides), *overrides], config)
        folder = folder_for(prepared, out, fresh=True)
        if (found := read_manifest(folder)) is not None and found["state"] == "complete":
            raise Taken(f"{folder} has a complete replay.")
        with Runner() as runner:
            # What caches knew is gone: a replay that was stopped can't go on.
            done = runner.run(prepared, folder, fresh=True, what="replaying")
        return _tell(prepared, done, as_json)
    except (DataError, Taken) as error:
        raise click.UsageError(str(error)) from None


def _own(given: dict[str, Any], overrides: tuple[str, ...]) -> Iterator[str]:
    """What the options stand for as overrides, and scorers of how like the recorded answers are."""
    from pipeline.overrides import quoted

    yield "data=ledger"
    for key, value in given.items():
        if value is not None:
            yield f"{key}={quoted(value) if isinstance(value, str) else value}"
    yield "+score@score.equal=exact_match"
    yield "score.equal.normalise=false"
    if not any(override.partition("=")[0] == "score" for override in overrides) and _can_embed():
        yield "score=[similarity]"


def _can_embed() -> bool:
    """Whether the packaged embedding model and what runs it are installed."""
    from importlib.util import find_spec

    from pipeline_plugins.infer.minilm_embedder import PACKAGED

    needed = (PACKAGED.removeprefix("package:").replace("-", "_"), "onnxruntime", "tokenizers")
    return all(find_spec(name) is not None for name in needed)


def _tell(prepared: Prepared, done: Done, as_json: bool) -> int:
    from pipeline_plugins.evaluate import replay, replay_table

    found = replay.held_together(prepared, done)
    cost = replay.cost_of(prepared, done)
    if as_json:
        click.echo(replay_table.as_json(prepared, done, found, cost))
    else:
        replay_table.terminal(prepared, done, found, cost)
    if done.metrics["error_rate"]["mean"] == 1:
        click.secho("No call was answered; examples.parquet says why.", fg="red", err=True)
        return 1
    return 0
