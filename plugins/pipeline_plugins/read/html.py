"""`read.html`: the text of a page, its headings as Markdown's, without scripts and styles."""

from __future__ import annotations

import re
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

DECLARED = re.compile(rb"""<meta[^>]{0,256}?charset\s{0,8}=\s{0,8}["']?([\w-]{1,32})""", re.IGNORECASE)
HEAD = 4096
"""Bytes in which a page says how its characters are encoded."""

LATIN = "windows-1252"
"""What browsers read a page as that is no UTF-8 and declares nothing, or one of Latin's other names."""

ENCODINGS = {
    **dict.fromkeys(("iso-8859-1", "latin1", "us-ascii", "ascii", LATIN), LATIN),
    **{name: name for name in ("shift_jis", "euc-jp", "iso-2022-jp", "euc-kr", "gbk", "gb18030", "big5")},
    **{
        name: name
        for name in ("koi8-r", "koi8-u", *(f"windows-125{page}" for page in (0, 1, 3, 4, 5, 6, 7, 8)))
    },
    **{f"iso-8859-{part}": f"iso-8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
    "gb2312": "gbk",
    "iso-8859-9": "windows-1254",
}
"""What a page can declare itself to be in, besides UTF-8, and how that is read."""


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

        page = LexborHTMLParser(_decoded(file.content()))
        title = page.css_first("title")
        named = " ".join(title.text().split())[:1024] if title is not None else ""
        metadata = {"title": named} if named else {}
        yield Document(file.id, _text(page.root), source=file.id, metadata=metadata)


def _decoded(content: bytes) -> str:
    """The page's characters: by its byte order mark, as UTF-8 if it is that, or as it declares itself."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        declared = DECLARED.search(content, 0, HEAD)
    name = declared[1].decode("ascii", "replace").lower() if declared is not None else LATIN
    return content.decode(ENCODINGS.get(name, "utf-8"), "replace")


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
