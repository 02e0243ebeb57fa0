"""The learned estimate of `route=capable`: how well each target would answer a prompt.

A prompt becomes a row of features, and one ridge regression per target reads them:

  words    tf-idf of its n-grams (binary counts, unit length)
  kernel   random Fourier features (Rahimi and Recht, 2007) of its shape beside its topic,
           the topic being the n-grams' leading singular directions: a smooth function of
           both, where a sum would miss that long sums are hard and long stories are not

Then a straight line per target, fitted on rows that the regressions did not see, makes
the estimates calibrated. All that is left at serving time is numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_plugins.route.capable_text import SHAPE, excerpt, ngrams, shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

CLIP = 3.0
"""Standard deviations beyond which a shape's number counts no more."""


@dataclass(slots=True, frozen=True)
class Features:
    """How a prompt becomes numbers; `n` n-grams, `t` topics, `m` Fourier features.

    vocabulary  (n,) uint32, sorted hashes of the n-grams that are known
    idf         (n,) their inverse document frequency
    topics      (n, t) the topics' directions, scaled
    centre      (s,) the shape's means; `spread` (s,) its standard deviations
    waves       (s + t, m) directions of the Fourier features; `phases` (m,)
    gain        (1,) weight of the Fourier features beside the words
    """

    vocabulary: Array
    idf: Array
    topics: Array
    centre: Array
    spread: Array
    waves: Array
    phases: Array
    gain: Array

    def words(self, hashes: Array) -> tuple[Array, Array]:
        """Columns and tf-idf values of a text's known n-grams."""
        at = np.searchsorted(self.vocabulary, hashes)
        at[at == len(self.vocabulary)] = 0
        columns = at[self.vocabulary[at] == hashes] if len(self.vocabulary) else at[:0]
        values = self.idf[columns]
        length = np.sqrt(values @ values)
        return columns, values / length if length else values

    def waved(self, shapes: Array, topics: Array) -> Array:
        """Fourier features (rows, m) of shapes (rows, s) and topics (rows, t)."""
        scaled = np.clip((shapes - self.centre) / self.spread, -CLIP, CLIP) / np.sqrt(self.centre.size)
        angles = np.hstack([scaled, topics]).astype(np.float32) @ self.waves + self.phases
        waved: Array = self.gain * np.sqrt(2 / max(self.phases.size, 1), dtype=np.float32) * np.cos(angles)
        return waved


@dataclass(slots=True, frozen=True)
class Estimator:
    """Estimates of `k` targets' quality, each in [0, 1].

    words   (n, k) weights of the n-grams; `kernel` (m, k) of the Fourier features
    mean    (k,) the targets' means on the rows of the fit
    slope   (k,) and `offset` (k,): the calibration
    """

    targets: tuple[str, ...]
    features: Features
    words: Array
    kernel: Array
    mean: Array
    slope: Array
    offset: Array

    def estimate(self, text: str) -> Array:
        """The chance that each target answers this prompt well: (k,), in `targets`' order.

        Takes about 0.2 ms for a short prompt, and at most a few for any.
        """
        text = excerpt(text)
        columns, values = self.features.words(ngrams(text))
        topics = values @ self.features.topics[columns]
        waved = self.features.waved(np.array([shape(text)]), topics[None])
        raw = self.mean + values @ self.words[columns] + waved[0] @ self.kernel
        estimates: Array = np.clip(self.offset + self.slope * raw, 0, 1)
        return estimates

    def arrays(self) -> dict[str, Array]:
        """Everything that was learned, by name, to be saved."""
        own = {name: getattr(self, name) for name in ("words", "kernel", "mean", "slope", "offset")}
        return own | {f"features.{f.name}": getattr(self.features, f.name) for f in fields(Features)}


def expected_shapes(n: int, t: int, m: int, k: int) -> dict[str, tuple[int, ...]]:
    """The shape of each array of an estimator with these sizes."""
    return {
        "words": (n, k),
        "kernel": (m, k),
        **dict.fromkeys(("mean", "slope", "offset"), (k,)),
        "features.vocabulary": (n,),
        "features.idf": (n,),
        "features.topics": (n, t),
        **dict.fromkeys(("features.centre", "features.spread"), (SHAPE,)),
        "features.waves": (SHAPE + t, m),
        "features.phases": (m,),
        "features.gain": (1,),
    }
