"""`validate=pii`: personal data and secrets, found by form and proved by their check digits."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline import Call, Reply, hookimpl
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline_plugins.validate import streams
from pipeline_plugins.validate.finding import Finding, Path, Subject, joined, texts_of_reply, without
from pipeline_plugins.validate.follow import Window
from pipeline_plugins.validate.library import load
from pipeline_plugins.validate.policy import Policy
from pipeline_plugins.validate.regex import compiled
from pipeline_plugins.validate.validator import Validator

Entity = Literal["email", "phone", "card", "iban", "ip", "us_ssn", "secret"]

CANDIDATES: dict[str, str] = {
    "secret": r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[0-9A-Za-z]{36}\b"
    r"|\bsk-[0-9A-Za-z_-]{20,200}|\bxox[abprs]-[0-9A-Za-z-]{10,100}"
    r"|\beyJ[0-9A-Za-z_-]{8,400}\.eyJ[0-9A-Za-z_-]{8,800}\.[0-9A-Za-z_-]{8,400}",
    "email": r"\b[0-9A-Za-z][0-9A-Za-z._%+-]{0,63}@(?:[0-9A-Za-z-]{1,63}\.){1,8}[A-Za-z]{2,24}\b",
    "iban": r"\b[A-Z]{2}[0-9]{2}(?: ?[0-9A-Z]){11,30}\b",
    "card": r"\b[0-9](?:[ -]?[0-9]){12,}\b",
    "us_ssn": r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b",
    "ip": r"\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}",
    "phone": r"(?:\+|\b|\()[0-9](?:[0-9]|[ ().\/-]{1,2}[0-9]){6,16}",
}
"""What may be one, for RE2, in the order in which they are looked for; a card may be in the midst of it."""

NATIONAL = r"\b[0-9A-Z](?:[./-]?[0-9A-Z]){0,20}\b"
GROUPS = 5
"""A card's or a state's number is written in this many groups at most, with one space between them."""

DATE = re.compile(r"(?:19|20)\d\d[-/.]\d{1,2}[-/.]\d{1,2}\b|\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)\d\d\b")
DIGITS = re.compile("[0-9]+")
PHONE_GROUPS = 7
SINGLE_DIGITS = 2
"""A phone number is written in so many groups at most, so many of them of one digit."""


class PIIPolicy(Policy):
    """What is personal, and whether it comes back."""

    redactable = piecewise = True

    side: Literal["request", "reply", "both"] = Field("request", description="What to check.")
    on_failure: Literal["reject", "retry", "fallback", "redact", "flag"] = Field(
        "redact", description="`redact` masks what was found: the model sees `<EMAIL_1>`; see Policy."
    )
    entities: list[Entity] = Field(
        default=["email", "phone", "card", "iban", "us_ssn", "secret"],
        description="What to look for: email phone card iban ip us_ssn secret.",
    )
    national: list[Annotated[str, Field(pattern=r"^[a-z]{2}\.[a-z0-9_]{2,20}$")]] = Field(
        default_factory=list,
        max_length=32,
        description="Numbers of states with check digits, by python-stdnum's names: `de.idnr`, `es.nif`.",
    )
    region: str = Field(
        "US", pattern="^[A-Z]{2}$", description="Country of phone numbers that are written without one."
    )
    restore: bool = Field(True, description="Put back in the reply what was masked in its request.")


PLACEHOLDER = re.compile(r"<[A-Z0-9_]{1,40}_[0-9]{1,9}>")


@dataclass(slots=True)
class Masked:
    """What stands behind the placeholders of one call. Never logged, never shown."""

    values: dict[str, str] = field(default_factory=dict, repr=False)
    names: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)
    last: dict[str, int] = field(default_factory=dict)

    def placeholder(self, entity: str, value: str, taken: set[str]) -> str:
        """The placeholder of a value: the same for the same, and none that a text has already."""
        known = self.names.get((entity, value))
        if known is not None:
            return known
        number = self.last.get(entity, 0) + 1
        while (name := f"<{entity.upper()}_{number}>") in taken:
            number += 1
        self.last[entity] = number
        self.values[name] = value
        self.names[entity, value] = name
        return name


class PII(Validator[PIIPolicy]):
    """Finds personal data, and masks, restores, refuses or flags it.

    Candidates are found by RE2 in linear time; python-stdnum and phonenumbers decide, so
    that a number with a wrong check digit is none. Names and addresses of people are not
    found: they take a model.
    """

    Config = PIIPolicy

    def prepare(self) -> None:
        """Compile patterns and load what proves a candidate. Raises `ConfigError`."""
        if not (self.config.entities or self.config.national):
            raise ConfigError([Problem("entities", "there is nothing to look for.", "Give one at least.")])
        self._finders: list[tuple[str, Any, Callable[[str], bool]]] = [
            (entity, compiled([CANDIDATES[entity]])[0], _prover(entity, self.config.region))
            for entity in CANDIDATES
            if entity in self.config.entities
        ]
        self._national: list[tuple[str, Callable[[str], bool]]] = []
        self._groups = compiled([NATIONAL])[0]
        for index, number in enumerate(self.config.national):
            prover = _national(number, f"national.{index}")
            self._national.append((number.replace(".", "_"), prover))

    def spans(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Entity, start and end of what is personal in a text."""
        for entity, pattern, is_one in self._finders:
            matches = [match.span() for match in pattern.finditer(text)]
            if entity == "card":
                groups = [group for match in matches for group in _digits(text, *match)]
                found = _joined_groups(text, groups, is_one, " -")
            else:
                found = (span for span in matches if is_one(text[slice(*span)]))
            yield from ((entity, start, end) for start, end in found)
        if self._national:
            words = [word.span() for word in self._groups.finditer(text)]
            for entity, is_one in self._national:
                for start, end in _joined_groups(text, words, is_one, " "):
                    yield entity, start, end

    @hookimpl
    def pipeline_redact(self, text: str) -> str:
        """The text with `<EMAIL>` and the like in the place of what is personal."""
        found = [
            Finding((), "", (start, end), f"<{entity.upper()}>") for entity, start, end in self.spans(text)
        ]
        for one in reversed(list(joined(found))):
            start, end = one.at
            text = f"{text[:start]}{one.replacement}{text[end:]}"
        return text

    def find(self, subject: Subject) -> Iterator[Finding]:
        """A finding for each; its replacement is a placeholder."""
        record = subject.call.record
        masked = record.decision(Masked) or Masked()
        restorable = subject.side == "request" and self.config.on_failure == "redact"
        taken = {name for text in subject.texts for name in PLACEHOLDER.findall(text.text)}
        for text in subject.texts:
            found = [
                Finding(text.path, f"has personal data ({entity})", (start, end), entity)
                for entity, start, end in self.spans(text.text)
            ]
            for one in joined(found):
                value, entity = text.text[slice(*one.at)], one.replacement
                name = masked.placeholder(entity, value, taken) if restorable else f"<{entity.upper()}>"
                yield Finding(one.path, one.what, one.span, name)
        if masked.values:
            record.decide(masked)

    async def __call__(self, call: Call) -> Reply:
        """Check as any validator; then put back what was masked."""
        reply = await super().__call__(call)
        masked = call.record.decision(Masked)
        if masked is None or not self.config.restore or self.config.side == "reply" or reply.status != 200:
            return reply
        return restored(reply, masked)


