"""`pipeline ingest`: what it reads, skips, replaces and reports."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.rag.sources import source_of
from pipeline_plugins.read.reader import Readers

from pipeline.cli.app import run

pytest.importorskip("lancedb")
pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    (docs / ".hidden").mkdir(parents=True)
    (docs / "tax.md").write_text("# Tax\nDue in April.")
    (docs / "page.html").write_text("<h1>Page</h1><p>Of HTML.")
    (docs / "rows.jsonl").write_text(
        '{"id": "r1", "text": "One.", "metadata": {"page": 4}}\n\n{"text": "Two."}\n'
    )
    (docs / "photo.png").write_bytes(b"\x89PNG")
    (docs / ".hidden" / "secret.md").write_text("no")
    return docs


def test_a_folder_gives_its_readable_files_with_ids_below_its_name(folder: Path) -> None:
    source = source_of(str(folder), Readers({}), 1000)
    assert [file.id for file in source.files()] == ["docs/page.html", "docs/rows.jsonl", "docs/tax.md"]


def test_ingesting_again_skips_what_is_unchanged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ingest", str(folder), "--collection", "notes", f"rag.path={tmp_path}/rag", "rag=vector"]
    assert run(arguments) == 0
    assert "4 documents in 4 chunks are new or changed in `notes`, 0 unchanged" in capsys.readouterr().out
    (folder / "tax.md").write_text("# Tax\nDue in May.")
    assert run(arguments) == 0
    assert "1 documents in 1 chunks are new or changed in `notes`, 3 unchanged" in capsys.readouterr().out


def test_what_cannot_be_read_is_told_and_stops_nothing_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    assert run(["ingest", str(folder), str(folder / "photo.png"), f"rag.path={tmp_path}/rag"]) == 1
    out, err = capsys.readouterr()
    assert "4 documents" in out
    assert "latin.txt: no UTF-8 at byte 3" in err
    assert "photo.png: `.png` is not read here" in err


@pytest.mark.parametrize("arguments", [[], ["no/such/file"], ["rag.chunk_tokens=x", "."]])
def test_a_mistake_is_the_users(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ingest", *arguments]) == 2
    assert "Traceback" not in capsys.readouterr().err


CHEAP = ("rag.embed=echo", "--collection", "notes")


def ingested(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert run(["ingest", *CHEAP, *arguments]) == status
    return capsys.readouterr().out


def test_sync_deletes_what_is_gone_from_the_folder_and_nothing_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"rag.path={tmp_path}/rag"
    (tmp_path / "other.md").write_text("Another document.")
    ingested(capsys, str(folder), str(tmp_path / "other.md"), store)
    (folder / "tax.md").unlink()
    assert "deleted" not in ingested(capsys, str(folder), store)
    assert "1 deleted" in ingested(capsys, str(folder), "--sync", store)
    assert "0 documents in 0 chunks are new" in ingested(capsys, str(tmp_path / "other.md"), store)


def test_rows_that_are_gone_from_a_file_go_when_it_is_read_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"rag.path={tmp_path}/rag"
    ingested(capsys, str(folder), store)
    (folder / "rows.jsonl").write_text('{"id": "r1", "text": "One."}\n')
    assert "1 deleted" in ingested(capsys, str(folder), store)
    (folder / "rows.jsonl").write_text("")
    assert "1 deleted" in ingested(capsys, str(folder), store)


def test_a_file_that_cannot_be_read_any_more_keeps_its_documents(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"rag.path={tmp_path}/rag"
    ingested(capsys, str(folder), store)
    (folder / "rows.jsonl").write_text("{")
    (folder / "tax.md").write_bytes(b"\xff")
    assert "deleted" not in ingested(capsys, str(folder), "--sync", store, status=1)


@pytest.mark.parametrize(("error", "kept"), [(PermissionError, True), (FileNotFoundError, False)])
def test_sync_keeps_what_is_below_a_folder_that_cannot_be_listed(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[OSError],
    kept: bool,
) -> None:
    store, deep = f"rag.path={tmp_path}/rag", folder / "deep"
    (deep / "down").mkdir(parents=True)
    (deep / "down" / "more.md").write_text("More.")
    ingested(capsys, str(folder), store)

    def failing(listed: Any) -> Any:
        def one(path: Any = ".") -> Any:
            if Path(path) == deep:
                raise error(1, "no", str(deep))
            return listed(path)

        return one

    monkeypatch.setattr(os, "scandir", failing(os.scandir))
    monkeypatch.setattr(os, "listdir", failing(os.listdir))
    said = ingested(capsys, str(folder), "--sync", store, status=1 if kept else 0)
    assert ("1 deleted" in said) is not kept


def test_sync_keeps_all_of_a_folder_that_is_gone_when_it_is_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"rag.path={tmp_path}/rag"
    ingested(capsys, str(folder), store)
    monkeypatch.setattr(Path, "is_dir", lambda path: path.name == "docs" or os.path.isdir(path))
    folder.rename(tmp_path / "unmounted")
    assert "deleted" not in ingested(capsys, str(folder), "--sync", store, status=1)


def test_empty_files_and_names_that_are_no_text_stop_nothing_and_change_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"rag.path={tmp_path}/rag"
    (folder / "empty.md").write_text(" \n")
    Path(os.fsdecode(bytes(folder / "bad") + b"\xff.md")).write_text("Not read.")
    for _ in range(2):
        assert run(["ingest", *CHEAP, str(folder), store]) == 1
        out, err = capsys.readouterr()
        assert "its name is no UTF-8" in err
    assert "0 documents in 0 chunks are new or changed in `notes`, 5 unchanged" in out
    (folder / "tax.md").write_text("")
    assert run(["ingest", *CHEAP, str(folder), store]) == 1
    assert "1 documents in 0 chunks are new" in capsys.readouterr().out


def test_a_pattern_that_no_file_fits_is_a_mistake_unless_its_files_may_be_gone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, pattern = f"rag.path={tmp_path}/rag", f"{folder}/*.md"
    ingested(capsys, pattern, store)
    (folder / "tax.md").unlink()
    assert run(["ingest", *CHEAP, pattern, store]) == 2
    assert f"No file that can be read here fits `{pattern}`." in capsys.readouterr().err
    assert "1 deleted" in ingested(capsys, pattern, "--sync", store)


def test_files_that_cannot_be_looked_at_are_told_and_stop_nothing_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below a folder that lets its names be read, but not its files."""
    shut = folder / "shut"
    shut.mkdir()
    (shut / "a.md").write_text("Not read.")
    stat, opened = Path.stat, Path.open

    def looked_at(path: Path, **options: Any) -> os.stat_result:
        if shut in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    def open_one(path: Path, *arguments: Any, **options: Any) -> Any:
        looked_at(path)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "stat", looked_at)
    monkeypatch.setattr(Path, "open", open_one)
    long = "x" * 5000
    assert run(["ingest", *CHEAP, str(folder), str(shut / "b.md"), long, f"rag.path={tmp_path}/rag"]) == 1
    out, err = capsys.readouterr()
    assert "4 documents" in out
    told = [line for line in err.splitlines() if line.startswith("Not read")]
    assert told == [
        "Not read: docs/shut/a.md: Permission denied",
        "Not read: b.md: Permission denied",
        f"Not read: {long}: File name too long",
    ]


