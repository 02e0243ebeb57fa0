"""`validate=json_schema`: answers that are JSON of the form that the request or the operator wants."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jiter
import orjson
from pydantic import Field, field_validator

from pipeline import Call, Reply
from pipeline.errors import InvalidRequest
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.infer.llamacpp_schema import Budget
from pipeline_plugins.validate.finding import Finding, Path, Subject, Text, place
from pipeline_plugins.validate.follow import Progress
from pipeline_plugins.validate.json_follow import JSONFollower
from pipeline_plugins.validate.library import load
from pipeline_plugins.validate.policy import Policy
from pipeline_plugins.validate.schema_work import TooMuchWork, depth_allowed, depth_of
from pipeline_plugins.validate.streams import Held
from pipeline_plugins.validate.validator import Validator

COMPILED = 64
"""Schemas of requests that are kept compiled."""

PATTERN_BYTES = 1 << 20

OF_REQUEST = "response_format.json_schema.schema"


class JSONSchemaPolicy(Policy):
    """Which schema."""

    piecewise = True

    side: Literal["reply"] = Field("reply", description="What to check.")
    form: dict[str, Any] | None = Field(
        None, description="The schema of every answer; null is none but the request's own."
    )
    ask: bool = Field(
        True,
        description="Ask chat models for `form` where a request has no format or tools of its own: "
        "local ones are then constrained to it. A retry asks in any case.",
    )
    of_request: bool = Field(True, description="Hold answers to the request's `response_format`.")

    @field_validator("form")
    @classmethod
    def _can_be_used(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            if value is not None:
                bound(value, "form")
        except InvalidRequest as error:
            raise ValueError(error.message.removesuffix(".")) from None
        return value


@dataclass(slots=True)
class Compiled:
    """A schema ready to be used. `depth` bounds the nesting, so that the work is bounded."""

    schema: Any
    validator: Any
    depth: int

    def wrong(self, value: Any) -> tuple[str, str] | None:
        """The first thing wrong with a value, and where in it: what to record, and the rest."""
        if depth_of(value) > self.depth:
            return f"is nested deeper than {self.depth}, which this schema makes too much work of", ""
        try:
            self.validator.validate(value)
        except ValueError as error:
            at = place(tuple(getattr(error, "instance_path", ()))) or "the top"
            return "does not fit the schema", f"at `{at}`: {getattr(error, 'message', error)}"[:300]
        return None


class JSONSchema(Validator[JSONSchemaPolicy]):
    """Checks answers against JSON schemas, and stops a stream as soon as it can't become valid.

    Schemas of requests are bounded in size, nesting, patterns and the work that they make;
    one beyond is refused with 400 before a model is asked.
    """

    Config = JSONSchemaPolicy

    def prepare(self) -> None:
        """Compile the operator's form. Raises `ConfigError`."""
        self._own: Compiled | None = None
        self._known: OrderedDict[bytes, Compiled] = OrderedDict()
        load("ijson", "ijson")
        if self.config.form is not None:
            try:
                self._own = compiled(self.config.form, "form")
            except InvalidRequest as error:
                raise ConfigError([Problem("form", f"{error.message}")]) from None

    def schemas(self, call: Call) -> list[Compiled] | None:
        """What an answer must fit; None where it need not be JSON. Raises `InvalidRequest`."""
        wanted = [] if self._own is None else [self._own]
        form = call.body.get("response_format") if self.config.of_request else None
        kind = form.get("type") if isinstance(form, dict) else None
        if kind == "json_schema":
            schema = form["json_schema"].get("schema")  # type: ignore[index]
            return wanted if schema is None else [*wanted, self._request(schema)]
        if kind == "json_object":
            return [*wanted, self._request({"type": "object"})]
        return wanted or None

    def _request(self, schema: Any) -> Compiled:
        try:
            key = orjson.dumps(schema)
        except TypeError:
            bound(schema, OF_REQUEST)  # it may be nested too deeply; else there is one other reason
            raise _refused("it has an integer of more than 64 bits", OF_REQUEST) from None
        found = self._known.pop(key, None)
        if found is None:
            found = compiled(schema, OF_REQUEST)
        self._known[key] = found
        if len(self._known) > COMPILED:
            self._known.popitem(last=False)
        return found

    async def __call__(self, call: Call) -> Reply:
        """Refuse a schema that can't be used before asking for an answer."""
        if call.operation != "embedding":
            self.schemas(call)
        return await super().__call__(self._asking(call) if self.config.ask else call)

    def again(self, call: Call, held: Held) -> Call:
        """A retry asks for the form as well as naming the reason."""
        return self._asking(super().again(call, held))

    def _asking(self, call: Call) -> Call:
        form = self.config.form
        if (
            form is None
            or call.operation != "chat"
            or call.body.get("response_format")
            or call.body.get("tools")
        ):
            return call
        schema = {"name": self.name[:64], "schema": form, "strict": True}
        return call.derive(response_format={"type": "json_schema", "json_schema": schema})

    def find(self, subject: Subject) -> Iterator[Finding]:
        """Contents that are not JSON, or not of the form. An answer that calls a tool has none."""
        wanted = self.schemas(subject.call)
        if wanted is None:
            return
        calling = {text.path[1] for text in subject.texts if text.kind == "arguments"}
        texts = [text for text in subject.content if text.path[-1] != "refusal"]
        if not texts and not calling:
            texts = [Text(("choices", 0, "message", "content"), "", "assistant")]
        for text in texts:
            if text.path[1] not in calling and (wrong := check(text.text, wanted)) is not None:
                yield Finding(text.path, wrong[0], detail=wrong[1])

    def follow(self, call: Call) -> Following | None:
        """Parse as it arrives."""
        wanted = self.schemas(call)
        return None if wanted is None else Following(self, wanted)


