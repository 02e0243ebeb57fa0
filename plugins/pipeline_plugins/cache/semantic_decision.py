"""Whether a known answer is good enough for a similar question: `threshold` and `verified`.

`threshold` serves whatever is at least so similar. Nobody can know the right number in advance.

`verified` takes a maximum error rate instead: wrong hits per request. It follows vCache (Schroeder
et al., arXiv 2502.03771): whether a neighbour's answer is right is a logistic function of the
similarity, learned online for each entry from the questions that were answered afresh, and part of
the hits are explored to keep it honest. Measured on 20,000 questions that mostly come once, vCache
itself never serves: an entry has to be seen six times first. So here

- the logistic function is shared by all entries and has more features than the similarity; what
  an entry has shown itself (answers found right, found wrong) are two of them, so its own history
  moves its own threshold;
- every miss that had a neighbour is a free observation, and a part `explore` of the hits is not
  served but answered afresh, which alone tells how good those that are served are;
- the budget is kept for the sum, not hit by hit: where the neighbour may be wrong with probability
  r, serving it spends r. What is spent, with its uncertainty, must stay below `max_error` times the
  requests so far. The bar is set where the present traffic spends just what is left, and never above
  a fixed risk: when little was asked yet, the budget would else go to the worst of the neighbours.
- a text served by similarity and asked again is answered afresh once: what is popular is then known
  for certain, and one wrong guess is not repeated a thousand times.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline_plugins.cache.semantic_candidates import Candidate, features

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Action = Literal["serve", "explore", "miss"]


@dataclass(slots=True)
class Verdict:
    """What to do, about which candidate, and how sure the decision was that it is right.

    `explore`: it would have been served, and is answered afresh to learn. `miss`: not good
    enough; the fresh answer teaches too.
    """

    action: Action
    candidate: int = -1
    confidence: float = 0.0
    features: Array | None = None


@dataclass(slots=True)
class Tally:
    """What a decision has counted.

    requests  calls that it could have served
    served    of them, by similarity
    audited   of those it would have served, answered afresh
    disproved of the audited, those whose known answer was wrong
    """

    requests: int = 0
    served: int = 0
    audited: int = 0
    disproved: int = 0

    def error(self, z: float = 1.96) -> tuple[float, float, float]:
        """Wrong hits per request as measured, with the ends of its 95 % interval (Wilson's).

        The audited are a random part of what would have been served, so their share of wrong
        ones is that of the served. Without any audit the interval is everything served.
        """
        rate = self.served / self.requests if self.requests else 0.0
        n = self.audited
        if not n:
            return 0.0, 0.0, rate
        share = self.disproved / n
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return share * rate, max(0.0, middle - half) * rate, min(1.0, middle + half) * rate


class Decision(Protocol):
    """Decides about the neighbours of a question, and learns from fresh answers."""

    tally: Tally

    def hit(self) -> None:
        """Count a request that was answered for certain: the same text again."""
        ...

    def decide(self, text: bytes, candidates: Sequence[Candidate]) -> Verdict:
        """What to do for the question with this digest, given its neighbours, nearest first."""
        ...

    def learn(self, verdict: Verdict, candidate: Candidate, right: bool) -> None:
        """Take in whether the candidate's answer would have been right."""
        ...

    def hear(self, verdict: Verdict, right: bool) -> None:
        """Take in what was learned elsewhere. It is no part of the tally, which is of these requests."""
        ...


class Threshold:
    """Serves the nearest neighbour that is at least so similar. `explore` measures its errors."""

    def __init__(self, similarity: float, *, explore: float = 0.0, random: Random | None = None) -> None:
        self.similarity = similarity
        self.explore = explore
        self.tally = Tally()
        self._random = random or Random()

    def hit(self) -> None:
        """Count a request that was answered for certain."""
        self.tally.requests += 1

    def decide(self, text: bytes, candidates: Sequence[Candidate]) -> Verdict:
        """Serve the nearest if it is near enough."""
        self.tally.requests += 1
        if not candidates:
            return Verdict("miss")
        best = max(range(len(candidates)), key=lambda at: candidates[at].similarity)
        similarity = candidates[best].similarity
        if similarity < self.similarity:
            return Verdict("miss", best, similarity)
        if self.explore and self._random.random() < self.explore:
            return Verdict("explore", best, similarity)
        self.tally.served += 1
        return Verdict("serve", best, similarity)

    def learn(self, verdict: Verdict, candidate: Candidate, right: bool) -> None:
        """Count; a threshold does not learn."""
        _count(self.tally, verdict, candidate, right)

    def hear(self, verdict: Verdict, right: bool) -> None:
        """A threshold does not learn."""


def _count(tally: Tally, verdict: Verdict, candidate: Candidate, right: bool) -> None:
    if right:
        candidate.history.right += 1
    else:
        candidate.history.wrong += 1
    if verdict.action == "explore":
        tally.audited += 1
        tally.disproved += not right


PRIOR = (-0.3, 1.8, 0.1, -0.1, 0.6, -0.6, 1.2, 1.2, 0.1, 0.4)
"""Where learning starts: an even chance at about 0.92. Fitted once, by plain logistic regression, to
24,000 nearest neighbours among Quora's questions with even `meaning`; benchmarks use the odd ones."""

PRIOR_VARIANCE = 0.05
"""Of each weight: some hundred observations outweigh it."""


class Chance:
    """The probability that a neighbour's answer is right: Bayesian logistic regression, online.

    The weights are a normal distribution; an observation moves it by one Newton step on its own
    likelihood (a rank-one Laplace update, 10 µs). Predictions average over what is uncertain
    (MacKay's probit approximation), so that few observations mean probabilities near one half.
    """

    def __init__(self, mean: Sequence[float] = PRIOR, variance: float = PRIOR_VARIANCE) -> None:
        import numpy as np

        self._np = np
        self.mean: Array = np.array(mean, dtype=np.float64)
        self.covariance: Array = np.eye(len(mean)) * variance

    def of(self, x: Array) -> float:
        """The probability for these features."""
        z = float(self.mean @ x)
        spread = float(x @ self.covariance @ x)
        return _sigmoid(z / math.sqrt(1 + spread * math.pi / 8))

    def learn(self, x: Array, right: bool) -> None:
        """Take in one observation."""
        p = _sigmoid(float(self.mean @ x))
        gain = self.covariance @ x
        curvature = max(p * (1 - p), 1e-4)
        scale = 1 + curvature * float(x @ gain)
        self.mean += gain * ((float(right) - p) / scale)
        self.covariance -= self._np.outer(gain, gain) * (curvature / scale)


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))


