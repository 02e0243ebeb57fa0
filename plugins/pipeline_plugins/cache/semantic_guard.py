"""What two questions must have in common, however similar they are: numbers, negations, names and so on.

An embedding barely sees them: "places to see in 2016" and "in 2017", "is it safe" and "is it not
safe", "rehab near Early County" and "near Banks County" are all above 0.97. "Turn dark mode on" and
"off" are at 0.93, "from PDF to Word" and "from Word to PDF" at 0.99. So a difference in numbers,
negations, opposites, directions or names rules a hit out, whatever the similarity.

Names are found by their capitals, without a model: a word that starts with one inside a sentence,
or that is all capitals. A name counts as known to the other text if that has the word at all, in
whatever case, because people are careless with capitals. Names differ where each text has one that
the other lacks; where only one names something, it is the other, only less precise, and similarity
and what was learned decide. In scripts without capitals, and in text all in lower case, no names are
found; opposites and directions are known in English alone. There similarity and what was learned decide.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline_plugins.cache.semantic_opposites import denies, opposed, sides_of

WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)*|[^\W_]+")
SENTENCE_ENDS = frozenset('.?!:;"“‘«([{\n•-')

_NO = """
no not never none nobody nothing nowhere neither nor cannot without except unless
nicht kein keine nie ohne ne pas jamais sans sin nunca non senza
"""
NEGATIONS = frozenset(_NO.split())

STRUCK = "\u0338"
"""The stroke through a sign that denies it, as in \u2260, which the model leaves out."""

_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
"""
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_NUMBERS.split())}
NUMBER_WORDS |= {"hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000"}
NUMBER_WORDS["half"] = "0.5"
del NUMBER_WORDS["one"]  # as often a pronoun as a number

_FUNCTION = """
a an the i i'm i've you he she it we they me my your his her its our their is are was were be been
am do does did have has had can could should would will shall may might must what which who whom
whose how why when where if and or but of to in on at for from by with as about than then this that
these those there any some so please
"""
FUNCTION_WORDS = frozenset(_FUNCTION.split())

FORWARD = frozenset({"to", "into", "than"})
"""Words between two things that can't change places: a PDF to Word, Java faster than Python."""

BEFORE, AFTER = 3, 3
"""Words on either side of these, or of `from`, among which the two things are looked for."""


@dataclass(slots=True, frozen=True)
class Facts:
    """What is compared of a text.

    words      its distinct words in lower case
    numbers    its numbers as written, number words as digits, sorted
    negations  whether they are odd in number
    names      its capitalised words, in lower case
    ways       pairs `a>b` of words in a direction, see `FORWARD`
    sides      of opposites, see `semantic_opposites`
    length     words in all
    first      the first word, which tells how from why
    """

    words: frozenset[str]
    numbers: tuple[str, ...]
    negations: bool
    names: frozenset[str]
    ways: frozenset[str]
    sides: frozenset[str]
    length: int
    first: str


def facts_of(text: str) -> Facts:
    """Read a text's facts; about 20 µs for a question."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    words: list[str] = []
    numbers: list[str] = []
    names: set[str] = set()
    negations = unicodedata.normalize("NFD", text).count(STRUCK)
    end = 0
    for found in WORD.finditer(text):
        word = found.group()
        between, end = text[end : found.start()], found.end()
        lower = word.lower()
        words.append(lower)
        if lower in NEGATIONS or lower.endswith("n't"):
            negations += 1
        if any(character.isdigit() for character in word):
            numbers.append(_plain_number(lower))
        elif lower in NUMBER_WORDS:
            numbers.append(NUMBER_WORDS[lower])
        elif word[0].isupper() and lower not in FUNCTION_WORDS:
            starts = len(words) == 1 or bool(SENTENCE_ENDS.intersection(between))
            if not starts or (len(word) > 1 and word.isupper()):
                names.add(lower)
    return Facts(
        frozenset(words),
        tuple(sorted(numbers)),
        negations % 2 == 1,
        frozenset(names),
        frozenset(_ways(words)),
        sides_of(words),
        len(words),
        words[0] if words else "",
    )


def _ways(words: Sequence[str]) -> Iterator[str]:
    """The words before a direction's with the first after it, as if all said where to."""
    for at, word in enumerate(words):
        if word in FORWARD or word == "from":
            after = next((w for w in words[at + 1 : at + 1 + AFTER] if w not in FUNCTION_WORDS), None)
            if after is not None:
                for before in words[max(0, at - BEFORE) : at]:
                    if before not in FUNCTION_WORDS:
                        yield f"{after}>{before}" if word == "from" else f"{before}>{after}"


def _turned(one: Facts, other: Facts) -> bool:
    """Whether something goes only the one way in a text, and only the other way in the other."""
    for way in one.ways - other.ways:
        before, _, after = way.partition(">")
        if (back := f"{after}>{before}") in other.ways and back not in one.ways:
            return True
    return False


def _plain_number(word: str) -> str:
    """Digits in one form: `1,000` and `1000`, `٣` and `3`."""
    digits = "".join(
        str(unicodedata.digit(character)) if character.isdigit() else character for character in word
    )
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", digits)


def difference(one: Facts, other: Facts) -> str:
    """What rules a common answer out: `numbers`, `negation`, `opposites`, `direction`, `names` or ``."""
    if one.numbers != other.numbers:
        return "numbers"
    if one.negations != other.negations:
        return "negation"
    only, others = one.words - other.words, other.words - one.words
    if opposed(one.sides, other.sides) or denies(only, others) or denies(others, only):
        return "opposites"
    if one.ways and other.ways and _turned(one, other):
        return "direction"
    if not (one.names.isdisjoint(only) or other.names.isdisjoint(others)):
        return "names"
    return ""
