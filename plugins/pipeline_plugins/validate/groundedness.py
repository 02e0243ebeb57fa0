"""`validate=groundedness`: whether the claims of an answer are in the passages that it was given."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.kinds import Retrieved
from pipeline_plugins.validate.finding import Finding, Subject, Text
from pipeline_plugins.validate.policy import Policy
from pipeline_plugins.validate.validator import Validator

if TYPE_CHECKING:
    from pipeline_plugins.infer.minilm_embedder import Embedder

MAX_CLAIMS = 64
MAX_SENTENCES = 512
"""Claims of an answer and sentences of passages that are compared; an answer with more fails."""

SENTENCE = re.compile(r"[^\n]+?(?:[.!?](?=\s|$)|[。！？]|(?=\n)|$)")
WORD = re.compile(r"[^\W\d_]{3,}|\d+(?:[.,]\d+)*")
COMMON = (
    "the and for are was were has have had that this with from which its their they also been not but "
    "can will would may more than into such these those when where what who how all any"
)
STOP = frozenset(COMMON.split())


class GroundednessPolicy(Policy):
    """How close is close enough."""

    redactable = True

    side: Literal["reply"] = Field("reply", description="What to check.")
    least: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Mean of similarity and share of words in common that a claim needs with a passage.",
    )
    numbers: bool = Field(True, description="A claim's numbers must be in the passages as they are.")
    claim_words: int = Field(4, ge=1, le=100, description="Shorter sentences claim nothing.")


class Groundedness(Validator[GroundednessPolicy]):
    """Compares each sentence of an answer with those of the passages that `rag` retrieved.

    By meaning (MiniLM) and by words. It finds what is nowhere in the passages; a claim that
    negates one uses its words and passes. A call without passages is not checked.
    """

    Config = GroundednessPolicy
    inline = -1
    _embedder: Embedder | None = None

    async def open(self) -> None:
        """Load the embedding model, in a thread. Raises `ConfigError` where it is missing."""
        from pipeline_plugins.infer.minilm_embedder import Embedder

        self._embedder = await asyncio.to_thread(Embedder)

    def find(self, subject: Subject) -> Iterator[Finding]:
        """Sentences of the answer that no passage supports, with their spans."""
        retrieved = subject.call.record.decision(Retrieved)
        if retrieved is None or not retrieved.texts:
            return
        numbers = {n for text in retrieved.texts for n in WORD.findall(text) if n[0].isdigit()}
        for text in subject.content:
            claims = claims_in(text.text, self.config.claim_words)
            if len(claims) > MAX_CLAIMS:
                yield Finding(text.path, f"makes more than {MAX_CLAIMS} claims, which are not compared")
            elif claims:
                yield from self._unsupported(subject, text, claims, numbers, retrieved.texts)

    def _unsupported(
        self,
        subject: Subject,
        text: Text,
        claims: list[re.Match[str]],
        numbers: set[str],
        passages: Sequence[str],
    ) -> Iterator[Finding]:
        if self._embedder is None:
            raise RuntimeError("the stage is not open")
        scores = support(self._embedder, [claim[0] for claim in claims], passages)
        subject.scored(round(min(scores), 3))
        for claim, score in zip(claims, scores, strict=True):
            own = _words(claim[0])
            strange = sorted(n for n in own if n[0].isdigit() and n not in numbers)
            what, quoted = "claims what no passage says", f"`{claim[0].strip()[:80]}`"
            if score < self.config.least:
                yield Finding(text.path, f"{what} (support {score:.2f})", claim.span(), detail=quoted)
            elif self.config.numbers and strange:
                quoted = f"{quoted}, {', '.join(strange[:5])}"
                yield Finding(text.path, f"{what}, by its numbers", claim.span(), detail=quoted)


def claims_in(text: str, words: int) -> list[re.Match[str]]:
    """The sentences of at least so many words."""
    return [match for match in SENTENCE.finditer(text) if len(_words(match[0])) >= words]


def support(embedder: Embedder, claims: Sequence[str], passages: Sequence[str]) -> list[float]:
    """For each claim the best mean of cosine and share of words in common with a sentence of the passages."""
    grounds = [m[0] for text in passages for m in SENTENCE.finditer(text)][:MAX_SENTENCES] or [""]
    near = embedder.embed(claims, truncate=True) @ embedder.embed(grounds, truncate=True).T
    words = [_words(ground) for ground in grounds]
    return [
        max((float(s) + _share(own, other)) / 2 for s, other in zip(similar, words, strict=True))
        for own, similar in zip(map(_words, claims), near, strict=True)
    ]


def _words(text: str) -> set[str]:
    return {word for word in WORD.findall(text.lower()) if word not in STOP}


def _share(claim: set[str], ground: set[str]) -> float:
    """Share of a claim's words that a sentence has."""
    return len(claim & ground) / len(claim) if claim else 1.0
