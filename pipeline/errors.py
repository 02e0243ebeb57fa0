"""Errors a client can receive, each with its HTTP status and OpenAI error code.

Stages raise these; the server turns them into `{"error": {message, type, param, code}}`.
Anything else that escapes a stage is a bug, and the client sees a plain 500 that
gives nothing away.
"""

from __future__ import annotations

from typing import Any, ClassVar

import orjson


class APIError(Exception):
    """A refusal or failure that the client is told about, in OpenAI's envelope.

    `headers` are added to the response (say `retry-after`); `param` names the field
    of the request that is wrong, if one is.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code if code is not None else self.code
        self.headers = headers

    def envelope(self) -> dict[str, Any]:
        """The error as OpenAI clients read it."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.error_code,
            }
        }

    def body(self) -> bytes:
        """The envelope as JSON bytes."""
        return orjson.dumps(self.envelope())


class InvalidRequest(APIError):
    """The request can't be served as written (400)."""

    status = 400
    type = "invalid_request_error"


class ContextTooLong(InvalidRequest):
    """Prompt and answer do not fit the model's context window (400)."""

    code = "context_length_exceeded"


class Unauthorized(APIError):
    """No key, or not a valid one (401)."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(APIError):
    """The key is valid and may not do this (403)."""

    status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class NotFound(APIError):
    """No such address (404)."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """No target of the graph serves this model for this operation (404)."""

    code = "model_not_found"


class MethodNotAllowed(APIError):
    """The address exists, with other methods (405)."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class RequestTimeout(APIError):
    """The client did not send its request in time (408)."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class BodyTooLarge(APIError):
    """The body is larger than `server.max_body_bytes` (413)."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class RateLimited(APIError):
    """A limit refuses the call (429)."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UpstreamFailed(APIError):
    """A model server could not be reached or answered nonsense (502)."""

    status = 502
    type = "upstream_error"
    code = "upstream_failed"


class Overloaded(APIError):
    """There is no room for the call now (503)."""

    status = 503
    type = "overloaded_error"
    code = "overloaded"


class DeadlineExceeded(APIError):
    """The call ran past its deadline (504)."""

    status = 504
    type = "timeout_error"
    code = "timeout"


class InternalError(APIError):
    """Something in the gateway broke; the log has the cause under the request's id (500)."""

    status = 500
    type = "server_error"
    code = "internal_error"
