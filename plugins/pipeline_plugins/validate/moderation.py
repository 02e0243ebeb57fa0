"""`validate=moderation`: an external endpoint that speaks OpenAI's `/v1/moderations`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import jiter
import orjson
import structlog
from pydantic import ConfigDict, Field, SecretStr, model_validator

from pipeline import Call
from pipeline.errors import APIError, UpstreamFailed
from pipeline_plugins.infer.openai_client import Address, Client
from pipeline_plugins.infer.openai_connection import Limits
from pipeline_plugins.validate.finding import Finding, Subject, Text
from pipeline_plugins.validate.policy import Policy
from pipeline_plugins.validate.validator import Validator

log = structlog.get_logger("pipeline.validate")

AT_ONCE = 32
"""Texts of one request."""

REPLY_BYTES = 1 << 20


class ModerationPolicy(Policy):
    """Where to ask, and what counts."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    piecewise = True

    base_url: str = Field("https://api.openai.com/v1", description="Address, up to `/moderations`.")
    api_key: SecretStr | None = Field(None, description="Key to send as `authorization: Bearer`.")
    model: str | None = Field(
        None, max_length=256, description="Model to name; null leaves it to the server."
    )
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict,
        max_length=64,
        description="Score from which a category fails; empty goes by the server's own `flagged`.",
    )
    timeout: float = Field(5.0, gt=0, le=300, description="Seconds for one answer.")
    when_unable: Literal["fail", "pass"] = Field(
        "fail", description="What a text counts as when the endpoint does not answer."
    )

    @model_validator(mode="after")
    def _can_be_reached(self) -> ModerationPolicy:
        try:
            Address.parse(self.base_url)
        except ValueError as error:
            raise ValueError(f"`base_url` {error}") from None
        key = self.api_key.get_secret_value() if self.api_key else ""
        if not all(" " <= c <= "~" for c in key):
            raise ValueError("`api_key` has characters that no HTTP header can hold")
        return self


class Moderation(Validator[ModerationPolicy]):
    """Has texts of users, tools and models moderated by another server."""

    Config = ModerationPolicy

    def prepare(self) -> None:
        """Make the client."""
        headers = {"user-agent": "llm-pipeline"}
        if self.config.api_key is not None:
            headers["authorization"] = f"Bearer {self.config.api_key.get_secret_value()}"
        self._client = Client(
            Address.parse(self.config.base_url),
            headers,
            Limits(self.config.timeout, self.config.timeout, REPLY_BYTES),
            connect_timeout=self.config.timeout,
            max_connections=64,
        )

    async def open(self) -> None:
        """Get ready to connect."""
        self._client.open()

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()
        await super().close()

    async def findings(self, subject: Subject) -> list[Finding]:
        """What the endpoint objects to, by category."""
        texts = [
            text for text in subject.texts if text.text.strip() and text.role not in ("system", "developer")
        ]
        found: list[Finding] = []
        for start in range(0, len(texts), AT_ONCE):
            part = texts[start : start + AT_ONCE]
            try:
                results = await self._ask(subject.call, part)
                found += [f for t, r in zip(part, results, strict=True) if (f := self._judge(t, r))]
            except (APIError, ValueError, LookupError, TypeError, AttributeError) as error:
                if self.config.when_unable == "fail":
                    # Where the endpoint is, and what it said, is for the operator alone.
                    log.warning("moderation failed", error=str(error)[:300])
                    found.append(Finding(part[0].path, "could not be moderated: try again later"))
        return found

    async def _ask(self, call: Call, texts: list[Text]) -> list[Any]:
        body: dict[str, Any] = {"input": [text.text for text in texts]}
        if self.config.model is not None:
            body["model"] = self.config.model
        deadline = min(call.deadline, asyncio.get_running_loop().time() + self.config.timeout)
        exchange = await self._client.request("POST", "/moderations", orjson.dumps(body), deadline)
        if exchange.status != 200:
            raise UpstreamFailed(f"{exchange.host} answered with status {exchange.status}")
        results: list[Any] = jiter.from_json(exchange.body())["results"]
        return results

    def _judge(self, text: Text, result: dict[str, Any]) -> Finding | None:
        limits = self.config.thresholds
        if limits:
            scores = result["category_scores"]
            failed = [name for name, limit in limits.items() if scores[name] >= limit]
        else:
            failed = [name for name, hit in result["categories"].items() if hit] if result["flagged"] else []
            failed = failed or (["flagged"] if result["flagged"] else [])
        return Finding(text.path, f"is objectionable: {', '.join(failed[:8])}") if failed else None
