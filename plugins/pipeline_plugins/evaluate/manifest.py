"""What a run was made from: enough to repeat it, and to say why two runs differ."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.graph import Graph
from pipeline.plugins import Registry
from pipeline_plugins.evaluate.files import Digests

PACKAGES = (
    "hydra-core",
    "numpy",
    "omegaconf",
    "onnxruntime",
    "pydantic",
    "tokenizers",
    "torch",
    "transformers",
    "xllamacpp",
)
"""Packages on which answers and figures can depend, noted where they are installed."""


def plugins_of(values: Any, registry: Registry) -> dict[str, str]:
    """The plugins that a composed configuration names by `KIND.NAME`, each with its package and version."""
    found: dict[str, str] = {}
    stack = [values]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            plugin = node.get("plugin")
            if isinstance(plugin, str) and "." in plugin:
                found[plugin] = registry.find(plugin).distribution
            stack.extend(node.values())
    return dict(sorted(found.items()))


def files_of(graph: Graph, digests: Digests) -> list[dict[str, Any]]:
    """The files that stages loaded, by stage; see `files` in `pipeline.stage.Stage`."""
    return [
        {"stage": name, "file": file.name, "bytes": file.stat().st_size, "sha256": digests.of(file)}
        for name, stage in sorted(graph.stages.items())
        for file in getattr(stage, "files", ())
    ]


@cache
def packages() -> dict[str, str]:
    """Versions of `PACKAGES`, the framework's and Python's."""
    found = {"python": platform.python_version()}
    for name in ("llm-pipeline", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def hardware() -> dict[str, Any]:
    """Processor, cores, memory and system."""
    return {
        "processor": _line_of("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
    }


def _line_of(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


@cache
def git(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that a folder is in, and whether it has other changes; None outside of one."""

    def ask(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(  # noqa: S603 — no shell, and a fixed command
                command, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": bool(ask("status", "--porcelain", "--untracked-files=no"))}
