"""`price=genai`: prices of the `genai-prices` list, overridable, and accounts of what was spent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal
from zoneinfo import ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline import hookimpl
from pipeline.hookspecs import Metric
from pipeline.stage import layered
from pipeline_plugins.price.accounts import NANO, Accounts, Store
from pipeline_plugins.price.charging import Charging, fixed_name
from pipeline_plugins.price.journal import Sync
from pipeline_plugins.price.periods import Calendar
from pipeline_plugins.price.table import PriceTable, Rate
from pipeline_plugins.state import REDIS, STATE

if TYPE_CHECKING:
    from pipeline.graph import Graph
    from pipeline.price import Price
    from pipeline.stage import Layer

PRICES = {"models", "provider", "unknown"}
"""What of the configuration is about prices; all else is about the accounts."""

MODELS = "infer."
"""Stages of this kind are models: what they do has a price."""


class GenAI:
    """Prices every attempt at a model, says a call's cost in `x-pipeline-cost`, and keeps accounts.

    The list has its state of the installed release: nothing is fetched. A tier for long
    prompts is charged as the list has it; writing to a provider's cache, batch discounts,
    audio, images and tools are not priced.
    """

    class Config(BaseModel):
        """Prices, and where what was spent is kept."""

        model_config = ConfigDict(extra="forbid")

        models: dict[str, Rate] = Field(
            default_factory=dict,
            max_length=1024,
            description="Prices by model name or glob, before the list's: `{prompt, completion, cached}` "
            "in USD per million tokens, `second` in USD. The first that fits wins.",
        )
        provider: str | None = Field(
            None,
            max_length=64,
            description="Provider whose list is looked in first, say `groq`; null: by the name.",
        )
        unknown: Literal["free", "refuse"] = Field(
            "free",
            description="What becomes of calls to a model without a price; `free` is logged once a model.",
        )
        store: Literal["sqlite", "redis"] = Field(
            "sqlite", description="Where accounts are kept: for one machine, or shared by several."
        )
        path: str = Field(
            f"{STATE}/spend.sqlite",
            description="SQLite file; beside it is the folder of journals, which `redis` needs as well.",
        )
        url: str = Field(REDIS, description="The Redis of `store: redis`.")
        sync: Sync = Field(
            "interval",
            description="When journals are forced to the disk: `interval` loses a second of them in a power "
            "failure, `always` none, for milliseconds a call, `never` what the kernel had not written. "
            "A process that is killed loses nothing in any case.",
        )
        timezone: str = Field("UTC", description="Time zone in which days and months begin.")

        @field_validator("timezone")
        @classmethod
        def _is_known(cls, value: str) -> str:
            try:
                Calendar(value)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError("there is no such time zone; names look like `Europe/Berlin`") from None
            return value

    survives_reload: ClassVar[bool] = True
    """Its accounts go on as they are: two at once would be two keepers of the same budgets."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.table = PriceTable(config.models, config.provider)
        self.charging = Charging(self.table, refuse=config.unknown == "refuse")
        self.accounts = accounts(config)

    def join(self, former: GenAI) -> None:
        """Go on with a former one's accounts, if they are kept in the same way: prices alone may change."""
        if self.config.model_dump(exclude=PRICES) == former.config.model_dump(exclude=PRICES):
            self.accounts = former.accounts

    async def open(self) -> None:
        """Open the accounts."""
        self.table.load()
        await self.accounts.open()

    async def close(self) -> None:
        """Close the accounts."""
        await self.accounts.close()

    @hookimpl
    def pipeline_price(self, model: str) -> Price | None:
        """A model's price."""
        return self.table.find(model)

    @hookimpl
    def pipeline_layer(self, stage: str, plugin: str, entry: bool) -> Layer | None:
        """Charge at each model; write down at the entry."""
        charged = self.charging.layer(stage) if plugin.startswith(MODELS) else None
        return layered(self.accounts.layer, charged) if entry else charged

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn what each stage's model is called."""
        for name, stage in graph.stages.items():
            models = tuple(model.id for model in getattr(stage, "models", ()))
            if (fixed := fixed_name(models)) is not None:
                self.charging.name(name, fixed)

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """What was spent since the start, and whether prices and accounts are sound."""
        accounts, charging = self.accounts, self.charging
        for name, about, type, value in (
            ("pipeline_cost_usd_total", "USD spent since the start.", "counter", accounts.nano / NANO),
            ("pipeline_cost_calls_total", "Calls written to the accounts.", "counter", accounts.calls),
            (
                "pipeline_cost_estimated_total",
                "Attempts without usage, estimated.",
                "counter",
                charging.estimated,
            ),
            (
                "pipeline_cost_unpriced_total",
                "Attempts at models without a price.",
                "counter",
                charging.unpriced,
            ),
            (
                "pipeline_cost_unwritten",
                "Calls whose line the disk did not take.",
                "gauge",
                accounts.unwritten,
            ),
            (
                "pipeline_cost_store_down",
                "1 while the store of accounts fails.",
                "gauge",
                int(accounts.failing),
            ),
        ):
            # Whether the store fails is the same question for each of several workers.
            across = "max" if name.endswith("_down") else "sum"
            yield Metric(name, about, type, {(): value}, (), across)  # type: ignore[arg-type]


def accounts(config: GenAI.Config) -> Accounts:
    """The accounts that a configuration names."""
    path = Path(config.path).expanduser()
    store: Store
    if config.store == "redis":
        from pipeline_plugins.price.redis_store import RedisStore

        store = RedisStore(config.url)
    else:
        from pipeline_plugins.price.sqlite_store import SqliteStore

        store = SqliteStore(path, durable=config.sync != "never")
    folder = path.with_name(f"{path.name}.lines")  # `-journal` is a name of SQLite's own
    return Accounts(store, folder, sync=config.sync, zone=config.timezone)
