"""Fitting the estimates of `route=capable`: features, ridge regressions, calibration, folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_plugins.route.capable_estimator import Estimator, Features
from pipeline_plugins.route.capable_text import excerpt, ngrams, shape

Array = NDArray[Any]

MAX_STEPS = 60
"""Of conjugate gradients; they end earlier as a rule."""


@dataclass(slots=True, frozen=True)
class Recipe:
    """What a fit is made of; the defaults were chosen by cross-validation on the routing benchmark.

    penalty     of the ridge regressions, on features of about unit length
    topics      singular directions of the n-grams that join the shape; `scale` their weight
    waves       Fourier features, 0 for none; `sharpness` the kernel's gamma, `gain` its weight
    rare        n-grams in fewer rows than this are left out; `words` False leaves out all weights
    """

    penalty: float = 8.0
    topics: int = 12
    scale: float = 0.6
    waves: int = 1000
    sharpness: float = 0.7
    gain: float = 0.8
    rare: int = 2
    words: bool = True


@dataclass(slots=True, frozen=True)
class Rows:
    """A sparse matrix by rows: row `i` has `values` at `columns`, from `starts[i]` on.

    Every row has at least one entry (a zero, if need be).
    """

    starts: Array
    columns: Array
    values: Array
    width: int

    @classmethod
    def of(cls, rows: Sequence[tuple[Array, Array]], width: int) -> Rows:
        """Join rows of (columns, values)."""
        nothing = (np.zeros(1, np.int64), np.zeros(1, np.float32))
        rows = [row if len(row[0]) else nothing for row in rows]
        starts = np.cumsum([0] + [len(columns) for columns, _ in rows])[:-1]
        columns, values = (np.concatenate(part) for part in zip(*rows, strict=True))
        return cls(starts, columns, values.astype(np.float32), width)

    def times(self, right: Array) -> Array:
        """This matrix times (width, c)."""
        product = np.zeros((len(self.starts), right.shape[1]), np.float32)
        if not self.width:  # of few prompts no n-gram may be known
            return product
        for at, column in enumerate(right.T):
            product[:, at] = np.add.reduceat(self.values * column[self.columns], self.starts)
        return product

    def transposed_times(self, right: Array) -> Array:
        """The transposed matrix times (rows, c)."""
        sizes = np.diff(self.starts, append=len(self.columns))
        product = np.zeros((self.width, right.shape[1]), np.float32)
        if not self.width:
            return product
        for at, column in enumerate(right.T):
            product[:, at] = np.bincount(self.columns, self.values * np.repeat(column, sizes), self.width)
        return product


@dataclass(slots=True, frozen=True)
class Prompts:
    """Prompts, read: each one's n-grams, and all shapes (rows, s)."""

    hashes: list[Array]
    shapes: Array

    @classmethod
    def read(cls, texts: Sequence[str], step: Callable[[], None] = lambda: None) -> Prompts:
        """Read prompts; `step` is called after each."""
        hashes, shapes = [], []
        for text in texts:
            part = excerpt(text)
            hashes.append(ngrams(part))
            shapes.append(shape(part))
            step()
        return cls(hashes, np.array(shapes))

    def take(self, rows: Array) -> Prompts:
        """Some of them."""
        return Prompts([self.hashes[row] for row in rows], self.shapes[rows])


def fit(
    prompts: Prompts,
    right: Array,
    targets: Sequence[str],
    recipe: Recipe,
    seed: int,
    weights: Array | None = None,
) -> Estimator:
    """An estimator from prompts and how well each target did, (rows, k) in [0, 1]; not calibrated.

    `weights` (rows,) say how much each row's error counts; all count alike without.
    """
    features, words, waved = _features(prompts, recipe, seed)
    mean = right.mean(axis=0)
    count = np.ones(len(right)) if weights is None else weights
    weigh = count.astype(np.float32)[:, None]
    on_words, on_waves = _ridge(words, waved, (right - mean).astype(np.float32), weigh, recipe)
    ones = np.ones(len(targets))
    return Estimator(tuple(targets), features, on_words, on_waves, mean, ones, np.zeros(len(targets)))


def _features(prompts: Prompts, recipe: Recipe, seed: int) -> tuple[Features, Rows, Array]:
    """Features learned from these prompts, and the prompts' own."""
    rng = np.random.default_rng(seed)
    count = len(prompts.hashes)
    known, seen = np.unique(np.concatenate(prompts.hashes), return_counts=True)
    known, seen = known[seen >= recipe.rare], seen[seen >= recipe.rare]
    idf = (np.log((1 + count) / (1 + seen)) + 1).astype(np.float32)
    spread = prompts.shapes.std(axis=0)
    size = prompts.shapes.shape[1] + recipe.topics
    features = Features(
        vocabulary=known,
        idf=idf,
        topics=np.zeros((len(known), recipe.topics), np.float32),
        centre=prompts.shapes.mean(axis=0),
        spread=np.where(spread > 1e-9, spread, 1.0),
        waves=(rng.normal(size=(size, recipe.waves)) * np.sqrt(2 * recipe.sharpness)).astype(np.float32),
        phases=rng.uniform(0, 2 * np.pi, recipe.waves).astype(np.float32),
        gain=np.array([recipe.gain], np.float32),
    )
    words = Rows.of([features.words(hashes) for hashes in prompts.hashes], len(known))
    if recipe.topics and len(known):
        features.topics[:] = _directions(words, recipe.topics, rng)
        topics = words.times(features.topics)
        length = np.sqrt(np.mean(np.sum(topics**2, axis=1)))
        features.topics[:] *= recipe.scale / max(length, 1e-9)
    return features, words, features.waved(prompts.shapes, words.times(features.topics))


