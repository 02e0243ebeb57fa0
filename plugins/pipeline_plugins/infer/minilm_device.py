"""Where a model runs: on a GPU if one can be used, with the reason where it can't.

onnxruntime itself goes on by the CPU where CUDA fails, and says so on its own log alone. So what it
needs is looked for first, and what came of it is asked afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import structlog

from pipeline.problems import ConfigError, Problem

Device = Literal["auto", "cpu", "cuda"]

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

OPTIONS = {"use_tf32": "0"}
"""Products of whole floats, as on the CPU: a collection is searched with vectors from either."""

QUIET, WARNINGS = 4, 2
"""Levels of onnxruntime's own log: what is fatal; its default."""

FAILURE = re.compile(r"CUDA failure \d+: [^;]*")

log = structlog.get_logger("pipeline.minilm")

Make = Callable[[list[Any]], Any]


def session_on(device: Device, onnxruntime: Any, make: Make) -> Any:
    """The session that `make` gives for providers, on the GPU if there is one and `device` lets it.

    Raises `ConfigError` where `device` is `cuda` and that can't be used; `auto` logs the reason,
    unless onnxruntime is made for CPUs alone.
    """
    if device == "cpu":
        return make([CPU])
    if CUDA not in onnxruntime.get_available_providers():
        if device == "cuda":
            hint = "Install onnxruntime-gpu in the place of onnxruntime, or choose `auto` or `cpu`."
            raise ConfigError([Problem("device", "this onnxruntime can't use CUDA.", hint)])
        return make([CPU])
    reason = _without_gpu()
    if not reason:
        session, reason = _by_cuda(onnxruntime, make)
        if session is not None:
            return session
    if device == "cuda":
        hint = "Mend that, or choose `auto` or `cpu`."
        raise ConfigError([Problem("device", f"CUDA can't be used: {reason}.", hint)])
    log.warning("embedding by the CPU", reason=reason)
    return make([CPU])


def _without_gpu() -> str:
    """Why the driver shows this process no GPU; empty where it shows one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no driver of NVIDIA's (libcuda.so.1)"
    count = ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if not failed and count.value:
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    told = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is `{visible}`"
    return f"the driver shows no GPU (its status is {failed}{told})"


def _by_cuda(onnxruntime: Any, make: Make) -> tuple[Any, str]:
    """A session that has run on the GPU, or None and why not."""
    import numpy as np

    # CUDA's libraries from pip's packages are found by this alone; it prints what it doesn't find.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls(msvc=False)
    onnxruntime.set_default_logger_severity(QUIET)
    try:
        session = make([(CUDA, OPTIONS), CPU])
        if CUDA not in session.get_providers():
            return None, _unloadable(onnxruntime)
        one = np.ones((1, 1), dtype=np.int64)
        session.run(None, {"ids": one, "mask": one})  # a GPU that is too old fails here
        return session, ""
    except Exception as error:
        return None, _told(error)
    finally:
        onnxruntime.set_default_logger_severity(WARNINGS)


def _told(error: Exception) -> str:
    """CUDA's own words out of onnxruntime's, which begin with the place in its source."""
    text = " ".join(str(error).split()) or type(error).__name__
    found = FAILURE.search(text)
    return (found[0] if found else text)[:300].strip(" .")


def _unloadable(onnxruntime: Any) -> str:
    """Why onnxruntime did not take its part for CUDA."""
    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return f"{error}; `pip install 'onnxruntime-gpu[cuda,cudnn]'` brings CUDA's libraries"
    return "onnxruntime does not take it"
