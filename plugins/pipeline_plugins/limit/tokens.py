"""How many tokens a call may use: counted by its model where that can count, else estimated."""

from __future__ import annotations

from pipeline import Call, Model
from pipeline_plugins.limit.rules import Tokens
from pipeline_plugins.tokens import asked_tokens, estimate

COUNTED = 32_768
"""Bytes of a request up to which its model counts; a longer one would hold up the event loop."""


def of_call(call: Call, model: Model | None, default: int) -> Tokens:
    """Prompt and answer of a call; `default` is the answer's length where the call does not say.

    An answer is never taken to be longer than what the context window leaves.
    """
    if model is None or model.count is None or len(call.raw) > COUNTED:
        prompt = estimate(call)
    else:
        prompt = model.count(call)
    if call.operation == "embedding":
        return Tokens(prompt, 0, True)
    asked = asked_tokens(call)
    answer = default if asked is None else asked
    if model is not None and model.context_window is not None:
        answer = min(answer, max(0, model.context_window - prompt))
    return Tokens(prompt, answer * answers(call), asked is not None)


def answers(call: Call) -> int:
    """How many answers a call asks for at most: its choices, for each of its prompts."""
    body = call.body
    choices: int = body.get("n") or 1
    if call.operation != "completion":
        return choices  # `prompt` and `best_of` are not checked elsewhere, and can be anything
    prompts = body["prompt"]
    many = len(prompts) if isinstance(prompts, list) and not isinstance(prompts[0], int) else 1
    return max(choices, body.get("best_of") or 1) * many
