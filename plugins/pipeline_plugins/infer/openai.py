"""`infer=openai`: any server that speaks OpenAI's API, hosted or your own.

vLLM, SGLang, TGI, Ollama and this gateway are such servers. Requests and answers are
passed on byte for byte wherever nothing has to be changed.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Annotated, Any, Literal

import jiter
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from pipeline import DEFAULT_NAMES, Call, Model, Reply
from pipeline.errors import (
    APIError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RateLimited,
    UpstreamFailed,
)
from pipeline.wire.needs import Capability
from pipeline_plugins.infer.openai_client import Address, Client
from pipeline_plugins.infer.openai_connection import Exchange, Limits
from pipeline_plugins.infer.openai_events import Events

PATHS = {
    "chat": "/chat/completions",
    "completion": "/completions",
    "embedding": "/embeddings",
    "rerank": "/rerank",
}

ANSWERS = {"chat": "choices", "completion": "choices", "embedding": "data", "rerank": "results"}
"""What each operation's answer has."""

CHECKED = 8192
"""Bytes up to which an answer is read to its end to see that it is whole; it takes about 1 µs for 300."""

EXCERPT = 200
"""Characters of a foreign error page that the client gets to see."""

BUSY: dict[int, type[APIError]] = {429: RateLimited, 503: Overloaded}
MISTAKES: dict[int, type[APIError]] = dict.fromkeys((400, 413, 422), InvalidRequest)
"""What a status means that an upstream answers with, or names in an error within an answer."""

