"""What the verbs share: which ledger, and which of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline_plugins.ledger.extension import LedgerConfig
    from pipeline_plugins.ledger.store import Store


class Time(click.ParamType[Any]):
    """A day or an ISO 8601 time, local where it names no zone; seconds since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        try:
            return datetime.fromisoformat(str(value)).timestamp()
        except ValueError:
            self.fail(f"{value!r} is no time; write 2026-11-01 or 2026-11-01T12:00.", param, ctx)


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb `--since`, `--until`, `--owner` and `--model`."""
    for name, type, about in (
        ("model", str, "Calls that this model answered."),
        ("owner", str, "Calls of this owner's keys."),
        ("until", Time(), "Calls that ended before this time."),
        ("since", Time(), "Calls that ended at this time or later."),
    ):
        command = click.option(f"--{name}", type=type, help=about)(command)
    return command


@contextmanager
def opened(overrides: tuple[str, ...], config: Path | None) -> Iterator[Store]:
    """The ledger that the configuration names. Raises as `reading` does."""
    from pipeline.config import compose

    plan, _ = compose(overrides, config=config).plan()

    from pipeline_plugins.ledger.extension import LedgerConfig

    kept = next((p.config for p in plan.extensions if isinstance(p.config, LedgerConfig)), None)
    if kept is None:
        raise click.UsageError("The configuration keeps no ledger: set `ledger=sqlite`.")
    with reading(kept) as store:
        yield store


@contextmanager
def reading(kept: LedgerConfig) -> Iterator[Store]:
    """The tables of a ledger, closed at the end.

    Raises `click.ClickException` where they can't be used, or no longer while they are read.
    """
    from pipeline_plugins.ledger.database import Refused, Unavailable, Unusable

    if missing := kept.missing():
        raise click.ClickException(missing)
    try:
        store = kept.store()
    except (OSError, Unavailable, Unusable) as error:
        raise click.ClickException(f"The ledger can't be used: {error}") from None
    try:
        store.database.patient()
        yield store
    except (Refused, Unavailable, Unusable) as error:
        raise click.ClickException(f"The ledger failed while it was in use: {error}") from None
    finally:
        store.close()
