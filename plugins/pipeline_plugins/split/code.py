"""`split.code`: source code cut between its functions, classes and blocks.

Languages with a tree-sitter grammar installed (`tree_sitter_LANGUAGE`, the extra `code`) are
parsed; others are cut where a line stands at the left margin after an empty one.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from itertools import accumulate
from typing import Any

from pipeline_plugins.rag.chunk import Document, Piece
from pipeline_plugins.split.splitter import LINE, Size, Untold, packed, trimmed

GRAMMARS = {"typescript": ("typescript", "language_typescript"), "tsx": ("typescript", "language_tsx")}
"""Where a grammar's package has more than one language."""

BLOCK = re.compile(r"(?:\A|(?<=\n\n))(?=\S)")
"""Where a block of code begins, for want of a grammar."""

INNER = frozenset(
    {"body", "block", "declaration_list", "class_body", "interface_body", "field_declaration_list"}
)
"""Nodes that only hold what is in a class, say."""

DEEPEST = 50
"""Blocks within blocks that are looked into."""


@dataclass(slots=True, frozen=True)
class Block:
    """A part of the code, from the end of the one before it; `inner` gives what it consists of."""

    start: int
    end: int
    name: str = ""
    inner: Callable[[], Sequence[Block]] = tuple


class Code(Untold):
    """Makes a piece of as many whole functions or classes as fit; their names are its headings.

    What is too long is cut between its methods or statements, then between lines.
    """

    def __call__(self, document: Document, size: Size) -> list[Piece]:
        """The pieces of a document."""
        text = document.text
        language = _grammar(document.language)
        blocks = _found(text) if language is None else _parsed(text, language)
        pieces = [trimmed(text, piece) for piece in self._cut(text, blocks, (), size)]
        return [piece for piece in pieces if piece.end > piece.start]

    def _cut(
        self, text: str, blocks: Sequence[Block], path: tuple[str, ...], size: Size, depth: int = 0
    ) -> Iterator[Piece]:
        """Blocks in a row as pieces; those that fit together share one."""
        counts = size.count([text[block.start : block.end] for block in blocks])
        held: list[Block] = []
        tokens = 0
        for block, count in zip(blocks, counts, strict=True):
            if held and tokens + count > size.tokens:
                yield _piece(held, path)
                held, tokens = [], 0
            if count <= size.tokens:
                held.append(block)
                tokens += count
                continue
            below = (*path, block.name) if block.name else path
            inner = block.inner()
            if len(inner) > 1 and depth < DEEPEST:
                yield from self._cut(text, inner, below, size, depth + 1)
            else:
                yield from packed(text, Piece(block.start, block.end, below), size, LINE)
        if held:
            yield _piece(held, path)


def _piece(blocks: Sequence[Block], path: tuple[str, ...]) -> Piece:
    named = [block.name for block in blocks if block.name]
    return Piece(blocks[0].start, blocks[-1].end, (*path, *named) if len(named) == 1 else path)


@cache
def _grammar(name: str) -> Any:
    """The grammar of a language, None where it is not installed."""
    package, function = GRAMMARS.get(name, (name, "language"))
    try:
        from tree_sitter import Language

        return Language(getattr(import_module(f"tree_sitter_{package}"), function)())
    except ImportError:
        return None


def _parsed(text: str, language: Any) -> list[Block]:
    from tree_sitter import Parser

    root = Parser(language).parse(text.encode()).root_node
    if text.isascii():
        return _blocks(root, 0, len(text), int)
    ends = list(accumulate(len(character.encode()) for character in text))
    return _blocks(root, 0, len(text), lambda at: bisect_right(ends, at))


def _blocks(node: Any, start: int, end: int, characters: Callable[[int], int]) -> list[Block]:
    """A node's children as blocks without gaps: what lies between belongs to the one after."""
    blocks: list[Block] = []
    children = node.named_children
    for child in children:
        stop = end if child == children[-1] else characters(child.end_byte)
        blocks.append(Block(start, stop, _name(child), partial(_inner, child, start, stop, characters)))
        start = stop
    return blocks or [Block(start, end)]


def _inner(node: Any, start: int, end: int, characters: Callable[[int], int]) -> list[Block]:
    """What a block consists of: the statements of its body."""
    body = _body(_wrapped(node))
    return [] if body is None else _blocks(body, start, end, characters)


def _name(node: Any) -> str:
    """The name of what has a body: other nodes have names, too, but define nothing."""
    name = _wrapped(node).child_by_field_name("name")
    if name is None or _body(_wrapped(node)) is None:
        return ""
    named: str = name.text.decode("utf-8", "replace")[:200]
    return named


def _wrapped(node: Any) -> Any:
    """What a decorator or an export, say, stands around."""
    return node.child_by_field_name("definition") or node.child_by_field_name("declaration") or node


def _body(node: Any) -> Any:
    return node.child_by_field_name("body") or next((c for c in node.named_children if c.type in INNER), None)


def _found(text: str) -> list[Block]:
    starts = [0, *(match.start() for match in BLOCK.finditer(text) if match.start())]
    return [Block(a, b) for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
