"""`pipeline ask`: one question to the graph, in this process."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import Number
from pipeline.cli.options import overrides as with_overrides

if TYPE_CHECKING:
    from pipeline.plan import Plan

EPILOG = """\b
Examples:
  pipeline ask "What is 2+2?"
  pipeline ask "What is 2+2?" infer=openai infer.base_url=http://127.0.0.1:8001/v1
  cat notes.txt | pipeline ask - --max-tokens 100"""


@click.command("ask", epilog=EPILOG)
@click.argument("question")
@with_overrides
@click.option("--model", default="default", help="Model name, as in a request.")
@click.option("--system", help="System message.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer, in tokens.")
@click.option("--temperature", type=Number(0, 2), help="Sampling temperature.")
@click.option("--seed", type=int, help="Seed of the sampling.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole response as JSON, not streamed.")
def command(
    question: str, overrides: tuple[str, ...], config: Path | None, as_json: bool, **options: Any
) -> int:
    """Send QUESTION through the graph and print the answer as it comes.

    `-` reads the question from standard input. No server is needed.
    """
    from pipeline import logging
    from pipeline.config import compose

    logging.configure(beside_an_answer=True)
    plan, settings = compose(overrides, config=config).plan()
    text = _text(question)
    system = options.pop("system")
    messages = [{"role": "system", "content": system}] if system else []
    body = {"messages": [*messages, {"role": "user", "content": text}], "stream": not as_json}
    body |= {key: value for key, value in options.items() if value is not None}
    return asyncio.run(_ask(plan, body, settings.call_timeout))


def _text(question: str) -> str:
    """The question, from standard input where it is `-`. Raises `click.UsageError`."""
    if question == "-" and sys.stdin is None:
        raise click.UsageError("There is no standard input to read the question from.")
    text = sys.stdin.read() if question == "-" else question
    try:
        # Bytes that the shell's locale could not decode are decoded here.
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError:
        raise click.UsageError("The question is not UTF-8 text.") from None


async def _ask(plan: Plan, body: dict[str, Any], seconds: float) -> int:
    from pipeline.call import Call
    from pipeline.graph import Graph
    from pipeline.wire import sse
    from pipeline.wire.check import check
    from pipeline.wire.requests import ChatRequest

    check(ChatRequest, body)
    graph = Graph.build(plan)
    await graph.open()
    try:
        deadline = asyncio.get_running_loop().time() + seconds
        call = Call(
            id=f"req_{os.urandom(12).hex()}",
            operation="chat",
            body=body,
            deadline=deadline,
            received=perf_counter(),
        )
        async with asyncio.timeout_at(deadline):
            reply = await graph(call)
            if not reply.streaming:
                click.echo(reply.body)
                return 0 if reply.status < 400 else 1
            async for event in sse.events(reply):
                for choice in event.get("choices", ()):
                    click.echo(choice.get("delta", {}).get("content") or "", nl=False)
            click.echo()
            return 0
    finally:
        await graph.close()
