"""From an OpenAI request to what llama.cpp is asked: fields by an allow-list, with bounds.

llama.cpp's own server takes fields that no client may set (slot numbers, cache files,
adapters, unlimited lengths), so a request is built anew and never passed on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.call import Call
from pipeline.errors import ContextTooLong, InvalidRequest
from pipeline.wire.responses import text_of
from pipeline_plugins.infer.llamacpp_schema import Budget, check_grammar, guide, one_of, outline

MAX_CHOICES = 256
MAX_ALTERNATIVES = 20
MAX_TOKEN_BYTES = 128
"""No text of more bytes than this times the context can fit: refused unread."""

SAMPLING: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "presence_penalty": (float, -2, 2),
    "frequency_penalty": (float, -2, 2),
    "top_k": (int, 0, 1_000_000),
    "min_p": (float, 0, 1),
    "typical_p": (float, 0, 1),
    "top_n_sigma": (float, -1, 100),
    "xtc_probability": (float, 0, 1),
    "xtc_threshold": (float, 0, 1),
    "dynatemp_range": (float, 0, 2),
    "dynatemp_exponent": (float, 0, 10),
    "repeat_penalty": (float, 0.01, 10),
    "repeat_last_n": (int, 0, 100_000),
    "dry_multiplier": (float, 0, 10),
    "dry_base": (float, 1, 10),
    "dry_allowed_length": (int, 0, 1000),
    "dry_penalty_last_n": (int, 0, 100_000),
    "mirostat": (int, 0, 2),
    "mirostat_tau": (float, 0, 100),
    "mirostat_eta": (float, 0, 1),
}
"""Sampling fields that are handed on, OpenAI's and llama.cpp's, with type and bounds."""

FLAGS = ("ignore_eos", "cache_prompt")
_UNSUPPORTED = {
    "functions": "Use `tools`.",
    "function_call": "Use `tool_choice`.",
    "audio": "This model gives text only.",
    "suffix": "This model does not fill in the middle of a text.",
}


@dataclass(slots=True)
class Job:
    """One request of a client: what each choice asks of llama.cpp, and how to answer.

    texts        llama.cpp's request bodies, one per choice, in the order of their index
    chat         a conversation, not a plain completion
    stream       answered in chunks
    include_usage  the stream ends with the token counts
    logprobs     how many alternatives per token the client asked for, None for no logprobs
    echo         per prompt, the text to put before the answer
    forced       names of tools of which the answer is a call, in JSON: turn it into one
    json         an answer that is not cut short must be JSON
    choices_per_prompt  how often each prompt is answered: `n`
    """

    texts: list[bytes]
    chat: bool
    stream: bool = False
    include_usage: bool = False
    logprobs: int | None = None
    echo: list[str] = field(default_factory=list)
    forced: tuple[str, ...] = ()
    json: bool = False
    choices_per_prompt: int = 1


@dataclass(slots=True, frozen=True)
class Limits:
    """What is allowed: tokens per slot, tokens of one answer, tools, grammars of clients."""

    context: int
    max_tokens: int
    tools: bool
    grammar: bool = False


def build(call: Call, limits: Limits) -> Job:
    """The job for a call. Raises `InvalidRequest` naming the field that can't be used."""
    body = call.body
    for name, hint in _UNSUPPORTED.items():
        if body.get(name):
            raise InvalidRequest(f"`{name}` is not supported by this model. {hint}", param=name)
    if "audio" in (body.get("modalities") or ()):
        raise InvalidRequest("This model gives text only.", param="modalities")
    chat = call.operation == "chat"
    job = Job([], chat, stream=call.streaming)
    job.include_usage = (body.get("stream_options") or {}).get("include_usage") is True
    shared = _sampling(body, limits)
    n = body.get("n") or 1
    job.choices_per_prompt = n
    if chat:
        _chat(body, shared, job, limits)
        prompts: list[Any] = [None]
    else:
        prompts = _prompts(body, limits)
        _completion(body, shared, job, prompts, n)
    if n * len(prompts) > MAX_CHOICES:
        raise InvalidRequest(f"One request can have {MAX_CHOICES} choices: `n` times prompts.", param="n")
    seed = body.get("seed")
    for prompt in prompts:
        if prompt is not None:
            shared["prompt"] = prompt
        for index in range(n):
            if seed is not None:
                shared["seed"] = (seed + index) % (2**32 - 1)
            job.texts.append(orjson.dumps(shared))
    return job


