"""What a request must look like: OpenAI's fields with their types and bounds.

The models are used once, where a request comes in, and only to check it: stages read
the JSON object itself, so unknown fields pass through. Every number has a bound, and so
has every list, so that no request can ask for more than a server can give. A list is
read up to its first fault: a million wrong items would be a million errors to build.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_CHOICES = 128
MAX_BIASES = 2048
MAX_TOKENS = 10_000_000
INT64 = 2**63

Text = Annotated[str, Field(max_length=64 * 1024 * 1024)]
Name = Annotated[str, Field(max_length=256)]
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Token = Annotated[int, Field(ge=0, le=10_000_000)]
Stop = Annotated[str, Field(max_length=4096)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=2048, fail_fast=True)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=MAX_TOKENS, fail_fast=True)]
Batch = Annotated[list[Tokens], Field(min_length=1, max_length=2048, fail_fast=True)]
Input = Text | Texts | Tokens | Batch


def _few(value: object) -> object:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} tokens may be listed")
    return value


Biases = Annotated[dict[str, Bias], BeforeValidator(_few), Field(max_length=MAX_BIASES)]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class StreamOptions(_Open):
    """Options of a stream."""

    include_usage: bool | None = None


class ContentPart(_Open):
    """A part of a message: text, an image, audio, …"""

    type: Name
    text: Text | None = None

    @model_validator(mode="after")
    def _text_has_text(self) -> ContentPart:
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type `text` needs `text`")
        return self


class FunctionCall(_Open):
    """The function that a model asked to be called; `arguments` is JSON as text."""

    name: Name
    arguments: Text


class ToolCall(_Open):
    """A tool call of an earlier assistant message."""

    id: Name
    type: Name = "function"
    function: FunctionCall | None = None


class Message(_Open):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[ContentPart], Field(max_length=10_000, fail_fast=True)] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=1024, fail_fast=True)] | None = None
    tool_call_id: Name | None = None

    @model_validator(mode="after")
    def _complete(self) -> Message:
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a `tool` message needs `tool_call_id`")
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a `{self.role}` message needs `content`")
        return self


class Function(_Open):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Text | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Open):
    """A tool that the model may call."""

    type: Name
    function: Function | None = None

    @model_validator(mode="after")
    def _function_is_given(self) -> Tool:
        if self.type == "function" and self.function is None:
            raise ValueError("a tool of type `function` needs `function`")
        return self


class NamedFunction(_Open):
    """A function by its name."""

    name: Name


class NamedTool(_Open):
    """The one tool that the model must call."""

    type: Name
    function: NamedFunction | None = None


class JSONSchema(_Open):
    """A named JSON schema; in Python `schema_`, on the wire `schema`."""

    name: Name
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Open):
    """The form that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    @model_validator(mode="after")
    def _schema_is_given(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("a format of type `json_schema` needs `json_schema`")
        return self


class _Sampling(_Open):
    model: Name = "default"
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    response_format: ResponseFormat | None = None
    user: Name | None = None

    @model_validator(mode="after")
    def _options_need_stream(self) -> _Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` needs `stream` to be true")
        return self


class ChatRequest(_Sampling):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=100_000, fail_fast=True)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=1024, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs` to be true")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("`tool_choice` needs `tools`")
        return self


class CompletionRequest(_Sampling):
    """`POST /v1/completions`."""

    prompt: Input
    suffix: Text | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class EmbeddingRequest(_Open):
    """`POST /v1/embeddings`."""

    model: Name = "default"
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    user: Name | None = None
