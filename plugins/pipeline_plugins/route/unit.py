"""Who or what stays together: a call's unit, and the target that hashing gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import log
from typing import Annotated, Literal

from pydantic import Field

from pipeline import Call, Edges
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.route.targets import Routing, Target, check_names

By = Literal["session", "user", "key"]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class ByUnit(Routing):
    """What tells units apart."""

    by: list[By] = Field(
        default=["session", "user", "key"],
        min_length=1,
        max_length=3,
        description="What stays together, the first that a call has: session header, field `user`, API key.",
    )
    session_header: str = Field(
        "x-session-id",
        pattern=r"^[a-z0-9_-]{1,128}$",
        description="Header that names the client's session, in lower case.",
    )
    weights: dict[str, Weight] = Field(
        default_factory=dict, description="Each target's part of the units; 1 where none is given."
    )


def check_weights(weights: Mapping[str, float], targets: Edges) -> None:
    """Refuse weights of targets that there are not, and weights by which no target is used.

    Raises `ConfigError`.
    """
    check_names("weights", weights, targets)
    if not any(weights.get(name, 1.0) for name in targets):
        raise _unused("they are all 0: no target would be used.")


def check_used(weights: Mapping[str, float], targets: Edges) -> None:
    """Refuse weights that choose none of the targets for an operation; once their models are known.

    Raises `ConfigError`.
    """
    models = [model for edge in targets.values() for model in edge.models]
    for operation in sorted({operation for model in models for operation in model.operations}):
        serving = serving_names(targets, operation)
        if len(serving) > 1 and not any(weights.get(name, 1.0) for name in serving):
            names = ", ".join(f"`{name}`" for name in serving)
            raise _unused(f"{names} have 0: no target would be used for `{operation}`.")


def _unused(message: str) -> ConfigError:
    return ConfigError([Problem("weights", message, "Give one of them more.")])


def serving_names(targets: Edges, operation: str) -> list[str]:
    """The targets that have a model for an operation."""
    return [name for name, edge in targets.items() if any(operation in m.operations for m in edge.models)]


def unit_of(call: Call, config: ByUnit) -> str:
    """What a call belongs to. Sessions and users are apart for each key: clients make them up."""
    for by in config.by:
        name = None
        if by == "session":
            name = call.headers.get(config.session_header)
        elif by == "user":
            name = call.body.get("user")
        if name:
            return f"{by}:{call.tenant.key}:{name}"
    return f"key:{call.tenant.key}"


def digest(unit: str, salt: str) -> str:
    """What stands for a unit in an experiment's record; another one in each experiment."""
    return blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, person=_person(salt)).hexdigest()


def rendezvous(unit: str, targets: Sequence[Target], weights: Mapping[str, float], salt: str = "") -> Target:
    """The unit's target: always the same, by weight over many units.

    Each target has a score for the unit, and the highest wins (highest random weight:
    Thaler and Ravishankar 1998; with weights, `-w / ln(u)`: Schindelhauer and Schomaker
    2005). A target that comes takes its part of the units, one that goes gives its own
    to the others; nobody else moves.
    """
    if len(targets) == 1:
        return targets[0]
    given = unit.encode("utf-8", "surrogatepass")
    return max(
        targets, key=lambda target: _score(given, f"{salt}:{target.name}", weights.get(target.name, 1.0))
    )


def _score(unit: bytes, target: str, weight: float) -> float:
    digest = blake2b(unit, digest_size=8, person=_person(target)).digest()
    share = ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52  # between 0 and 1, both excluded
    return -weight / log(share)


@lru_cache(maxsize=1024)
def _person(target: str) -> bytes:
    """A target's name as 16 bytes, which BLAKE2 mixes in."""
    return blake2b(target.encode(), digest_size=16).digest()