def test_a_pattern_names_files_and_syncs_those_it_would_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, pattern = f"rag.path={tmp_path}/rag", f"{folder}/**/*.md"
    (folder / "deep").mkdir()
    (folder / "deep" / "more.md").write_text("More.")
    ingested(capsys, str(folder), store)
    assert "2 unchanged" in ingested(capsys, pattern, store)
    (folder / "deep" / "more.md").unlink()
    (folder / "page.html").unlink()
    assert "1 deleted" in ingested(capsys, pattern, "--sync", store)


def test_an_id_that_comes_twice_in_a_run_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "elsewhere" / "docs"
    other.mkdir(parents=True)
    (other / "tax.md").write_text("Another one.")
    assert run(["ingest", *CHEAP, str(folder), str(other), f"rag.path={tmp_path}/rag"]) == 1
    assert "the id `docs/tax.md` came before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rag.chunk_tokens=400", "rag.chunk_tokens"),
        ("rag.path=/dev/null/rag", "rag.path"),
        ("rag.readers.md=nope", "rag.readers.md.plugin"),
        ("rag.readers={.md: text}", "rag.readers"),
        ("rag.ingest=nope", "rag.ingest.plugin"),
    ],
)
def test_what_is_wrong_with_the_documents_is_told_with_its_place(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, told: str
) -> None:
    assert run(["ingest", str(folder), f"rag.path={tmp_path}/rag", override]) == 2
    assert f"\n  {told}\n" in capsys.readouterr().err


def test_files_that_cannot_be_read_alone_leave_a_collection_as_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"rag.path={tmp_path}/rag"
    ingested(capsys, str(folder), store)
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    said = ingested(capsys, str(folder / "latin.txt"), store, status=1)
    assert "0 documents in 0 chunks are new or changed in `notes`, 0 unchanged." in said


def test_an_embedder_that_does_not_answer_ends_the_run_in_words(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_plugins.rag.embedder.TRIES", 1)
    remote = ["rag.embed.plugin=openai", "rag.embed.base_url=http://127.0.0.1:1/v1", "rag.embed.model=m"]
    assert run(["ingest", str(folder), f"rag.path={tmp_path}/rag", *remote]) == 1
    assert "can't be reached" in capsys.readouterr().err
