"""`read.html`: the text of a page, its headings as Markdown's, without scripts and styles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.read.reader import File

SKIPPED = frozenset({"script", "style", "template", "noscript", "svg", "head", "iframe", "-comment"})
BLOCKS = frozenset(
    {
        *("p", "div", "hr", "section", "article", "main", "header", "footer", "nav"),
        *("aside", "blockquote", "table", "ul", "ol", "dl", "figure", "figcaption", "form"),
    }
)
LINES = frozenset({"br", "dd", "dt", "li", "tr"})
CELLS = frozenset({"td", "th"})
HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}


class HTML:
    """Reads a page as one document; its title is `metadata.title`."""

    class Config(BaseModel):
        """Nothing to be told."""

        model_config = ConfigDict(extra="forbid")

    suffixes: ClassVar[frozenset[str]] = frozenset({".html", ".htm", ".xhtml"})
    types: ClassVar[dict[str, str]] = {"text/html": ".html", "application/xhtml+xml": ".xhtml"}

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, file: File) -> Iterator[Document]:
        """The document of a file."""
        from selectolax.lexbor import LexborHTMLParser

        page = LexborHTMLParser(file.content().removeprefix(b"\xef\xbb\xbf"))
        title = page.css_first("title")
        named = " ".join(title.text().split())[:1024] if title is not None else ""
        metadata = {"title": named} if named else {}
        yield Document(file.id, _text(page.root), source=file.id, metadata=metadata)


def _text(root: Any) -> str:
    """All of it, with no more than one empty line in a row."""
    lines = [" ".join(line.split()) for line in "".join(_parts(root)).split("\n")]
    kept = [line for at, line in enumerate(lines) if line or (at and lines[at - 1])]
    return "\n".join(kept).strip()


def _parts(root: Any) -> Iterator[str]:
    """Texts and line ends in their order. A stack of its own: pages can nest deeper than Python may."""
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            yield node
            continue
        tag = node.tag
        if tag == "-text":
            yield node.text_content.replace("\n", " ")
            continue
        if tag in SKIPPED:
            continue
        before, after = _around(tag, first=node.prev is None)
        if tag == "pre":
            yield f"\n{node.text()}\n"
            continue
        if before:
            yield before
        if after:
            stack.append(after)
        stack.extend(reversed(list(node.iter(include_text=True))))


def _around(tag: str, *, first: bool) -> tuple[str, str]:
    """What stands before and after an element's text; `first` is the first of its parent."""
    if tag in HEADINGS:
        return f"\n\n{HEADINGS[tag]} ", "\n"
    if tag in CELLS:
        return "" if first else " | ", ""
    if tag in LINES:
        return "\n", ""
    return ("\n", "\n") if tag in BLOCKS else ("", "")
