"""`ledger=postgres`: a row for each call and each attempt, in a database of several machines."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator

from pipeline_plugins.ledger.extension import Ledger, LedgerConfig
from pipeline_plugins.ledger.postgres_database import Postgres
from pipeline_plugins.ledger.store import Store


class PostgresLedger(Ledger):
    """A ledger in PostgreSQL. While it is away rows wait, and calls go on."""

    class Config(LedgerConfig):
        """Where rows are kept, for how long, and how many may wait."""

        url: SecretStr = Field(
            SecretStr("${oc.env:PIPELINE_POSTGRES,'postgresql://127.0.0.1:5432/pipeline'}"),
            description="postgresql://[USER:PASSWORD@]HOST:PORT/DATABASE, with libpq's options.",
        )
        namespace: str = Field(
            "pipeline",
            pattern=r"^[a-z_][a-z0-9_]{0,62}$",
            description="Schema of the tables; made where missing.",
        )

        @field_validator("url")
        @classmethod
        def _is_url(cls, value: SecretStr) -> SecretStr:
            """Tell what libpq would quote a part of, which may be the password."""
            scheme, sign, rest = value.get_secret_value().partition("://")
            if sign and scheme not in ("postgresql", "postgres"):
                raise ValueError("must begin with postgresql://")
            if not sign and "=" not in scheme:
                raise ValueError("must be a URL such as postgresql://127.0.0.1:5432/pipeline")
            if sign and rest.partition("/")[0].count("@") > 1:
                raise ValueError("has more than one @: within a user's name or a password it is written %40")
            return value

        def store(self) -> Store:
            """Connect. Raises `Unavailable`, `Unusable` or ImportError."""
            return Store(Postgres(self.url.get_secret_value(), self.namespace))

    def __init__(self, config: Config) -> None:
        super().__init__(config)
