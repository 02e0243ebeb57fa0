"""Choosing the next token of each row: rows differ in every setting, and in their dice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline_plugins.infer.transformers_request import Sampling

LIKELY = 512
"""Candidates that are looked at first where `top_p` cuts; more only if they do not suffice."""


@dataclass(slots=True)
class Chosen:
    """A token; with its log-probability and the likeliest tokens, where they were asked for."""

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


class Sampler:
    """One sequence's settings, its dice, and how often it has said each token.

    `guide`, if given, restricts what may come next; see `transformers_guide`.
    """

    def __init__(self, settings: Sampling, guide: Any = None) -> None:
        self.settings = settings
        self.guide = guide
        self._dice = random.Random(settings.seed)
        self._said: dict[int, int] = {}
        self._bias: tuple[Any, Any] | None = None

    def draw(self) -> float:
        """A number from 0 up to, not including, 1."""
        return self._dice.random() * (1 - 1e-6)

    def took(self, token: int) -> None:
        """Note the token that was chosen."""
        if self.settings.penalised:
            self._said[token] = self._said.get(token, 0) + 1
        if self.guide is not None:
            self.guide.took(token)

    def adjust(self, logits: Any) -> None:
        """Apply bias, penalties and the guide to the row's logits, in place."""
        settings = self.settings
        if settings.bias:
            if self._bias is None:
                known = {id: value for id, value in settings.bias.items() if id < len(logits)}
                self._bias = (
                    torch.tensor(list(known), dtype=torch.long, device=logits.device),
                    torch.tensor(list(known.values()), dtype=logits.dtype, device=logits.device),
                )
            logits[self._bias[0]] += self._bias[1]
        if self._said:
            ids = torch.tensor(list(self._said), device=logits.device)
            counts = torch.tensor(list(self._said.values()), dtype=logits.dtype, device=logits.device)
            logits[ids] -= settings.frequency_penalty * counts + settings.presence_penalty
        if self.guide is not None:
            self.guide.restrict(logits)


def choose(logits: Any, samplers: Sequence[Sampler]) -> list[Chosen]:
    """The next token of each row. `logits` is (rows, vocabulary) in float32; it is changed."""
    scored = {
        row: torch.log_softmax(logits[row], -1)
        for row, s in enumerate(samplers)
        if s.settings.logprobs is not None
    }
    for row, sampler in enumerate(samplers):
        sampler.adjust(logits[row])
    tokens: list[int] = logits.argmax(-1).tolist()
    hot = [row for row, sampler in enumerate(samplers) if sampler.settings.temperature > 0]
    if hot:
        heat = torch.tensor([samplers[row].settings.temperature for row in hot], device=logits.device)
        shares = torch.softmax(logits[hot] / heat.unsqueeze(1), -1)
        cut = [i for i, row in enumerate(hot) if samplers[row].settings.cuts]
        free = [i for i, row in enumerate(hot) if not samplers[row].settings.cuts]
        if free:
            drawn = [samplers[hot[i]].draw() for i in free]
            for i, token in zip(free, _from_all(shares[free], drawn), strict=True):
                tokens[hot[i]] = token
        if cut:
            chosen = _from_likeliest(shares[cut], [samplers[hot[i]] for i in cut])
            for i, token in zip(cut, chosen, strict=True):
                tokens[hot[i]] = token
    results = [_scored(token, scored.get(row), samplers[row]) for row, token in enumerate(tokens)]
    for sampler, token in zip(samplers, tokens, strict=True):
        sampler.took(token)
    return results


def _from_all(shares: Any, drawn: list[float]) -> list[int]:
    sums = shares.cumsum(-1)
    aims = torch.tensor(drawn, device=shares.device).unsqueeze(1) * sums[:, -1:]
    found: list[int] = (
        torch.searchsorted(sums, aims, right=True).clamp_(max=shares.shape[1] - 1)[:, 0].tolist()
    )
    return found


def _from_likeliest(shares: Any, samplers: list[Sampler]) -> list[int]:
    size = shares.shape[1]
    first = min(size, max(LIKELY, *(sampler.settings.top_k for sampler in samplers)))
    values, ids = (part.tolist() for part in shares.topk(first, dim=-1))
    chosen = []
    for row, sampler in enumerate(samplers):
        found = _pick(values[row], ids[row], sampler, whole=first == size)
        if found is None:
            every, order = shares[row].sort(descending=True)
            found = _pick(every.tolist(), order.tolist(), sampler, whole=True)
        chosen.append(ids[row][0] if found is None else found)
    return chosen


def _pick(values: list[float], ids: list[int], sampler: Sampler, *, whole: bool) -> int | None:
    """One of the likeliest that the settings leave; None when that needs more candidates."""
    settings = sampler.settings
    least = settings.min_p * values[0]
    most = settings.top_k or len(values)
    total, count, closed = 0.0, 0, False
    for value in values[:most]:
        if count and (total >= settings.top_p or value < least):
            closed = True
            break
        total += value
        count += 1
    if not (closed or whole or count == settings.top_k or total >= settings.top_p):
        return None
    aim = sampler.draw() * total
    for value, id in zip(values[:count], ids, strict=False):
        aim -= value
        if aim < 0:
            return id
    return ids[0]


def _scored(token: int, scores: Any, sampler: Sampler) -> Chosen:
    if scores is None:
        return Chosen(token)
    wanted = sampler.settings.logprobs or 0
    top: list[tuple[int, float]] = []
    if wanted:
        values, ids = scores.topk(min(wanted, len(scores)))
        top = list(zip(ids.tolist(), values.tolist(), strict=True))
    return Chosen(token, float(scores[token]), top)
