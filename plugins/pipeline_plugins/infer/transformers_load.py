"""Loading a causal language model for torch, from safetensors or from a GGUF.

A GGUF is de-quantised once and kept as safetensors in the cache folder: doing that takes
a hundred times as long as loading the result. Code that comes with a model is never run.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from pipeline.problems import ConfigError, Problem
from pipeline.progress import track
from pipeline_plugins.infer.derived import cache_folder, digest_of, whole_folder
from pipeline_plugins.infer.llamacpp_template import with_tools
from pipeline_plugins.infer.models import PACKAGE, ModelError, locate, read_header
from pipeline_plugins.infer.transformers_cache import Network

VERSION = 1
"""To be raised whenever the conversion changes: it is part of the converted model's key."""

SIZES = "sizes.json"
"""Names and sizes of the converted files: a folder that does not agree is made anew."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Loaded:
    """A model ready to run. `defaults` are its own sampling settings, if it has any."""

    network: Network
    tokenizer: Any
    ends: frozenset[int]
    context: int
    template: str
    tools: bool
    device: str
    dtype: str
    defaults: dict[str, Any] = field(default_factory=dict)

    def decode(self, ids: list[int]) -> str:
        """The text of these tokens, special ones left out."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def load(
    reference: str,
    *,
    device: str,
    dtype: str,
    slots: int,
    context: int,
    threads: int | None,
    cache_dir: str | None,
) -> Loaded:
    """Find, convert if need be, load and try a model. Blocks, in the thread that will run it.

    Raises `ConfigError` for a model, device or library that is not there.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    place = _device(torch, device)
    kind = _dtype(torch, dtype, place)
    path = _located(reference)
    with _quietly():
        if path.suffix == ".gguf":
            model, tokenizer = _from_gguf(path, kind, cache_folder(cache_dir))
        else:
            model, tokenizer = _from_folder(path, kind)
    config = model.config.get_text_config()
    _check_layers(config, path)
    try:
        model = model.eval().requires_grad_(False).to(place)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"`{path}` does not fit {place}: {error}") from None
    context = min(context, getattr(config, "max_position_embeddings", None) or context)
    network = Network(model, slots, context)
    if not network.agrees():
        raise ModelError(
            f"`{path}` ({config.model_type}) keeps state that can't be batched here.", "Use another backend."
        )
    template, tools = with_tools(tokenizer.chat_template or "")
    return Loaded(
        network=network,
        tokenizer=tokenizer,
        ends=_ends(model, tokenizer),
        context=context,
        template=template,
        tools=tools,
        device=str(place),
        dtype=str(kind).removeprefix("torch."),
        defaults=_defaults(model.generation_config),
    )


def _located(reference: str) -> Path:
    """A GGUF, or a folder with a config and safetensors."""
    local = Path(reference).expanduser()
    if local.is_dir() and (local / "config.json").exists():
        path = local
    elif reference.startswith(PACKAGE) or local.exists() or ":" in reference or reference.endswith(".gguf"):
        path = locate(reference, (".gguf",))
    else:
        path = locate(reference, ())
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise ModelError(f"`{path}` holds no .safetensors file.", "Other kinds of weights are not loaded.")
    if path.is_file():
        read_header(path)
    return path


def _device(torch: Any, wanted: str) -> Any:
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, _, index = wanted.partition(":")
    if wanted == "auto":
        kind = next(name for name in ("cuda", "mps", "cpu") if has[name])
    number = int(index or 0)
    if not has[kind] or (kind == "cuda" and number >= torch.cuda.device_count()):
        there = ", ".join(f"`{name}`" for name in has if has[name])
        problem = Problem("device", f"torch finds no `{wanted}` here.", f"There is {there}.")
        raise ConfigError([problem])
    return torch.device(kind, number) if kind == "cuda" else torch.device(kind)


def _dtype(torch: Any, wanted: str, device: Any) -> Any:
    """As configured; `auto` is the fastest form that the device computes in by itself."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if _computes_bfloat16(torch) else torch.float32


def _computes_bfloat16(torch: Any) -> bool:
    """Whether this CPU multiplies bfloat16 itself; emulated it is slower than float32."""
    try:
        able = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):
        return False
    return any(bool(able.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _from_folder(folder: Path, dtype: Any) -> tuple[Any, Any]:
    import transformers
    from safetensors import SafetensorError

    try:
        with track(f"loading {folder.name}"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"transformers can't load `{folder}`: {str(error)[:500]}") from error
    return model, tokenizer


def _from_gguf(path: Path, dtype: Any, cache: Path) -> tuple[Any, Any]:
    """The converted model from the cache; converted first if it is not there or not whole."""
    import transformers

    folder = cache / f"{path.stem}-{digest_of(path, VERSION, transformers.__version__)}"
    if _is_whole(folder):
        try:
            return _from_folder(folder, dtype)
        except ModelError as error:
            log.warning("the converted model is damaged and made anew", path=str(folder), error=str(error))
            shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
    model, tokenizer = _convert(path)
    try:
        with whole_folder(folder) as empty:
            model.save_pretrained(empty)
            tokenizer.save_pretrained(empty)
            sizes = {file.name: file.stat().st_size for file in empty.iterdir()}
            (empty / SIZES).write_text(json.dumps(sizes))
    except OSError as error:
        log.warning("the converted model can't be kept", path=str(folder), error=str(error))
        return model.to(dtype), tokenizer
    del model
    return _from_folder(folder, dtype)


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / SIZES).read_text())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(path: Path) -> tuple[Any, Any]:
    """De-quantise a GGUF to float32. Raises `ConfigError` where a library for it is missing."""
    import torch
    import transformers

    try:
        given = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
        with track(f"reading the tokenizer of {path.name}"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **given)
        with _shown(path):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent, dtype=torch.float32, **given
            )
    except ImportError as error:
        hint = "pip install 'llm-pipeline[transformers]'"
        raise ConfigError([Problem("", f"reading a GGUF needs more: {error}", hint)]) from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"transformers can't read `{path}`: {str(error)[:500]}") from error
    # What was read is plain float32 now; transformers refuses to save what it takes for quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = path.stem
    return model, tokenizer


@contextmanager
def _shown(path: Path) -> Iterator[None]:
    """Show the conversion's progress in our way; transformers writes a bar of its own."""
    from transformers import modeling_gguf_pytorch_utils as conversion

    original = getattr(conversion, "tqdm", None)
    with track(f"converting {path.name}", total=read_header(path).tensors) as step:

        def stepping(items: Iterable[Any], **_: Any) -> Iterator[Any]:
            for item in items:
                yield item
                step()

        conversion.tqdm = stepping
        try:
            yield
        finally:
            conversion.tqdm = original


def _check_layers(config: Any, path: Path) -> None:
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others or getattr(config, "is_encoder_decoder", False):
        what = ", ".join(sorted(others)) or "an encoder"
        raise ModelError(f"`{path}` ({config.model_type}) has {what}, which can't be batched here.")


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    ends: set[int] = set()
    for given in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        ends.update([given] if isinstance(given, int) else given or ())
    return frozenset(ends)


def _defaults(given: Any) -> dict[str, Any]:
    """What the model's authors recommend, where they do: temperature, top_p, top_k, min_p."""
    if not given.do_sample:
        return {}
    found = {name: getattr(given, name, None) for name in ("temperature", "top_p", "top_k", "min_p")}
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' progress bars and warnings out of the log; errors are raised."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
