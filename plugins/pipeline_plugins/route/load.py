"""How busy targets are: calls under way, until their last byte."""

from __future__ import annotations

from pipeline import Call, End, Reply
from pipeline_plugins.route.targets import Target, Targets


class Load:
    """One target's calls under way, as far as this router sent them."""

    __slots__ = ("in_flight", "turn")

    def __init__(self) -> None:
        self.in_flight = 0
        self.turn = 0

    async def carry(self, targets: Targets, target: Target, call: Call) -> Reply:
        """Send a call, and count it until its reply has ended, however it ends."""
        self.in_flight += 1
        try:
            reply = await targets.send(call, target)
        except BaseException:
            self.in_flight -= 1
            raise
        if reply.body is not None:
            self.in_flight -= 1
        else:
            reply.on_end(self._ended)
        return reply

    def _ended(self, end: End) -> None:
        self.in_flight -= 1
