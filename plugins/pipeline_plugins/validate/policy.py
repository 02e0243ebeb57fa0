"""What the graph's author chooses about a check that fails, whatever the check is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import APIError, InvalidRequest
from pipeline.problems import Problem

SHOWN = 8
"""Findings that an error, a retry's reason or a record names; more are counted."""


class Policy(BaseModel):
    """Which side is checked, what follows a failure, and how streams are treated."""

    model_config = ConfigDict(extra="forbid")

    # Not `on`, which is a truth value in YAML.
    side: Literal["request", "reply", "both"] = Field("both", description="What to check.")
    on_failure: Literal["reject", "retry", "fallback", "redact", "flag"] = Field(
        "reject",
        description="`reject`: 400 for a request, 422 for a reply; `retry`: ask again along the edge "
        "`retry`, with the reason; `fallback`: along the edge `fallback`; `redact`: replace what was "
        "found; `flag`: note it and pass on.",
    )
    retries: int = Field(2, ge=1, le=10, description="Times that a reply is asked for again.")
    stream: Literal["buffer", "window", "after"] = Field(
        "buffer",
        description="Streams: `buffer` holds all until it is valid; `window` holds back the last "
        "characters, and stops with an error event; `after` checks at the end and only reports.",
    )
    window: int = Field(
        200, ge=1, le=100_000, description="Characters held back: the longest that is found for sure."
    )
    max_characters: int = Field(
        1_000_000, ge=1, le=64_000_000, description="Longer texts are not read: they fail."
    )


class RequestRejected(InvalidRequest):
    """A check of the request failed (400)."""

    code = "validation_failed"


class ReplyRejected(APIError):
    """A check of the model's reply failed (422)."""

    status = 422
    type = "invalid_response_error"
    code = "validation_failed"


def problems(policy: Policy, *, can: frozenset[str], edges: frozenset[str]) -> Iterator[Problem]:
    """What can't work in a policy, given what the check `can` and the edges that the graph gives."""
    failure, stream = policy.on_failure, policy.stream
    if failure in ("retry", "fallback") and failure not in edges:
        hint = f"Give the stage `{failure}: STAGE` in the graph."
        yield Problem("on_failure", f"`{failure}` needs the edge `{failure}`.", hint)
    if failure == "retry" and policy.side == "request":
        yield Problem("on_failure", "a request is not asked for again.", "Expected `side: reply` or `both`.")
    if failure in ("retry", "fallback") and stream != "buffer" and policy.side != "request":
        yield Problem(
            "stream",
            f"`{failure}` is possible only while nothing has been sent.",
            "Expected `stream: buffer`.",
        )
    if failure == "redact" and "redact" not in can:
        yield Problem("on_failure", "this check finds no places to redact.", "Expected another action.")
    if failure == "redact" and stream == "after" and policy.side != "request":
        yield Problem("stream", "`after` can redact nothing.", "Expected `buffer` or `window`.")
    if stream == "window" and "window" not in can and policy.side != "request":
        yield Problem("stream", "this check needs the whole answer.", "Expected `buffer` or `after`.")
