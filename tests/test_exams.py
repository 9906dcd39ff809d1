"""Evaluation in training: when it is asked, that weights wait for it, which is best, and what got worse."""

import asyncio

import pytest

from rlreason.config import Config, EvalConfig, LoopConfig, TasksConfig
from rlreason.exams import Exams
from rlreason.types import Group, Task

TRAINED = Task("train-3", "p", "a", domain="maths")
HELD_OUT = [Task(f"{domain}-{i}", "p", "a", domain=domain) for domain in ("maths", "code") for i in range(4)]


class Engines:
    """Right about a share of each domain's tasks, that changes with the weights."""

    def __init__(self, make, shares):
        self.make, self.shares, self.version, self.asked = make, shares, 0, []

    async def sample(self, task, n):
        version = self.version
        self.asked.append((task.domain, version))
        await asyncio.sleep(0.001 * (4 - int(task.id[-1])))
        assert self.version == version, "weights came while a held-out task was being answered"
        right = float(int(task.id[-1]) < 4 * self.shares[version][task.domain])
        sample = self.make(1, 1, right, version=version)
        sample.parts = {"exact": right}
        return Group(task, [sample] * n)

    async def load(self, weights, version):
        self.version = version


def exams(tmp_path, engines, every=1, **more) -> tuple[Exams, list]:
    told = []
    config = Config(
        model="m", out=str(tmp_path), eval=EvalConfig(tasks=8, every=every), loop=LoopConfig(steps=4, save_every=1),
        tasks=TasksConfig(reward={"exact": 1.0}),
    )  # fmt: skip
    return Exams(config, HELD_OUT, engines, engines, lambda event, text, **details: told.append((event, text))), told


SHARES = {0: {"maths": 0.5, "code": 0.75}, 1: {"maths": 0.75, "code": 0.75}, 2: {"maths": 1, "code": 1},
          3: {"maths": 1, "code": 0.25}, 4: {"maths": 1, "code": 0}}  # fmt: skip


def through(tmp_path, sample, last: int = 4, begin: int = 0):
    """Publish weights 1, 2, …, each with its directory, as training does."""

    async def go():
        engines = Engines(sample, SHARES)
        exam, told = exams(tmp_path, engines)
        await exam.load(None, begin)
        if not begin:
            await exam.score("before", 0)
        await exam.sample(TRAINED, 1)
        for version in range(begin + 1, last + 1):
            await exam.load(None, version)
            (tmp_path / "weights" / f"v{version}").mkdir(parents=True)
            if version < 4:
                await exam.sample(TRAINED, 1)
        if last < 4:
            await exam.drop()
            return exam, engines, told
        await exam.settle()
        await exam.score("after", last)
        return exam, engines, told

    return asyncio.run(go())


def test_every_version_is_examined_with_its_own_weights_and_the_best_is_kept(tmp_path, sample):
    exam, engines, told = through(tmp_path, sample)
    assert [(e["step"], e["accuracy"]["mean"]) for e in exam.results()] == [
        (0, 0.625), (1, 0.75), (2, 1.0), (3, 0.625), (4, 0.5),
    ]  # fmt: skip
    assert (tmp_path / "weights" / "best").resolve().name == "v2"
    assert len(engines.asked) == 5 * 8 + 4  # the last version once, as the score after training
    assert [text.split(":")[0] for event, text in told if event == "evaluation"][1] == "exact on held-out tasks after step 1"


def test_an_exam_that_a_stop_cut_off_is_asked_again(tmp_path, sample):
    cut, *_ = through(tmp_path, sample, last=2)
    assert [e["step"] for e in cut.results()] == [0, 1]
    rest, *_ = through(tmp_path, sample, begin=2)
    assert [e["step"] for e in rest.results()] == [0, 1, 2, 3, 4]


def test_a_score_is_asked_once_and_anew_of_a_run_that_went_on(tmp_path, sample):
    """By force a run may be made longer when it was done: the old score is not that of the new weights."""

    async def go():
        engines = Engines(sample, SHARES)
        exam, _ = exams(tmp_path, engines)
        found = []
        for version in (1, 1, 2):
            await engines.load(None, version)
            await exam.score("after", version)
            found.append((exam.accuracy("after")["mean"], len(engines.asked)))
        return found

    assert asyncio.run(go()) == [(0.75, 8), (0.75, 8), (1.0, 16)]


def test_a_domain_that_got_worse_is_named(tmp_path, sample):
    exam, *_ = through(tmp_path, sample)
    assert [one.domain for one in exam.regressions()] == ["code"]
    assert "0.750 -> 0.000" in str(exam.regressions()[0])


def test_without_a_score_before_nothing_got_worse(tmp_path, sample):
    exam, _ = exams(tmp_path, Engines(sample, SHARES))
    assert exam.regressions() == []
    assert exam.accuracy("before") is None


def test_an_exam_that_fails_ends_the_run(tmp_path, sample):
    """Engines that die while a held-out task is answered: told when the next weights are taken in."""

    class Dying(Engines):
        async def sample(self, task, n):
            if task is not TRAINED:
                raise ConnectionError("gone")

    async def go():
        exam, _ = exams(tmp_path, Dying(sample, SHARES))
        await exam.load(None, 1)
        await exam.sample(TRAINED, 1)
        await exam.load(None, 2)

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(go())


def test_an_exam_enters_the_engines_with_the_next_step(tmp_path, sample):
    """Engines are asked for both in one turn of the event loop, whatever is awaited between the weights and the step."""

    class Counting(Engines):
        async def sample(self, task, n):
            self.turns.append((task.id, self.turn))
            return await super().sample(task, n)

    async def go():
        engines = Counting(sample, SHARES)
        engines.turns, engines.turn = [], 0
        exam, _ = exams(tmp_path, engines)
        await exam.load(None, 1)
        await asyncio.sleep(0.01)  # a checkpoint is written
        assert not engines.turns
        step = [asyncio.create_task(exam.sample(TRAINED, 1)) for _ in range(3)]
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(setattr, engines, "turn", 1)  # when `Rollouts` would deal
        await asyncio.gather(*step)
        await exam.settle()
        return engines.turns

    turns = asyncio.run(go())
    assert [turn for _, turn in turns] == [0] * 11
    assert [name for name, _ in turns[:3]] == ["train-3"] * 3
