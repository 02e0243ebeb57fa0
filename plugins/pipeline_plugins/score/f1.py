"""`score=f1`: the words that an answer has in common with an expected one."""

from __future__ import annotations

from collections import Counter

from pipeline_plugins.score.reference import Reference, normalised


class F1(Reference):
    """Harmonic mean of precision and recall of words, as SQuAD measures it."""

    def likeness(self, answer: str, expected: str) -> float:
        """From 0 to 1; two empty texts are alike."""
        said, wanted = normalised(answer).split(), normalised(expected).split()
        if not said or not wanted:
            return float(said == wanted)
        common = sum((Counter(said) & Counter(wanted)).values())
        return 2 * common / (len(said) + len(wanted))
