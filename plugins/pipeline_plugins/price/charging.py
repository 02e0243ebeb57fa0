"""What each attempt at a model costs: a `Charge` in the call's record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

import structlog

from pipeline import Call, End, Reply, Usage
from pipeline.errors import DeadlineExceeded, InvalidRequest
from pipeline.price import Charge, Price, charge
from pipeline.stage import DEFAULT_NAMES, Layer, StageCall
from pipeline_plugins.price.accounts import Written
from pipeline_plugins.price.table import PriceTable
from pipeline_plugins.tokens import estimate, of_text

FREE = Price()

log = structlog.get_logger("pipeline.price")


class Charging:
    """Puts a price on every attempt of the stages that it is put around.

    refuse    whether models without a price are refused; they are free otherwise
    estimated attempts whose tokens were estimated, for metrics
    unpriced  attempts at models without a price, for metrics
    """

    def __init__(self, table: PriceTable, *, refuse: bool) -> None:
        self.table = table
        self.refuse = refuse
        self.estimated = 0
        self.unpriced = 0
        self._said: set[str] = set()
        self._names: dict[str, str] = {}

    def name(self, stage: str, model: str) -> None:
        """What a stage's model is called where its replies do not say."""
        self._names[stage] = model

    def layer(self, stage: str) -> Layer:
        """What goes around one stage."""
        charging = self

        def around(inner: StageCall) -> StageCall:
            async def charged(call: Call) -> Reply:
                if charging.refuse:
                    charging.check(stage, call)
                started = perf_counter()
                try:
                    reply = await inner(call)
                except (asyncio.CancelledError, DeadlineExceeded):
                    # The model has the prompt by now, and its owner may well bill for it.
                    charging.add(call, stage, None, None, started)
                    raise
                if reply.status >= 400:
                    return reply
                if reply.body is not None:
                    charging.add(call, stage, reply, reply.usage, started)
                else:
                    reply.on_end(charging.ended(call, stage, reply, started))
                return reply

            return charged

        return around

    def check(self, stage: str, call: Call) -> None:
        """Refuse a call to a model that has no price."""
        name = self._names.get(stage, call.model)
        if name not in DEFAULT_NAMES and self.table.find(name) is None:
            raise InvalidRequest(
                f"The model `{name[:256]}` has no price, and `price.unknown` is `refuse`.",
                param="model",
                code="model_not_priced",
            )

    def ended(self, call: Call, stage: str, reply: Reply, started: float) -> Callable[[End], None]:
        """What charges a stream when it has ended."""

        def over(end: End) -> None:
            usage = end.usage
            if usage is not None:
                self.add(call, stage, reply, usage, started)
            else:
                # A chunk is a token or more. To keep the chunks and count their text would cost
                # every stream a quarter of its CPU for the few that are cut off.
                usage = Usage(estimate(call), end.chunks)
                self.add(call, stage, reply, usage, started, estimated=True)

        return over

    def add(
        self,
        call: Call,
        stage: str,
        reply: Reply | None,
        usage: Usage | None,
        started: float,
        *,
        estimated: bool = False,
    ) -> None:
        """Add one attempt's charge to the record of the client's call."""
        name = (reply.model if reply is not None else None) or self._names.get(stage) or call.model[:256]
        if usage is None:
            estimated = True
            usage = Usage(estimate(call), _body_tokens(call, reply))
        price = self.table.find(name)
        if price is None:
            price = FREE
            self._unknown(name)
        if estimated:
            self.estimated += 1
        usd = price.cost(usage, perf_counter() - started)
        made = Charge(stage, name, usage, usd, estimated, aside=call.record.helps is not None)
        written: Written | None = charge(call.record, made).decisions.get(Written)
        if written is not None:
            written.accounts.add(call, made)

    def _unknown(self, name: str) -> None:
        self.unpriced += 1
        if name not in self._said and len(self._said) < 100:
            self._said.add(name)
            log.info("no price is known, counted as free", model=name[:256], hint="set `price.models`")


def fixed_name(models: tuple[str | None, ...]) -> str | None:
    """What a stage's replies are charged as, where they name no model: its only one."""
    names = [name for name in models if name is not None and name not in DEFAULT_NAMES]
    return names[0] if len(names) == 1 else None


def _body_tokens(call: Call, reply: Reply | None) -> int:
    """About how many tokens a whole reply's text has."""
    if reply is None or reply.body is None or call.operation == "embedding":
        return 0
    try:
        return _answer_tokens(reply.json)
    except (ValueError, AttributeError):  # an upstream may answer with anything
        return 0


def _answer_tokens(body: dict[str, object]) -> int:
    choices = body.get("choices")
    total = 0
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") or {}
        for text in (choice.get("text"), message.get("content"), message.get("reasoning_content")):
            if isinstance(text, str):
                total += of_text(text)
        if message.get("tool_calls"):
            total += of_text(str(message["tool_calls"]))
    return total
