"""A trained estimator on disk: arrays as safetensors, everything else as JSON. Never pickle.

A folder holds `estimator.safetensors` and `estimator.json`. The JSON names the SHA-256 of
the other, and where the estimator is from: data, date, versions, folds, figures.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.problems import ConfigError, Problem
from pipeline_plugins.route.capable_curve import HeldOut
from pipeline_plugins.route.capable_estimator import Estimator, Features, expected_shapes
from pipeline_plugins.whole_file import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

ARRAYS = "estimator.safetensors"
CARD = "estimator.json"
TRAIN = "Make one with `pipeline route train DATA --out DIR`."
MAX_BYTES = 512 * 2**20


class Provenance(BaseModel):
    """Where an estimator is from."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="Name of the data file.")
    data_sha256: str = Field(description="Digest of the data file as it was read.")
    rows: int = Field(ge=1, description="Rows that it was fitted on.")
    trained: str = Field(description="When, in UTC.")
    versions: dict[str, str] = Field(description="Versions of what took part.")
    folds: int = Field(ge=2, description="Folds of the cross-validation.")
    seed: int = Field(description="Seed of folds and random features.")
    recipe: dict[str, Any] = Field(description="Settings of the fit.")
    metrics: dict[str, Any] = Field(description="Figures on rows kept out of the fit.")


class Card(BaseModel):
    """What `estimator.json` says."""

    model_config = ConfigDict(extra="forbid")

    format: int = Field(1, ge=1, le=1, description="Version of this layout.")
    targets: list[str] = Field(min_length=2, description="Targets, in the order of the arrays.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Digest of the arrays' file.")
    provenance: Provenance


def save(folder: Path, estimator: Estimator, held_out: HeldOut, provenance: Provenance) -> None:
    """Write an estimator; the JSON last, so that a half-written one never loads."""
    from safetensors.numpy import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(_narrow(array)) for name, array in estimator.arrays().items()}
    arrays["held_out.estimates"] = held_out.estimates.astype(np.float32)
    arrays["held_out.right"] = held_out.right.astype(np.float32)
    data = to_bytes(arrays)
    card = Card(
        format=1,
        targets=list(estimator.targets),
        sha256=hashlib.sha256(data).hexdigest(),
        provenance=provenance,
    )
    _replace(folder / ARRAYS, data)
    _replace(folder / CARD, (card.model_dump_json(indent=2) + "\n").encode())


def load(folder: Path, key: str) -> tuple[Estimator, HeldOut, Card]:
    """Read an estimator. Raises `ConfigError` for what is missing, damaged or of another shape.

    `key` is the config key that named the folder.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load as from_bytes
    except ImportError:
        raise _problem(
            key, "`route=capable` needs safetensors.", "pip install 'llm-pipeline[route]'"
        ) from None
    for name in (CARD, ARRAYS):
        if not (folder / name).is_file():
            raise _problem(key, f"there is no `{name}` in `{folder}`.", TRAIN)
    try:
        card = Card.model_validate_json((folder / CARD).read_bytes())
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
        raise _problem(
            key, f"`{folder / CARD}` can't be used: {where}: {error.errors()[0]['msg']}.", TRAIN
        ) from None
    if (folder / ARRAYS).stat().st_size > MAX_BYTES:
        raise _problem(key, f"`{folder / ARRAYS}` is larger than {MAX_BYTES >> 20} MiB.", TRAIN)
    data = (folder / ARRAYS).read_bytes()
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise _problem(
            key, f"`{folder / ARRAYS}` is not the file that `{CARD}` describes: its digest differs.", TRAIN
        )
    try:
        arrays = from_bytes(data)
    except SafetensorError as error:
        raise _problem(key, f"`{folder / ARRAYS}` is damaged: {error}.", TRAIN) from None
    wrong = _misshapen(arrays, len(card.targets))
    if wrong:
        raise _problem(key, f"`{folder / ARRAYS}` does not fit this version: {wrong}.", TRAIN)
    return *_assemble(arrays, card), card


def _assemble(arrays: dict[str, Array], card: Card) -> tuple[Estimator, HeldOut]:
    features = Features(**{field.name: arrays[f"features.{field.name}"] for field in fields(Features)})
    learned = {name: array for name, array in arrays.items() if "." not in name}
    estimator = Estimator(targets=tuple(card.targets), features=features, **learned)
    return estimator, HeldOut(arrays["held_out.estimates"], arrays["held_out.right"])


def _misshapen(arrays: dict[str, Array], targets: int) -> str:
    """What is wrong with these arrays; empty when nothing is."""
    try:
        words, topics = arrays["features.topics"].shape
        waves = arrays["features.phases"].size
        rows = len(arrays["held_out.right"])
    except (KeyError, ValueError):
        return "arrays are missing"
    wanted = expected_shapes(words, topics, waves, targets)
    wanted |= dict.fromkeys(("held_out.estimates", "held_out.right"), (rows, targets))
    if set(wanted) != set(arrays):
        return f"its arrays are {', '.join(sorted(arrays))}"
    for name, size in wanted.items():
        array = arrays[name]
        if array.shape != size:
            return f"`{name}` has the shape {array.shape}, not {size}"
        if name == "features.vocabulary":
            if array.dtype != np.uint32 or np.any(array[1:] <= array[:-1]):
                return f"`{name}` is not sorted hashes"
        elif array.dtype not in (np.float32, np.float64) or not np.all(np.isfinite(array)):
            return f"`{name}` holds something that is no number"
    return "" if rows else "it has no held-out rows"


def _narrow(array: Array) -> Array:
    return array if array.dtype == np.uint32 else array.astype(np.float32)


def _replace(path: Path, data: bytes) -> None:
    with replacing(path, mode=0o666) as file:
        file.write(data)


def _problem(key: str, message: str, hint: str) -> ConfigError:
    return ConfigError([Problem(key, message, hint)])
