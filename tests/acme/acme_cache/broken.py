"""Fails to import, as plugins with a missing library do."""

import no_such_library  # type: ignore[import-not-found]  # noqa: F401
