"""`keys=redis`: keys in Redis, for several machines."""

from __future__ import annotations

from pydantic import Field, SecretStr

from pipeline_plugins.keys.extension import Keys, KeysConfig
from pipeline_plugins.keys.redis_store import RedisStore
from pipeline_plugins.state import REDIS


class RedisKeys(Keys):
    """Asks clients for a key; keys are kept in a Redis that all servers and `pipeline keys` share."""

    class Config(KeysConfig):
        """Where the keys are, and the administrator's own."""

        url: SecretStr = Field(
            SecretStr(REDIS),
            description="redis://[USER:PASSWORD@]HOST:PORT/DB, rediss:// or unix://.",
        )
        prefix: str = Field(
            "pipeline:keys",
            pattern=r"^[\w:.-]{1,64}$",
            description="What the names of all entries begin with.",
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config, RedisStore(config.url.get_secret_value(), config.prefix))
