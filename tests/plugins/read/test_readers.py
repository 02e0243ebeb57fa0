"""Readers: real files of each kind, what becomes of them, and those that are not what they seem."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.rag.choice import Choice
from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.read.reader import File, Readers, Unreadable
from pipeline_plugins.read.text import Text

from pipeline.problems import ConfigError

READERS = Readers({})

PAGE = """<html><head><title>Tax  page</title><style>p {}</style></head><body><h1>Tax &amp; you</h1>
<p>It is <b>due</b>
in April.<script>alert(1)</script></p><table><tr><th>Year</th><th>Rate</th></tr>
<tr><td>2024</td><td>7 %</td></tr></table><pre>a
  b</pre></body></html>"""


def read(folder: Path, name: str, content: bytes | str, readers: Readers = READERS) -> list[Document]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(readers.read(File(path, f"in/{name}", path.suffix.lower(), 1_000_000)))


def pdf(*pages: str) -> bytes:
    """A PDF of these pages, written by hand: an object each for its parts, and their offsets."""
    fonts = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        fonts,
    ]
    for at, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        size, resources = "[0 0 612 792]", "<< /Font << /F1 3 0 R >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox {size} /Resources {resources} "
            f"/Contents {5 + 2 * at} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    data, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF"
    return f"{data}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()


def docx(save: Any = None) -> bytes:
    import docx

    word = docx.Document()
    word.core_properties.title = "Manual"
    word.add_heading("Pump", 1)
    word.add_paragraph("Open the valve.")
    word.add_heading("Parts", 2)
    table = word.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "seal", "4 mm"
    file = io.BytesIO()
    word.save(file)
    return file.getvalue()


@pytest.mark.parametrize("name", ["a.md", "a.TXT", "a.rst"])
def test_text_is_taken_as_it_is_without_its_byte_order_mark(tmp_path: Path, name: str) -> None:
    (document,) = read(tmp_path, name, b"\xef\xbb\xbf# One\r\nTwo \xc3\xa9")
    assert (document.id, document.source, document.text) == (f"in/{name}", f"in/{name}", "# One\r\nTwo é")


def test_code_knows_its_language(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "a.rs", "fn main() {}")
    assert (document.language, document.metadata) == ("rust", {"language": "rust"})


def test_html_becomes_text_with_headings_and_rows(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "a.html", PAGE)
    assert document.text == "# Tax & you\n\nIt is due in April.\n\nYear | Rate\n2024 | 7 %\n\na\nb"
    assert document.metadata == {"title": "Tax page"}


def test_html_that_nests_deeply_is_read(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "a.html", "<div>" * 5000 + "deep" + "</div>" * 5000)
    assert document.text == "deep"


def test_a_pdf_knows_where_its_pages_begin(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "a.pdf", pdf("First page.", "Second page."))
    assert document.text == "First page.\n\nSecond page."
    assert [document.text[at:][:6] for at in document.pages] == ["First ", "Second"]


def test_word_becomes_text_with_headings_and_rows(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "a.docx", docx())
    assert document.text == "# Pump\n\nOpen the valve.\n\n## Parts\n\nseal | 4 mm"
    assert document.metadata == {"title": "Manual"}


def test_each_row_of_a_table_is_a_document(tmp_path: Path) -> None:
    first, second = read(tmp_path, "a.csv", 'name;note\nPump;"opens; closes"\nSeal;\n')
    assert (first.id, first.text) == ("in/a.csv#1", "name: Pump\nnote: opens; closes")
    assert (second.id, second.metadata) == ("in/a.csv#2", {"name": "Seal", "row": 2})


def test_a_table_can_say_which_columns_are_text_and_id(tmp_path: Path) -> None:
    readers = Readers({"csv": Choice(plugin="csv", id="no", columns=["note"])})  # type: ignore[call-arg]
    (row,) = read(tmp_path, "a.csv", "no,note\n7,opens\n", readers)
    assert (row.id, row.text) == ("7", "note: opens")
    with pytest.raises(Unreadable, match="no column `no`"):
        read(tmp_path, "b.csv", "nr,note\n7,opens\n", readers)


@pytest.mark.parametrize(
    ("head", "row", "text"),
    [
        ("a,a,b", "1,2,3", "a: 1\na 2: 2\nb: 3"),
        (",b", "1,2", "column 1: 1\nb: 2"),
        ("a", "1,2", "a: 1\ncolumn 2: 2"),
    ],
    ids=["repeated", "blank", "missing"],
)
def test_no_value_is_lost_whose_column_has_no_name_of_its_own(
    tmp_path: Path, head: str, row: str, text: str
) -> None:
    assert read(tmp_path, "a.csv", f"{head}\n{row}\n")[0].text == text


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("", "utf-8"),
        ("", "windows-1252"),
        ("", "utf-16"),
        ('<meta charset="ISO-8859-1">', "windows-1252"),
        ('<META http-equiv=content-type content="text/html; charset=koi8-r">', "koi8-r"),
        ("<meta charset=Shift_JIS>", "shift_jis"),
        ("<meta charset=latin1>", "utf-8"),
    ],
)
def test_a_page_is_read_in_the_encoding_that_it_is_in(tmp_path: Path, declared: str, encoding: str) -> None:
    said = {"koi8-r": "Привет", "shift_jis": "日本語"}.get(encoding, "café")
    page = f"<html><head>{declared}<title>{said}</title></head><body>{said}</body></html>"
    (document,) = read(tmp_path, "a.html", page.encode(encoding))
    assert (document.text, document.metadata) == (said, {"title": said})


@pytest.mark.parametrize("name", ["punycode", "zip", "no-such"])
def test_a_page_that_declares_what_no_browser_reads_is_read_as_utf8(tmp_path: Path, name: str) -> None:
    (document,) = read(tmp_path, "a.html", f"<meta charset={name}><p>one ".encode() + b"\xe9")
    assert document.text == "one \ufffd"


def test_each_json_line_is_a_document(tmp_path: Path) -> None:
    lines = '{"id": "r1", "text": "One.", "metadata": {"page": 4}}\n\n{"text": "Two."}\n'
    first, second = read(tmp_path, "a.jsonl", lines)
    assert (first.id, first.text, first.page) == ("r1", "One.", 4)
    assert (second.id, second.text, second.source) == ("in/a.jsonl#3", "Two.", "in/a.jsonl")


@pytest.mark.parametrize("wrapped", [True, False])
def test_json_can_be_a_list_of_documents(tmp_path: Path, wrapped: bool) -> None:
    rows = [{"id": "a", "text": "One."}, {"text": "Two."}]
    found = read(tmp_path, "a.json", json.dumps({"documents": rows} if wrapped else rows))
    assert [(one.id, one.text) for one in found] == [("a", "One."), ("in/a.json#2", "Two.")]


def test_any_other_json_is_one_document_of_its_values(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "a.json", '{"pump": {"seals": [4, "mm"], "spare": null}}')
    assert document.text == "pump.seals[0]: 4\npump.seals[1]: mm"


@pytest.mark.parametrize("line", ["{", "[]", '{"text": 1}', '{"text": "x", "metadata": {"a": []}}'])
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(Unreadable, match="line 1"):
        read(tmp_path, "a.jsonl", line)


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b" " * 2_000_000)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", b"caf\xe9", "no UTF-8 at byte 3"),
        ("a.txt", b"x" * 1_000_001, "larger than 1000000 bytes"),
        ("a.pdf", b"%PDF-1.4 and then nothing", "no PDF"),
        ("a.pdf", b"", "no PDF"),
        ("a.pdf", pdf("", " "), "scanned pages need OCR first"),
        ("a.docx", b"PK no archive", "no archive"),
        ("a.docx", bomb(), "unpacked larger"),
        ("a.csv", b"a,b\n\xff,1\n", "no UTF-8"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[" * 1010 + b"1" + b"]" * 1010, "nested too deep"),
        ("a.png", b"\x89PNG", "`.png` is not read here"),
    ],
)
def test_what_is_not_what_its_name_says_is_unreadable(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    with pytest.raises(Unreadable, match=why):
        read(tmp_path, name, content)


def test_a_reader_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        Readers({"pdf": Choice(plugin="pfd")})
    assert raised.value.problems[0].path == "readers.pdf.plugin"
    assert "pdf" in raised.value.problems[0].hint


JSON_READER = "llama_index.core.readers.json.JSONReader"


def by_llama_index(reader: str, **options: Any) -> Choice:
    return Choice(plugin="llama_index", reader=reader, options=options)  # type: ignore[call-arg]


def test_a_reader_of_llama_index_reads_the_suffix_that_it_is_chosen_for(tmp_path: Path) -> None:
    pytest.importorskip("llama_index.core")
    readers = Readers({"jsonx": by_llama_index(JSON_READER, is_jsonl=True)})
    first, second = read(tmp_path, "a.jsonx", '{"pump": 7}\n{"pump": 8}\n', readers)
    assert (first.id, first.source) == ("in/a.jsonx#1", "in/a.jsonx")
    assert '"pump": 7' in first.text
    assert '"pump": 8' in second.text
    (alone,) = read(tmp_path, "b.jsonx", '{"pump": 7}', readers)
    assert alone.id == "in/b.jsonx"
    with pytest.raises(Unreadable, match="JSONReader` fails with JSONDecodeError"):
        read(tmp_path, "c.jsonx", "{", readers)
    with pytest.raises(Unreadable, match="larger than"):
        read(tmp_path, "d.jsonx", " " * 1_000_001, readers)


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (by_llama_index("os.system"), "should match pattern"),
        (by_llama_index("llama_index.core.readers.json.NoReader"), "is not there"),
        (by_llama_index("llama_index.readers.none.NoReader"), "is not there"),
        (by_llama_index("llama_index.core.node_parser.SentenceSplitter"), "is no BaseReader"),
        (by_llama_index(JSON_READER, colour="red"), "can't be made"),
        (Choice(plugin="llama_index"), "required"),
    ],
)
def test_what_is_no_reader_of_llama_index_is_refused_in_words(choice: Choice, why: str) -> None:
    pytest.importorskip("llama_index.core")
    with pytest.raises(ConfigError) as raised:
        Readers({"jsonx": choice})
    assert why in raised.value.problems[0].message


def test_halves_of_characters_are_replaced_one_by_one(tmp_path: Path) -> None:
    class Broken:
        Config = Text.Config
        suffixes = frozenset({".txt"})

        def __call__(self, file: File) -> Iterator[Document]:
            yield Document(file.id, "a\ud800b", metadata={"title": "\udfff", "n": 1})

    readers = Readers({})
    readers._by_suffix[".txt"] = Broken()  # type: ignore[assignment]
    (document,) = read(tmp_path, "a.txt", "", readers)
    assert (document.text, document.metadata) == ("a\ufffdb", {"title": "\ufffd", "n": 1})
