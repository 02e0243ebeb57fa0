"""`pipeline new-plugin`: the beginning of a package with a plugin in it."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

import click

NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")

PASSES_ON = Template('''"""$kind=$name: $about."""

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edge, Reply


class $cls:
    """Passes calls on; one that says a word of `stop_words` it answers itself."""

    class Config(BaseModel):
        """What can be set: `$kind.stop_words=[a,b]`."""

        model_config = ConfigDict(extra="forbid")

        stop_words: list[str] = Field(default_factory=list, description="Words that end a call here.")

    def __init__(self, config: Config, next: Edge) -> None:
        self.config = config
        self.next = next

    async def __call__(self, call: Call) -> Reply:
        """Answer, or pass on and look at the reply."""
        text = call.raw.decode(errors="replace")
        if any(word in text for word in self.config.stop_words):
            return Reply.of({"error": {"message": "Stopped.", "type": "stopped"}}, status=400)
        return await self.next(call)
''')

CHOOSES = Template('''"""$kind=$name: $about."""

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edges, Model, Reply
from pipeline.errors import ModelNotFound
from pipeline.kinds import Routed


class $cls:
    """Sends each call to the first target, in the order of the graph, that can serve it."""

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
        raise ModelNotFound(f"No target can serve the model `{call.model[:256]}`.", param="model")
''')

ANSWERS = Template('''"""$kind=$name: $about."""

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Model, Reply, Usage


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
        """Answer as OpenAI's API does."""
        message = {"role": "assistant", "content": self.config.answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": call.id, "object": "chat.completion", "created": 0, "model": self.config.name}
        return Reply.of({**body, "choices": [choice]}, usage=Usage(1, 1))
''')

STANDS_BESIDE = Template('''"""$kind=$name: $about."""

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Reply, hookimpl


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
    def pipeline_call_ended(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """Observe what became of a call."""
        if error is not None or not self.config.failed_only:
            self.count += 1
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
"$kind.$name" = "$module:$cls"

[tool.hatch.build.targets.wheel]
only-include = ["$module.py"]
""")

TEST = Template("""from pipeline.config import compose
from pipeline.graph import Graph


def test_it_is_chosen_by_an_override():
    overrides = ["infer=echo", "infer@embed=none", "$choice"]
    plan, _ = compose(overrides).plan()
    graph = Graph.build(plan)
    assert "$kind.$name" in {plugin for plugin in $where}
    assert graph is not None
""")


@click.command(
    "new-plugin",
    epilog="\b\nExamples:\n  pipeline new-plugin cache acme\n  pipeline new-plugin infer acme --into ~/src",
)
@click.argument("kind")
@click.argument("name")
@click.option("--into", type=click.Path(path_type=Path), default=Path(), help="The folder to make it in (.).")
def command(kind: str, name: str, into: Path) -> int:
    """Write a package with a plugin of KIND, called NAME: `KIND=NAME` once it is installed.

    A class with its `Config`, the entry point that registers it, and a test. KIND is one of
    the framework's (`pipeline plugins` lists them) or one of your own.
    """
    from pipeline.kinds import KINDS

    for what, word in (("KIND", kind), ("NAME", name)):
        if not NAME.fullmatch(word) or keyword.iskeyword(word) or word == "none":
            raise click.UsageError(f"{what} `{word}`: expected a word such as `acme` or `acme_fast`.")
    known = KINDS.get(kind)
    edges = known.edges if known is not None else "next"
    if "used by verbs" in edges:
        raise click.UsageError(
            f"KIND `{kind}`: it is {edges.partition(': ')[2]}; see `pipeline plugins {kind}`."
        )
    folder = into / f"{name}-{kind}".replace("_", "-")
    if folder.exists():
        raise click.UsageError(f"`{folder}` is there already.")
    words = {
        "kind": kind,
        "name": name,
        "package": folder.name,
        "module": f"{name}_{kind}",
        "cls": "".join(word.capitalize() for word in f"{name}_{kind}".split("_")),
        "about": known.about if known is not None else "a stage of a kind of its own",
    }
    files = written(edges, words)
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
        click.echo(folder / file)
    click.echo(f"\nNext: pip install -e {folder}; pipeline plugins {kind}.{name}", err=True)
    return 0


def written(edges: str, words: dict[str, str]) -> dict[str, str]:
    """The package's files and their text, for a kind with these usual edges."""
    kind, name = words["kind"], words["name"]
    beside = edges.startswith("none: an extension")
    if beside:
        module = STANDS_BESIDE
    elif edges == "none":
        module = ANSWERS
    else:
        module = CHOOSES if ":" in edges else PASSES_ON
    where = "(part.plugin for part in (*plan.parts.values(), *plan.extensions))"
    return {
        "pyproject.toml": PROJECT.substitute(words),
        f"{words['module']}.py": module.substitute(words),
        f"test_{words['module']}.py": TEST.substitute(words, choice=f"{kind}={name}", where=where),
    }