def _directions(words: Rows, count: int, rng: np.random.Generator) -> Array:
    """The leading right singular vectors (width, count), by a randomised range finder.

    Halko, Martinsson and Tropp (2011), with two power iterations.
    """
    basis = rng.normal(size=(words.width, count + 8)).astype(np.float32)
    for _ in range(3):
        basis = np.linalg.qr(words.transposed_times(np.linalg.qr(words.times(basis))[0]))[0]
    _, _, turned = np.linalg.svd(words.times(basis), full_matrices=False)
    found: Array = (basis @ turned.T)[:, :count]
    padded: Array = np.pad(found, ((0, 0), (0, count - found.shape[1])))
    return padded


def _ridge(words: Rows, waved: Array, right: Array, weigh: Array, recipe: Recipe) -> tuple[Array, Array]:
    """Ridge weights on words and Fourier features, by conjugate gradients on the normal equations."""
    share = np.float32(recipe.words)

    def times(v: Array) -> Array:
        product: Array = share * words.times(v[: words.width]) + waved @ v[words.width :]
        return product

    def back(v: Array) -> Array:
        return np.vstack([share * words.transposed_times(v), waved.T @ v])

    residual = back(weigh * right)
    weights, step = np.zeros_like(residual), residual.copy()
    size = first = np.sum(residual**2, axis=0)
    for _ in range(MAX_STEPS):
        if np.all(size <= 1e-6 * first):
            break
        moved = back(weigh * times(step)) + np.float32(recipe.penalty) * step
        rate = size / np.maximum(np.sum(step * moved, axis=0), 1e-30)
        weights += rate * step
        residual -= rate * moved
        size, before = np.sum(residual**2, axis=0), size
        step = residual + size / np.maximum(before, 1e-30) * step
    on_words: Array = weights[: words.width] * share
    return on_words, weights[words.width :]


def predict(estimator: Estimator, prompts: Prompts) -> Array:
    """Estimates (rows, k) of many prompts, before calibration."""
    features = estimator.features
    words = Rows.of([features.words(hashes) for hashes in prompts.hashes], len(features.vocabulary))
    waved = features.waved(prompts.shapes, words.times(features.topics))
    raw: Array = estimator.mean + words.times(estimator.words) + waved @ estimator.kernel
    return raw


def folds(groups: Sequence[object], count: int, seed: int) -> Array:
    """A fold for each row; rows of equal group (say the same prompt twice) share one."""
    distinct: dict[object, int] = {}
    at = np.array([distinct.setdefault(group, len(distinct)) for group in groups])
    fold: Array = (np.random.default_rng(seed).permutation(len(distinct)) % count)[at]
    return fold


def balanced(groups: Sequence[object]) -> Array:
    """Weights of rows by which a group of a hundredth of the rows of the largest counts a tenth as much."""
    _, at, sizes = np.unique(np.array(groups), return_inverse=True, return_counts=True)
    weights: Array = np.sqrt(sizes.max() / sizes)[at]
    return weights


def cross_fit(
    prompts: Prompts,
    right: Array,
    targets: Sequence[str],
    fold: Array,
    recipe: Recipe,
    seed: int = 0,
    step: Callable[[], None] = lambda: None,
    weights: Array | None = None,
) -> Array:
    """Estimates (rows, k) of each row by a fit that did not see its fold; not calibrated."""
    estimates = np.empty(right.shape)
    for number in np.unique(fold):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        own = None if weights is None else weights[inside]
        fitted = fit(prompts.take(inside), right[inside], targets, recipe, seed, own)
        estimates[outside] = predict(fitted, prompts.take(outside))
        step()
    return estimates


def calibration(estimates: Array, right: Array) -> tuple[Array, Array]:
    """Slope and offset (k,) of the line from held-out estimates to what happened, least squares."""
    centred = estimates - estimates.mean(axis=0)
    spread = np.sum(centred**2, axis=0)
    # A target that is always right (or wrong) has nothing to learn a slope from.
    slope = np.where(
        spread > 1e-9, np.sum(centred * (right - right.mean(axis=0)), axis=0) / np.maximum(spread, 1e-9), 0
    )
    slope = np.maximum(slope, 0)
    return slope, right.mean(axis=0) - slope * estimates.mean(axis=0)
