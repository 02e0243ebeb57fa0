"""`read.code`: source code, with its language for the splitter and for filters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.read.reader import File

LANGUAGES = {
    ".py": "python",
    ".pyi": "python",
    ".js": "javascript",
    ".mjs": "javascript",
    ".jsx": "javascript",
    ".ts": "typescript",
    ".tsx": "tsx",
    ".go": "go",
    ".rs": "rust",
    ".java": "java",
    ".c": "c",
    ".h": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".hpp": "cpp",
    ".cs": "csharp",
    ".kt": "kotlin",
    ".scala": "scala",
    ".swift": "swift",
    ".rb": "ruby",
    ".php": "php",
    ".sh": "shell",
    ".sql": "sql",
    ".css": "css",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
}


class Code:
    """Reads source code as one document, `metadata.language` being its language."""

    class Config(BaseModel):
        """Nothing to be told."""

        model_config = ConfigDict(extra="forbid")

    suffixes: ClassVar[frozenset[str]] = frozenset(LANGUAGES)
    types: ClassVar[dict[str, str]] = {"text/x-python": ".py", "text/javascript": ".js", "text/css": ".css"}

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, file: File) -> Iterator[Document]:
        """The document of a file."""
        language = LANGUAGES.get(file.suffix, file.suffix.removeprefix("."))
        yield Document(
            file.id, file.text(), source=file.id, metadata={"language": language}, language=language
        )
