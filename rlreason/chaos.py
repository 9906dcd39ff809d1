"""Faults on purpose, in any run: `chaos.kill=rollout:0.05,learner:0.01`. What a run survives is known by trying it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from rlreason.config import ChaosConfig

ROLES = ("rollout", "learner", "driver")


class Victim(Protocol):
    name: str

    def signal(self, number: int) -> None: ...


def rates(text: str) -> dict[str, float]:
    """`rollout:0.05,learner:0.01` as a mapping. Raises `ValueError` that says what is wrong with it."""
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        role, colon, number = part.partition(":")
        if role not in ROLES:
            raise ValueError(f"{role!r} is not one of {', '.join(ROLES)}")
        try:
            found[role] = float(number)
        except ValueError:
            raise ValueError(f"{part!r}: expected {role}:number") from None
        if not found[role] > 0 or not colon:
            raise ValueError(f"{part!r}: the number has to be above 0")
    return found


class Chaos:
    """Kills and stops processes of this run as the recipe says: by chance at each step, or by the clock."""

    def __init__(self, config: ChaosConfig, victims: Mapping[str, Sequence[Victim]], before: int, say: Callable[..., None]):
        """`victims`: the processes by role. `before`: faults that the run has had, so that a step that is done again after
        one does not meet the same again."""
        self.victims, self.say, self.faults = victims, say, before
        self.seed = config.seed
        self.chances = {signal.SIGKILL: rates(config.kill), signal.SIGSTOP: rates(config.hang)}
        self.every = rates(config.every)
        self.clocks: list[asyncio.Task[None]] = []

    def __enter__(self) -> Chaos:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        there = [(role, seconds) for role, seconds in self.every.items() if self._present(role)]
        self.clocks = [asyncio.create_task(self._clock(role, seconds)) for role, seconds in there]

    def end(self) -> None:
        for clock in self.clocks:
            clock.cancel()

    def step(self, number: int) -> None:
        """Roll the dice after a step."""
        for what, chances in self.chances.items():
            for role, chance in chances.items():
                rng = random.Random(f"{self.seed}/{number}/{self.faults}/{what}/{role}")
                if self._present(role) and rng.random() < chance:
                    self._strike(role, what, rng)

    def _present(self, role: str) -> bool:
        """Is there such a process? A stage without learning has no learners, and a teacher's has no engines."""
        return role == "driver" or bool(self.victims.get(role))

    async def _clock(self, role: str, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self._strike(role, signal.SIGKILL, random.Random(f"{self.seed}/{self.faults}/{role}"))

    def _strike(self, role: str, what: signal.Signals, rng: random.Random) -> None:
        self.faults += 1
        victim = rng.choice(self.victims[role]) if role != "driver" else None
        name = victim.name if victim else role
        self.say("chaos", f"{what.name} to {name}", name=name, what=what.name)
        if victim:
            victim.signal(what)
        else:
            os.kill(os.getpid(), what)
