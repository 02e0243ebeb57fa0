"""What `pipeline new-plugin` writes, as ruff and mypy --strict would have it."""

from __future__ import annotations

from string import Template

PASSES_ON = Template('''"""$kind=$name: $about."""

from pipeline import Call, Edge, Reply
from pydantic import BaseModel, ConfigDict, Field


class $cls:
    """Passes calls on; one that says a word of `stop_words` it answers itself."""

    class Config(BaseModel):
        """What can be set: `$kind.stop_words=[a,b]`."""

        model_config = ConfigDict(extra="forbid")

        stop_words: list[str] = Field([], description="Words that end a call here.")

    def __init__(self, config: Config, next: Edge) -> None:
        self.config = config
        self.next = next

    async def __call__(self, call: Call) -> Reply:
        """Answer, or pass on and look at the reply."""
        text = call.raw.decode(errors="replace")
        if any(word in text for word in self.config.stop_words):
            error = {"message": "Stopped.", "type": "stopped"}
            return Reply.of({"error": error}, status=400)
        return await self.next(call)
''')

CHECKS = Template('''"""$kind=$name: $about."""

from pipeline import Call, Edge, Reply
from pipeline.errors import InvalidRequest
from pipeline.kinds import Validated
from pydantic import BaseModel, ConfigDict, Field


class $cls:
    """Refuses requests that say a forbidden word, before a model has seen them."""

    class Config(BaseModel):
        """What can be set: `$kind.stop_words=[a,b]`."""

        model_config = ConfigDict(extra="forbid")

        stop_words: list[str] = Field([], description="Words that no request may say.")

    def __init__(
        self,
        config: Config,
        next: Edge,
        retry: Edge | None = None,
        fallback: Edge | None = None,
    ) -> None:
        self.config = config
        self.next = next
        self.retry = retry
        self.fallback = fallback

    async def __call__(self, call: Call) -> Reply:
        """Check, and pass on; `retry` and `fallback` are for a reply that won't do."""
        text = call.raw.decode(errors="replace")
        failed = tuple(word for word in self.config.stop_words if word in text)
        call.record.decide(Validated(not failed, failed))
        if failed:
            raise InvalidRequest("The request says what it must not.")
        return await self.next(call)
''')

CHOOSES = Template('''"""$kind=$name: $about."""

from pipeline import Call, Edges, Model, Reply
from pipeline.errors import ModelNotFound
from pipeline.kinds import Routed
from pydantic import BaseModel, ConfigDict, Field


class $cls:
    """Sends a call to the first target, in the graph's order, that can serve it."""

    class Config(BaseModel):
        """What can be set: `$kind.first=large`."""

        model_config = ConfigDict(extra="forbid")

        first: str = Field("", description="The target to try first.")

    def __init__(self, config: Config, next: Edges) -> None:
        self.next = next
        self.order = sorted(next, key=lambda name: name != config.first)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of all targets."""
        return tuple(model for edge in self.next.values() for model in edge.models)

    async def __call__(self, call: Call) -> Reply:
        """Pass on to a target. Raises `ModelNotFound` where none can serve the call."""
        for name in self.order:
            if self.next[name].offers(call):
                call.record.decide(Routed(name, "the first that can"))
                return await self.next[name](call)
        message = f"No target can serve the model `{call.model[:256]}`."
        raise ModelNotFound(message, param="model")
''')

ANSWERS = Template('''"""$kind=$name: $about."""

from pipeline import Call, Model, Reply, Usage
from pydantic import BaseModel, ConfigDict, Field


class $cls:
    """Answers every chat with the same words."""

    class Config(BaseModel):
        """What can be set: `$kind.answer=hello`."""

        model_config = ConfigDict(extra="forbid")

        name: str = Field("$name", min_length=1, description="The model's name.")
        answer: str = Field("Hello.", description="What it says.")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.models = (Model(id=config.name, operations=frozenset({"chat"})),)

    async def open(self) -> None:
        """Load or connect what takes time; not called by `pipeline check`."""

    async def close(self) -> None:
        """Let go of it."""

    async def __call__(self, call: Call) -> Reply:
        """Answer as OpenAI's API does, or with a `ChunkStream` if `call.streaming`."""
        message = {"role": "assistant", "content": self.config.answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": call.id, "object": "chat.completion", "created": 0}
        body |= {"model": self.config.name, "choices": [choice]}
        return Reply.of(body, usage=Usage(1, 1))
''')

STANDS_BESIDE = Template('''"""$kind=$name: $about."""

from pipeline import Call, Reply, hookimpl
from pydantic import BaseModel, ConfigDict, Field


class $cls:
    """Counts the calls that ended. Other hooks are in `pipeline.hookspecs`."""

    class Config(BaseModel):
        """What can be set: `$kind.failed_only=true`."""

        model_config = ConfigDict(extra="forbid")

        failed_only: bool = Field(False, description="Count only calls that failed.")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.count = 0

    @hookimpl
    def pipeline_call_ended(
        self, call: Call, reply: Reply | None, error: BaseException | None
    ) -> None:
        """Observe what became of a call."""
        if error is not None or not self.config.failed_only:
            self.count += 1
''')

VERB = Template('''"""`pipeline $name`: a verb."""

from pathlib import Path

import click
from pipeline.cli.options import overrides as with_overrides


@click.command("$name", epilog="\\b\\nExamples:\\n  pipeline $name infer=echo")
@with_overrides
def command(overrides: tuple[str, ...], config: Path | None) -> int:
    """Print the models' stages of the composed graph. Returns the exit status."""
    from pipeline.config import compose  # a verb's help should not wait for it

    plan, _ = compose(overrides, config=config).plan()
    for part in plan.parts.values():
        if not part.loaded.edges:
            click.echo(f"{part.name}: {part.plugin}")
    return 0
''')

VERB_TEST = Template('''"""The verb `$name`."""

from click.testing import CliRunner

from $module import command


def test_it_names_the_models() -> None:
    done = CliRunner().invoke(command, ["infer=echo", "infer@embed=none"])
    assert done.output == "infer: infer.echo\\n"
''')

PROJECT = Template("""[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$package"
version = "0.1.0"
description = "$kind=$name for llm-pipeline"
requires-python = ">=3.11"
dependencies = ["llm-pipeline"]

[project.entry-points.pipeline]
"$kind.$name" = "$module:$target"

[tool.hatch.build.targets.wheel]
only-include = ["$module.py"]
""")

TEST = Template('''"""`$kind=$name` in a graph, without a server."""

import asyncio
from time import perf_counter

from pipeline import Call, Reply
from pipeline.config import compose
from pipeline.graph import Graph

CHOICE = [
    "infer=echo",
    "infer@embed=none",
    "price=none",
$choice
]


async def ask(graph: Graph, text: str) -> Reply:
    """Send a chat through the graph, as a client's request goes."""
    now = asyncio.get_running_loop().time()
    return await graph(
        Call(
            id="test",
            operation="chat",
            body={"messages": [{"role": "user", "content": text}]},
            deadline=now + 10,
            received=perf_counter(),
        )
    )


def test_a_call_is_answered() -> None:
    async def go() -> None:
        plan, _ = compose(CHOICE).plan()
        graph = Graph.build(plan)
        await graph.open()
        try:
            assert (await ask(graph, "hello")).status == 200
        finally:
            await graph.close()
        plugins = [*plan.parts.values(), *plan.extensions]
        assert "$kind.$name" in [part.plugin for part in plugins]

    asyncio.run(go())
''')