BINS = 256
FADE = 1 - 1 / 4000
"""Weight of each request against the next in what counts as present traffic."""

CALM = 40.0
"""Weight of the prior in the audits' correction, in wrong answers: few audits don't swing it."""

LEAST_RISK, RISK_SLOPE, MOST_RISK = 0.3, 8.0, 0.5
"""The riskiest answer served: 0.3 + 8 `max_error`, and none that is more likely wrong than right.

Chosen, like `PRIOR`, on the questions with even `meaning`.
"""


class Budget:
    """The wrong hits that may be spent, and the bar that spends them evenly.

    `margin` is how many standard deviations the bound keeps above the expected. What the model
    expects is corrected by what audits found: as often wrong as expected, or more.
    """

    def __init__(self, max_error: float, margin: float) -> None:
        import numpy as np

        self.max_error = max_error
        self.margin = margin
        self.riskiest = min(MOST_RISK, LEAST_RISK + RISK_SLOPE * max_error)
        self.requests = 0
        self.expected = 0.0
        self._variance = 0.0
        self._audits = [CALM, CALM]
        self._np = np
        self._risks: Array = np.zeros(BINS)
        self._scale = 1.0
        self._weight = 0.0

    @property
    def correction(self) -> float:
        """How much more often the audited were wrong than expected."""
        expected, wrong = self._audits
        return max(0.8, wrong / expected)

    def spent(self, more: float = 0.0) -> float:
        """Upper bound of the wrong hits so far, and after serving one `more` of this risk.

        Its spread is that of their number and of the correction.
        """
        ratio = self.correction
        expected = (self.expected + more) * ratio
        variance = (self._variance + more * (1 - more)) * ratio
        unsure = expected / math.sqrt(self._audits[1]) / 4
        return expected + self.margin * math.sqrt(variance + unsure**2)

    def pass_by(self, risk: float) -> None:
        """Count a candidate's risk, served or not, among the present traffic's."""
        self._scale /= FADE
        self._risks[min(BINS - 1, int(risk * BINS))] += risk * self._scale
        if self._scale > 1e9:
            self._risks /= self._scale
            self._scale = 1.0

    def tick(self) -> None:
        """Count a request."""
        self.requests += 1
        self._weight = self._weight * FADE + 1

    def allows(self, risk: float) -> bool:
        """Whether a candidate with this risk may be served.

        Not if it is riskier than any that is worth it, or if that breaks the bound; nor if serving
        all that are so risky would use more than what is left, spread over as many requests as
        there were already.
        """
        if risk > self.riskiest:
            return False
        left = self.max_error * self.requests - self.spent(risk)
        if left < 0:
            return False
        ahead = max(1000.0, self.requests)
        rate = self.max_error + left / ahead
        up_to = float(self._risks[: int(risk * BINS) + 1].sum()) / self._scale / self._weight
        return up_to * self.correction <= rate

    def serve(self, risk: float) -> None:
        """Spend."""
        self.expected += risk
        self._variance += risk * (1 - risk)

    def audit(self, risk: float, right: bool) -> None:
        """Correct the expectation by one that was not served."""
        self._audits[0] += risk
        self._audits[1] += not right


