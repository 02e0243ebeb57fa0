"""Request headers as stages see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


class Headers(Mapping[str, str]):
    """A request's headers by lower-case name, decoded on first use.

    Of a header that was sent more than once the first counts.
    """

    __slots__ = ("_by_name", "_raw")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._by_name: dict[str, str] | None = None

    def _decoded(self) -> dict[str, str]:
        if self._by_name is None:
            self._by_name = {n.decode("latin-1"): v.decode("latin-1") for n, v in reversed(self._raw)}
        return self._by_name

    def repeats(self, name: str) -> bool:
        """Whether a header was sent more than once."""
        if len(self._decoded()) == len(self._raw):
            return False
        return sum(sent == name.encode() for sent, _ in self._raw) > 1

    def __getitem__(self, name: str) -> str:
        return self._decoded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())