def restored(reply: Reply, masked: Masked) -> Reply:
    """A reply with its placeholders replaced by what they stand for, a stream as it comes."""

    def find(path: Path, text: str) -> list[Finding]:
        found = ((m.span(), masked.values.get(m[0])) for m in PLACEHOLDER.finditer(text))
        return [Finding(path, "", span, value) for span, value in found if value is not None]

    if reply.body is not None:
        texts = texts_of_reply(reply.json)
        found = [finding for text in texts for finding in find(text.path, text.text)]
        if not found:
            return reply
        whole = Reply.of(without(reply.json, texts, found), usage=reply.usage)
        whole.headers, whole.model = reply.headers, reply.model
        return whole

    async def check(path: Path, text: str) -> list[Finding]:
        return find(path, text)

    longest = max(len(name) for name in masked.values)

    def follow(inner: Reply) -> AsyncGenerator[bytes, None]:
        return streams.followed(inner, Window(longest, check), lambda found: True)

    return streams.wrapped(reply, follow)


def _prover(entity: str, region: str) -> Callable[[str], bool]:
    """Whether a candidate is one."""
    match entity:
        case "card":
            luhn = load("stdnum.luhn", "python-stdnum")
            return lambda text: _is_card(luhn, text)
        case "iban":
            iban = load("stdnum.iban", "python-stdnum")
            return lambda text: bool(iban.is_valid(text))
        case "us_ssn":
            ssn = load("stdnum.us.ssn", "python-stdnum")
            return lambda text: bool(ssn.is_valid(text))
        case "phone":
            numbers = load("phonenumbers", "phonenumbers")
            if region not in numbers.SUPPORTED_REGIONS:
                hint = "Expected a code of ISO 3166, such as `US`, or `GB` for the United Kingdom."
                raise ConfigError([Problem("region", f"there is no country `{region}`.", hint)])
            return lambda text: _is_phone(numbers, text, region)
        case "ip":
            return _is_address
    return lambda text: True


