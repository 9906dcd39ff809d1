"""A hundred thousand answers, one in ten of them hostile, through the maths reward on two processes."""

import asyncio
import sys

import pytest
from real import ROOT

from rlreason.config import RewardsConfig
from rlreason.rewards.pool import Pool

sys.path.insert(0, str(ROOT / "benchmarks"))
from answers import mixed, ordinary
from rewards import judged, row

pytestmark = pytest.mark.e2e

NUMBER, SHARE = 100_000, 0.1
SLICE = 10_000


async def everything():
    async with Pool(RewardsConfig(workers=2), ["math"]) as pool:
        await judged(pool, [ordinary(-i) for i in range(1, 1000)])  # both processes have imported what they need
        slices = [[ordinary(NUMBER * 10 + i) for i in range(start, start + SLICE)] for start in range(0, 3 * SLICE, SLICE)]
        rates = [len(answers) / (await judged(pool, answers))[1] for answers in slices]
        answers = [*mixed(NUMBER, SHARE)]
        return rates, answers, *await judged(pool, answers)


def test_a_hundred_thousand_ordinary_and_hostile_answers():
    """No hang, no crash, no healthy answer lost, and at least 2,000 ordinary answers a second."""
    rates, answers, verdicts, seconds = asyncio.run(everything())
    print(row("mixed", answers, verdicts, seconds), "ordinary a second:", [round(rate) for rate in rates])
    hostile = [v for a, v in zip(answers, verdicts, strict=True) if a.right is None]
    healthy = [(a, v) for a, v in zip(answers, verdicts, strict=True) if a.right is not None]
    assert len(hostile) > 0.9 * SHARE * NUMBER
    assert [a.text[-100:] for a, v in healthy if v.reward != a.right or v.failures] == []
    assert {v.reward for v in hostile} <= {0.0, 1.0, None}
    assert not [v.failures for v in hostile if v.failures]  # none of them had to be killed either
    assert max(rates) >= 2000
