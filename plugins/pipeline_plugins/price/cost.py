"""`pipeline cost`: what was spent, by whom and on what, and what the month will come to."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import overrides as with_overrides

if TYPE_CHECKING:
    from pipeline_plugins.price.accounts import Accounts
    from pipeline_plugins.price.journal import Account, Totals
    from pipeline_plugins.price.projection import Projection

EPILOG = """\b
Examples:
  pipeline cost
  pipeline cost --by owner --by model --since 2026-11-01
  pipeline cost --by day --json | jq '.rows[] | [.day, .usd]'
  pipeline cost price.store=redis"""

GROUPS = ("key", "owner", "model", "tag", "day")

WINDOW = 28
"""Days before today that the projection looks at."""


class Day(click.ParamType[str]):
    """A day as `YYYY-MM-DD`."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it."""
        try:
            return datetime.strptime(value, "%Y-%m-%d").date().isoformat()
        except ValueError:
            self.fail(f"{value!r} is no day; days look like 2026-11-01", param, ctx)


@click.command("cost", epilog=EPILOG)
@with_overrides
@click.option("--by", type=click.Choice(GROUPS), multiple=True, help="What to group by; may be repeated.")
@click.option("--since", type=Day(), help="First day; the first of this month if left out.")
@click.option("--until", type=Day(), help="Last day, included; today if left out.")
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON.")
def command(
    overrides: tuple[str, ...],
    config: Path | None,
    by: tuple[str, ...],
    since: str | None,
    until: str | None,
    as_json: bool,
) -> int:
    """Report what was spent by key, owner, model, tag or day, and project the month.

    Reads the accounts that `price` keeps, whether a server runs or not. A call with several
    tags counts for each of them.
    """
    from pipeline.config import compose

    plan, _ = compose(overrides, config=config).plan()

    from pipeline_plugins.price.genai import GenAI, accounts

    kept = next((part.config for part in plan.extensions if isinstance(part.config, GenAI.Config)), None)
    if kept is None:
        raise click.UsageError("The configuration keeps no accounts: set `price=genai`.")
    report = asyncio.run(_report(accounts(kept), by or ("model",), since, until))
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


async def _report(
    accounts: Accounts, by: tuple[str, ...], since: str | None, until: str | None
) -> dict[str, Any]:
    from datetime import date, timedelta

    from pipeline_plugins.price.accounts import NANO
    from pipeline_plugins.price.journal import COLUMNS
    from pipeline_plugins.price.projection import project

    today = accounts.calendar.today
    since, until = since or min(f"{today[:7]}-01", until or today), until or today
    if since > until:
        raise click.UsageError(f"--since {since} is after --until {until}.")
    back = (date.fromisoformat(today) - timedelta(days=WINDOW)).isoformat()
    await accounts.open(write=False)
    try:
        if accounts.failing:
            raise click.ClickException("The accounts can't be read or written at the moment.")
        found = await accounts.totals(min(since, back, f"{today[:7]}-01"), max(until, today))
    finally:
        await accounts.close()
    chosen = {account: counts for account, counts in found.items() if since <= account.day <= until}
    usd = COLUMNS.index("usd")
    daily: dict[str, float] = {}
    for account, counts in found.items():
        daily[account.day] = daily.get(account.day, 0.0) + counts[usd] / NANO
    return {
        "since": since,
        "until": until,
        "by": list(dict.fromkeys(by)),
        "rows": _grouped(chosen, tuple(dict.fromkeys(by))),
        "total": _named([sum(counts[n] for counts in chosen.values()) for n in range(len(COLUMNS))]),
        "projection": _projected(project(daily, today), today),
    }


def _grouped(totals: Totals, by: tuple[str, ...]) -> list[dict[str, Any]]:
    from pipeline_plugins.price.journal import COLUMNS

    sums: dict[tuple[str, ...], list[int]] = {}
    for account, counts in totals.items():
        for names in _groups(account, by):
            known = sums.setdefault(names, [0] * len(COLUMNS))
            for n, count in enumerate(counts):
                known[n] += count
    order = COLUMNS.index("usd")
    rows = sorted(sums.items(), key=lambda item: item[0] if by[0] == "day" else (-item[1][order], item[0]))
    return [dict(zip(by, names, strict=True)) | _named(counts) for names, counts in rows]


def _groups(account: Account, by: tuple[str, ...]) -> list[tuple[str, ...]]:
    tags = [f"{name}={value}" for name, value in json.loads(account.tags).items()] or [""]
    return [
        tuple(tag if group == "tag" else str(getattr(account, group)) for group in by)
        for tag in (tags if "tag" in by else [""])
    ]


def _named(counts: list[int]) -> dict[str, Any]:
    from pipeline_plugins.price.accounts import NANO

    calls, prompt, cached, completion, *nano = counts
    usd, estimated, saved_cache, saved_route = (value / NANO for value in nano)
    return {
        "calls": calls,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "completion_tokens": completion,
        "usd": usd,
        "estimated_usd": estimated,
        "saved_cache_usd": saved_cache,
        "saved_route_usd": saved_route,
    }


def _projected(found: Projection | None, today: str) -> dict[str, Any]:
    from pipeline_plugins.price.projection import LEAST, METHOD

    if found is None:
        return {
            "month": today[:7],
            "usd": None,
            "why": f"too little data: {LEAST} whole days with spend are needed",
        }
    return {
        "month": found.month,
        "usd": found.usd,
        "low": found.low,
        "high": found.high,
        "interval": 0.8,
        "days": found.days,
        "method": METHOD,
    }


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    total = report["total"]
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for heading in report["by"]:
        table.add_column(heading.upper(), overflow="fold")
    for heading in ("CALLS", "PROMPT", "CACHED", "COMPLETION", "USD", "SAVED"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        table.add_row(*(escape(row[group]) or "-" for group in report["by"]), *_cells(row))
    if len(report["rows"]) != 1:
        table.add_row(
            *("total" if n == 0 else "" for n in range(len(report["by"]))), *_cells(total), style="bold"
        )
    console.print(f"[dim]{report['since']} to {report['until']}[/dim]")
    console.print(table)
    for words, name in (("the cache", "saved_cache_usd"), ("routing", "saved_route_usd")):
        if total[name]:
            share = total[name] / (total["usd"] + total[name])
            console.print(f"{words} saved {_usd(total[name])} USD, {share:.0%} of what it would have been")
    if total["estimated_usd"]:
        console.print(f"{_usd(total['estimated_usd'])} USD are estimated: answers cut off, or without usage")
    month = report["projection"]
    if month["usd"] is None:
        console.print(f"{month['month']}: no projection, {month['why']}")
    else:
        console.print(
            f"{month['month']} will come to {_usd(month['usd'])} USD, with 80 % between "
            f"{_usd(month['low'])} and {_usd(month['high'])}"
        )
        console.print(
            f"[dim]from {month['days']} days, which the next are taken to be like; --json says how[/dim]"
        )


def _cells(row: dict[str, Any]) -> list[str]:
    counts = [f"{row[name]:,}" for name in ("calls", "prompt_tokens", "cached_tokens", "completion_tokens")]
    return [*counts, _usd(row["usd"]), _usd(row["saved_cache_usd"] + row["saved_route_usd"])]


def _usd(value: float) -> str:
    """Cents for what people pay, as many digits as it takes below."""
    if value >= 0.1 or value == 0:
        return f"{value:,.2f}"
    return f"{value:.2g}" if value >= 0.0001 else f"{value:.9f}".rstrip("0")
