"""Reading data sets: what rows can look like, and how mistakes in them are told."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.data.file import File
from pipeline_plugins.evaluate.example import DataError, DataSet


def read(path: Path, **config: Any) -> DataSet:
    return File(File.Config(path=str(path), **config)).read()


def wrong(path: Path, text: str | bytes, **config: Any) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as raised:
        read(path, **config)
    return str(raised.value).removeprefix(f"{path}")


def test_a_prompt_is_a_message_of_the_user_and_other_columns_are_for_scorers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "prompt": "hello", "expected": ["hi"], "request": {"max_tokens": 3}}\n')
    (one,) = read(path).examples
    assert one.id == "a"
    assert one.body == {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    assert one.fields == {"expected": ["hi"]}


def test_jsonl_csv_and_parquet_of_the_same_rows_give_the_same_examples(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    messages = [{"role": "user", "content": 'a, "b"\nc'}]
    rows = [{"id": "1", "messages": messages, "expected": "x"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quoted = json.dumps(messages).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'id,messages,expected\n1,"{quoted}",x\n')
    parquet.write_table(Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    found = [read(tmp_path / name).examples for name in ("a.jsonl", "a.csv", "a.parquet", "b.jsonl.gz")]
    assert all(one == found[0] for one in found)
    assert found[0][0].body == {"messages": messages}


def test_columns_can_be_called_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\nhow?,so\n")
    (one,) = read(path, columns={"prompt": "question", "expected": "answer"}).examples
    assert one.id == "2"
    assert one.body["messages"][0]["content"] == "how?"
    assert one.fields["expected"] == "so"


def test_a_sample_is_the_same_each_time_and_another_with_another_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"id": {n}, "prompt": "p"}}\n' for n in range(100)))
    ids = [[one.id for one in read(path, limit=10, sample=True, seed=seed).examples] for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]
    assert [one.id for one in read(path, limit=3).examples] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"prompt": "a"}\n{"prompt": ', ":2: it is not JSON"),
        ('{"prompt": "a"}\n[1]\n', ":2: expected an object, got list"),
        ('{"id": 1, "prompt": "a"}\n\n{"id": 1, "prompt": "b"}\n', ":3: the id `1` is that of line 1, too."),
        ('{"question": "a"}\n', ":1: there is neither `messages` nor `prompt`, but `question`."),
        ('{"prompt": 5}\n', ":1: `prompt` is not a text, but int."),
        ('{"prompt": "a"}\n{"prompt": null}\n', ":2: `prompt` is not a text, but null."),
        ('{"messages": "hello"}\n', ":1: `messages` is not JSON"),
        ('{"messages": {"role": "user"}}\n', ":1: `messages` is not a list, but dict."),
        ("", ": there are no rows."),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    assert told in wrong(tmp_path / "a.jsonl", text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id,prompt\n1,a\n2,b,c\n", ":3: it has more fields than the header."),
        ("id,prompt\n1\n", ":2: it has fewer fields than the header."),
        ("prompt,prompt\na,b\n", ":1: two columns are called `prompt`."),
        (b"id,prompt\n1,\xff\n", ":2: it is not UTF-8 text."),
    ],
)
def test_a_mistake_in_a_csv_is_told_with_its_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    assert wrong(tmp_path / "a.csv", text) == told


def test_a_missing_column_is_told_with_the_likely_one(tmp_path: Path) -> None:
    assert "Did you mean `question`?" in wrong(
        tmp_path / "a.jsonl", '{"question": "a"}\n', columns={"prompt": "qestion"}
    )


def test_a_file_of_another_kind_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    assert "expected a name that ends in" in wrong(tmp_path / "a.txt", "x")
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "none.jsonl")


def test_a_row_of_parquet_has_no_fields_that_only_other_rows_have(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    called = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    plain = {"messages": [{"role": "user", "content": "hi"}], "request": {"max_tokens": 5}, "expected": None}
    asks = {"messages": [{"role": "assistant", "tool_calls": called}], "request": {"temperature": 0.5}}
    parquet.write_table(Table.from_pylist([plain, asks]), tmp_path / "a.parquet")
    one, two = read(tmp_path / "a.parquet").examples
    assert one.body == {"max_tokens": 5, "messages": plain["messages"]}
    assert one.fields == {}
    assert two.body == {"temperature": 0.5, "messages": asks["messages"]}
