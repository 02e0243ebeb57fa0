"""What a request asks of a model, in the words in which models declare what they can do."""

from __future__ import annotations

from typing import Any, Literal

Capability = Literal["tools", "json_schema", "json_object", "vision", "audio", "logprobs", "streaming"]
"""The words of `Model.capabilities`; plugins may add others for operations of their own."""

PARAMS: dict[str, str] = {
    "tools": "tools",
    "json_schema": "response_format",
    "json_object": "response_format",
    "vision": "messages",
    "audio": "messages",
    "logprobs": "logprobs",
    "streaming": "stream",
}
"""The field of the request that asks for each capability."""

_PARTS = {"image_url": "vision", "input_image": "vision", "input_audio": "audio"}

_NONE: frozenset[str] = frozenset()
_STREAMING = frozenset({"streaming"})


def needs_of(operation: str, body: dict[str, Any], *, streaming: bool) -> frozenset[str]:
    """The capabilities without which a request can't be served as written."""
    if operation == "embedding":
        return _NONE
    needs: set[str] = set()
    if body.get("tools") and body.get("tool_choice") != "none":
        needs.add("tools")
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") in ("json_schema", "json_object"):
        needs.add(form["type"])
    logprobs = body.get("logprobs")
    if logprobs is not None and logprobs is not False:  # 0 asks for them, too, without alternatives
        needs.add("logprobs")
    modalities = body.get("modalities")
    if isinstance(modalities, list) and "audio" in modalities:
        needs.add("audio")
    for message in body.get("messages") or () if operation == "chat" else ():
        content = message.get("content")
        if isinstance(content, list):
            needs.update(_PARTS[part["type"]] for part in content if part.get("type") in _PARTS)
    if not needs:
        return _STREAMING if streaming else _NONE
    if streaming:
        needs.add("streaming")
    return frozenset(needs)
