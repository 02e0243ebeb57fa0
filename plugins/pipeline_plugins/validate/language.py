"""`validate=language`: texts in the languages that are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from pipeline.problems import ConfigError, Problem
from pipeline_plugins.validate.finding import Finding, Subject
from pipeline_plugins.validate.library import load
from pipeline_plugins.validate.policy import Policy
from pipeline_plugins.validate.validator import Validator

READ = 2000
"""Characters of a text that decide: more change nothing."""


class LanguagePolicy(Policy):
    """Which languages."""

    piecewise = True

    allow: list[Annotated[str, Field(pattern="^[a-z]{2}$")]] = Field(
        default_factory=lambda: ["en"], min_length=1, max_length=75, description="ISO 639-1 codes that pass."
    )
    among: list[Annotated[str, Field(pattern="^[a-z]{2}$")]] = Field(
        default_factory=lambda: ["de", "en", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh"],
        max_length=75,
        description="Languages to tell apart; fewer are told better. Those allowed are among them.",
    )
    at_least: int = Field(
        20, ge=1, le=10_000, description="Letters of the shortest text that is judged; shorter ones pass."
    )
    confidence: float = Field(
        0.6, ge=0, le=1, description="Pass a text unless it is another language with this certainty."
    )


class Language(Validator[LanguagePolicy]):
    """Tells the language of user messages and answers with lingua, whose models are in its package."""

    Config = LanguagePolicy
    inline = 1024

    def prepare(self) -> None:
        """Make the detector. Raises `ConfigError`."""
        lingua = load("lingua", "lingua-language-detector", "language")
        known = {one.iso_code_639_1.name.lower(): one for one in lingua.Language.all()}
        for key in ("allow", "among"):
            for index, code in enumerate(getattr(self.config, key)):
                if code not in known:
                    problem = Problem(f"{key}.{index}", f"lingua knows no language `{code}`.")
                    raise ConfigError([problem])
        codes = sorted({*self.config.allow, *self.config.among})
        if len(codes) == 1:
            hint = "Name the languages to tell it from in `among`."
            raise ConfigError([Problem("among", "one language alone can't be told from others.", hint)])
        self._allowed = {known[code] for code in self.config.allow}
        builder = lingua.LanguageDetectorBuilder.from_languages(*(known[code] for code in codes))
        self._detector: Any = builder.build()

    def find(self, subject: Subject) -> Iterator[Finding]:
        """Texts of users and models in another language."""
        for text in subject.content:
            if text.role not in ("user", "assistant"):
                continue
            if subject.side == "request" and text.role != "user":
                continue
            part = text.text[:READ]
            if sum(c.isalpha() for c in part) < self.config.at_least:
                continue
            best = self._detector.compute_language_confidence_values(part)[0]
            if best.language not in self._allowed and best.value >= self.config.confidence:
                wanted = " or ".join(sorted(one.name.title() for one in self._allowed))
                yield Finding(text.path, f"is in {best.language.name.title()}, not in {wanted}")
