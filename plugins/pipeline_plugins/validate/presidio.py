"""`validate=presidio`: the recognisers of Microsoft's Presidio, as a check like any other.

An adapter for a library that others use, and the pattern for more: a subclass that turns
what the library finds into findings. Only recognisers that work by patterns and check
digits are taken: those that need a language model load it from a hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline_plugins.validate.finding import Finding, Subject
from pipeline_plugins.validate.library import load
from pipeline_plugins.validate.policy import Policy
from pipeline_plugins.validate.validator import Validator

DEFAULT = [
    "CreditCardRecognizer",
    "EmailRecognizer",
    "IbanRecognizer",
    "IpRecognizer",
    "PhoneRecognizer",
    "UsSsnRecognizer",
]


class PresidioPolicy(Policy):
    """Which recognisers, and how sure they must be."""

    redactable = piecewise = True

    on_failure: Literal["reject", "retry", "fallback", "redact", "flag"] = Field(
        "redact", description="`redact` writes `<EMAIL_ADDRESS>` in place of an address; see Policy."
    )
    recognizers: list[Annotated[str, Field(pattern=r"^[A-Za-z]{1,64}$")]] = Field(
        default=DEFAULT,
        min_length=1,
        max_length=64,
        description="Classes of `presidio_analyzer.predefined_recognizers` that work by patterns.",
    )
    least: float = Field(0.4, ge=0, le=1, description="Lowest score that counts.")
    max_characters: int = Field(
        100_000, ge=1, le=1_000_000, description="Longer texts are not read: they fail. It is slow."
    )


class Presidio(Validator[PresidioPolicy]):
    """Finds personal data with Presidio's recognisers, in a thread."""

    Config = PresidioPolicy
    inline = -1

    def prepare(self) -> None:
        """Make the recognisers. Raises `ConfigError`."""
        analyzer = load("presidio_analyzer", "presidio-analyzer", "presidio")
        # Its rule for addresses would fetch the list of domains from the network.
        load("tldextract.tldextract", "tldextract", "presidio").TLD_EXTRACTOR.suffix_list_urls = ()
        known = load("presidio_analyzer.predefined_recognizers", "presidio-analyzer", "presidio")
        self._recognizers: list[Any] = []
        for index, wanted in enumerate(self.config.recognizers):
            cls: Any = getattr(known, wanted, None)
            if not _by_patterns(cls, analyzer, known):
                names = [n for n in dir(known) if _by_patterns(getattr(known, n), analyzer, known)]
                message = f"Presidio has no recogniser `{wanted}` that works by patterns."
                raise ConfigError([Problem(f"recognizers.{index}", message, did_you_mean(wanted, names))])
            self._recognizers.append(cls())

    def find(self, subject: Subject) -> Iterator[Finding]:
        """A finding for each result, with the kind of entity as its replacement."""
        for text in subject.texts:
            for recognizer in self._recognizers:
                for found in recognizer.analyze(text.text, recognizer.supported_entities, None):
                    if found.score >= self.config.least:
                        kind = found.entity_type
                        what = f"has personal data ({kind})"
                        yield Finding(text.path, what, (found.start, found.end), f"<{kind}>")


def _by_patterns(cls: Any, analyzer: Any, known: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, (analyzer.PatternRecognizer, known.PhoneRecognizer))
