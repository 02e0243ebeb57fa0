"""Canonical keys: equal for requests that have the same answer for the same people, else not.

A key covers the operation, the model as asked and the models that it can mean, and the whole
body but for the few fields in `IGNORED`: fields that nobody has heard of yet count. Bodies are
compared as JSON values, so the order of keys, white space and `1` against `1.0` don't count.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import orjson

from pipeline import Call, Model, Tenant
from pipeline_plugins.cache.store import Key

IGNORED = frozenset(
    {
        "metadata",
        "model",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "store",
        "stream",
        "stream_options",
        "user",
    }
)
"""Fields that do not change an answer, only how it travels and how it is accounted for. `model`
is in the key apart from the body, where its absence is `default`."""

DEFAULTS: Mapping[str, Any] = {
    "n": 1,
    "echo": False,
    "logit_bias": {},
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "tools": [],
}
"""Values that mean the same as leaving the field out, whatever the model server. Sampling is not
here: an absent temperature is 1 at OpenAI, and what the model's files say elsewhere."""

Scope = Literal["key", "owner", "global"]

PERSON = b"llm-pipeline-1"
"""Keeps these digests apart from all others, and from those of another canonical form."""

MEANT = 16
"""Models that one call can mean, by which its entry may be invalidated."""

EXACT = 2**53
"""Below this, floats without fraction are integers."""


def canonical(value: Any) -> bytes:
    """A JSON value as bytes, equal for values that are equal as JSON."""
    try:
        direct = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        # Of numbers, only a float that is a whole one is written in two ways: as 1 and as 1.0.
        return direct if b".0" not in direct else orjson.dumps(_plain(value), option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # Integers beyond 64 bits, or nesting deeper than orjson's own bound.
        plain = _plain(value)
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {key: _plain(item) for key, item in value.items()}
    if kind is list:
        return [_plain(item) for item in value]
    if kind is float and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return value


def relevant(body: Mapping[str, Any], ignored: frozenset[str] = IGNORED) -> dict[str, Any]:
    """The fields of a body that can change its answer; what has its default is left out."""
    return {
        name: value
        for name, value in body.items()
        if value is not None and name not in ignored and not _is_default(name, value)
    }


def _is_default(name: str, value: Any) -> bool:
    # `logprobs: false` is the default of chats; `logprobs: 0` is none for completions.
    if name == "logprobs":
        return value is False
    default = DEFAULTS.get(name)
    return type(value) is type(default) and bool(value == default)


def digest_of(scope: bytes, *parts: Any) -> bytes:
    """32 bytes over a scope and JSON values."""
    return hashlib.blake2b(scope + canonical(list(parts)), digest_size=32, person=PERSON).digest()


def scope_of(tenant: Tenant, scope: Scope) -> bytes:
    """16 bytes that are equal for the tenants who may share an answer.

    Whatever the scope, tenants share only if they may use the same models, and if their keys
    set the same for the stages behind the cache.
    """
    who = tenant.key if scope == "key" else tenant.owner if scope == "owner" else ""
    parts: list[Any] = [scope, who]
    if tenant.models is not None or tenant.policy:
        behind = {kind: policy for kind, policy in tenant.policy.items() if kind not in ("cache", "limit")}
        models = None if tenant.models is None else sorted(tenant.models)
        parts += [models, behind or None]
    else:
        parts += [None, None]
    data = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=_listed)
    return hashlib.blake2b(data, digest_size=16, person=PERSON).digest()


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return repr(value)


class Keys:
    """Makes the keys of calls, and remembers those of the last bodies byte for byte.

    scope    who shares answers: one `key`, all keys of one `owner`, or everybody (`global`)
    version  anything; another one makes all entries unknown
    vary     request headers that change the answer, in lower case
    models   gives the models that calls can reach
    """

    def __init__(
        self,
        *,
        scope: Scope = "owner",
        version: str = "",
        vary: Iterable[str] = (),
        models: Callable[[], Sequence[Model]] = tuple,
        remember: int = 4096,
    ) -> None:
        self.scope: Scope = scope
        self.version = version
        self.vary = tuple(vary)
        self._models = models
        self._remember = remember
        self._known: OrderedDict[tuple[Any, ...], Key] = OrderedDict()

    def of(self, call: Call) -> Key:
        """The key of a whole call. Streaming or not is no part of it."""
        scope = scope_of(call.tenant, self.scope)
        vary = self.varying(call)
        raw = hashlib.blake2b(call.raw, digest_size=16).digest()
        known = (scope, call.operation, call.tenant.owner, vary, raw)
        key = self._known.get(known)
        if key is not None:
            self._known.move_to_end(known)
            return key
        key = self.make(call, scope, relevant(call.body), vary)
        self._known[known] = key
        if len(self._known) > self._remember:
            self._known.popitem(last=False)
        return key

    def make(self, call: Call, scope: bytes, content: Any, vary: tuple[str | None, ...] = ()) -> Key:
        """The key of a call with `content` in the place of its body, say one text of a batch."""
        models = {model.id or "*" for model in self._models() if model.serves(call.operation, call.model)}
        meant = sorted(models)
        digest = digest_of(scope, call.operation, call.model, meant, self.version, list(vary), content)
        labels = dict.fromkeys(["all", f"owner:{call.tenant.owner}", f"model:{call.model}"])
        labels |= dict.fromkeys(f"model:{id}" for id in meant[:MEANT])
        return Key(digest, scope, tuple(labels))

    def varying(self, call: Call) -> tuple[str | None, ...]:
        """The values of the headers that change the answer."""
        return tuple(call.headers.get(name) for name in self.vary) if self.vary else ()
