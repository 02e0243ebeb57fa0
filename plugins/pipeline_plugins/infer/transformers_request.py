"""From an OpenAI request to what the engine is asked, by the rules that all local models share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.call import Call
from pipeline_plugins.infer.llamacpp_request import Job, Limits, build


@dataclass(slots=True)
class Sampling:
    """How the tokens of one choice are chosen, and when they end.

    temperature  0 takes the likeliest token; top_k 0, top_p 1 and min_p 0 leave all
    bias         added to the logits of these tokens
    seed         the dice's start; None for other dice each time
    logprobs     how many alternatives to report per token, None for no logprobs
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    max_tokens: int = 1
    stop: list[str] = field(default_factory=list)
    ignore_eos: bool = False

    @property
    def cuts(self) -> bool:
        """Whether only some of the likeliest tokens may be chosen."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def penalised(self) -> bool:
        """Whether tokens that were said before are less likely."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(slots=True)
class Request:
    """What one call asks for.

    job       how its reply is to look
    messages  the conversation of a chat, else None; `tools` are shown to the model
    prompts   the texts or token ids of a completion
    choices   how each choice is sampled: `job.choices_per_prompt` for each prompt in turn
    grammar   what the answer must follow, in LLGuidance's language; empty for nothing
    calls     whether the model may call tools unasked
    """

    job: Job
    messages: list[dict[str, Any]] | None
    tools: list[dict[str, Any]]
    prompts: list[Any]
    choices: list[Sampling]
    grammar: str
    calls: bool


def read(call: Call, limits: Limits, defaults: dict[str, Any]) -> Request:
    """Read a call's body. `defaults` are the model's own settings for sampling.

    Raises `InvalidRequest` that names the field that can't be used.
    """
    job = build(call, limits)
    asks = [orjson.loads(text) for text in job.texts]
    first = asks[0]
    messages = first.get("messages")
    for message in messages or ():
        for past in message.get("tool_calls") or ():
            past["function"]["arguments"] = orjson.loads(past["function"]["arguments"])
    tools = first.get("tools") or []
    return Request(
        job=job,
        messages=messages,
        tools=tools,
        prompts=[ask["prompt"] for ask in asks[:: job.choices_per_prompt]] if messages is None else [],
        choices=[_sampling({**defaults, **ask}, job) for ask in asks],
        grammar=first.get("grammar") or "",
        calls=bool(tools) and not job.forced,
    )


_PASSED = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed")


def _sampling(ask: dict[str, Any], job: Job) -> Sampling:
    given = {name: ask[name] for name in _PASSED if ask.get(name) is not None}
    return Sampling(
        **given,
        bias={int(id): float(value) for id, value in (ask.get("logit_bias") or {}).items()},
        logprobs=job.logprobs,
        max_tokens=ask["max_tokens"],
        stop=ask.get("stop") or [],
        ignore_eos=ask.get("ignore_eos") is True,
    )
