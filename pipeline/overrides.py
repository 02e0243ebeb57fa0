"""Overrides from the command line: read by Hydra's grammar, checked against the config groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from pipeline.problems import Problem, did_you_mean


def quoted(text: str) -> str:
    """A text as the value of an override that says just this, whatever signs are in it."""
    # A backslash escapes a quote, the end or an interpolation, and is itself anywhere else.
    plain = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), plain) + "'"


def parse(overrides: Sequence[str], problems: list[Problem]) -> list[Override]:
    """The overrides that can be read; what is wrong with the others goes to `problems`."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for text in overrides:
        # Values are not repeated: one of them may be a secret.
        shown = text if "=" not in text else f"{text.partition('=')[0]}=…"
        try:
            override = parser.parse_override(text)
        except (HydraException, RecursionError):
            override = None
        if override is None or not override.key_or_group:
            hint = "Expected KEY=VALUE, +KEY=VALUE or ~KEY; quote values with commas, spaces or brackets."
            problems.append(Problem("", f"`{shown}` is not a Hydra override.", hint))
        elif override.is_sweep_override():
            key = override.key_or_group
            hint = f"For a list write {key}=[A,B]; only sweeps (-m) take several."
            problems.append(Problem(key, f"`{shown}` gives several values.", hint, f"override {key}"))
        else:
            parsed.append(override)
    return parsed


def option_exists(override: Override, groups: Mapping[str, Sequence[str]], problems: list[Problem]) -> bool:
    """Report an unknown option of a group; Hydra would stop at the first."""
    group = override.key_or_group
    options = groups.get(group)
    value = override.value()
    if options is None or override.is_delete() or isinstance(value, list) or value in options:
        return True
    origin = f"override {override.input_line}"
    path = override.package or group
    if isinstance(value, str):
        problems.append(Problem(path, f"no option `{value}`.", did_you_mean(value, options), origin))
    else:
        example = f"{override.get_key_element()}={options[0]}"
        hint = f"Expected an option, say `{example}`; for its keys write `{path}.KEY=VALUE`."
        problems.append(Problem(path, f"`{group}` is a group.", hint, f"override {path}"))
    return False


def force(override: Override, groups: Mapping[str, Sequence[str]]) -> str:
    """Let a plain override reach keys that no YAML names: pydantic knows which exist."""
    text = override.input_line or ""
    plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    return f"++{text}" if plain and override.key_or_group not in groups else text
