"""Histograms of positive numbers that can be added up, with a stated error: DDSketch.

C. Masson, J. E. Rim and H. K. Lee, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with
Relative-Error Guarantees", VLDB 2019. Bucket `i` holds the numbers in (g^(i-1), g^i], with
g = (1 + ERROR) / (1 - ERROR); 2 g^i / (g + 1) is within the share `ERROR` of each of them. All
histograms have the same buckets, so that those of several processes add up without loss.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from math import ceil, inf, log
from operator import add

ERROR = 0.01
"""A quantile differs from the exact one by this share at most, from `LOWEST` to `HIGHEST`."""

LOWEST, HIGHEST = 1e-3, 1e8
"""What is less counts as `LOWEST`, what is more as `HIGHEST`: a microsecond to a day, in ms."""

GAMMA = (1 + ERROR) / (1 - ERROR)
SCALE = 1 / log(GAMMA)
FIRST, LAST = ceil(log(LOWEST) * SCALE), ceil(log(HIGHEST) * SCALE)

HEAD = struct.Struct("<hB")
"""The lowest bucket, and the bytes of each count."""

WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Histogram:
    """Counts of numbers by bucket; `count` is how many there are."""

    __slots__ = ("buckets", "count")

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        """Count a number."""
        bucket = ceil(log(value) * SCALE) if LOWEST < value < HIGHEST else FIRST if value <= LOWEST else LAST
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1

    def merge(self, other: Histogram) -> None:
        """Add another's counts."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count

    def quantile(self, share: float) -> float | None:
        """The number below which this share of them lies (0 to 1), within `ERROR`; None without any."""
        return self.quantiles((share,))[0]

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """The numbers of several shares in ascending order, for hardly more than one of them costs."""
        found: list[float | None] = []
        ranks = iter([share * (self.count - 1) for share in shares])
        rank, seen = next(ranks, inf), 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            while seen > rank:
                found.append(float(2 * GAMMA**bucket / (GAMMA + 1)))
                rank = next(ranks, inf)
        return found + [None] * (len(shares) - len(found))

    def to_bytes(self) -> bytes:
        """The lowest bucket (int16), the bytes of a count (uint8), and the counts from there on.

        Little-endian; nothing for an empty one.
        """
        if not self.buckets:
            return b""
        low, high = min(self.buckets), max(self.buckets)
        width = next(w for w in WIDTHS if max(self.buckets.values()) < 1 << 8 * w)
        counts = array(WIDTHS[width], bytes(width * (high - low + 1)))
        for bucket, count in self.buckets.items():
            counts[bucket - low] = count
        return HEAD.pack(low, width) + _little(counts).tobytes()

    @classmethod
    def from_bytes(cls, *parts: bytes | None) -> Histogram:
        """What `to_bytes` made, several added up; None and nothing are empty."""
        found = cls()
        sums, bottom, top = [0] * (LAST - FIRST + 1), LAST, FIRST
        for part in parts:
            if not part:
                continue
            low, width = HEAD.unpack_from(part)
            counts = _little(array(WIDTHS[width], part[HEAD.size :]))
            place = slice(low - FIRST, low - FIRST + len(counts))
            sums[place] = map(add, sums[place], counts)
            bottom, top = min(bottom, low), max(top, low + len(counts))
        seen = enumerate(sums[bottom - FIRST : top - FIRST], bottom)
        found.buckets = {bucket: count for bucket, count in seen if count}
        found.count = sum(sums)
        return found


def _little(counts: array[int]) -> array[int]:
    if sys.byteorder == "big":
        counts.byteswap()
    return counts
