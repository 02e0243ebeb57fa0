"""What the graph's author chooses about a check that fails, whatever the check is."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from pipeline.errors import APIError, InvalidRequest

SHOWN = 8
"""Findings that an error, a retry's reason or a record names; more are counted."""


class Policy(BaseModel):
    """Which side is checked, what follows a failure, and how streams are treated."""

    model_config = ConfigDict(extra="forbid")
    redactable: ClassVar[bool] = False
    """Whether the check's findings have spans."""
    piecewise: ClassVar[bool] = False
    """Whether a part of a text can be checked by itself, or as it grows."""

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

    @field_validator("on_failure")
    @classmethod
    def _can_be_done(cls, value: str, info: ValidationInfo) -> str:
        if value == "redact" and not cls.redactable:
            raise ValueError("this check finds no places to redact; choose another action")
        if value == "retry" and info.data.get("side") == "request":
            raise ValueError("a request is not asked for again; `retry` needs `side: reply` or `both`")
        return value

    @field_validator("stream")
    @classmethod
    def _can_be_streamed(cls, value: str, info: ValidationInfo) -> str:
        failure = info.data.get("on_failure")
        if info.data.get("side") == "request" or value == "buffer":
            return value
        if failure in ("retry", "fallback"):
            raise ValueError(
                f"`{failure}` is possible only while nothing has been sent: with `stream: buffer`"
            )
        if value == "window" and not cls.piecewise:
            raise ValueError("this check needs the whole answer; expected `buffer` or `after`")
        if value == "after" and failure == "redact":
            raise ValueError("what was sent can't be redacted; expected `buffer` or `window`")
        return value


class RequestRejected(InvalidRequest):
    """A check of the request failed (400)."""

    code = "validation_failed"


class ReplyRejected(APIError):
    """A check of the model's reply failed (422)."""

    status = 422
    type = "invalid_response_error"
    code = "validation_failed"
