"""How a call came out, in the words that ledger, metrics and traces share."""

from __future__ import annotations

import asyncio

from pipeline import Call, End
from pipeline.errors import APIError


def told(error: BaseException, call: Call) -> tuple[str, int, str | None]:
    """Outcome, status and error code of what was raised. Messages are not kept: they may quote."""
    if isinstance(error, APIError):
        code = error.error_code or error.type
        return ("refused" if error.status < 500 else "failed"), error.status, code[:64]
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return ("failed", 504, "timeout") if late(call) else ("cancelled", 0, None)
    if isinstance(error, TimeoutError):
        return "failed", 504, "timeout"
    return "failed", 500, type(error).__name__[:64]


def of_end(end: End, status: int, call: Call) -> tuple[str, str | None]:
    """Outcome and error code of a stream that has ended."""
    if end.error is not None:
        outcome, _, code = told(end.error, call)
        return outcome, code
    if end.outcome == "completed":
        return of_status(status), None
    return ("failed", "timeout") if late(call) else (end.outcome, None)


def of_status(status: int) -> str:
    """The outcome of a whole reply."""
    if status < 400:
        return "completed"
    return "refused" if status < 500 else "failed"


def late(call: Call) -> bool:
    """Whether the call's deadline has passed."""
    return call.remaining <= 0
