"""Where collections are kept: a folder, or a URL of an object store."""

from __future__ import annotations

import re

from pipeline.problems import did_you_mean

SCHEMES = ("file", "s3", "s3+ddb", "gs", "az", "abfss", "oss", "cos")
"""Those that LanceDB can write to."""

URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<rest>.*)")


def place(path: str) -> str:
    """The folder or URL itself. Raises ValueError, saying what would be right, for one that can't be used."""
    url = URL.fullmatch(path)
    if url is None:
        return path
    scheme, rest = url["scheme"].lower(), url["rest"]
    if scheme not in SCHEMES:
        hint = did_you_mean(scheme, SCHEMES).rstrip(".?")
        raise ValueError(f"no store has the scheme `{url['scheme']}` ({hint[0].lower()}{hint[1:]})")
    if scheme == "file":
        if not rest.startswith("//"):
            raise ValueError("expected three slashes, `file:///srv/rag`")
    elif re.match(r"/[^/?#]", rest) is None:
        raise ValueError(f"expected `{scheme}://BUCKET/rag`")
    return path
