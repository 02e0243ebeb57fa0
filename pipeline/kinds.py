"""The kinds of stage that a gateway is made of, and what each of them decides.

A kind is a config group and the first half of a plugin's name: `cache.redis` is
selected by `cache=redis`. These are known from the start; any other word before the dot
of an entry point makes a new kind. What a stage decides goes into the call's
record under its kind's decision type, for monitors to report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.wire.usage import Usage


@dataclass(slots=True, frozen=True)
class Limited:
    """A limit let the call pass or refused it, and by which rule."""

    admitted: bool
    rule: str = ""


@dataclass(slots=True, frozen=True)
class Cached:
    """How a cache answered; the words of the `x-pipeline-cache` header."""

    result: Literal["hit", "miss", "semantic", "bypass"]
    similarity: float | None = None


@dataclass(slots=True, frozen=True)
class Retrieved:
    """Passages that were added to the prompt, and the seconds it took.

    `texts` are theirs, for stages that check them or hold the answer to them.
    """

    collection: str
    passages: int
    seconds: float
    texts: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Routed:
    """The edge that a router took (`x-pipeline-route`), and why."""

    target: str
    reason: str = ""


@dataclass(slots=True)
class Exposed:
    """Experiments that a call took part in, each with the variant that it got: added to in place.

    Noted only where every variant could have served the call, so that groups are alike. `units` has
    for each experiment a digest of what was assigned, which tells whose calls belong together;
    `probabilities` how likely the call was to get its variant, where that changes from call to call.
    """

    variants: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    probabilities: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Answered:
    """How one of two answers to the same call came out.

    outcome      `completed`, `failed` or `cancelled`
    status       HTTP status, 0 where the target raised something else than an `APIError`
    seconds      until all of it was there; `first` until its first chunk, None if not streamed
    usage        tokens used, None where unknown
    body         the answer as one object, as if not streamed; None if too long to keep, or failed
    """

    target: str
    outcome: str
    status: int
    seconds: float
    first: float | None = None
    usage: Usage | None = None
    body: dict[str, Any] | None = None


@dataclass(slots=True, frozen=True)
class Validated:
    """Whether request and reply held, what failed, and how many retries it took.

    `scores` has, by the name of a check that gives one, the score of what was checked last, in
    the check's own scale.
    """

    passed: bool
    failed: tuple[str, ...] = ()
    retries: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Kind:
    """A kind's contract: what a stage of it is for, its usual edges, what it decides.

    One without edges may be an extension instead, which stands beside the graph. Of a kind
    with `several`, options stand side by side, `KIND=[A,B]`, each in a node `KIND.OPTION`.
    """

    name: str
    about: str
    edges: str
    decision: type | None
    several: bool = False


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("limit", "admits or refuses a call", "next", Limited),
        Kind("cache", "answers what is already known", "next", Cached),
        Kind("rag", "adds passages of documents to the prompt", "next", Retrieved),
        Kind("validate", "checks request and reply", "next, retry, fallback", Validated),
        Kind("route", "picks the target of a call", "next: {NAME: STAGE, …}", Routed),
        Kind("infer", "answers with a model", "none", None),
        Kind("monitor", "observes calls and replies", "next", None),
        Kind("keys", "says who asks, and what they may do", "none: an extension", None),
        Kind("metrics", "shows the numbers that an operator watches", "none: an extension", None),
        Kind("trace", "follows calls through stages and models", "none: an extension", None),
        Kind("ledger", "keeps what became of each call", "none: an extension", None),
        Kind("dashboard", "shows a person what goes on", "none: an extension", None),
        Kind("price", "knows what models cost and what was spent", "none: an extension", None),
        Kind("resilience", "keeps answers coming while targets fail", "none: an extension", None),
        Kind("data", "gives examples to evaluate", "none: used by verbs", None),
        Kind("score", "scores an answer to an example", "none: used by verbs", None, several=True),
        Kind("eval", "runs examples through the graph", "none: used by verbs", None),
    )
}