class Verified:
    """Serves what keeps wrong hits per request below `max_error`; see above how.

    explore      part of the hits that is answered afresh to measure the error
    margin       standard deviations between what is expected and the bound: 20,000 requests are few
    remembered   texts served by similarity that are remembered, to verify them when they repeat
    """

    def __init__(
        self,
        max_error: float,
        *,
        explore: float = 0.02,
        margin: float = 4.0,
        remembered: int = 100_000,
        random: Random | None = None,
    ) -> None:
        import numpy as np

        self._np = np
        self.explore = explore
        self.chance = Chance()
        self.budget = Budget(max_error, margin)
        self.tally = Tally()
        self._random = random or Random()
        self._remembered = remembered
        self._served: OrderedDict[bytes, None] = OrderedDict()

    def hit(self) -> None:
        """Count a request that was answered for certain."""
        self.tally.requests += 1
        self.budget.tick()

    def decide(self, text: bytes, candidates: Sequence[Candidate]) -> Verdict:
        """Take the candidate that is most likely right, and serve it if the budget allows."""
        self.hit()
        if not candidates:
            return Verdict("miss")
        rows = [self._np.array(features(candidate)) for candidate in candidates]
        chances = [self.chance.of(row) for row in rows]
        best = max(range(len(rows)), key=chances.__getitem__)
        verdict = Verdict("miss", best, chances[best], rows[best])
        risk = 1 - chances[best]
        self.budget.pass_by(risk)
        if text in self._served:
            del self._served[text]
        elif self.budget.allows(risk):
            if self._random.random() < self.explore:
                verdict.action = "explore"
            else:
                verdict.action = "serve"
                self.tally.served += 1
                self.budget.serve(risk)
                self._remember(text)
        return verdict

    def _remember(self, text: bytes) -> None:
        self._served[text] = None
        if len(self._served) > self._remembered:
            self._served.popitem(last=False)

    def learn(self, verdict: Verdict, candidate: Candidate, right: bool) -> None:
        """Take in whether the candidate's answer would have been right."""
        _count(self.tally, verdict, candidate, right)
        self.hear(verdict, right)

    def hear(self, verdict: Verdict, right: bool) -> None:
        """Learn the law, and how often it errs; what may be spent depends on these requests alone."""
        if verdict.features is not None and len(verdict.features) == len(self.chance.mean):
            self.chance.learn(verdict.features, right)
        if verdict.action == "explore":
            self.budget.audit(1 - verdict.confidence, right)