OWN_HEADERS = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "host", "te", "transfer-encoding"}
)
"""Headers that the HTTP client writes itself."""

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
TAGS = re.compile(r"<[^<>]*>")

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class OpenAI:
    """Passes calls on to an OpenAI-compatible server, over kept-alive connections."""

    class Config(BaseModel):
        """Where the server is, and how long to wait for it."""

        model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

        base_url: str = Field(
            "http://127.0.0.1:8001/v1", description="The server's address, up to where its paths begin."
        )
        api_key: SecretStr | None = Field(None, description="Key to send as `authorization: Bearer`.")
        model: Name | None = Field(
            None, description="Model to ask the server for; null passes on the name that the client wrote."
        )
        models: list[Name] = Field(
            default_factory=list,
            max_length=1024,
            description="Model names that clients may use; empty is any, or just `model` where it is set.",
        )
        operations: list[Literal["chat", "completion", "embedding", "rerank"]] | None = Field(
            None,
            min_length=1,
            description="What it can do; null is chat, completion and, unless `model` is set, embedding.",
        )
        capabilities: list[Capability] | None = Field(
            None,
            min_length=1,
            description="All that its models can do, streaming included; null is unknown.",
        )
        context_window: int | None = Field(
            None, ge=1, le=1_000_000_000, description="Tokens of prompt and answer together; null is unknown."
        )
        connect_timeout: Seconds = Field(5.0, description="Seconds to connect, TLS included.")
        first_byte_timeout: Seconds = Field(300.0, description="Seconds until the answer begins.")
        between_chunks_timeout: Seconds = Field(60.0, description="Seconds of silence within an answer.")
        max_connections: int = Field(1024, ge=1, le=65_536, description="Connections open at a time.")
        headers: dict[str, SecretStr] = Field(
            default_factory=dict, max_length=64, description="Further headers of every request."
        )
        usage: bool = Field(
            True, description="Have the server count a stream's tokens even if the client does not ask."
        )
        max_reply_bytes: int = Field(
            64 * 1024 * 1024, ge=1024, le=2**31, description="Bytes of an answer that is not streamed."
        )

        @model_validator(mode="after")
        def _can_be_sent(self) -> OpenAI.Config:
            # Checked here and not field by field: an error of a field quotes its value.
            try:
                Address.parse(self.base_url)
            except ValueError as error:
                raise ValueError(f"`base_url` {error}") from None
            if self.api_key is not None and not HEADER_VALUE.fullmatch(self.api_key.get_secret_value()):
                raise ValueError("`api_key` has characters that no HTTP header can hold")
            for name, value in self.headers.items():
                if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value.get_secret_value()):
                    raise ValueError(f"`headers` has an entry that is not an HTTP header: {name[:64]!r}")
                if name.lower() in OWN_HEADERS:
                    raise ValueError(f"`headers` may not set {name!r}: it is the connection's own")
                if name.lower() == "authorization" and _key(self):
                    raise ValueError("`headers` sets `authorization` and so does `api_key`: keep one")
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        every = ("chat", "completion", "embedding") if config.model is None else ("chat", "completion")
        operations = frozenset(config.operations or every)
        self._operations = operations
        self.models = _models(config, operations)
        self._names = frozenset(filter(None, (config.model, *config.models)))
        self._fixed = config.model or next(iter(config.models), None)
        self._secrets = [secret for secret in (_key(config), *_values(config)) if len(secret) >= 4]
        self._client = _client(config)
        self._found: str | None = None
        self._searches = 0
        self._search_failed: APIError | None = None
        self._searching = asyncio.Lock()

    async def open(self) -> None:
        """Get ready to connect; the first call does."""
        self._client.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def __call__(self, call: Call) -> Reply:
        """Pass the call on.

        The server's own refusals come back as it wrote them. Raises `UpstreamFailed`
        where it can't be reached, breaks off or answers something else; `DeadlineExceeded`,
        `RateLimited` and `Overloaded`; `ModelNotFound` for a name that is not configured.
        """
        name = await self._name(call)
        changes: dict[str, Any] = {}
        if name != call.model or "model" not in call.body:
            changes["model"] = name
        streaming = call.streaming and call.operation in ("chat", "completion")
        hide_usage = False
        if streaming and self.config.usage:
            options = call.body.get("stream_options")
            options = options if isinstance(options, dict) else {}
            hide_usage = options.get("include_usage") is not True
            if hide_usage:
                changes["stream_options"] = {**options, "include_usage": True}
        sent = call.derive(**changes) if changes else call
        exchange = await self._client.request(
            "POST", PATHS[call.operation], sent.raw, call.deadline, stream=streaming, headers=call.outbound
        )
        if exchange.status != 200:
            return self._refused(exchange, call)
        if streaming:
            return self._stream(exchange, hide_usage, name)
        return self._whole(exchange, ANSWERS[call.operation], name)

    async def _name(self, call: Call) -> str:
        """The name to ask the server for."""
        if call.operation not in self._operations:
            offered = ", ".join(sorted(self._operations))
            raise InvalidRequest(
                f"The model `{call.model[:256]}` does not do `{call.operation}`; it does: {offered}.",
                param="model",
                code="unsupported_operation",
            )
        if call.model in self._names:
            return self.config.model or call.model
        if call.model in DEFAULT_NAMES:
            return self._fixed or self._found or await self._first_model(call.deadline)
        if self._names:
            known = ", ".join(f"`{name}`" for name in sorted(self._names)[:20])
            raise ModelNotFound(
                f"The model `{call.model[:256]}` does not exist; there is {known}.", param="model"
            )
        return call.model

    async def _first_model(self, deadline: float) -> str:
        """The first model that the server lists: asked for once, by one call for all."""
        searches = self._searches
        try:
            async with asyncio.timeout_at(deadline):
                await self._searching.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                "The call's deadline passed while asking the upstream for a model."
            ) from None
        try:
            if self._found is not None:
                return self._found
            if searches != self._searches and self._search_failed is not None:
                raise type(self._search_failed)(self._search_failed.message)
            self._found = await self._search(deadline)
            return self._found
        except APIError as error:
            # A call that ran out of time on its own says nothing about the upstream.
            if asyncio.get_running_loop().time() < deadline and searches == self._searches:
                self._searches += 1
                self._search_failed = error
            raise
        finally:
            self._searching.release()

    async def _search(self, deadline: float) -> str:
        exchange = await self._client.request("GET", "/models", b"", deadline)
        if exchange.status in (401, 403):
            raise self._key_refused()
        try:
            name = jiter.from_json(exchange.body())["data"][0]["id"]
        except (ValueError, LookupError, TypeError):
            name = None
        if exchange.status != 200 or not isinstance(name, str):
            raise UpstreamFailed(
                f"The upstream {exchange.host} does not say which models it has; set `model`."
            )
        return name

    def _stream(self, exchange: Exchange, hide_usage: bool, name: str) -> Reply:
        if not exchange.content_type.lower().startswith(b"text/event-stream") or _encoded(exchange):
            exchange.abort()
            raise UpstreamFailed(f"The upstream {exchange.host} did not answer with a stream of events.")
        events = Events(exchange, hide_usage=hide_usage, failed=partial(self._told, exchange.host))
        headers = [(b"content-type", exchange.content_type)]
        events.reply = reply = Reply(chunks=events, headers=headers, model=name)
        return reply

    def _whole(self, exchange: Exchange, answers: str, name: str) -> Reply:
        body = exchange.body()
        parsed = _read(body) if len(body) <= CHECKED else None
        cut = not _is_framed(body) if len(body) > CHECKED else parsed is None
        if cut or _encoded(exchange):
            raise UpstreamFailed(
                f"The upstream {exchange.host} did not answer with JSON: {self._excerpt(exchange)}"
            )
        if parsed is not None and (error := parsed.get("error")):
            raise self._told(exchange.host, error)
        if not (parsed.get(answers) if parsed is not None else f'"{answers}"'.encode() in body):
            raise UpstreamFailed(
                f"The upstream {exchange.host} answered without `{answers}`: {self._excerpt(exchange)}"
            )
        headers = [(b"content-type", exchange.content_type or b"application/json")]
        return Reply(body=body, headers=headers, model=name, parsed=parsed)

    def _told(self, host: str, error: Any) -> APIError:
        """What an upstream that began with status 200 says went wrong, by the status in its `code`."""
        said = error if isinstance(error, dict) else {"message": error}
        code, message = said.get("code"), said.get("message")
        kind = (BUSY | MISTAKES).get(code, UpstreamFailed) if isinstance(code, int) else UpstreamFailed
        text = self._plain(str(message or "")[:65_536].encode())
        return kind(f"The upstream {host} answered with an error: {text}")

    def _refused(self, exchange: Exchange, call: Call) -> Reply:
        """Pass a refusal on if it is one that clients understand."""
        status, host = exchange.status, exchange.host
        if status in (401, 403):
            raise self._key_refused()
        if 300 <= status < 400:
            raise UpstreamFailed(
                f"The upstream {host} answered with a redirect ({status}), which is not followed; "
                "set `base_url` to where it leads."
            )
        if status == 404 and call.model in DEFAULT_NAMES:
            self._found = None  # it may serve another model by now
        headers = [(b"retry-after", exchange.retry_after)] if 0 < len(exchange.retry_after) <= 64 else []
        if status >= 400 and not _encoded(exchange) and _is_envelope(exchange.body()):
            headers.append((b"content-type", exchange.content_type or b"application/json"))
            return Reply(body=self._without_secrets(exchange.body()), status=status, headers=headers)
        message = f"The upstream {host} answered with status {status}: {self._excerpt(exchange)}"
        raise BUSY.get(status, UpstreamFailed)(message, headers=tuple(headers))

    def _key_refused(self) -> UpstreamFailed:
        host = self._client.address.host
        if _key(self.config):
            return UpstreamFailed(f"The upstream {host} refused the configured key.")
        return UpstreamFailed(f"The upstream {host} asks for a key; set `api_key` of `infer=openai`.")

    def _without_secrets(self, body: bytes) -> bytes:
        for secret in self._secrets:
            body = body.replace(secret.encode("latin-1"), b"***")
        return body

    def _excerpt(self, exchange: Exchange) -> str:
        """The beginning of a foreign answer as one line of plain text."""
        if _encoded(exchange):
            return "(compressed, though asked not to)"
        return self._plain(exchange.body()[:65_536])

    def _plain(self, foreign: bytes) -> str:
        text = self._without_secrets(foreign).decode("utf-8", "replace")
        text = " ".join("".join(c if c.isprintable() else " " for c in TAGS.sub(" ", text)).split())
        return text[:EXCERPT] + "…" if len(text) > EXCERPT else text or "(nothing)"


