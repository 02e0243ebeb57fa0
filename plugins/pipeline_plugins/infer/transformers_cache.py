"""Keys and values of all running sequences: one row per slot, rows in use first.

A decoding step works on rows 0 to n-1 at once; a prompt is read into one more row, the
last, and copied to its own when it is complete. So no step copies what it attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

BLOCK = 64
"""Widths are multiples of this, so that they change seldom."""

FIRST_CAPACITY = 256


class SlotCache(Cache):  # type: ignore[misc]
    """What a transformers model takes as `past_key_values`; `aim_*` says where it writes."""

    def __init__(self, slots: int, context: int, device: Any) -> None:
        super().__init__(layers=[])
        self.staging = slots
        self.context = context
        self.device = device
        self._keys: dict[int, Any] = {}
        self._values: dict[int, Any] = {}
        self._capacity = 0
        self._rows: Any = None
        self._places: Any = None
        self._start = 0
        self._width = 0

    def aim_at_prompt(self, start: int, length: int) -> None:
        """The next forward pass reads tokens from `start` on into the staging row."""
        self._rows, self._start, self._width = None, start, start + length
        self._reserve(self._width)

    def aim_at_rows(self, places: Any, width: int) -> None:
        """The next forward pass adds one token to each of the first rows, at these places."""
        self._rows, self._places, self._width = torch.arange(len(places), device=self.device), places, width
        self._reserve(width)

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Store a layer's new keys and values; return all that the pass attends to."""
        if layer_idx not in self._keys:
            shape = (self.staging + 1, keys.shape[1], self._capacity)
            self._keys[layer_idx] = keys.new_zeros((*shape, keys.shape[3]))
            self._values[layer_idx] = values.new_zeros((*shape, values.shape[3]))
        stored = self._keys[layer_idx], self._values[layer_idx]
        for whole, new in zip(stored, (keys, values), strict=True):
            if self._rows is None:
                whole[self.staging, :, self._start : self._width] = new[0]
            else:
                whole[self._rows, :, self._places] = new[:, :, 0]
        rows = slice(self.staging, None) if self._rows is None else slice(len(self._rows))
        return stored[0][rows, :, : self._width], stored[1][rows, :, : self._width]

    def get_seq_length(self, *_: Any) -> int:
        """Tokens before the current pass; models ask only where no positions are given."""
        return self._start if self._rows is None else self._width - 1

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one row over another."""
        if source != target:
            for whole in (*self._keys.values(), *self._values.values()):
                whole[target, :, :length] = whole[source, :, :length]

    def _reserve(self, width: int) -> None:
        """Make room for this many tokens per row: memory is taken as sequences need it."""
        if width <= self._capacity:
            return
        grown = max(self._capacity, FIRST_CAPACITY)
        while grown < width:
            grown *= 2
        self._capacity = min(grown, -(-self.context // BLOCK) * BLOCK)
        for tensors in (self._keys, self._values):
            for index, old in tensors.items():
                new = old.new_zeros((old.shape[0], old.shape[1], self._capacity, old.shape[3]))
                new[:, :, : old.shape[2]] = old
                tensors[index] = new


class Masks:
    """Additive attention masks, in the form that the model's layers expect."""

    def __init__(self, config: Any, dtype: Any, device: Any) -> None:
        types = set(getattr(config, "layer_types", None) or ())
        self.window: int | None = getattr(config, "sliding_window", None)
        self.mixed = "sliding_attention" in types
        self.dtype = dtype
        self.device = device

    def prompt(self, start: int, length: int) -> Any:
        """For tokens `start` to `start + length` of one sequence."""
        queries = torch.arange(start, start + length, device=self.device)
        return self._masks(queries.view(1, -1, 1), start + length)

    def rows(self, places: Any, width: int) -> Any:
        """For one token of each row, at these places."""
        return self._masks(places.view(-1, 1, 1), width)

    def _masks(self, queries: Any, width: int) -> Any:
        keys = torch.arange(width, device=self.device)
        seen = keys <= queries
        near = seen & (keys > queries - self.window) if self.window else seen
        if self.mixed:
            return {"full_attention": self._additive(seen), "sliding_attention": self._additive(near)}
        return self._additive(near)

    def _additive(self, seen: Any) -> Any:
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~seen, float("-inf")).unsqueeze(1)


class Network:
    """The model with its cache: reads prompts, and takes steps on all rows at once."""

    def __init__(self, model: Any, slots: int, context: int) -> None:
        self.model = model
        self.cache = SlotCache(slots, context, model.device)
        self.masks = Masks(model.config.get_text_config(), model.dtype, model.device)

    def read(self, ids: Sequence[int], start: int) -> Any:
        """Read a part of a prompt into the staging row; the last token's logits."""
        self.cache.aim_at_prompt(start, len(ids))
        places = torch.arange(start, start + len(ids), device=self.model.device)
        return self._forward([list(ids)], self.masks.prompt(start, len(ids)), places.view(1, -1))[0]

    def join(self, row: int, length: int) -> None:
        """Copy the staging row, that holds a whole prompt, to a row of its own."""
        self.cache.move(self.cache.staging, row, length)

    def step(self, tokens: Sequence[int], places: Sequence[int]) -> Any:
        """Add one token to each of the first rows; the logits of what follows, one row each."""
        width = min(-(-(max(places) + 1) // BLOCK) * BLOCK, -(-self.cache.context // BLOCK) * BLOCK)
        at = torch.tensor(places, device=self.model.device)
        self.cache.aim_at_rows(at, width)
        return self._forward([[token] for token in tokens], self.masks.rows(at, width), at.view(-1, 1))

    def _forward(self, ids: list[list[int]], mask: Any, places: Any) -> Any:
        output = self.model(
            input_ids=torch.tensor(ids, device=self.model.device),
            attention_mask=mask,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def agrees(self) -> bool:
        """Whether reading in parts and in steps gives what the model gives on its own.

        It does not for a model that keeps other state than keys and values per token.
        """
        ids = [token % self.model.config.get_text_config().vocab_size for token in range(11, 23)]
        with torch.inference_mode():
            given = torch.tensor([ids], device=self.model.device)
            expected = self.model(input_ids=given, use_cache=False).logits[0, -1].float()
            self.read(ids[:4], 0)
            self.read(ids[4:7], 4)
            for row in (0, 1)[: self.cache.staging]:
                self.join(row, 7)
            rows = min(2, self.cache.staging)
            for place in range(7, len(ids)):
                logits = self.step([ids[place]] * rows, [place] * rows)
        likeness = torch.nn.functional.cosine_similarity(logits, expected.expand_as(logits))
        return bool((likeness > 0.98).all())