def check(text: str, wanted: list[Compiled]) -> tuple[str, str] | None:
    """What is wrong with a text that should be JSON of these schemas."""
    try:
        value = jiter.from_json(text.encode(), allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        return ("is not JSON", str(error)[:300]) if text else ("is empty, not JSON", "")
    return next((wrong for one in wanted if (wrong := one.wrong(value)) is not None), None)


def bound(schema: Any, param: str) -> int:
    """How deeply an instance may be nested. Raises `InvalidRequest` for a schema that costs too much."""
    Budget().check(schema, param)
    try:
        return depth_allowed(schema)
    except TooMuchWork as error:
        raise _refused(str(error), param) from None


def _refused(why: str, param: str) -> InvalidRequest:
    message = f"`{param}` can't be used: {why.splitlines()[0][:200]}."
    return InvalidRequest(message, param=param, code="invalid_schema")


def compiled(schema: Any, param: str) -> Compiled:
    """Bound and compile a schema. Raises `InvalidRequest` that says what is wrong with it."""
    rs = load("jsonschema_rs", "jsonschema-rs")
    depth = bound(schema, param)
    try:
        options = rs.RegexOptions(size_limit=PATTERN_BYTES, dfa_size_limit=PATTERN_BYTES)
        validator = rs.validator_for(schema, pattern_options=options, offline=True)
    except ValueError as error:
        raise _refused(getattr(error, "message", str(error)), param) from None
    return Compiled(schema, validator, depth)


class Following:
    """Follows the contents of one stream."""

    def __init__(self, stage: JSONSchema, wanted: list[Compiled]) -> None:
        self._stage = stage
        self._wanted = wanted
        self._parsers: dict[Path, JSONFollower] = {}
        self._texts: dict[Path, list[str]] = {}
        self._sizes: dict[Path, int] = {}

    async def feed(self, path: Path, text: str) -> Progress:
        """Parse the next piece."""
        self._sizes[path] = settled = self._sizes.get(path, 0) + len(text)
        if path[-1] not in ("content", "text"):
            return Progress(settled)
        if settled > (limit := self._stage.config.max_characters):
            self._texts.pop(path, None)
            return Progress(settled, [Finding(path, f"has more than {limit} characters, which are not read")])
        if path not in self._parsers:
            self._parsers[path] = JSONFollower(self._wanted[0].schema if self._wanted else None)
        self._texts.setdefault(path, []).append(text)
        wrong = self._parsers[path].feed(text)
        return Progress(settled, [] if wrong is None else [Finding(path, wrong[0], detail=wrong[1])])

    async def end(self, path: Path) -> Progress:
        """Check the whole."""
        settled = self._sizes.get(path, 0)
        if path not in self._texts:
            return Progress(settled)
        text = "".join(self._texts[path])
        wrong = await self._stage.offloaded(len(text), lambda: check(text, self._wanted))
        return Progress(settled, [] if wrong is None else [Finding(path, wrong[0], detail=wrong[1])])
