"""`data=ledger`: calls as a ledger with bodies has recorded them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import APIError
from pipeline.plan import Plan
from pipeline.problems import ConfigError, Problem
from pipeline.wire.parse import parse
from pipeline_plugins.evaluate.ask import MODELS, answer_of
from pipeline_plugins.evaluate.example import DataError, DataSet, Example, Outcome
from pipeline_plugins.ledger.extension import LedgerConfig
from pipeline_plugins.ledger.options import reading
from pipeline_plugins.ledger.store import Filter

Row = dict[str, Any]


class Recorded:
    """The calls of the ledger that the configuration names, to be sent again in the order they came.

    What the ledger keeps bodies of, `ledger.bodies=full`. A run reads that ledger and does not
    write into it. Recorded answers are there for scorers as `expected`.
    """

    class Config(BaseModel):
        """Which calls, and what is changed in them."""

        model_config = ConfigDict(extra="forbid")

        since: datetime | None = Field(
            None, description="Calls that ended at this time or later: ISO 8601, local without a zone."
        )
        until: datetime | None = Field(None, description="Calls that ended before this time.")
        owner: str | None = Field(None, max_length=256, description="Calls of this owner's keys.")
        model: str | None = Field(None, max_length=256, description="Calls that this model answered.")
        limit: int | None = Field(None, ge=1, description="Calls to use, at most: the first ones.")
        request: dict[str, Any] = Field(
            default_factory=dict,
            description="Fields that take the place of recorded ones; null removes one: `{model: auto}`.",
        )
        as_owner: str = Field(
            "replay/{owner}",
            min_length=1,
            max_length=256,
            description="Owner of what is sent, `{owner}` being the recorded one. With a prefix it touches "
            "no accounts, limits and cached answers of the gateway's own traffic; `{owner}` alone has what "
            "is its owner's: collections of `rag`.",
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        self._ledger: LedgerConfig | None = None

    def claim(self, plan: Plan) -> Plan:
        """Take the ledger out of the graph: a run does not write where it reads."""
        for part in plan.extensions:
            if isinstance(part.config, LedgerConfig):
                self._ledger = part.config
                return replace(plan, extensions=[one for one in plan.extensions if one is not part])
        hint = "Name the one to read, say `ledger=sqlite`."
        raise ConfigError([Problem("ledger", "the configuration keeps no ledger.", hint)])

    def read(self) -> DataSet:
        """All calls that can be sent again, by the time at which they came. Raises `DataError` for none."""
        if self._ledger is None:
            raise DataError("No ledger was claimed.")
        found, left_out = Found(), LeftOut()
        with reading(self._ledger) as store:
            for row in store.calls(self._filter()):
                request = _request(row)
                if request is None or row["outcome"] == "cancelled":
                    left_out.add(row, request)
                elif found.add(row, self._example(row, request)) == self.config.limit:
                    break
        notes = left_out.notes()
        if found.redacted:
            said = counted(found.redacted, "request")
            notes.append(f"Redacted: {said}, to which answers differ for that alone.")
        if not found.pairs:
            raise DataError(" ".join(["The ledger has no call that can be sent again.", *notes]))
        found.pairs.sort(key=lambda pair: pair[0].at or 0.0)
        examples, recorded = zip(*found.pairs, strict=True)
        return DataSet("ledger", found.digest.hexdigest(), examples, recorded, notes)

    def _filter(self) -> Filter:
        config = self.config
        since, until = (None if at is None else at.timestamp() for at in (config.since, config.until))
        return Filter(since, until, config.owner, config.model)

    def _example(self, row: Row, request: dict[str, Any]) -> Example:
        changed = {**request, **self.config.request}
        body = {
            name: value
            for name, value in changed.items()
            if value is not None or name not in self.config.request
        }
        return Example(
            row["id"],
            body,
            {"expected": _answer(row)[0], "owner": row["owner"], "model": row["used"]},
            row["operation"],
            self.config.as_owner.replace("{owner}", row["owner"]),
            row["time"] - row["total_ms"] / 1000,
        )


@dataclass(slots=True)
class Found:
    """Calls that can be sent again, each with what became of it."""

    pairs: list[tuple[Example, Outcome]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)
    redacted: int = 0

    def add(self, row: Row, example: Example) -> int:
        """Add a call; how many there are now."""
        bodies = row["bodies"]
        self.redacted += bodies["policy"] == "redacted"
        for value in (row["id"], bodies["request"], bodies["reply"] or ""):
            self.digest.update(f"{value}\0".encode())
        self.pairs.append((example, _outcome(row)))
        return len(self.pairs)


@dataclass(slots=True)
class LeftOut:
    """Calls that can't be sent again, counted by why, and what they cost."""

    counts: Counter[str] = field(default_factory=Counter)
    usd: float = 0.0

    def add(self, row: Row, request: dict[str, Any] | None) -> None:
        """Count a call."""
        self.usd += row["usd"] or 0.0
        if request is not None:
            why = "given up by the client, without a whole answer to compare with"
        elif row["operation"] not in MODELS:
            why = "of another operation than chat, completion and embedding"
        else:
            why = "without the request on record (`ledger.bodies=full` keeps it, up to `ledger.body_bytes`)"
        self.counts[why] += 1

    def notes(self) -> list[str]:
        """A sentence for each reason, and one on their cost."""
        said = [f"Left out: {counted(count, 'call')} {why}." for why, count in self.counts.items()]
        return [*said, f"What was left out had cost ${self.usd:.4g}."] if self.usd else said


def counted(count: int, noun: str) -> str:
    """So many of them."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _request(row: Row) -> dict[str, Any] | None:
    """The request's JSON, None where it can't be sent again."""
    kept = (row["bodies"] or {}).get("request")
    if kept is None or row["operation"] not in MODELS:
        return None
    try:
        return parse(kept.encode())
    except APIError:
        return None


def _answer(row: Row) -> tuple[str | None, str | None]:
    """Text and finish reason of the recorded answer."""
    kept = row["bodies"]["reply"]
    try:
        reply = orjson.loads(kept) if kept is not None and row["outcome"] == "completed" else None
    except orjson.JSONDecodeError:
        reply = None
    return answer_of(reply) if isinstance(reply, dict) else (None, None)


def _outcome(row: Row) -> Outcome:
    """What became of a call, in the words of a run."""
    answer, finish = _answer(row)
    return Outcome(
        row["id"],
        "completed" if row["outcome"] == "completed" else "failed",
        row["status"],
        row["error"],
        answer=answer,
        finish=row["finish"] or finish,
        model=row["used"],
        route=row["route"],
        cache=row["cache"],
        valid=None if row["valid"] is None else bool(row["valid"]),
        retries=row["retries"] or 0,
        prompt_tokens=row["prompt_tokens"],
        cached_tokens=row["cached_tokens"],
        completion_tokens=row["completion_tokens"],
        usd=row["usd"],
        saved_usd=row["saved_usd"],
        seconds=row["total_ms"] / 1000,
        first=None if row["first_ms"] is None else row["first_ms"] / 1000,
    )
