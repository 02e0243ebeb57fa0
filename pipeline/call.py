"""One request on its way through the graph, and the record of what happened to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from pipeline.wire.needs import needs_of
from pipeline.wire.parse import parse

if TYPE_CHECKING:
    from pipeline.stage import Edge

D = TypeVar("D")


@dataclass(slots=True, frozen=True)
class Tenant:
    """Who asks: part of every key under which something is counted or stored.

    key     the key's public id, never the secret itself
    owner   whom it was issued to; several keys may share one
    tags    for reports
    models  names and aliases that it may use, None for all
    policy  what the key sets for stages, by their kind: `{"limit": {…}, "cache": {…}}`
    admin   whether it may use the routes of administrators
    """

    key: str
    owner: str
    tags: tuple[tuple[str, str], ...] = ()
    models: frozenset[str] | None = None
    policy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    admin: bool = False


ANONYMOUS = Tenant(key="anonymous", owner="anonymous", admin=True)
"""The tenant of every request while the server runs without keys, on loopback only."""


class Step:
    """One passage along an edge, `via`, from stage `source` to `stage`.

    Times are `time.perf_counter()` seconds. `outcome` is `running`, `ok`, or the name of
    the exception that came back. A streamed reply's step ends when the reply starts: its
    chunks come later.
    """

    __slots__ = ("ended", "outcome", "started", "via")

    def __init__(self, via: Edge, started: float) -> None:
        self.via = via
        self.started = started
        self.ended = 0.0
        self.outcome = "running"

    @property
    def source(self) -> str:
        """The stage that passed the call on; empty at the graph's entry."""
        return self.via.source

    @property
    def edge(self) -> str:
        """The edge's name."""
        return self.via.name

    @property
    def stage(self) -> str:
        """The stage that the call was passed to."""
        return self.via.target


@dataclass(slots=True)
class Record:
    """What happened to one call; shared by every call derived from it.

    sources  what the answer is made of besides the request, each with its version when it was read:
             who keeps the answer gives it only while `hookspecs.pipeline_version` says the same
    helps    the record of the call on whose way a stage made this one, None of a client's own
    """

    steps: list[Step] = field(default_factory=list)
    decisions: dict[type, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    helps: Record | None = None

    @property
    def whole(self) -> Record:
        """The record of the client's call: what is tried and spent on its way is noted there."""
        record = self
        while record.helps is not None:
            record = record.helps
        return record

    def decide(self, decision: object) -> None:
        """Note a stage's decision; a later one of the same type replaces it."""
        self.decisions[type(decision)] = decision

    def decision(self, kind: type[D]) -> D | None:
        """The decision of this type, if a stage took one."""
        return self.decisions.get(kind)

    def growing(self, kind: type[D]) -> D:
        """The decision of this type that is added to in place: it is begun if there is none."""
        found = self.decision(kind)
        if found is None:
            self.decide(found := kind())
        return found


class Call:
    """A request as stages see it: immutable by convention, changed by `derive`.

    id          unique, also the response's `x-request-id`
    operation   `chat`, `completion`, `embedding`, or one that a plugin adds
    model       the model's name as the client wrote it
    streaming   whether the client wants a stream
    tenant      who asks
    deadline    event-loop time (`loop.time()`) at which the call is given up
    received    `time.perf_counter()` at which the request was complete
    headers     the request's headers, names in lower case
    outbound    headers for whoever the call is passed on to over HTTP, see `with_outbound`
    record      steps, decisions and response headers, shared by derived calls

    The body exists as bytes (`raw`) and parsed (`body`); whichever is missing is made
    on first use, so a call that nobody changed is passed on byte for byte.
    """

    __slots__ = (
        "_body",
        "_needs",
        "_raw",
        "deadline",
        "headers",
        "id",
        "model",
        "operation",
        "outbound",
        "received",
        "record",
        "streaming",
        "tenant",
    )

    def __init__(
        self,
        *,
        id: str,
        operation: str,
        raw: bytes | None = None,
        body: dict[str, Any] | None = None,
        deadline: float,
        received: float,
        tenant: Tenant = ANONYMOUS,
        headers: Mapping[str, str] | None = None,
        outbound: Mapping[str, str] | None = None,
        record: Record | None = None,
    ) -> None:
        if raw is None and body is None:
            raise ValueError("a call needs a body, as bytes or parsed")
        self.id = id
        self.operation = operation
        self._raw = raw
        self._body = body
        self._needs: frozenset[str] | None = None
        self.deadline = deadline
        self.received = received
        self.tenant = tenant
        self.headers: Mapping[str, str] = headers if headers is not None else {}
        self.outbound = outbound
        self.record = record if record is not None else Record()
        parsed = self.body
        self.model: str = parsed.get("model") or "default"
        self.streaming: bool = parsed.get("stream") is True

    @property
    def body(self) -> dict[str, Any]:
        """The request's JSON object. Do not change it in place: use `derive`."""
        if self._body is None:
            self._body = parse(self._raw or b"")
        return self._body

    @property
    def raw(self) -> bytes:
        """The request's body as bytes: the client's own unless the call was derived."""
        if self._raw is None:
            self._raw = _encode(self._body)
        return self._raw

    @property
    def needs(self) -> frozenset[str]:
        """Capabilities without which it can't be answered: `tools`, `vision`, `streaming`, …"""
        if self._needs is None:
            self._needs = needs_of(self.operation, self.body, streaming=self.streaming)
        return self._needs

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - asyncio.get_running_loop().time()

    def derive(self, **changes: Any) -> Call:
        """A call whose body has these top-level fields replaced; None removes one.

        Identity, deadline and record stay the same.
        """
        body = {k: v for k, v in {**self.body, **changes}.items() if v is not None or k not in changes}
        return self._copy(None, body, self.deadline, self.outbound)

    def until(self, deadline: float) -> Call:
        """The same call with this deadline if it is the earlier one."""
        if deadline >= self.deadline:
            return self
        return self._copy(self._raw, self._body, deadline, self.outbound)

    def with_outbound(self, headers: Mapping[str, str]) -> Call:
        """The same call with headers, names in lower case, that a stage sends where it passes it on."""
        outbound = headers if self.outbound is None else {**self.outbound, **headers}
        return self._copy(self._raw, self._body, self.deadline, outbound)

    def _copy(
        self,
        raw: bytes | None,
        body: dict[str, Any] | None,
        deadline: float,
        outbound: Mapping[str, str] | None,
    ) -> Call:
        return Call(
            id=self.id,
            operation=self.operation,
            raw=raw,
            body=body,
            deadline=deadline,
            received=self.received,
            tenant=self.tenant,
            headers=self.headers,
            outbound=outbound,
            record=self.record,
        )


def _encode(body: dict[str, Any] | None) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        # JSON knows no bound on integers; orjson stops at 64 bits.
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
