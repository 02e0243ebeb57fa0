"""From token ids to text as it grows: whole characters only, and nothing from a stop text on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"
MOST_HELD = 8
"""Tokens after which bytes that still are no character never will be one."""

Decode = Callable[[list[int]], str]


class Decoder:
    """Turns tokens into text one by one; a character's text comes with its last token."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._read = 0

    def feed(self, token: int) -> str:
        """The text that this token completes, often empty within a character."""
        self._ids.append(token)
        known = self._decode(self._ids[: self._read])
        text = self._decode(self._ids)
        if text.endswith(BROKEN) and len(self._ids) - self._read < MOST_HELD:
            return ""
        # The tokens before are kept: some decoders treat the first token differently.
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return text[len(known) :]

    def finish(self) -> str:
        """The text of tokens held back, without the character that was cut off."""
        known = self._decode(self._ids[: self._read])
        return self._decode(self._ids)[len(known) :].rstrip(BROKEN)


class Holder:
    """Lets text through up to the first of some marks, and holds back what may begin one."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = [mark for mark in marks if mark]
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """What can be passed on, and the mark that was found right after it, if one was."""
        held = self._held + text
        found = [(at, mark) for mark in self._marks if (at := held.find(mark)) >= 0]
        if found:
            at, mark = min(found, key=lambda one: (one[0], -len(one[1])))
            self._held = held[at + len(mark) :]
            return held[:at], mark
        keep = max((_overlap(held, mark) for mark in self._marks), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], None

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0


@dataclass(slots=True)
class Entry:
    """A token with its log-probability; `top` are the likeliest; `offset` is where its text begins."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    offset: int


@dataclass(slots=True)
class Piece:
    """A part of an answer: text, and the tokens that made it where they are asked for.

    `reason` is set on the last piece: `stop` or `length`; `tokens` counts all so far.
    """

    text: str = ""
    entries: list[Entry] = field(default_factory=list)
    reason: str | None = None
    tokens: int = 0


class Writer:
    """One sequence's text: decoded, cut at stop texts, its tokens' scores beside it."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self._decoder = Decoder(decode)
        self._stops = Holder(stops)
        self._entries: list[Entry] = []
        self._decoded = 0
        self._written = 0

    def feed(self, chosen: Any) -> Piece:
        """The piece that a chosen token adds; its reason is `stop` where a stop text ended it."""
        if chosen.logprob is not None:
            self._entries.append(Entry(chosen.token, chosen.logprob, chosen.top, self._decoded))
        return self._pass(self._decoder.feed(chosen.token))

    def finish(self) -> Piece:
        """The rest, when no more tokens come."""
        piece = self._pass(self._decoder.finish())
        if piece.reason is None:
            piece.text += self._stops.finish()
            piece.entries += self._entries
        return piece

    def _pass(self, decoded: str) -> Piece:
        self._decoded += len(decoded)
        text, mark = self._stops.feed(decoded)
        self._written += len(text)
        ready = [entry for entry in self._entries if entry.offset < self._written]
        self._entries = [] if mark else self._entries[len(ready) :]
        return Piece(text, ready, "stop" if mark else None)


def token_bytes(tokenizer: Any) -> Callable[[int], bytes]:
    """How to tell the bytes of a single token, which need not be whole characters."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and "ByteLevel" in str(backend.decoder)
    special = set(tokenizer.added_tokens_decoder)
    alphabet = {character: byte for byte, character in _byte_alphabet().items()}

    def of(token: int) -> bytes:
        piece = tokenizer.convert_ids_to_tokens(token)
        if piece is None or token in special:
            return str(piece or "").encode()
        if byte_level and all(character in alphabet for character in piece):
            return bytes(alphabet[character] for character in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("▁", " ").encode()

    return of


def _byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level vocabularies write for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
