"""Splitters: pieces that cover the text, keep their size, and say where they stand."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.split.auto import Auto
from pipeline_plugins.split.code import Code
from pipeline_plugins.split.sentences import Headings, Sentences, sections
from pipeline_plugins.split.splitter import Size, Splitter
from pipeline_plugins.split.tokens import Tokens

ALL: list[type[Splitter]] = [Auto, Code, Headings, Sentences, Tokens]

PYTHON = '''"""Module."""

import os

LIMIT = 3


@cache
def first(a):
    """Say é."""
    return a


class Tree:
    """A tree."""

    def grow(self):
        for leaf in range(LIMIT):
            print(leaf, "grows and grows and grows")

    def fall(self):
        return os.getcwd()
'''


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def cut(splitter: type[Splitter], text: str, tokens: int, overlap: int = 0, language: str = "") -> list[str]:
    document = Document("d", text, language=language)
    pieces = splitter(splitter.Config())(document, Size(tokens, overlap, words))  # type: ignore[call-arg]
    return [text[piece.start : piece.end] for piece in pieces]


@pytest.mark.parametrize("splitter", ALL, ids=lambda one: one.__name__)
@given(
    text=st.text(st.sampled_from("ab. \n#!`é"), max_size=300),
    tokens=st.integers(1, 12),
    overlap=st.integers(0, 11),
    language=st.sampled_from(["", "python", "klingon"]),
)
def test_pieces_cover_the_text_and_keep_their_size(
    splitter: type[Splitter], text: str, tokens: int, overlap: int, language: str
) -> None:
    size = Size(tokens, min(overlap, tokens - 1), words)
    pieces = splitter(splitter.Config())(Document("d", text, language=language), size)  # type: ignore[call-arg]
    covered = {at for piece in pieces for at in range(piece.start, piece.end)}
    assert {at for at, character in enumerate(text) if not character.isspace()} <= covered
    assert all(len(text[piece.start : piece.end].split()) <= tokens for piece in pieces)
    assert [piece.start for piece in pieces] == sorted({piece.start for piece in pieces})


def test_pieces_stand_under_their_headings() -> None:
    text = "# One\n## Two\nText.\n```\n# no heading\n```\n# Three\nMore."
    pieces = Sentences(Sentences.Config())(Document("d", text), Size(50, 0, words))
    assert [piece.headings for piece in pieces] == [("One", "Two"), ("Three",)]
    assert text[pieces[1].start : pieces[1].end] == "# Three\nMore."


def test_signs_that_close_a_heading_are_none_of_it() -> None:
    for line, name in {"# One #": "One", "## Two ##  ": "Two", "# C#": "C#", "# a # b ##": "a # b"}.items():
        (piece,) = Sentences(Sentences.Config())(Document("d", f"{line}\nText."), Size(20, 0, words))
        assert piece.headings == (name,)


def test_a_heading_of_any_length_takes_no_time_and_is_kept_by_its_beginning() -> None:
    text = f"# {'# ' * 500_000}x\nText."
    assert [piece.headings for piece in sections(text)] == [("# " * 100,)]


def test_small_sections_under_one_heading_share_a_piece() -> None:
    text = "# A\nIntro.\n## B\nOne.\n## C\nTwo.\n# D\nThree."
    pieces = Headings(Headings.Config())(Document("d", text), Size(20, 0, words))
    assert [(piece.headings, text[piece.start : piece.end]) for piece in pieces] == [
        (("A",), "# A\nIntro.\n## B\nOne.\n## C\nTwo."),
        (("D",), "# D\nThree."),
    ]


def test_windows_repeat_the_end_of_the_one_before() -> None:
    text = " ".join(map(str, range(10)))
    assert cut(Tokens, text, 4, 1) == ["0 1 2 3", "3 4 5 6", "6 7 8 9"]


def test_code_is_cut_between_functions_and_knows_their_names() -> None:
    pytest.importorskip("tree_sitter_python")
    document = Document("d", PYTHON, language="python")
    pieces = Code(Code.Config())(document, Size(11, 0, words))
    texts = [PYTHON[piece.start : piece.end] for piece in pieces]
    assert ("first",) in [piece.headings for piece in pieces]
    assert ("Tree", "fall") in [piece.headings for piece in pieces]
    assert texts[1].startswith("@cache\ndef first")
    assert texts[-1] == "def fall(self):\n        return os.getcwd()"


def test_code_without_a_grammar_is_cut_at_the_left_margin() -> None:
    text = "fun a\n  b\n\n  c\n\nfun d\n  e"
    assert cut(Code, text, 4, language="klingon") == ["fun a\n  b\n\n  c", "fun d\n  e"]


@pytest.mark.parametrize("splitter", ALL, ids=lambda one: one.__name__)
def test_a_long_text_without_any_break_is_cut_all_the_same(splitter: type[Splitter]) -> None:
    text = "".join(random.Random(1).choices("abcdef", k=5000))

    def characters(texts: Sequence[str]) -> list[int]:
        return [len(one) for one in texts]

    pieces = splitter(splitter.Config())(Document("d", text), Size(100, 0, characters))  # type: ignore[call-arg]
    assert "".join(text[piece.start : piece.end] for piece in pieces) == text


@pytest.mark.parametrize("parser", ["sentence", "token", "markdown"])
@pytest.mark.parametrize(
    "text",
    [
        "# One\n\nA b c. D e f.\n\n## Two\n\nG h i. A b c. " + "x y z. " * 30,
        "  a\n\n\n b  c ",
        "",
        "same. " * 50,
    ],
)
def test_llama_index_cuts_into_pieces_that_are_in_the_text(parser: str, text: str) -> None:
    pytest.importorskip("llama_index.core")
    from pipeline_plugins.split.llama_index import LlamaIndex

    splitter = LlamaIndex(LlamaIndex.Config.model_validate({"parser": parser}))
    pieces = splitter(Document("d", text), Size(20, 0, words))
    covered = {at for piece in pieces for at in range(piece.start, piece.end)}
    assert {at for at, character in enumerate(text) if not character.isspace()} <= covered
    assert all(len(text[piece.start : piece.end].split()) <= 20 for piece in pieces)
    if parser == "markdown" and text.startswith("#"):
        assert ("One",) in [piece.headings for piece in pieces]


def test_llama_index_cuts_by_transformations_that_are_named() -> None:
    pytest.importorskip("llama_index.core")
    from pipeline_plugins.split.llama_index import LlamaIndex

    parsers = "llama_index.core.node_parser"
    steps = [
        {"use": f"{parsers}.MarkdownNodeParser"},
        {"use": f"{parsers}.TokenTextSplitter", "chunk_size": 16, "chunk_overlap": 0},
    ]
    splitter = LlamaIndex(LlamaIndex.Config.model_validate({"transformations": steps}))
    text = "# One\nLlamas hum to their young.\n\n## Two\nAlpacas hum as well, " + "high in the Andes, " * 5
    pieces = splitter(Document("d", text), Size(50, 0, words))
    assert len(pieces) > 2
    assert "".join("".join(text[one.start : one.end] for one in pieces).split()) == "".join(text.split())
    assert pieces[-1].headings == ("One",)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ({"use": "llama_index.core.readers.json.JSONReader"}, "is no TransformComponent"),
        ({"use": "llama_index.core.node_parser.TokenTextSplitter", "chunk_size": "x"}, "can't be made"),
    ],
)
def test_llama_index_says_what_is_wrong_with_a_transformation(step: dict[str, str], why: str) -> None:
    pytest.importorskip("llama_index.core")
    from pipeline_plugins.split.llama_index import LlamaIndex

    with pytest.raises(ValueError, match=why):
        LlamaIndex(LlamaIndex.Config.model_validate({"transformations": [step]}))


def test_nothing_but_llama_index_is_imported_by_name() -> None:
    from pipeline_plugins.split.llama_index import LlamaIndex

    with pytest.raises(ValueError, match="should match pattern"):
        LlamaIndex.Config.model_validate({"transformations": [{"use": "os.system"}]})
