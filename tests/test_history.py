"""Which tasks are asked again: by their pass rates, and the same in a resumed run as in an uncut one."""

import asyncio
import json
import zlib

import pytest

from rlreason.config import Config, LoopConfig, TasksConfig
from rlreason.errors import RolloutError, StorageError
from rlreason.evaluate import pass_rate
from rlreason.history import FLOOR, History, frontier, hard
from rlreason.loop import train
from rlreason.tasks import Tasks
from rlreason.types import Group, Task


class Student:
    """Rollout and learner in one. Later versions, and earlier rows, are more often right."""

    def __init__(self, sample, rate=None, version=0):
        self.make, self.version = sample, version
        self.rate = rate or (lambda row, version: min(1.0, 0.2 * (version + 2) / (1 + row)))
        self.learned, self.saved = [], []

    async def sample(self, task, n):
        row = int(task.prompt)
        if row < 0:
            return Group(task, [])
        samples = [self.make(1, 1, 0.0, version=self.version) for _ in range(n)]
        for i, s in enumerate(samples):
            lucky = zlib.crc32(f"{task.id}/{self.version}/{i}".encode()) / 2**32 < self.rate(row, self.version)
            s.reward = float(lucky)
            s.parts = {"exact": s.reward}
        return Group(task, samples)

    async def load(self, weights, version):
        return None

    async def publish(self):
        return None

    async def step(self, groups):
        self.learned.append([g.task.id for g in groups])
        self.version += 1
        return {}

    async def save(self, cursor, pending):
        self.saved.append((self.version, cursor))


@pytest.fixture
def rows(tmp_path):
    def write(n):
        path = tmp_path / f"{n}.jsonl"
        path.write_text("".join(json.dumps({"prompt": str(i), "answer": i, "id": f"r{i}"}) + "\n" for i in range(n)))
        return str(path)

    return write


def run(path, out, student, steps, cursor=0, keep=lambda g: True, groups=4, max_lag=0, **options):
    config = Config(model="m", out=str(out), tasks=TasksConfig(path=path, reward={"exact": 1.0}, **options))
    history = History(config, Tasks(config), student, keep, student.version)
    logged = []
    loop = LoopConfig(steps=steps, groups=groups, samples=4, max_lag=max_lag)
    end = asyncio.run(
        train(loop, history.stream(cursor), history, student, history.keep,
              lambda step, g, m: logged.append(m | history.metrics), stop=lambda: history.finished, cursor=cursor)
    )  # fmt: skip
    return end, history, logged


def lines(out):
    return [json.loads(line) for line in (out / "tasks.jsonl").read_text().splitlines()]


def test_the_chance_of_being_asked_again_by_pass_rate():
    table = [(0.0, 1.0, FLOOR), (0.1, 0.9, 0.36), (0.5, 0.5, 1.0), (0.9, 0.1, 0.36), (1.0, FLOOR, FLOOR), (-1, 1.0, FLOOR)]
    for rate, harder, middle in table:
        assert hard(rate) == pytest.approx(harder)
        assert frontier(rate) == pytest.approx(middle)


def test_a_pass_rate_is_the_mean_of_the_metric_over_judged_answers(sample):
    def group(*parts, reward=None):
        samples = [sample(1, 1, 0.0 if p is not None else None) for p in parts]
        for s, p in zip(samples, parts, strict=True):
            s.parts = {"exact": p, "format": 1.0}
        return Group(Task("0", "", reward=reward), samples)

    assert pass_rate(group(1.0, 0.0, None), "exact") == 0.5
    assert pass_rate(group(None, None), "exact") is None
    assert pass_rate(group(), "exact") is None
    assert pass_rate(group(1.0, 0.0, reward={"format": 1.0}), "exact") == 1.0, "the task's own first reward"


def test_without_the_options_nothing_is_written_and_every_task_is_asked(rows, tmp_path, sample):
    student = Student(sample, lambda row, version: 1.0)
    end, _, logged = run(rows(8), tmp_path / "o", student, 4)
    assert end == 16
    assert sorted(i for ids in student.learned[:2] for i in ids) == [f"r{i}" for i in range(8)]
    assert not (tmp_path / "o").exists()
    assert logged[0]["overlong"] == 0
    assert "skipped" not in logged[0]


def test_what_is_solved_is_never_asked_again(rows, tmp_path, sample):
    """Rows 0 to 3 are always right, the others never: from the second epoch on only the others come."""
    student = Student(sample, lambda row, version: float(row < 4))
    run(rows(8), tmp_path, student, 6, solved=1.0)
    assert {i for ids in student.learned[:2] for i in ids} == {f"r{i}" for i in range(8)}
    later = [i.split("@")[0] for ids in student.learned[2:] for i in ids]
    assert set(later) == {f"r{i}" for i in range(4, 8)}
    assert sum(row["rates"].get("r0", 0) == 1 for row in lines(tmp_path)) == 1


def test_a_rate_below_the_threshold_is_not_solved(rows, tmp_path, sample):
    student = Student(sample)
    student.rate = lambda row, version: 1.0
    original = student.sample

    async def three_of_four(task, n):
        group = await original(task, n)
        group.samples[0].parts = {"exact": 0.0}
        return group

    student.sample = three_of_four
    run(rows(4), tmp_path, student, 3, solved=0.76)
    assert [len(ids) for ids in student.learned] == [4, 4, 4]
    assert lines(tmp_path)[0]["rates"] == {f"r{i}": 0.75 for i in range(4)}
    student.version = 0
    assert run(rows(4), tmp_path, student, 3, solved=0.75)[1].finished, "at the threshold it is"


