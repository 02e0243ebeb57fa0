"""The one stage behind every check: it finds the texts, and owns what a failure leads to.

A check is a subclass that says in `find` what is wrong with texts. It needs nothing else:

    class Quiet(Policy):
        redactable = piecewise = True

    class NoShouting(Validator[Quiet]):
        Config = Quiet

        def find(self, subject):
            for text in subject.content:
                for found in re2.finditer("[A-Z]{10,}", text.text):
                    yield Finding(text.path, "is shouted", found.span(), found[0].lower())
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import ClassVar, Generic, TypeVar

import structlog
from pydantic import BaseModel

from pipeline import Call, Edge, Reply
from pipeline.errors import APIError
from pipeline.kinds import Validated
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.validate import streams
from pipeline_plugins.validate.finding import Finding, Path, Subject, texts_of_request, token_ids_of, without
from pipeline_plugins.validate.follow import Follower, Window
from pipeline_plugins.validate.policy import SHOWN, Policy, ReplyRejected, RequestRejected
from pipeline_plugins.validate.streams import Held

P = TypeVar("P", bound=Policy)
R = TypeVar("R")

HEADER = "x-pipeline-validate"

log = structlog.get_logger("pipeline.validate")


class Validator(Generic[P]):
    """Checks calls on their way in and replies on their way out, by a `Policy`.

    Of more than `inline` characters, `find` runs in a thread.
    """

    Config: ClassVar[type[BaseModel]] = Policy
    inline: ClassVar[int] = 4096

    def __init__(
        self, config: P, name: str, next: Edge, retry: Edge | None = None, fallback: Edge | None = None
    ) -> None:
        self.config = config
        self.name = name
        self.next = next
        self.retry = retry
        self.fallback = fallback
        self._threads: ThreadPoolExecutor | None = None
        wanted = {"retry": retry, "fallback": fallback}.get(config.on_failure, next)
        if wanted is None:
            hint = f"Give the stage `{config.on_failure}: STAGE` in the graph."
            message = f"`{config.on_failure}` needs the edge `{config.on_failure}`."
            raise ConfigError([Problem("on_failure", message, hint)])
        self.prepare()

    def prepare(self) -> None:
        """Make what a check needs of its configuration, once. Raises `ConfigError`, paths from its fields."""

    def find(self, subject: Subject) -> Iterable[Finding]:
        """What is wrong with these texts. Must not wait for anything, and ends in linear time."""
        raise NotImplementedError

    async def findings(self, subject: Subject) -> list[Finding]:
        """What is wrong, found in a thread where it takes long. A check that waits overrides this."""
        return await self.offloaded(subject.size, lambda: list(self.find(subject)))

    async def offloaded(self, size: int, work: Callable[[], R]) -> R:
        """Do work on so many characters here, or in a thread if they are many."""
        if size <= self.inline:
            return work()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix=f"validate-{self.name}")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def follow(self, call: Call) -> Follower | None:
        """For a check that knows early that a growing text is wrong; see `follow`."""
        return None

    async def close(self) -> None:
        """End the thread; what it is at finishes first."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, call: Call) -> Reply:
        """Check, pass on, check.

        Raises `RequestRejected` (400) and `ReplyRejected` (422) as the policy says.
        """
        if self.config.side != "reply":
            subject = Subject("request", call, texts_of_request(call.body))
            if failed := await self.check(subject):
                if self.config.on_failure == "fallback" and self.fallback is not None:
                    self.note(call, failed, "fallback")
                    return await self._last(call, self.fallback)
                call = self._admit(subject, failed)
            elif self.config.side == "request":
                self.note(call, [], "passed")
        if self.config.side == "request" or call.operation == "embedding":
            return await self.next(call)
        return await self._answer(call)

    async def check(self, subject: Subject) -> list[Finding]:
        """The findings; a text that can't be read, as token ids or too long a one, is one."""
        if subject.side == "request" and (ids := token_ids_of(subject.call.body)) is not None:
            return [Finding(ids, "is given as token ids, which are not read: give text")]
        limit = self.config.max_characters
        if subject.size > limit:
            longest = max(subject.texts, key=lambda text: len(text.text))
            return [Finding(longest.path, f"is part of more than {limit} characters, which are not read")]
        found = await self.findings(subject)
        if subject.score is not None:
            record = subject.call.record
            before = record.decision(Validated) or Validated(True)
            record.decide(replace(before, scores={**before.scores, self.name: subject.score}))
        return found

    def _admit(self, subject: Subject, failed: list[Finding]) -> Call:
        call = subject.call
        match self.config.on_failure:
            case "flag":
                self.note(call, failed, "flagged")
                return call
            case "redact" if all(finding.span for finding in failed):
                self.note(call, failed, "redacted", passed=True)
                body = without(call.body, subject.texts, failed)
                return call.derive(
                    **{key: value for key, value in body.items() if value is not call.body[key]}
                )
        self.note(call, failed, "rejected")
        message = f"The request was refused by `{self.name}`: {told(failed)}."
        raise RequestRejected(message, param=_place(failed))

    async def _answer(self, call: Call) -> Reply:
        """Ask until an answer holds, as often as the policy allows."""
        edge, asked, retries = self.next, call, 0
        while True:
            reply = await edge(asked)
            if reply.status != 200:
                return reply
            if reply.streaming and self.config.stream != "buffer":
                return streams.wrapped(reply, partial(self._follow, call))
            held = await streams.hold(self, call, reply)
            if not held.failed:
                self.note(call, [], f"retried {retries}" if retries else "passed", retries=retries)
                return held.release()
            if self.config.on_failure != "retry" or self.retry is None or retries == self.config.retries:
                return await self._failed(call, held, retries)
            edge, asked, retries = self.retry, self.again(call, held), retries + 1

    def again(self, call: Call, held: Held) -> Call:
        """What to ask along the edge `retry`: the call, the refused answer and the reason."""
        return with_reason(call, held)

    def _follow(self, call: Call, reply: Reply) -> AsyncGenerator[bytes, None]:
        follow = streams.windowed if self.config.stream == "window" else streams.reported
        return follow(self, call, reply)

    async def _failed(self, call: Call, held: Held, retries: int) -> Reply:
        match self.config.on_failure:
            case "flag":
                self.note(call, held.failed, "flagged")
                return held.release()
            case "redact" if all(finding.span for finding in held.failed):
                self.note(call, held.failed, "redacted", passed=True)
                return held.release(redact=True)
        if self.fallback is not None and self.config.on_failure in ("fallback", "retry"):
            self.note(call, held.failed, "fallback", retries=retries)
            return await self._last(call, self.fallback)
        raise self.refuse(call, held.failed, retries)

    async def _last(self, call: Call, fallback: Edge) -> Reply:
        """The fallback's answer, which has to hold too where replies are checked."""
        reply = await fallback(call)
        if self.config.side == "request" or reply.status != 200:
            return reply
        held = await streams.hold(self, call, reply)
        if held.failed:
            raise self.refuse(call, held.failed, 0)
        return held.release()

    def refuse(self, call: Call, failed: list[Finding], retries: int = 0) -> APIError:
        """The error for a reply that does not hold, noted in the record."""
        self.note(call, failed, "rejected", retries=retries)
        after = f" after {retries + 1} attempts" if retries else ""
        return ReplyRejected(
            f"The model's answer was refused by `{self.name}`{after}: {told(failed)}.", param=_place(failed)
        )

    def note(
        self, call: Call, failed: list[Finding], word: str, *, passed: bool = False, retries: int = 0
    ) -> None:
        """Add to the call's record and to the response's header; log what failed, without texts."""
        record = call.record
        before = record.decision(Validated) or Validated(True)
        names = tuple(f"{self.name}: {finding.label}"[:200] for finding in failed[:SHOWN])
        record.decide(
            replace(
                before,
                passed=before.passed and (passed or not failed),
                failed=before.failed + names,
                retries=before.retries + retries,
            )
        )
        said = dict(part.split("=", 1) for part in record.headers.get(HEADER, "").split(", ") if part)
        if word != "passed" or self.name not in said:
            said[self.name] = word
        record.headers[HEADER] = ", ".join(f"{name}={what}" for name, what in said.items())
        if failed:
            log.info(
                "validate", id=call.id, stage=self.name, outcome=word, failed=len(failed), first=names[0]
            )

    def window(self, call: Call) -> Follower:
        """What follows a stream whose end is held back."""

        async def check(path: Path, text: str) -> list[Finding]:
            return await self.check(Subject("reply", call, [streams.text_of(path, text)]))

        return self.follow(call) or Window(self.config.window, check)


def told(failed: list[Finding]) -> str:
    """Findings as one sentence."""
    more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
    return "; ".join(str(finding)[:300].rstrip(".") for finding in failed[:SHOWN]) + more


def _place(failed: list[Finding]) -> str | None:
    return str(failed[0]).partition(" ")[0] if failed[0].path else None


def with_reason(call: Call, held: Held) -> Call:
    """The call with the refused answer and the reason as further messages of a chat.

    A completion's prompt has no place for a reason; it is sent as it was.
    """
    if call.operation != "chat":
        return call
    wrong = held.failed[0].path[:2]
    said = next((t.text for t in held.subject.content if t.path[:2] == wrong or not wrong), "")
    reason = (
        f"This answer was not accepted: {told(held.failed)}. "
        "Answer the question again so that it is. Write the answer alone, without an apology."
    )
    answer = [{"role": "assistant", "content": said[:16_384]}] if said else []
    return call.derive(messages=[*call.body["messages"], *answer, {"role": "user", "content": reason}])