def _is_card(luhn: Any, text: str) -> bool:
    """Grouped as cards are (4-4-4-4, 4-6-5, 4-4-4-4-3, or not at all), which rows of numbers are not."""
    if len(text) < 13 or text[0] not in "23456":
        return False
    *groups, last = re.split("[ -]", text)
    number = "".join([*groups, last])
    grouped = all(len(group) >= 4 for group in groups) and not _counts([*groups, last])
    return grouped and 13 <= len(number) <= 19 and len(set(number)) > 1 and bool(luhn.is_valid(number))


def _digits(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The groups of digits in a part of a text."""
    return (group.span() for group in DIGITS.finditer(text, start, end))


def _counts(groups: list[str]) -> bool:
    """Whether three numbers or more go up or down by equal steps."""
    steps = {int(after) - int(before) for before, after in itertools.pairwise(groups)}
    return len(groups) > 2 and len(steps) == 1 and steps != {0}


def _is_phone(numbers: Any, text: str, region: str) -> bool:
    groups = DIGITS.findall(text)
    singles = sum(len(group) == 1 for group in groups)
    if len(groups) > PHONE_GROUPS or singles > SINGLE_DIGITS:
        return False
    if text[0] not in "+(0" and (_counts(groups) or DATE.match(text)):
        return False
    try:
        return bool(numbers.is_valid_number(numbers.parse(text, region)))
    except numbers.NumberParseException:
        return False


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return len(text) > 3 and not address.is_unspecified


def _national(number: str, field: str) -> Callable[[str], bool]:
    country, _, name = number.partition(".")
    numbers = load("stdnum.util", "python-stdnum")
    module = numbers.get_cc_module(country, name)
    if module is None:
        known = [f"{country}.{m.__name__.rpartition('.')[2]}" for m in _modules(country)]
        hint = did_you_mean(number, known)
        raise ConfigError([Problem(field, f"python-stdnum knows no `{number}`.", hint)])
    return lambda text: any(c.isdigit() for c in text) and bool(module.is_valid(text))


def _joined_groups(
    text: str, groups: list[tuple[int, int]], is_one: Callable[[str], bool], between: str
) -> Iterator[tuple[int, int]]:
    """Runs of groups that are a number together, the longest first."""
    for first, (start, _) in enumerate(groups):
        last = first
        while (
            last + 1 < len(groups)
            and last + 1 - first < GROUPS
            and groups[last][1] + 1 == groups[last + 1][0]
            and text[groups[last][1]] in between
        ):
            last += 1
        for end in (groups[index][1] for index in range(last, first - 1, -1)):
            if is_one(text[start:end]):
                yield start, end
                break


def _modules(country: str) -> list[Any]:
    package = load("stdnum.util", "python-stdnum").get_number_modules()
    return [module for module in package if module.__name__.startswith(f"stdnum.{country}.")]
