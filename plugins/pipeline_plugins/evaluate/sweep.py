"""`pipeline eval -m`: Hydra's multirun over evaluations, by whichever sweeper and launcher is installed.

Hydra's plugins see its own `hydra` node and the overrides of each point, and nothing else of
the configuration: what they write has no secrets. A point composes its configuration itself.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import orjson
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from pipeline.config import compose_sweep, is_hydras
from pipeline.plugins import Registry
from pipeline.problems import ConfigError, Problem
from pipeline.secrets import is_secret
from pipeline_plugins.evaluate.example import DataError
from pipeline_plugins.evaluate.files import digest_of, write_json
from pipeline_plugins.evaluate.journal import Busy
from pipeline_plugins.evaluate.prepare import prepare, with_data_file
from pipeline_plugins.evaluate.quiet import quiet
from pipeline_plugins.evaluate.run import POINTS, Done, Runner, Taken, read_manifest, read_metrics

INDEX, ANSWERS, FAILURE = "index.json", "answers.sqlite", "failure.json"
UNLIKELY_IN_NAMES = re.compile(r"[^\w.=,+-]+")
FIXED = ("hydra/job_logging=none", "hydra/hydra_logging=none")
"""What is Hydra's to log would go to files of its own, with overrides as they were given."""


def sweep(overrides: Sequence[str], config: Path | None, out: Path | None) -> int:
    """Run every point, or what is missing of it. Returns 1 if some failed.

    Raises `ConfigError` where not even the sweep can be composed, `Taken` where its folder is a file.
    """
    fixed, swept = _split(overrides)
    registry = Registry()
    given = [*FIXED, *with_data_file(fixed, registry)]
    composed, loader = compose_sweep(given, config=config, registry=registry)
    _check(composed, swept)
    settings = composed.get("eval") or {}
    runs, digest = Path(str(settings.get("dir", "runs"))).expanduser(), _digest(overrides, composed, swept)
    folder = out or runs / f"sweep-{digest[:8]}"
    if folder.exists() and not folder.is_dir():
        raise Taken(f"{folder} is a file.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Points are tried again, and one that is not swept over any more is no failure of this sweep.
    for former in (folder / POINTS).glob(f"*/{FAILURE}"):
        former.unlink(missing_ok=True)
    own = [text for text in fixed if not is_hydras(text)]
    task = Point(own, config, folder.resolve())
    mask = os.umask(0o077)
    broken: Exception | None = None
    try:
        _launch(composed, loader, folder, swept, task)
    except HydraException as error:
        raise ConfigError([Problem("", str(error).splitlines()[0])]) from None
    except KeyboardInterrupt:
        click.echo(f"Stopped. The same command goes on in {folder}.", err=True)
        return 130
    except Exception as error:
        broken = error  # a sweeper's or launcher's own
    finally:
        task.close()
        points = read_points(folder)
        write_json(folder / INDEX, points)
        os.umask(mask)
    return _report(folder, points, broken)


def _digest(overrides: Sequence[str], composed: DictConfig, swept: Sequence[str]) -> str:
    """Of what is swept: another file of configuration or data is another sweep."""
    written: Any = OmegaConf.to_container(composed, resolve=False)
    own = {key: value for key, value in written.items() if key != "hydra"}
    fixed = str(OmegaConf.select(composed, "data.path", throw_on_resolution_failure=False))
    paths = [Path(one).expanduser() for one in (fixed, *_data_of(swept))]
    data = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()]
    return digest_of([*overrides, own, data])


def _data_of(swept: Sequence[str]) -> Iterator[str]:
    """The files that a sweep over data names."""
    parser = OverridesParser.create()
    for text in swept:
        override = parser.parse_override(text)
        if override.key_or_group in ("data", "data.path") and override.is_discrete_sweep():
            yield from (str(getattr(one, "text", one)) for one in override.sweep_iterator())


def _split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides with one value each, and those with several."""
    parser = OverridesParser.create()
    fixed: list[str] = []
    swept: list[str] = []
    for text in overrides:
        try:
            several = parser.parse_override(text).is_sweep_override()
        except (HydraException, RecursionError):
            several = False  # whoever composes it says what is wrong
        (swept if several else fixed).append(text)
    return fixed, swept


def _check(composed: DictConfig, swept: Sequence[str]) -> None:
    """Refuse what must not be swept, and classes that no installed Hydra plugin declares."""
    problems = [
        Problem(key, "a secret is not swept: points are named by their values.", "Name it: `${oc.env:NAME}`.")
        for key in (text.partition("=")[0] for text in swept)
        if is_secret(key.lstrip("+~").split("."))
    ]
    declared = set(_targets(OmegaConf.create({}), ConfigStore.instance().repo.get("hydra", {})))
    problems.extend(
        Problem("hydra", f"`{target}` is not a class of an installed Hydra plugin.")
        for target in _targets(composed.hydra)
        if target not in declared
    )
    if OmegaConf.select(composed, "hydra.sweeper.custom_search_space") is not None:
        problems.append(
            Problem("hydra.sweeper.custom_search_space", "code that a configuration names is not run.")
        )
    if problems:
        raise ConfigError(problems)


def _targets(*nodes: Any) -> Iterator[str]:
    """Every `_target_` below these nodes."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        node = getattr(node, "node", node)
        if isinstance(node, DictConfig):
            node = OmegaConf.to_container(node, resolve=False)
        if isinstance(node, dict):
            if isinstance(node.get("_target_"), str):
                yield node["_target_"]
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