def test_a_run_ends_when_every_task_is_solved(rows, tmp_path, sample):
    student = Student(sample, lambda row, version: 1.0)
    _, history, _ = run(rows(8), tmp_path, student, 50, solved=0.9)
    assert history.finished
    assert student.version == 2
    assert student.saved == [(2, 8)], "what was learned is committed"
    again = Student(sample, version=2)
    _, history, _ = run(rows(8), tmp_path, again, 50, cursor=8, solved=0.9)
    assert (history.finished, again.learned) == (True, [])


def test_passing_over_thousands_of_solved_tasks_does_not_look_like_a_fruitless_run(rows, tmp_path, sample):
    """The loop gives up after 100 steps' worth of dropped groups in a row: 200 here, with 598 tasks solved."""
    student = Student(sample, lambda row, version: float(row > 1))
    _, _, logged = run(rows(600), tmp_path, student, 310, groups=2, solved=0.9)
    assert student.version == 310
    assert max(m["skipped"] for m in logged) > 200
    assert {i.split("@")[0] for ids in student.learned[300:] for i in ids} == {"r0", "r1"}


@pytest.mark.parametrize("options", [{"solved": 0.7}, {"curriculum": "hard"}, {"curriculum": "frontier", "solved": 0.9}])
@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_resumed_run_asks_what_an_uncut_one_asks(rows, tmp_path, sample, options, cut):
    path, keep = rows(10), lambda g: len({s.reward for s in g.samples}) > 1
    whole = Student(sample)
    run(path, tmp_path / "whole", whole, 12, keep=keep, **options)
    first, second = Student(sample), Student(sample, version=cut)
    cursor, _, _ = run(path, tmp_path / "cut", first, cut, keep=keep, **options)
    with (tmp_path / "cut" / "tasks.jsonl").open("a") as f:  # what a crash leaves of steps after the checkpoint
        f.write(json.dumps({"step": cut + 1, "position": 999, "rates": {f"r{i}": 1.0 for i in range(10)}}) + '\n{"step": 9')
    run(path, tmp_path / "cut", second, 12, cursor=cursor, keep=keep, **options)
    assert first.learned + second.learned == whole.learned
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert sum(len(row["rates"]) for row in lines(tmp_path / "whole")) > 12, "dropped groups' rates count too"


def test_with_lag_every_rate_is_written_once_and_a_run_can_be_gone_on_with(rows, tmp_path, sample):
    student = Student(sample)
    run(rows(10), tmp_path, student, 6, max_lag=2, curriculum="hard")
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    positions = [row["position"] for row in lines(tmp_path)]
    assert positions == sorted(set(positions))
    more = Student(sample, version=6)
    run(rows(10), tmp_path, more, 8, cursor=24, max_lag=2, curriculum="hard")
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_curriculum_asks_hard_tasks_more_often_and_easy_ones_sometimes(rows, tmp_path, sample):
    asked = {}
    for curriculum in ("none", "hard", "frontier"):
        student = Student(sample, lambda row, version: (1.0, 0.5, 0.0)[row // 10])
        run(rows(30), tmp_path / curriculum, student, 120, groups=10, curriculum=curriculum)
        numbers = [int(i.split("@")[0][1:]) for step in student.learned[3:] for i in step]
        kinds = [number // 10 for number in numbers]
        asked[curriculum] = [kinds.count(kind) / len(kinds) for kind in range(3)]
        assert len({number for number in numbers if number < 10}) > 5, "it is not always the same ones that come back"
    assert asked["none"] == pytest.approx([1 / 3] * 3, abs=0.01)
    easy, middle, difficult = asked["hard"]  # 0.05 : about 0.5 : 1
    assert 0 < easy < 0.1 < middle < difficult
    easy, middle, difficult = asked["frontier"]  # 0.05 : about 0.8 : 0.05
    assert 0 < easy < 0.2 < 0.6 < middle
    assert 0 < difficult < 0.2


def test_prompts_that_were_too_long_are_counted_whether_left_out_or_cut(tmp_path, sample):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i), "answer": i}) + "\n" for i in (-3, -2, 1, 12345, 4)))

    class Cutting(Student):
        async def sample(self, task, n):
            group = await super().sample(task, n)
            return Group(Task(task.id, task.prompt[-2:]), group.samples)

    student = Cutting(sample)
    _, _, logged = run(str(path), tmp_path / "o", student, 2, groups=3)
    assert [{i.split(":")[-1].split("@")[0] for i in ids} for ids in student.learned] == [{"3", "4", "5"}] * 2
    assert [m["overlong"] for m in logged] == [m["dropped"] + 1 for m in logged]
    assert sum(m["dropped"] for m in logged) in (2, 3, 4), "of the second epoch's two maybe not both"


def test_a_run_of_which_no_prompt_fits_ends_as_before(tmp_path, sample):
    (tmp_path / "t.jsonl").write_text('{"prompt": "-1", "answer": 1}\n')
    with pytest.raises(RolloutError, match="nothing to learn from"):
        run(str(tmp_path / "t.jsonl"), tmp_path / "o", Student(sample), 1, solved=0.9)


@pytest.mark.parametrize(("content", "told"), [
    (None, "cannot be read"), ("{oops\n", "cannot be read"),
    ('{"step": 1, "position": 4, "rates": {}}\n', "ends at step 1, but the newest checkpoint is of step 2"),
])  # fmt: skip
def test_a_history_that_does_not_reach_the_checkpoint_is_told(rows, tmp_path, sample, content, told):
    if content:
        (tmp_path / "tasks.jsonl").write_text(content)
    with pytest.raises(StorageError, match=told):
        run(rows(4), tmp_path, Student(sample, version=2), 3, cursor=8, solved=0.9)
