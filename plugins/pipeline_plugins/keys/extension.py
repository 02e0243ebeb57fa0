"""What every option of `keys` does: it says who asks, and lets administrators manage keys."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from pipeline import hookimpl
from pipeline.call import Tenant
from pipeline.errors import Unauthorized
from pipeline.graph import Graph
from pipeline.hookspecs import Route
from pipeline_plugins.keys.ring import Ring
from pipeline_plugins.keys.routes import routes
from pipeline_plugins.keys.store import Store


class KeysConfig(BaseModel):
    """What all stores of keys can be told."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    admin_key: SecretStr | None = Field(
        SecretStr("${oc.env:PIPELINE_ADMIN_KEY,null}"),
        description="The administrator's own key, of 16 to 256 characters; without one the admin API is "
        "closed.",
    )
    refresh: float = Field(
        1.0, ge=0.05, le=60, description="Seconds until changes by other processes are known."
    )
    grace: float = Field(
        300.0, ge=0, le=86_400, description="Seconds that known keys are good while the store is down."
    )
    max_known: int = Field(10_000, ge=1, le=10_000_000, description="Keys to hold in memory.")

    @field_validator("admin_key")
    @classmethod
    def _fit(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not 16 <= len(key) <= 256:
            raise ValueError(f"an admin key has 16 to 256 characters, not {len(key)}")
        if key is not None and not all("!" <= character <= "~" for character in key.get_secret_value()):
            raise ValueError("an admin key is of ASCII letters, digits and signs, without spaces")
        return key


class Keys:
    """Authenticates by the keys of a store, and serves the admin API."""

    def __init__(self, config: KeysConfig, store: Store) -> None:
        self.store = store
        self.ring = Ring(
            store,
            admin=config.admin_key.get_secret_value() if config.admin_key is not None else None,
            refresh=config.refresh,
            grace=config.grace,
            size=config.max_known,
        )

    async def open(self) -> None:
        """Open the store."""
        await self.ring.open()

    async def close(self) -> None:
        """Close the store."""
        await self.ring.close()

    @hookimpl
    def pipeline_authenticate(self, headers: Mapping[str, str]) -> Tenant | Awaitable[Tenant] | None:
        """Who holds the key of `Authorization: Bearer KEY` or `x-api-key: KEY`."""
        authorization = headers.get("authorization")
        held = headers.get("x-api-key")
        if authorization is not None:
            scheme, _, bearer = authorization.partition(" ")
            bearer = bearer.strip()
            if scheme.lower() != "bearer" or not bearer:
                raise Unauthorized("A key is needed in the form `Authorization: Bearer KEY`.")
            if held is not None and held != bearer:
                raise Unauthorized("`Authorization` and `x-api-key` give different keys.")
            held = bearer
        return self.ring.admit(held) if held else None

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn which limits of keys the graph's stages enforce: each says so by `enforces`."""
        stages = graph.stages.values()
        self.ring.enforced = frozenset().union(*(getattr(stage, "enforces", ()) for stage in stages))

    @hookimpl
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        """`/v1/admin/keys`."""
        return routes(self.ring)