def _models(config: OpenAI.Config, operations: frozenset[str]) -> tuple[Model, ...]:
    """What is offered: the one model that is set under all names, or a model for each name."""
    capabilities = set(config.capabilities or ())
    if "json_schema" in capabilities:
        capabilities.add("json_object")
    names: list[str] | list[None] = [config.model] if config.model is not None else config.models or [None]
    return tuple(
        Model(
            name,
            operations,
            aliases=tuple(config.models) if config.model is not None else (),
            capabilities=frozenset(capabilities),
            context_window=config.context_window,
            owned_by="upstream",
        )
        for name in names
    )


def _client(config: OpenAI.Config) -> Client:
    headers = {"user-agent": "llm-pipeline"}
    headers |= {name.lower(): value.get_secret_value() for name, value in config.headers.items()}
    if key := _key(config):
        headers["authorization"] = f"Bearer {key}"
    return Client(
        Address.parse(config.base_url),
        headers,
        Limits(config.first_byte_timeout, config.between_chunks_timeout, config.max_reply_bytes),
        connect_timeout=config.connect_timeout,
        max_connections=config.max_connections,
    )


def _key(config: OpenAI.Config) -> str:
    return config.api_key.get_secret_value() if config.api_key is not None else ""


def _values(config: OpenAI.Config) -> list[str]:
    return [value.get_secret_value() for value in config.headers.values()]


def _encoded(exchange: Exchange) -> bool:
    return exchange.content_encoding not in (b"", b"identity")


def _is_framed(body: bytes) -> bool:
    """Whether this begins and ends as a JSON object does."""
    return body.lstrip().startswith(b"{") and body.rstrip().endswith(b"}")


def _read(body: bytes) -> dict[str, Any] | None:
    """The object that a body is; None where it is no JSON, or cut off."""
    try:
        value = jiter.from_json(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_envelope(body: bytes) -> bool:
    """Whether this is an error as OpenAI writes them."""
    error = (_read(body) or {}).get("error")
    return isinstance(error, dict) and isinstance(error.get("message"), str)
