"""Secrets of a configuration arrive, and nothing shows them."""

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from pipeline import Call, Reply
from pipeline.config import Config, compose
from pipeline.config_print import as_yaml
from pipeline.hydra_source import defaults_of
from pipeline.problems import ConfigError
from pipeline.secrets import is_secret
from tests import stages

SECRET = "sk-do-not-show-me"


class Auth(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pin: SecretStr = SecretStr("")
    realm: str = ""


class Keyed:
    """Has secrets of every sort: typed, nested, and by name alone."""

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        api_key: SecretStr | None = None
        password: str = ""
        backup_keys: list[SecretStr] = Field(default_factory=list)
        auth: Auth = Auth()
        max_tokens: int = 5

    def __init__(self, config: Config) -> None:
        self.config = config

    async def __call__(self, call: Call) -> Reply:
        return Reply.of({"text": ""})


def keyed(*overrides: str) -> Config:
    registry = stages.registry(infer_keyed=f"{__name__}:Keyed", route_direct="tests.stages:Many")
    base = (
        *("infer=keyed", "infer@embed=answer", "route=many", "monitor=pass"),
        *("limit=none", "cache=none", "price=none", "dashboard=none"),
    )
    return compose([*base, *overrides], registry=registry)


def printed(config: Config) -> str:
    return "\n".join(f"{line} # {origin}" for line, origin in as_yaml(config))


def test_secrets_are_never_printed() -> None:
    config = keyed(
        f"infer.api_key={SECRET}",
        f"infer.password={SECRET}",
        f"infer.backup_keys=[{SECRET}]",
        f"infer.auth.pin={SECRET}",
        f"+vars.token={SECRET}",
        "infer.auth.realm=here",
    )
    text = printed(config)
    assert SECRET not in text
    assert text.count("***") == 5
    assert "max_tokens: 5" in text
    assert "realm: here" in text
    assert "plugin: infer.keyed" in text
    secrets = config.plan()[0].parts["infer"].config
    assert isinstance(secrets, Keyed.Config)
    assert secrets.api_key is not None
    assert secrets.api_key.get_secret_value() == SECRET


@pytest.mark.parametrize(
    "override",
    [
        "infer.api_ky={}",
        "infer.api_key={{x: {}}}",
        "infer.api_key=[{}]",
        "infer.api_key={},b",
        "infer.password=[{}]",
        "infer.backup_keys={}",
        "infer.auth={}",
        "infer.auth.pin=[{}]",
        "infer.auth.pn={}",
        "infer={{api_key: {}}}",
        "~infer.password={}",
        "infer.api_key.x.0={}",
        "infer.max_tokens.api_key={}",
        "server.api_key={}",
        "+infer.password={}",
    ],
)
def test_a_mistake_with_a_secret_does_not_show_it(override: str) -> None:
    with pytest.raises(ConfigError) as raised:
        keyed(override.format(SECRET)).plan()
    assert SECRET not in str(raised.value)


def test_credentials_in_an_address_are_not_printed() -> None:
    text = printed(keyed(f"+vars.url='http://user:{SECRET}@host:80/v1?at=a@b'"))
    assert SECRET not in text
    assert "url: http://***@host:80/v1?at=a@b" in text


def test_defaults_of_every_type_become_plain_values() -> None:
    class Config(BaseModel):
        key: SecretStr = SecretStr(SECRET)
        nested: Auth = Auth(pin=SecretStr("1"), realm="x")
        folder: Path = Path("/tmp")
        words: frozenset[str] = frozenset({"a"})
        wait: timedelta = timedelta(seconds=5)
        needed: int

    assert defaults_of(Config) == {
        "key": SECRET,
        "nested": {"pin": "1", "realm": "x"},
        "folder": "/tmp",
        "words": ["a"],
        "wait": "PT5S",
    }


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("api_key", True),
        ("apikey", True),
        ("x-api-key", True),
        ("api_keys", True),
        ("Authorization", True),
        ("db_password", True),
        ("access_token", True),
        ("client_secret", True),
        ("openai_key", True),
        ("passphrase", True),
        ("credentials", True),
        ("monkey", False),
        ("max_tokens", False),
        ("tokens_per_second", False),
        ("key", False),
        ("name", False),
    ],
)
def test_some_names_are_secret_whatever_their_type(key: str, secret: bool) -> None:
    assert is_secret((key,)) is secret
    assert is_secret(("headers", key)) is secret
