"""The endpoints that send a call through the graph."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import BaseModel

from pipeline.call import Call, Record
from pipeline.errors import (
    APIError,
    DeadlineExceeded,
    Forbidden,
    InternalError,
    InvalidRequest,
    Overloaded,
)
from pipeline.hookspecs import Route
from pipeline.reply import Reply
from pipeline.server.deadlines import Deadlines
from pipeline.server.exchange import read_body, still_loading, too_large
from pipeline.server.headers import Headers
from pipeline.stage import Edge
from pipeline.wire.check import check
from pipeline.wire.parse import parse
from pipeline.wire.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from pipeline.wire.sse import encode

if TYPE_CHECKING:
    from pipeline.server.app import App, Receive, Scope, Send
    from pipeline.server.cycle import Cycle

OPERATIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "/v1/chat/completions": ("chat", ChatRequest),
    "/v1/completions": ("completion", CompletionRequest),
    "/v1/embeddings": ("embedding", EmbeddingRequest),
}
"""Address, operation, and what its body must look like."""

log = structlog.get_logger("pipeline.server")


class UnsupportedMediaType(InvalidRequest):
    """The body is declared to be something else than JSON (415)."""

    status = 415
    code = "unsupported_media_type"


def routes(app: App) -> Iterable[Route]:
    """One route for each operation."""
    for path, (operation, model) in OPERATIONS.items():
        yield Route(path, Endpoint(app, operation, model), methods=("POST",))


class Endpoint:
    """Reads a request, checks it, sends it through the graph, and writes the reply."""

    def __init__(self, app: App, operation: str, model: type[BaseModel]) -> None:
        self.app = app
        self.operation = operation
        self.model = model
        hook = app.graph.plugins.hook
        self._deadlines = Deadlines(app.settings.call_timeout)
        self.started = hook.pipeline_call_started if hook.pipeline_call_started.get_hookimpls() else None
        self.ended = hook.pipeline_call_ended if hook.pipeline_call_ended.get_hookimpls() else None
        self.refused = hook.pipeline_call_refused if hook.pipeline_call_refused.get_hookimpls() else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, whatever becomes of it."""
        id: str = scope["id"]
        record = Record()
        task: Any = asyncio.current_task()
        cycle: Cycle = scope.pop("cycle")
        sender = Sender(cycle, record)
        try:
            raw = await self._read(scope, receive, cycle)
            call = self._call(id, record, raw, scope, task)
        except APIError as error:
            self._deadlines.stop(task)
            if self.refused is not None:
                self.refused(id=id, operation=self.operation, tenant=scope["tenant"], error=error)
            await sender.error(error)
            return
        if self.started is not None:
            self.started(call=call)
        reply, failure = None, None
        try:
            reply = await self.app.graph(call)
            if self.ended is not None:
                self.ended(call=call, reply=reply, error=None)
            await sender.reply(reply)
            self._deadlines.stop(task)
            return
        except APIError as error:
            failure = error
        except TimeoutError:
            failure = self._too_late()
        except asyncio.CancelledError as error:
            if self._deadlines.stop(task) and task.uncancel() == 0:
                failure = self._too_late()
            elif scope.get("gone"):
                if reply is None and self.ended is not None:
                    self.ended(call=call, reply=None, error=error)
                raise
            else:
                failure = Overloaded(
                    "The server stopped before the answer was complete.", code="shutting_down"
                )
        except Exception:
            log.exception("unhandled error")
            failure = InternalError(f"The server failed; its log says why under {id}.")
        self._deadlines.stop(task)
        if reply is None and self.ended is not None:
            self.ended(call=call, reply=None, error=failure)
        try:
            await sender.error(failure)
        finally:
            # It holds this frame, by its traceback: the cycle would keep all of the call until a collection.
            del failure

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"The call took longer than {self.app.settings.call_timeout:g} s.")

    async def _read(self, scope: Scope, receive: Receive, cycle: Cycle) -> bytes:
        settings = self.app.settings
        if not self.app.ready:
            raise still_loading()
        limit = settings.max_body_bytes
        _admit(scope["headers"], limit)
        if "whole" not in scope:
            return await read_body(receive, limit, settings.body_timeout)
        raw = cycle.body_so_far()
        if len(raw) > limit:
            raise too_large(limit)
        return raw

    def _call(self, id: str, record: Record, raw: bytes, scope: Scope, task: asyncio.Task[Any]) -> Call:
        body = parse(raw)
        check(self.model, body)
        call = Call(
            id=id,
            operation=self.operation,
            raw=raw,
            body=body,
            tenant=scope["tenant"],
            deadline=self._deadlines.start(task),
            received=perf_counter(),
            headers=Headers(scope["headers"]),
            record=record,
        )
        if call.tenant.models is not None:
            check_allowed(call, self.app.graph.entry)
        return call


def check_allowed(call: Call, entry: Edge) -> None:
    """Refuse what the tenant's key may not use. Unknown models are the router's to refuse.

    For whoever sends a call into the graph. Raises `Forbidden`.
    """
    known = [model for model in entry.models if model.serves(call.operation, call.model)]
    if known and not any(model.allowed(call.tenant, call.model) for model in known):
        names = ", ".join(sorted(call.tenant.models or ())) or "none"
        raise Forbidden(
            f"This key may not use the model `{call.model[:256]}`, but: {names}.",
            param="model",
            code="model_not_allowed",
        )


def _admit(headers: list[tuple[bytes, bytes]], limit: int) -> None:
    """Refuse by the headers what need not be read: a foreign type, a body too large."""
    for name, value in headers:
        if name == b"content-length" and (len(value) > 12 or int(value) > limit):
            raise too_large(limit)
        if name == b"content-type" and b"json" not in value.lower():
            raise UnsupportedMediaType("The body must be sent as `content-type: application/json`.")
        if name == b"content-encoding" and value != b"identity":
            raise UnsupportedMediaType("The body must be sent without `content-encoding`.")


class Sender:
    """Writes one response: a body, a stream, or an error in the form that still fits."""

    def __init__(self, cycle: Cycle, record: Record) -> None:
        self._cycle = cycle
        self._record = record
        self._streaming = False

    async def reply(self, reply: Reply) -> None:
        """Write a reply to its end. Raises what breaks its stream."""
        cycle, texts = self._cycle, self._record.headers
        if reply.body is not None:
            await cycle.whole(reply.status, reply.headers, reply.body, texts)
            return
        chunks = aiter(reply)
        try:
            first = await anext(chunks, None)
            head = [*reply.headers, (b"cache-control", b"no-cache")]
            await cycle.start(reply.status, head, first or b"", texts)
            self._streaming = True
            if first is not None:
                async for chunk in chunks:
                    if not cycle.write(chunk):
                        await cycle.drained()
            cycle.end()
        finally:
            closing: Any = getattr(chunks, "aclose", None)
            if closing is not None:
                await closing()

    async def error(self, error: APIError) -> None:
        """Answer with the envelope; in a stream, end it with an error event and no `[DONE]`."""
        if self._streaming:
            self._cycle.write(encode(error.envelope()))
            self._cycle.end()
            return
        head = ((b"content-type", b"application/json"), *error.headers)
        await self._cycle.whole(error.status, head, error.body(), self._record.headers)
