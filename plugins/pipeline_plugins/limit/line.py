"""Who waits for a slot: first come, first served for each tenant, and tenants in turn."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence

from pipeline_plugins.limit.rules import Demand


class Waiter:
    """A call that waits: granted by setting its future's result."""

    __slots__ = ("demands", "granted", "id", "tenant")

    def __init__(self, tenant: str, id: str, demands: Sequence[Demand]) -> None:
        self.tenant = tenant
        self.id = id
        self.demands = demands
        self.granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class Line:
    """Waiters of all tenants. Whoever is served goes behind the other tenants."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, deque[Waiter]] = OrderedDict()
        self._size = 0
        self._wanted: dict[str, Counter[str]] = {}
        """For each bucket, how many of each tenant wait for it."""

    def __len__(self) -> int:
        return self._size

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._of.get(waiter.tenant, ())

    def add(self, waiter: Waiter) -> None:
        """Join the end of the tenant's own line."""
        self._of.setdefault(waiter.tenant, deque()).append(waiter)
        self._size += 1
        for demand in waiter.demands:
            self._wanted.setdefault(demand.name, Counter())[waiter.tenant] += 1

    def remove(self, waiter: Waiter, *, served: bool = False) -> None:
        """Leave; a tenant that was `served` has its next turn after the others."""
        own = self._of.get(waiter.tenant)
        if own is None or waiter not in own:
            return
        own.remove(waiter)
        self._size -= 1
        for demand in waiter.demands:
            waiting = self._wanted[demand.name]
            waiting[waiter.tenant] -= 1
            if not waiting[waiter.tenant]:
                del waiting[waiter.tenant]
            if not waiting:
                del self._wanted[demand.name]
        if not own:
            del self._of[waiter.tenant]
        elif served:
            self._of.move_to_end(waiter.tenant)

    def wants(self, demands: Sequence[Demand]) -> bool:
        """Whether somebody waits for one of these buckets already."""
        return any(demand.name in self._wanted for demand in demands)

    def ahead(self, tenant: str, bucket: str) -> int:
        """How many of those that wait for a bucket are served before one that joins now."""
        waiting = self._wanted.get(bucket)
        if waiting is None:
            return 0
        own = waiting[tenant]
        return own + sum(min(size, own + 1) for name, size in waiting.items() if name != tenant)

    def turns(self) -> Iterator[Waiter]:
        """Waiters in the order in which they should be tried: each tenant's first, then seconds."""
        lines = [list(line) for line in self._of.values()]
        for rank in range(max(map(len, lines), default=0)):
            for line in lines:
                if rank < len(line):
                    yield line[rank]
