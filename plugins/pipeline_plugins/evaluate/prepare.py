"""From overrides to a run that can start: composed, checked, its data read, its scorers built."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config, compose
from pipeline.config_print import MASK, shown
from pipeline.overrides import quoted
from pipeline.plan import Plan, check_model
from pipeline.plugins import PluginError, Registry
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline.secrets import CREDENTIALS, is_secret
from pipeline_plugins.evaluate.example import DataSet
from pipeline_plugins.evaluate.files import digest_of
from pipeline_plugins.evaluate.metric import MEASURES, Metric, Scorer
from pipeline_plugins.evaluate.settings import Evaluation

KEYS = re.compile(r"[\w-]+(?=['\"]?\s*:)")
"""Words within a value that are keys of a mapping."""

DEFAULT = "eval.graph"
"""How examples are run where the configuration does not say."""

DATA_SUFFIXES = (".jsonl", ".csv", ".parquet", ".gz")


@dataclass(slots=True)
class Prepared:
    """A run that can start.

    config     all values with their defaults, secrets masked
    digest     of the configuration and the data: equal ones are the same work
    """

    overrides: list[str]
    composed: Config
    plan: Plan
    call_timeout: float
    settings: Evaluation
    data: DataSet
    scorers: dict[str, Scorer]
    metrics: list[Metric]
    config: dict[str, Any]
    digest: str

    @property
    def quality(self) -> str | None:
        """The metric that `quality` stands for."""
        return self.settings.quality or next((one.name for one in self.metrics), None)


def prepare(
    overrides: Sequence[str], config: Path | None = None, *, registry: Registry | None = None
) -> Prepared:
    """Compose and check everything. Raises `ConfigError` and `DataError`.

    `registry` is of the plugins that are installed, which takes time to find out.
    """
    registry = registry or Registry()
    given = with_data_file(overrides, registry)
    composed = compose(given, config=config, registry=registry)
    plan, server = composed.plan()
    problems: list[Problem] = []
    own = composed.values.get("eval") or {}
    settings = _build(composed, "eval", {**own, "plugin": own.get("plugin") or DEFAULT}, problems)
    source = _build(composed, "data", composed.values.get("data") or {}, problems)
    scorers = _scorers(composed, problems)
    if source is None and not problems:
        problems.append(
            Problem("data", "there is no data set to run.", "Give one, say `data=questions.jsonl`.")
        )
    metrics = [metric for scorer in scorers.values() for metric in scorer.metrics]
    if settings is not None:
        _check_metrics(settings.config, metrics, problems)
    if problems or settings is None or source is None:
        raise ConfigError(problems)
    plan = source.claim(plan) if hasattr(source, "claim") else plan
    data = source.read()
    if settings.config.speed is not None and any(one.at is None for one in data.examples):
        hint = "Leave `eval.speed` out, or use data that knows, such as `data=ledger`."
        raise ConfigError([Problem("eval.speed", "nobody knows when these examples were sent.", hint)])
    masked = shown(composed) | {
        "eval": {"plugin": own.get("plugin") or DEFAULT, **settings.config.model_dump()}
    }
    digest = digest_of([masked, data.sha256])
    return Prepared(
        [without_secret(one, masked) for one in overrides],
        composed,
        plan,
        server.call_timeout,
        settings.config,
        data,
        scorers,
        metrics,
        masked,
        digest,
    )


def with_data_file(overrides: Sequence[str], registry: Registry) -> list[str]:
    """The overrides with `data=FILE` written as the option that reads files."""
    known = registry.names("data")
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        path = value.strip("'\"")
        if key == "data" and value not in known and (path.endswith(DATA_SUFFIXES) or Path(path).is_file()):
            found += ["data=file", f"data.path={quoted(path)}"]
        else:
            found.append(override)
    return found


def _build(
    composed: Config, path: str, node: dict[str, Any], problems: list[Problem], name: str | None = None
) -> Any:
    """The plugin that a node names, None if it names none or is wrong."""
    if node.get("plugin") is None:
        return None
    try:
        loaded = composed.registry.find(node["plugin"]).load()
    except PluginError as error:
        problems.append(Problem(f"{path}.plugin", f"{error}.", error.hint))
        return None
    values = {key: value for key, value in node.items() if key != "plugin"}
    found: list[Problem] = []
    checked = check_model(loaded.config, values, path, found)
    if checked is not None:
        try:
            return loaded.cls(config=checked, **({"name": name} if loaded.wants_name else {}))
        except ConfigError as error:
            found += [Problem(f"{path}.{p.path}", p.message, p.hint) for p in error.problems]
        except (ValueError, ImportError) as error:
            found.append(Problem(path, f"`{node['plugin']}` refuses its config: {error}"))
    problems.extend(Problem(p.path, p.message, p.hint, composed.origin(p.path)) for p in found)
    return None


def _scorers(composed: Config, problems: list[Problem]) -> dict[str, Scorer]:
    nodes = composed.values.get("score") or {}
    problems.extend(
        Problem(
            f"score.{name}",
            "it is told something, but not chosen.",
            f"Choose it, `score=[{name}]`, or delete it, `~score.{name}`.",
            composed.origin(f"score.{name}"),
        )
        for name, node in nodes.items()
        if isinstance(node, dict) and "plugin" not in node
    )
    built = {
        name: _build(composed, f"score.{name}", node, problems, name)
        for name, node in nodes.items()
        if isinstance(node, dict)
    }
    return {name: scorer for name, scorer in built.items() if scorer is not None}


def _check_metrics(settings: Evaluation, metrics: Sequence[Metric], problems: list[Problem]) -> None:
    names = [metric.name for metric in (*metrics, *MEASURES)]
    problems.extend(
        Problem("score", f"two scorers measure `{name}`.", "Give one of them another name.")
        for name in sorted({name for name in names if names.count(name) > 1})
    )
    wanted = [("eval.quality", settings.quality)] if settings.quality is not None else []
    wanted += [("eval.objective", name) for name in settings.objective if name != "quality"]
    for path, name in wanted:
        if name not in names:
            problems.append(Problem(path, f"nothing measures `{name}`.", did_you_mean(str(name), names)))


def without_secret(override: str, masked: dict[str, Any]) -> str:
    """An override without its value, if that is a secret or holds one. `masked` is what it led to."""
    key, sign, value = override.partition("=")
    keys = key.lstrip("+~").split(".")
    if not sign or value.startswith("${"):
        return override
    node: Any = masked
    for part in keys:
        node = node.get(part) if isinstance(node, dict) else None
    secret = is_secret(keys) or _has_mask(node) or any(is_secret((word,)) for word in KEYS.findall(value))
    return f"{key}={MASK}" if secret else CREDENTIALS.sub(MASK, override)


def _has_mask(node: Any) -> bool:
    if isinstance(node, dict | list):
        return any(map(_has_mask, node.values() if isinstance(node, dict) else node))
    return bool(node == MASK)
