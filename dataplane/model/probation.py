"""When a generation that has just taken over is worse than the one before it.

Statistics and nothing else: what follows from it is the supervisor's business.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

# A difference that chance brings about once in 30,000 looks; there are some thirty in a probation.
DEVIATIONS: Final = 4.0
# And one that matters: so many answers in a hundred more, and not a handful of them.
SHARE: Final = 0.01
FAILED: Final = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """How many requests were answered, and how many of these with a status of 500 and above."""

    all: int
    failed: int

    def __sub__(self, other: Answers) -> Answers:
        return Answers(all=self.all - other.all, failed=self.failed - other.failed)

    @property
    def share(self) -> float:
        """Of all, with one good and one failed answer added: nothing known is one half."""
        return (self.failed + 1) / (self.all + 2)


def is_worse(after: Answers, before: Answers) -> bool:
    """Whether the share of failed answers has risen, by a one-sided test of two proportions.

    Where nothing was answered before there is nothing to compare with, and it has not.
    """
    if after.failed < FAILED or before.all == 0:
        return False
    difference = after.share - before.share
    both = Answers(all=after.all + before.all, failed=after.failed + before.failed)
    variance = both.share * (1 - both.share) * (1 / after.all + 1 / before.all)
    return difference >= SHARE and difference >= DEVIATIONS * math.sqrt(variance)


def in_words(after: Answers, before: Answers) -> str:
    """Of one that is worse."""
    return (
        f"{after.failed} of {after.all} answers were 500 or above, "
        f"{before.failed} of {before.all} before"
    )
