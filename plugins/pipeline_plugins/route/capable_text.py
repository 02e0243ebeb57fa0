"""What `route=capable` reads off a prompt: its word n-grams, and its shape.

N-grams are kept as 32-bit hashes, so that a saved estimator holds none of the texts that
it learned from.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Hashes = NDArray[np.uint32]

MAX_CHARACTERS = 6000
"""Of a longer prompt the first and last half of this are read: it bounds the time."""

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?|[^\w\s]|_+")
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPTION = re.compile(r"^\s*(?:[A-Ja-j]|\d{1,2})[.)]\s(.*)$", re.MULTILINE)
_LETTERS = re.compile(r"[a-z]{3}")
_ZEROS = str.maketrans("123456789", "000000000")

_FREQUENT = frozenset(
    re.findall(
        r"\w+",
        "the of a to and in is that for as with on by are be it which from an this at or was not",
    )
)
_NEGATIONS = frozenset(("not", "except", "least", "never", "false", "incorrect"))
_SUMMING_UP = ("all of", "none of", "both", "neither", "i and", "i,")


def excerpt(text: str) -> str:
    """The part of a prompt that is read."""
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]} {text[-half:]}"


def ngrams(text: str) -> Hashes:
    """Hashes of a text's words and pairs of words, sorted, each once.

    Case is ignored, punctuation is a word, and every digit reads 0.
    """
    tokens = [token.encode("utf-8", "replace") for token in _TOKEN.findall(text.lower().translate(_ZEROS))]
    found = [crc32(token) for token in tokens]
    found += [crc32(b" " + after, crc) for crc, after in zip(found, tokens[1:], strict=False)]
    return np.unique(np.array(found, dtype=np.uint32))


def shape(text: str) -> list[float]:
    """How a text looks, whatever it is about: lengths, numbers, options, symbols, wording."""
    words = _WORD.findall(text)
    options = [option.strip() for option in _OPTION.findall(text)]
    first = _OPTION.search(text)
    stem = text[: first.start()] if first else text
    return [
        *_lengths(text, stem, words),
        *_numbers(text, len(words)),
        *_options(options),
        *_symbols(text, stem, len(words)),
        *_wording(text, words),
    ]


def _lengths(text: str, stem: str, words: list[str]) -> Iterator[float]:
    yield math.log1p(len(text))
    yield math.log1p(len(words))
    yield math.log1p(len(stem))
    yield math.log1p(text.count("\n"))


def _numbers(text: str, words: int) -> Iterator[float]:
    numbers = _NUMBER.findall(text)
    largest = max((len(number.partition(".")[0].replace(",", "")) for number in numbers), default=0)
    yield math.log1p(len(numbers))
    yield len(numbers) / (words + 1)
    yield float(min(largest, 12))
    yield sum("." in number for number in numbers) / (words + 1)


def _options(options: list[str]) -> Iterator[float]:
    sizes = [len(option) for option in options] or [0]
    mean = sum(sizes) / len(sizes)
    lowered = [option.lower() for option in options]
    yield float(min(len(options), 12))
    yield math.log1p(mean)
    yield math.sqrt(sum((size - mean) ** 2 for size in sizes) / len(sizes)) / (mean + 1)
    yield _share(any(map(str.isdigit, option)) for option in options)
    yield _share(_LETTERS.search(option) is not None for option in lowered)
    yield float(any(option.startswith(_SUMMING_UP) for option in lowered))


def _symbols(text: str, stem: str, words: int) -> Iterator[float]:
    size = len(text) + 1
    yield 10 * sum(map(text.count, "+-*/=^<>−×÷√∫∑")) / size
    yield 10 * sum(map(text.count, "()[]{}")) / size
    yield 10 * text.count('"') / size
    yield 0.0 if text.isascii() else 10 * sum(character > "\x7f" for character in text) / size
    yield 10 * stem.count(".") / (words + 1)
    yield math.log1p(stem.count(","))
    yield math.log1p(stem.count("?"))
    yield float(":" in stem[-20:])
    yield float("$" in text)
    yield float("%" in text)
    yield float("__" in text)


def _wording(text: str, words: list[str]) -> Iterator[float]:
    lowered = [word.lower() for word in words]
    count = len(words) + 1
    yield sum(word[0].isupper() for word in words) / count
    yield sum(map(len, words)) / count
    yield sum(len(word) > 9 for word in words) / count
    yield sum(len(word) == 1 for word in words) / count
    yield sum(word in _FREQUENT for word in lowered) / count
    yield len(set(lowered)) / count
    yield float(not _NEGATIONS.isdisjoint(lowered[-200:]))
    yield float(lowered[:1] in (["what"], ["which"]))
    yield float("how" in lowered[:3] or "how" in lowered[-30:])
    yield float("which of the following" in text.lower())


def _share(hits: Iterator[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found) if found else 0.0


SHAPE = len(shape(""))
"""How many numbers `shape` gives."""
