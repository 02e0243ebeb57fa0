"""Words that say the opposite of each other, or name one of several that exclude each other.

An embedding puts opposites near each other, because they are said of the same things: "turn it on"
and "turn it off" are above 0.9. So the guard asks here which side each text is on. A text that names
both sides, as "the difference between import and export" does, is on neither.

The list is written by hand, for English, of words that people ask assistants about; it can't be
whole. Its words were kept where, among Quora's labelled questions, those that it tells apart more
often differ than not. Opposites made by a prefix or suffix (legal, illegal; harmful, harmless) need
no list: see `denies`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

VERBS = """
enable activate / disable deactivate
increase raise rise rose risen grow grew gain gained boost / decrease reduce lower lose lost shrink shrank
start begin began begun launch / stop end finish quit cancel
open reopen / close shut
add insert append create / remove delete erase subtract drop
install / uninstall remove delete
accept approve / reject decline refuse deny denied
allow permit / forbid forbade forbidden prevent block ban prohibit
buy bought purchase / sell sold
lend lent / borrow
import / export
upload / download
send sent / receive
push / pull
encrypt / decrypt
encode / decode
compress zip / decompress unzip
attach / detach
connect / disconnect
lock / unlock
follow / unfollow
subscribe / unsubscribe
include / exclude
win won / lose lost
pass / fail
arrive / leave depart
marry / divorce
love / hate
attract / repel
expand / collapse contract
hide hid hidden / reveal unhide
freeze froze frozen / melt thaw
deposit / withdraw withdrew
hire / fire
mute / unmute
"""
"""A line for each set, sides between slashes; their inflected forms are made."""

OTHERS = """
before / after
first / last
next / previous
past / future
early earlier earliest / late later latest
high higher highest / low lower lowest
maximum max most / minimum min least fewest
more / less fewer
big bigger biggest large larger largest / small smaller smallest tiny
long longer longest / short shorter shortest
tall taller tallest / short shorter shortest
fast faster fastest quick quicker / slow slower slowest
hot hotter hottest / cold colder coldest
easy easier easiest / hard harder hardest difficult
good better / bad worse
best / worst
rich richer richest / poor poorer poorest
strong stronger strongest / weak weaker weakest
heavy heavier heaviest / light lighter lightest
thick thicker / thin thinner
wide wider / narrow narrower
new newer newest / old older oldest
cheap cheaper cheapest / expensive pricey
advantage advantages pros pro benefits / disadvantage disadvantages cons con drawbacks
positive / negative
true / false
alive / dead
birth / death
success / failure
profit profits / loss losses
debit / credit
supply / demand
asset assets / liability liabilities
buyer buyers / seller sellers
employer employers / employee employees
landlord landlords / tenant tenants
sender / receiver recipient
ascending / descending
up / down
left / right
top / bottom
front / back
inside indoor indoors / outside outdoor outdoors
internal / external
input / output
public / private
male males man men boy boys / female females woman women girl girls
husband husbands boyfriend boyfriends / wife wives girlfriend girlfriends
father dad / mother mom mum
son sons / daughter daughters
brother brothers / sister sisters
day daytime / night nighttime
morning / evening / afternoon
spring / summer / autumn fall / winter
north northern / south southern / east eastern / west western
monday / tuesday / wednesday / thursday / friday / saturday / sunday
january / february / march / april / june / july / august / september / october / november / december
red / blue / green / yellow / black / white
celsius / fahrenheit
plaintiff / defendant
introvert introverts introverted / extrovert extroverts extroverted
"""
"""The same for words that are taken as they are."""

PARTICLES = {"on": "enable:enable", "off": "enable:disable", "in": "in:in", "out": "in:out"}
"""Sides of the words that say which way a verb goes: switched `on`, logged `out`."""

_SWITCHED = """
turn turned turning turns switch switched switching switches toggle power powered leave keep stay put
go is are was
"""
SWITCHED = frozenset(_SWITCHED.split())
"""Verbs that `on` may belong to; it is a preposition elsewhere."""

_ENTERED = """
log logged logging sign signed signing check checked checking opt opted clock move moving zoom fade
"""
ENTERED = frozenset(_ENTERED.split())
"""Verbs that `in` and `out` may belong to."""

REACH = 3
"""Words that may stand between a verb and its particle: "turn the screen reader on"."""

PREFIXES = ("un", "non", "dis", "im", "il", "ir", "in")
LEAST_STEM = 4
"""Letters of a word that a prefix turns around; shorter ones are chance: `inside`, `until`."""


def _forms(verb: str) -> Iterable[str]:
    """A verb's forms as spelt by rule; some are no words, and do no harm."""
    yield from (verb, f"{verb}s", f"{verb}es", f"{verb}ed", f"{verb}ing")
    yield from (f"{verb}{verb[-1]}ed", f"{verb}{verb[-1]}ing")
    if verb.endswith("e"):
        yield from (f"{verb}d", f"{verb[:-1]}ing")
    if verb.endswith("y"):
        yield from (f"{verb[:-1]}ies", f"{verb[:-1]}ied")


def _read() -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    """Each word's sides, and each side's rivals; a side's name is its set's first word and its own."""
    sides: dict[str, set[str]] = {}
    rivals: dict[str, frozenset[str]] = {"in:in": frozenset({"in:out"}), "in:out": frozenset({"in:in"})}
    for text, inflected in ((VERBS, True), (OTHERS, False)):
        for line in text.strip().splitlines():
            groups = [side.split() for side in line.split("/")]
            names = [f"{groups[0][0]}:{words[0]}" for words in groups]
            for name, words in zip(names, groups, strict=True):
                rivals[name] = frozenset(names) - {name}
                for word in words:
                    for form in _forms(word) if inflected else (word,):
                        sides.setdefault(form, set()).add(name)
    return {word: frozenset(names) for word, names in sides.items()}, rivals


SIDES, RIVALS = _read()


def sides_of(words: Sequence[str]) -> frozenset[str]:
    """The sides that a text's words, in order and in lower case, are on."""
    found: set[str] = set()
    for at, word in enumerate(words):
        if word in SIDES:
            found |= SIDES[word]
        elif word in PARTICLES and (word == "off" or _belongs(words, at)):
            found.add(PARTICLES[word])
    return frozenset(found)


def _belongs(words: Sequence[str], at: int) -> bool:
    """Whether a particle is a verb's, not a preposition: the first one soon after it."""
    verbs = SWITCHED if words[at] == "on" else ENTERED
    for word in reversed(words[max(0, at - 1 - REACH) : at]):
        if word in verbs:
            return True
        if word in PARTICLES:
            return False
    return False


def opposed(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two texts are on different sides of something, and neither on both."""
    for side in one:
        if side not in other:
            rivals = RIVALS[side]
            if not rivals.isdisjoint(other) and rivals.isdisjoint(one):
                return True
    return False


def denies(one: Iterable[str], other: frozenset[str]) -> bool:
    """Whether one of these words turns one of the `other`s around: `unsafe` and `safe`."""
    for word in one:
        if word.endswith("less") and f"{word[:-4]}ful" in other:
            return True
        for prefix in PREFIXES:
            stem = word.removeprefix(prefix)
            if stem in other and len(word) - len(prefix) >= LEAST_STEM:
                return True
    return False