def _sampling(body: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The part that chats and completions share."""
    shared: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    for name, (kind, least, most) in SAMPLING.items():
        value = body.get(name)
        if value is not None:
            shared[name] = _number(name, value, kind, least, most)
    for name in FLAGS:
        if (value := body.get(name)) is not None:
            if not isinstance(value, bool):
                raise InvalidRequest(f"`{name}` must be true or false.", param=name)
            shared[name] = value
    if body.get("seed") is not None:
        # A prefix taken from the cache is computed in another batch, with other last bits.
        shared.setdefault("cache_prompt", False)
    asked = (body.get("max_completion_tokens"), body.get("max_tokens"), limits.max_tokens)
    shared["max_tokens"] = max(1, min(next(n for n in asked if n is not None), limits.max_tokens))
    stop = body.get("stop")
    if stop:
        shared["stop"] = [one for one in ([stop] if isinstance(stop, str) else stop) if one]
    if bias := body.get("logit_bias"):
        wrong = next((key for key in bias if not (key.isascii() and key.isdecimal())), None)
        if wrong is not None:
            raise InvalidRequest(
                f"A key of `logit_bias` must be a token's number, not `{wrong[:50]}`.", param="logit_bias"
            )
        shared["logit_bias"] = bias
    if body.get("grammar") is not None:
        if not limits.grammar:
            raise InvalidRequest(
                "Grammars are off: one can keep the model busy for everybody. Use `response_format`, or have "
                "`grammar: true` set in the server's configuration.",
                param="grammar",
            )
        check_grammar(body["grammar"])
        shared["grammar"] = body["grammar"]
    return shared


def _number(name: str, value: Any, kind: type, least: float, most: float) -> float:
    fits = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not fits or not least <= value <= most:
        what = "an integer" if kind is int else "a number"
        raise InvalidRequest(f"`{name}` must be {what} from {least:g} to {most:g}.", param=name)
    return value  # type: ignore[no-any-return]


def _chat(body: dict[str, Any], shared: dict[str, Any], job: Job, limits: Limits) -> None:
    shared["messages"] = messages_of(body["messages"], limits)
    shared["return_progress"] = _is_long(shared["messages"])
    if body.get("logprobs"):
        job.logprobs = _alternatives(body.get("top_logprobs") or 0)
        shared["logprobs"] = True
        shared["top_logprobs"] = max(job.logprobs, 1)
    budget = Budget()
    form = body.get("response_format") or {}
    formed = form.get("type") in ("json_object", "json_schema")
    if "grammar" in shared and (formed or body.get("tools")):
        raise InvalidRequest(
            "`grammar` can't be combined with `response_format` or `tools`.", param="grammar"
        )
    if formed:
        shared["grammar"] = guide(_format(form, budget))
    if body.get("tools"):
        _tools(body, shared, job, limits, budget)
    job.json = (formed or bool(job.forced)) and "stop" not in shared


def _alternatives(wanted: int) -> int:
    """How many alternatives per token: each costs time while everybody waits."""
    return max(0, min(int(wanted), MAX_ALTERNATIVES))


def _is_long(value: Any) -> bool:
    """Whether a prompt takes long enough that its progress is wanted, to notice a client leave."""
    return len(orjson.dumps(value)) > 1024


def _format(form: dict[str, Any], budget: Budget) -> Any:
    """The schema that a `response_format` asks for."""
    schema = (form.get("json_schema") or {}).get("schema")
    if form["type"] == "json_object" or schema is None:
        return {"type": "object"}
    budget.check(schema, "response_format.json_schema.schema")
    return schema


def messages_of(messages: list[dict[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    """Messages as templates know them: text only, `developer` as `system`.

    Raises `InvalidRequest` for what is not text, `ContextTooLong` for what can't fit.
    """
    size = 0
    taken = []
    for index, message in enumerate(messages):
        text = text_of(message.get("content"), f"messages[{index}].content")
        size += len(text)
        role = message["role"]
        one: dict[str, Any] = {"role": _ROLES.get(role, role), "content": text}
        for name in ("name", "tool_call_id"):
            if message.get(name):
                one[name] = message[name]
        if calls := message.get("tool_calls"):
            one["tool_calls"] = [
                _past_call(c, f"messages[{index}].tool_calls[{i}]") for i, c in enumerate(calls)
            ]
            size += sum(len(c["function"]["arguments"]) for c in one["tool_calls"])
        taken.append(one)
    _check_size(max(size, len(taken) * MAX_TOKEN_BYTES), limits, "messages")
    return taken


_ROLES = {"developer": "system", "function": "tool"}


def _past_call(call: dict[str, Any], param: str) -> dict[str, Any]:
    function = call.get("function")
    if not function:
        raise InvalidRequest(f"`{param}` must be a function call.", param=param)
    try:
        arguments = orjson.loads(function["arguments"] or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        where = f"{param}.function.arguments"
        raise InvalidRequest(f"`{where}` must be a JSON object as text.", param=where)
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": function["name"], "arguments": orjson.dumps(arguments).decode()},
    }


def _check_size(size: int, limits: Limits, param: str) -> None:
    if size > limits.context * MAX_TOKEN_BYTES:
        raise ContextTooLong(
            f"This model's context is {limits.context} tokens, and the request has at least "
            f"{size // MAX_TOKEN_BYTES}. Shorten it.",
            param=param,
        )


def _tools(body: dict[str, Any], shared: dict[str, Any], job: Job, limits: Limits, budget: Budget) -> None:
    choice = body.get("tool_choice") or "auto"
    tools = [_tool(tool, f"tools[{i}]", budget) for i, tool in enumerate(body["tools"])]
    if choice == "none":
        return
    if not limits.tools:
        raise InvalidRequest("This model's chat template has no place for tools.", param="tools")
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        tools = [tool for tool in tools if tool["function"]["name"] == name]
        if not tools:
            raise InvalidRequest(f"There is no tool `{name}` in `tools`.", param="tool_choice")
    if choice == "auto":
        if "grammar" in shared:
            raise InvalidRequest(
                "`response_format` can't be combined with `tools` unless `tool_choice` is `none`.",
                param="response_format",
            )
        for tool in tools:
            function = tool["function"]
            function["parameters"] = {"type": "object", **outline(function["parameters"])}
        if job.logprobs is not None:
            raise InvalidRequest(
                "`logprobs` can't be combined with `tools` unless `tool_choice` is `none`.", param="logprobs"
            )
        shared["parallel_tool_calls"] = body.get("parallel_tool_calls") is not False
    else:
        job.forced = tuple(tool["function"]["name"] for tool in tools)
        # Logprobs are those of the content, and a call has none.
        job.logprobs = None
        shared.pop("logprobs", None)
        shared.pop("top_logprobs", None)
        shared["tool_choice"] = "none"
        shared["grammar"] = guide(one_of(tools))
    shared["tools"] = tools


def _tool(tool: dict[str, Any], param: str, budget: Budget) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type") != "function" or not function:
        raise InvalidRequest(f"`{param}` must be of type `function`.", param=param)
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    budget.check(parameters, f"{param}.function.parameters")
    taken = {"name": function["name"], "parameters": parameters}
    if function.get("description"):
        taken["description"] = str(function["description"])
    return {"type": "function", "function": taken}


def _prompts(body: dict[str, Any], limits: Limits) -> list[Any]:
    given = body["prompt"]
    prompts = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    for prompt in prompts:
        _check_size(len(prompt) * (1 if isinstance(prompt, str) else MAX_TOKEN_BYTES), limits, "prompt")
        if not prompt:
            raise InvalidRequest("`prompt` must not be empty.", param="prompt")
    return prompts


def _completion(body: dict[str, Any], shared: dict[str, Any], job: Job, prompts: list[Any], n: int) -> None:
    shared["return_progress"] = any(_is_long(prompt) for prompt in prompts)
    if (body.get("best_of") or n) != n:
        raise InvalidRequest("`best_of` is supported only where it equals `n`.", param="best_of")
    logprobs = body.get("logprobs")
    if logprobs is not None and logprobs is not False:
        job.logprobs = _alternatives(logprobs)
        shared["logprobs"] = max(job.logprobs, 1)
    if body.get("echo"):
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise InvalidRequest("`echo` needs prompts given as text.", param="echo")
        if job.logprobs is not None:
            raise InvalidRequest("`echo` can't be combined with `logprobs`.", param="echo")
        job.echo = prompts
