"""How many answers a second the maths reward judges, and what hostile ones cost.

    python benchmarks/rewards.py [answers]

Judges ordinary answers, hostile ones and a mixture of both (one in ten hostile) on two worker processes, 100,000 in the
mixture unless told otherwise, and prints a table.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter

from answers import Answer, hostile, mixed, ordinary

from rlreason.config import RewardsConfig
from rlreason.rewards.pool import Pool, Verdict

AT_ONCE = 2000  # answers that wait for a verdict


async def judged(pool: Pool, answers: list[Answer]) -> tuple[list[Verdict], float]:
    """The verdicts, and the seconds it took."""
    began = time.perf_counter()
    verdicts: list[Verdict] = []
    for i in range(0, len(answers), AT_ONCE):
        batch = answers[i : i + AT_ONCE]
        verdicts += await asyncio.gather(*(pool.judge(answer.task, answer.text, {"math": 1.0}) for answer in batch))
    return verdicts, time.perf_counter() - began


def row(name: str, answers: list[Answer], verdicts: list[Verdict], seconds: float) -> str:
    """What became of the answers: how many a second, how many of them right, wrong, undecided, failed, misjudged."""
    rewards = Counter(verdict.reward for verdict in verdicts)
    failed = sum(bool(verdict.failures) for verdict in verdicts)
    lost = sum(a.right is not None and v.reward != a.right for a, v in zip(answers, verdicts, strict=True))
    return (f"{name:>9} {len(answers):>7} {seconds:>7.1f} {len(answers) / seconds:>9.0f} {rewards[1.0]:>7} {rewards[0.0]:>7} "
            f"{rewards[None]:>9} {failed:>7} {lost:>9}")  # fmt: skip


async def main(number: int) -> None:
    async with Pool(RewardsConfig(workers=2), ["math"]) as pool:
        await judged(pool, [ordinary(-i) for i in range(1, 1000)])  # both processes have imported what they need
        print("  answers  number seconds  a second   right   wrong undecided  failed misjudged")
        for name, answers in (
            ("ordinary", [ordinary(i) for i in range(number // 5)]),
            ("hostile", [hostile(i) for i in range(number // 20)]),
            ("mixed", [*mixed(number, 0.1, number)]),
        ):
            print(row(name, answers, *await judged(pool, answers)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
