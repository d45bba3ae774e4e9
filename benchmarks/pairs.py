"""What rounds say together: medians, and how sure a ratio is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

RESAMPLES: Final = 2000
SEED: Final = 1  # the same rounds give the same interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The median of ours over theirs, pair by pair, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    pairs: int


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Rounds are paired as they were taken: one after the other, so drift hits both alike."""
    pairs = [own / other for own, other in zip(ours, theirs, strict=True)]
    draw = random.Random(SEED)
    medians = sorted(statistics.median(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return Ratio(
        value=statistics.median(pairs),
        low=medians[int(0.025 * RESAMPLES)],
        high=medians[int(0.975 * RESAMPLES) - 1],
        pairs=len(pairs),
    )
