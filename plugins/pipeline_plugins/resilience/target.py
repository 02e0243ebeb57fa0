"""What stands around one target: admission, timeouts, retries, hedges, and the count of it all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import uniform
from time import monotonic

from pipeline import Call, Reply
from pipeline.errors import APIError, DeadlineExceeded, Overloaded
from pipeline.stage import StageCall
from pipeline_plugins.attempts import first_chunk, is_failure, retry_after
from pipeline_plugins.resilience.breaker import Breaker
from pipeline_plugins.resilience.budget import Budget
from pipeline_plugins.resilience.concurrency import Limit
from pipeline_plugins.resilience.hedging import race
from pipeline_plugins.resilience.outliers import Member
from pipeline_plugins.resilience.policy import Policy
from pipeline_plugins.resilience.stream import Stream
from pipeline_plugins.resilience.tail import Tail

LONGEST_REST = 60.0
"""Seconds for which a target's `retry-after` takes it out of routing at most."""

TOKENS_BEFORE = 10
"""What reading a prompt costs, in tokens of the answer: evens out answers of different length."""

BUSY = frozenset({429, 503, 504})
"""Statuses by which a target says that it got more calls than it can take."""


class Refused(Overloaded):
    """A call was not passed on to its target, which fails or has enough to do (503)."""


