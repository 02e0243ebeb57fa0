"""What was said, where the configuration has it kept: requests as they can be sent again, whole answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jiter
import orjson

from pipeline.wire import sse
from pipeline_plugins.ledger.watch import Ended

Policy = Literal["none", "redacted", "full"]

Redact = Callable[[str], str | None]
"""A text with what is personal in it masked."""


class Bodies:
    """Makes the texts to keep of a call, off its way."""

    def __init__(self, policy: Policy, redact: Redact | None = None) -> None:
        self.policy = policy
        self._redact = redact

    def of(self, call: Ended) -> tuple[str, str | None, str | None] | None:
        """Policy, request and reply; None where nothing is kept."""
        if self.policy == "none" or (call.request is None and call.reply is None):
            return None
        return (
            self.policy,
            self._text(call.request, stream=False),
            self._text(call.reply, stream=call.chunks > 0),
        )

    def _text(self, body: bytes | None, *, stream: bool) -> str | None:
        if body is None:
            return None
        if not stream and self.policy == "full":
            return body.decode("utf-8", "replace")
        try:
            parsed = sse.assemble(body) if stream else jiter.from_json(body)
        except ValueError:
            return None
        if parsed is None:
            return None
        return orjson.dumps(self._masked(parsed) if self.policy == "redacted" else parsed).decode()

    def _masked(self, value: Any) -> Any:
        """A parsed body with its texts masked; data that is written as a text (`data:…`) is left out."""
        match value:
            case str():
                return "data:," if value.startswith("data:") else self._mask(value)
            case list():
                return [self._masked(one) for one in value]
            case dict():
                return {name: self._masked(one) for name, one in value.items()}
        return value

    def _mask(self, text: str) -> str:
        masked = self._redact(text) if self._redact is not None else None
        return text if masked is None else masked
