"""Holding answers to a grammar or a JSON schema, by the optional library `llguidance`."""

from __future__ import annotations

import threading
from typing import Any

from pipeline.errors import InvalidRequest

LIBRARY = "pip install llguidance"


class Guides:
    """Makes guides for one tokenizer. What takes long is done once, on first use."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ready: Any = None
        self._lock = threading.Lock()

    def make(self, grammar: str, param: str, count: int) -> list[Guide]:
        """As many guides for a grammar. Blocks; raises `InvalidRequest` naming `param`."""
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise InvalidRequest(
                f"`{param}` needs a library that this server does not have: {LIBRARY}.", param=param
            ) from None
        with self._lock:
            if self._ready is None:
                self._ready = llguidance.hf.from_tokenizer(self._tokenizer, n_vocab=self._vocabulary)
        first = llguidance.LLMatcher(self._ready, grammar)
        if first.is_error():
            reason = str(first.get_error()).partition("\n")[0][:300]
            raise InvalidRequest(f"`{param}` can't be used: {reason}", param=param, code="invalid_schema")
        return [Guide(first if not index else first.deep_copy(), self._vocabulary) for index in range(count)]


class Guide:
    """What one sequence may say next."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def ended(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return bool(self._matcher.is_stopped())

    def restrict(self, logits: Any) -> None:
        """Make impossible, in place, whatever the grammar does not allow next."""
        import numpy
        import torch

        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        allowed = numpy.unpackbits(bits, bitorder="little", count=min(len(logits), 8 * len(bits)))
        mask = torch.zeros(len(logits), dtype=torch.bool)
        mask[: len(allowed)] = torch.from_numpy(allowed).bool()
        if bool(mask.any()):
            logits.masked_fill_(~mask.to(logits.device), float("-inf"))

    def took(self, token: int) -> None:
        """Go on past the token that was chosen."""
        self._matcher.consume_token(token)
