"""What llama.cpp's server tells on its loopback port alone: templates rendered, texts in tokens.

Asked a few times while a model is loaded, never by a call.
"""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import orjson

SECONDS = 5.0
"""How long one answer may take."""


class LoopbackError(Exception):
    """The server does not answer, or refuses: a template can reject a conversation."""


class Loopback:
    """Asks the server at `address`, whose key is `key`. Blocks: use it in a thread."""

    def __init__(self, address: str, key: str) -> None:
        parts = urlsplit(address)
        self._place = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The prompt of a conversation. Raises `LoopbackError`."""
        body = {"messages": messages} | ({"tools": tools} if tools else {})
        return str(self._ask("/apply-template", body, "prompt"))

    def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
        """Token ids of a text; `whole` adds what stands around every prompt. Raises `LoopbackError`."""
        body = {"content": text, "add_special": whole, "parse_special": True}
        return list(self._ask("/tokenize", body, "tokens"))

    def _ask(self, path: str, body: dict[str, Any], field: str) -> Any:
        connection = HTTPConnection(*self._place, timeout=SECONDS)
        try:
            connection.request("POST", path, orjson.dumps(body), self._headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise LoopbackError(f"{path} answers {answer.status}")
            return orjson.loads(content)[field]
        except (OSError, HTTPException, ValueError, KeyError) as error:
            raise LoopbackError(f"{path} fails: {error}") from error
        finally:
            connection.close()