class Target:
    """A layer around one stage: everything that is done about its failures.

    Counts as failure: 5xx, 429, errors, timeouts and streams that break; not the client's
    own 4xx, and what the client gives up is neither. Times are monotonic seconds, as the
    event loop's are.
    """

    def __init__(self, name: str, policy: Policy, standing: Member | None, stage: StageCall) -> None:
        self.name = name
        self.policy = policy
        self.standing = standing
        self.breaker = Breaker(name, policy.breaker) if policy.breaker.enabled else None
        self.limit = Limit(name, policy.concurrency)
        self.answers = self.failures = 0
        self.retries = self.retries_denied = 0
        self.hedges = self.hedges_won = 0
        self._stage = stage
        self._limited = policy.concurrency.enabled
        self._hedging = policy.hedge.enabled
        retry, hedge = policy.retry, policy.hedge
        self._retry_budget = Budget(retry.budget, retry.reserve, retry.per_second)
        self._hedge_budget = Budget(hedge.budget, hedge.reserve)
        self._tails: dict[tuple[str, bool], Tail] = {}
        self._rests_until = 0.0

    def ready(self) -> bool:
        """Whether a call sent now would be passed on, to a target that is not known to do badly."""
        now = monotonic()
        if self.standing is not None and self.standing.ejected(now):
            return False
        return now >= self._rests_until and self._admits(now)

    async def __call__(self, call: Call) -> Reply:
        """Answer the call, with as many attempts as policy, budget and deadline allow.

        A streamed reply comes with its first chunk: what fails before it is tried again,
        what breaks later never. Raises `Refused` without an attempt where the breaker is
        open or the limit is reached.
        """
        self._retry_budget.deposit()
        attempt = 1
        while True:
            try:
                reply = await (self._hedged(call) if self._hedging else self._attempt(call))
            except Refused:
                raise
            except APIError as error:
                pause = self._pause(call, attempt, error.headers) if is_failure(error.status) else None
                if pause is None:
                    raise
            else:
                if not is_failure(reply.status):
                    return reply
                pause = self._pause(call, attempt, reply.headers)
                if pause is None:
                    return reply
                await reply.aclose()
            self.retries += 1
            await asyncio.sleep(pause)
            attempt += 1

    def _pause(self, call: Call, attempt: int, headers: Iterable[tuple[bytes, bytes]]) -> float | None:
        """Seconds until another attempt, None if there should be none.

        Exponential backoff with full jitter, after what the target's `retry-after` asks for.
        A pause that does not fit the deadline, or ends while the breaker is open, is not begun,
        nor is a long one: another target may be ready now, or the client knows better what to do.
        """
        now = monotonic()
        retry = self.policy.retry
        asked = retry_after(headers)
        if asked:
            self._rests_until = max(self._rests_until, now + min(asked, LONGEST_REST))
        if attempt >= retry.attempts or asked > retry.max_backoff:
            return None
        pause = asked + uniform(0, min(retry.max_backoff, retry.backoff * 2.0 ** (attempt - 1)))
        if now + pause >= call.deadline:
            return None
        if self.breaker is not None and not self.breaker.admits(now + pause):
            return None
        if not self._retry_budget.withdraw(now):
            self.retries_denied += 1
            return None
        return pause

    async def _hedged(self, call: Call) -> Reply:
        """An attempt, and another one beside it if it is slower than most."""
        self._hedge_budget.deposit()
        form = (call.operation, call.streaming)
        tail = self._tails.get(form)
        if tail is None:
            hedge = self.policy.hedge
            tail = self._tails[form] = Tail(hedge.percentile, hedge.min_calls)
        started = monotonic()
        if tail.seconds is None:
            reply = await self._attempt(call)
        else:
            reply, second = await race(lambda: self._attempt(call), tail.seconds, self._may_hedge)
            self.hedges_won += second
        # From the call's start, whichever attempt won: leaving out how long the loser took
        # would make ever more calls look slow.
        tail.add(monotonic() - started)
        return reply

    def _may_hedge(self) -> bool:
        now = monotonic()
        if not self._admits(now) or not self._hedge_budget.withdraw(now):
            return False
        self.hedges += 1
        return True

    async def _attempt(self, call: Call) -> Reply:
        started = monotonic()
        if not self._admits(started):
            raise self._refused(started)
        probe = self.breaker.enter() if self.breaker is not None else 0
        self.limit.enter()
        well: bool | None = None
        streaming = False
        try:
            reply, first = await self._ask(call, started)
            well = not is_failure(reply.status)
            now = monotonic()
            if not well:
                self._learn_failure(reply.status)
                return reply
            self._learn(call, reply, now - started, now)
            if reply.chunks is not None:
                if self.breaker is not None:
                    self.breaker.answered(probe)
                silence = self.policy.timeouts.between_tokens
                reply.chunks = Stream(
                    self.name, reply.chunks, first, silence, call.deadline, self._stream_ended
                )
                streaming = True
            return reply
        except asyncio.CancelledError:
            # Who asked may have left; or the deadline, which ends the call in the same way, has passed.
            if monotonic() >= call.deadline:
                well = False
                self.limit.dropped()
            raise
        except Exception as error:
            status = error.status if isinstance(error, APIError) else 500
            well = not is_failure(status)
            if not well:
                self._learn_failure(status)
            raise
        finally:
            if not streaming:
                self._leave(probe, well)

    async def _ask(self, call: Call, started: float) -> tuple[Reply, bytes | None]:
        """The target's reply, with the first chunk of a stream, within the timeouts."""
        timeouts = self.policy.timeouts
        seconds = timeouts.first_token if call.streaming else timeouts.total
        if timeouts.total is not None:
            call = call.until(started + timeouts.total)
        if seconds is None:
            return await self._begun(call)
        # At the deadline itself the server gives the call up.
        try:
            async with asyncio.timeout_at(started + seconds):
                return await self._begun(call)
        except TimeoutError:
            what = "begin to answer" if call.streaming else "answer"
            raise DeadlineExceeded(f"The target `{self.name}` did not {what} within {seconds:g} s.") from None

    async def _begun(self, call: Call) -> tuple[Reply, bytes | None]:
        reply = await self._stage(call)
        if reply.chunks is None or is_failure(reply.status):
            return reply, None
        return reply, await first_chunk(reply)

    def _admits(self, now: float) -> bool:
        if self.breaker is not None and not self.breaker.admits(now):
            return False
        return not self._limited or self.limit.has_room

    def _refused(self, now: float) -> Refused:
        wait = 1.0
        if self.breaker is not None and not self.breaker.admits(now):
            wait = max(wait, self.breaker.reopens_in(now))
            message = f"The target `{self.name}` keeps failing and is left alone for now."
        else:
            self.limit.shed += 1
            message = f"The target `{self.name}` has as many calls as it can take."
        return Refused(message, headers=((b"retry-after", b"%d" % -(-wait // 1)),))

    def _learn(self, call: Call, reply: Reply, seconds: float, now: float) -> None:
        """Learn the latency of a good answer: to its first chunk, or for each of its tokens."""
        if not self._limited or reply.status >= 400:
            return
        form = (call.operation, reply.streaming)
        if not reply.streaming and (usage := reply.usage) is not None:
            seconds /= usage.completion_tokens + TOKENS_BEFORE
        self.limit.sample(form, seconds, now)

    def _learn_failure(self, status: int) -> None:
        if status in BUSY:
            self.limit.dropped()

    def _stream_ended(self, well: bool | None) -> None:
        self._leave(0, well)

    def _leave(self, probe: int, well: bool | None) -> None:
        self.limit.in_flight -= 1
        now = monotonic()
        if self.breaker is not None:
            self.breaker.leave(now, probe, well)
        if well is None:
            return
        if well:
            self.answers += 1
        else:
            self.failures += 1
        if self.standing is not None:
            self.standing.count(now, well)
