"""Rewards that fail: each kind of failure is told once, and the run ends when too many answers are lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from rlreason.errors import RolloutError
from rlreason.types import Group

STEPS = 10  # whose answers are looked back on
TOLD = 20  # kinds of failure that are told within a step's worth of answers, at most


class Budget:
    """Looks at every group that is consumed, kept or dropped."""

    def __init__(self, share: float, step: int, event: Callable[..., None], say: Callable[[str], None]):
        """Up to `share` of the answers of the last ten steps may have failed; a step is `step` answers."""
        self.share, self.step, self.event, self.say = share, step, event, say
        self.recent: deque[tuple[int, int]] = deque()  # by group: answers, and those of them with a reward that failed
        self.known: set[tuple[str, str]] = set()  # (reward, kind of failure)
        self.told: deque[int] = deque()  # at how many answers so far each was told
        self.seen = 0  # answers so far

    def watch(self, keep: Callable[[Group], bool]) -> Callable[[Group], bool]:
        """The same filter; what it is asked about is looked at first."""

        def watched(group: Group) -> bool:
            self.look(group)
            return keep(group)

        return watched

    def look(self, group: Group) -> None:
        """Raises `RolloutError` when more have failed than may; judged once a step's worth of answers was seen."""
        failed = [(i, s) for i, s in enumerate(group.samples) if s.failures]
        self.seen += len(group.samples)
        for i, sample in failed:
            for name, cause in sample.failures.items():
                self._tell(group.task.id, i, name, cause, sample.text)
        self.recent.append((len(group.samples), len(failed)))
        while sum(n for n, _ in self.recent) - self.recent[0][0] >= STEPS * self.step:
            self.recent.popleft()
        answers, lost = (sum(column) for column in zip(*self.recent, strict=True))
        if failed and self.seen >= self.step and lost > self.share * answers:
            i, sample = failed[0]
            name, cause = next(iter(sample.failures.items()))
            raise RolloutError(
                f"{lost} of the last {answers} answers could not be judged, and at most {self.share:g} of them may be lost "
                f"(rewards.failures). The last was sample {i} of task {group.task.id}: the reward {name} {cause}. Mend the "
                "reward, or give it more time (rewards.timeout) or memory (rewards.memory, GiB); events.jsonl has an example "
                "of each kind of failure."
            )

    def _tell(self, task: str, i: int, name: str, cause: str, text: str) -> None:
        kind = name, cause.partition(":")[0]  # raised ValueError, gave no number, hung for more than …
        while self.told and self.told[0] <= self.seen - self.step:
            self.told.popleft()
        if kind in self.known or len(self.told) >= TOLD:
            return
        self.known.add(kind)
        self.told.append(self.seen)
        self.event("reward", reward=name, task=task, sample=i, cause=cause, text=text[:200])
        self.say(f"the reward {name} {cause}, on sample {i} of task {task}; such samples are left out and counted (failed)")