class PointLoader(ConfigLoaderImpl):
    """Gives a point's overrides to its task as they are, which composes them."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The sweep's own `hydra` node with these overrides."""
        config = deepcopy(master_config)
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.overrides.task = list(sweep_overrides)
        return config


def _launch(composed: DictConfig, loader: ConfigLoader, folder: Path, swept: list[str], task: Point) -> None:
    config = OmegaConf.create({"hydra": composed.hydra})
    hydra = config.hydra
    OmegaConf.set_readonly(hydra, False)
    hydra.overrides.task, hydra.overrides.hydra = [], []
    hydra.output_subdir, hydra.job.chdir, hydra.job.override_dirname = None, False, ""
    hydra.sweep.dir, hydra.sweep.subdir = str(folder), "."
    HydraConfig.instance().set_config(config)
    callbacks = Callbacks(config)
    context = HydraContext(config_loader=PointLoader(loader.get_search_path()), callbacks=callbacks)
    sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=task)
    callbacks.on_multirun_start(config=config, config_name=None)
    sweeper.sweep(arguments=list(swept))
    callbacks.on_multirun_end(config=config, config_name=None)


@dataclass
class Point:
    """Hydra's task: one point of a sweep. Never raises for what is wrong with it alone.

    fixed   overrides that all points share
    folder  the sweep's; points have theirs below
    """

    fixed: list[str]
    config: Path | None
    folder: Path
    _process: int = field(default_factory=os.getpid)
    _runner: Runner | None = None
    _registry: Registry | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runner": None, "_registry": None}

    def __call__(self, _: DictConfig) -> float | tuple[float, ...] | None:
        """Run it; its objective, None where it failed, which Optuna's sweeper takes for a failed trial."""
        own = [text for text in HydraConfig.get().overrides.task if not is_hydras(text)]
        folder = self.folder / POINTS / _name_of(own)
        try:
            done = self._run(own, folder)
        except (ConfigError, DataError, Taken, Busy) as error:
            self._failed(own, folder, str(error))
            return None
        except Exception as error:
            self._failed(own, folder, f"{type(error).__name__}: {error}")
            return None
        (folder / FAILURE).unlink(missing_ok=True)
        found = [_objective(done, name) for name in done.manifest["objective"]]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return None
        return known[0] if len(known) == 1 else tuple(known)

    def _run(self, own: list[str], folder: Path) -> Done:
        self._registry = self._registry or Registry()
        prepared = prepare([*self.fixed, *own], self.config, registry=self._registry)
        answers, what = self.folder / ANSWERS, " ".join(own) or "evaluating"
        if os.getpid() != self._process:
            # A launcher's process may end at any time: nothing is left open in it.
            quiet()
            with Runner() as runner:
                return runner.run(prepared, folder, answers=answers, what=what)
        if self._runner is None:
            self._runner = Runner()
        return self._runner.run(prepared, folder, answers=answers, what=what)

    def _failed(self, own: list[str], folder: Path, why: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FAILURE, {"overrides": own, "error": why})

    def close(self) -> None:
        """Close what is open in this process."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()


def _objective(done: Done, name: str) -> float | None:
    metric = done.manifest["quality"] if name == "quality" else name
    return float(done.metrics[metric]["mean"]) if metric in done.metrics else None


def _name_of(overrides: Sequence[str]) -> str:
    """The folder of a point: what it is, and a digest for what a name can't hold."""
    ordered = sorted(overrides)
    said = UNLIKELY_IN_NAMES.sub("_", ",".join(ordered))[:80]
    return f"{said}-{digest_of(ordered)[:6]}" if said else "point"


def read_points(folder: Path) -> list[dict[str, Any]]:
    """What is known of a sweep's points: `folder`, `overrides`, `state`, and the means or the `error`."""
    points = []
    for path in sorted((folder / POINTS).glob("*")):
        failure = path / FAILURE
        if failure.is_file():
            points.append({"folder": path.name, "state": "failed", **orjson.loads(failure.read_bytes())})
            continue
        try:
            found = read_manifest(path)
            means = read_metrics(path) if found is not None and found["state"] == "complete" else {}
        except Taken as error:
            points.append({"folder": path.name, "state": "failed", "overrides": [], "error": str(error)})
            continue
        if found is not None:
            one = {"folder": path.name, "state": found["state"], "overrides": found["overrides"]}
            one["reused"] = found.get("reused", 0)
            points.append(one | {"means": {name: metric["mean"] for name, metric in means.items()}})
    return points


def _report(folder: Path, points: Sequence[dict[str, Any]], broken: Exception | None) -> int:
    from pipeline_plugins.evaluate.show import sweep_table

    sweep_table(folder, points)
    failed = [point for point in points if point["state"] == "failed"]
    for point in failed:
        click.secho(f"FAILED  {point['folder']}: {point['error']}", fg="red", err=True)
    if broken is not None:
        why = next(iter(str(broken).splitlines()), "")
        click.secho(f"The sweep broke off: {type(broken).__name__}: {why}", fg="red", err=True)
        return 1
    return int(any(point["state"] != "complete" for point in points) or not points)
