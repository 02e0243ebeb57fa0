"""Guards over many calls: seldom broken by a variant that is like the control."""

from random import Random

from pipeline_plugins.experiment.guard import Guard
from pipeline_plugins.experiment.metric import Seen
from pipeline_plugins.experiment.watch import Guards


def breaks(random: Random, *, variant: float, worse_by: float, calls: int = 600) -> bool:
    """Whether a guard breaks where a tenth of the control's calls fails, and this share of the variant's."""
    guards = Guards([Guard(metric="failed", worse_by=worse_by), Guard(metric="latency_s")], 1, 0.05)
    for _ in range(calls):
        unit = random.getrandbits(64)
        name, rate = ("old", 0.1) if unit >> 63 else ("new", variant)
        outcome = "failed" if random.random() < rate else "completed"
        if guards.observe(name, "old", f"{unit:016x}", Seen(outcome, random.lognormvariate(0, 0.5))):
            return True
    return False


def test_a_variant_that_is_alike_breaks_no_guard_more_often_than_alpha() -> None:
    random = Random(5)
    assert sum(breaks(random, variant=0.1, worse_by=0) for _ in range(100)) <= 5


def test_what_is_worse_by_less_than_allowed_breaks_nothing() -> None:
    random = Random(6)
    assert sum(breaks(random, variant=0.25, worse_by=0.15) for _ in range(40)) <= 2
    assert sum(breaks(random, variant=0.6, worse_by=0.15) for _ in range(10)) == 10
