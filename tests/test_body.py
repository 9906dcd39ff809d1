"""Learners are one body, against ranks that die, hang and raise: processes of this one, on a clock that jumps."""

import asyncio
import fcntl
import json
import os
import signal

import pytest
from test_loop import Jumping

from rlreason import body, checkpoint
from rlreason.body import IN_A_ROW, Learners, TakingTurns
from rlreason.config import Config, LearnerConfig, LoopConfig, RecoveryConfig
from rlreason.errors import Failure, Lost, StorageError
from rlreason.pulse import Pulse

SECOND = 1.0  # that a step takes; a start takes ten
HUNG = 30.0


class Joining(Jumping):
    """Nor does its clock jump while a thread works."""

    threads = 0

    def run_in_executor(self, *what):
        future, self.threads = super().run_in_executor(*what), self.threads + 1
        future.add_done_callback(self._joined)
        return future

    def _joined(self, future):
        self.threads -= 1

    def _run_once(self):
        if self.threads:
            asyncio.SelectorEventLoop._run_once(self)
        else:
            super()._run_once()


class Ranks:
    """Where the ranks of one group meet: each waits here for all."""

    def __init__(self):
        self.waiting, self.all = 0, asyncio.Event()

    async def meet(self, world):
        self.waiting += 1
        if self.waiting < world:
            await self.all.wait()
        else:
            self.waiting, done, self.all = 0, self.all, asyncio.Event()
            done.set()


class Local:
    """A rank that is no process: it does what a test says in its nth step, counted over all its lives."""

    def __init__(self, number, world, group, **faults):
        self.name, self.number, self.world, self.group, self.faults = f"learner-{number}", number, world, group, faults
        self.lives = self.steps = self.version = self.beats = self.open = 0
        self.told, self.made = [], ()
        self.second = SECOND
        self.gone = asyncio.Event()

    def spawn(self):
        self.lives, self.gone, self.beats, self.version = self.lives + 1, asyncio.Event(), 0, 0

    async def address(self):
        if "nowhere" in self.faults:
            await asyncio.sleep(10**9)
        return "here", 1000 + self.lives

    async def become(self, module, kind, *what):
        self.made = what
        if self.lives in self.faults.get("unborn", ()):
            raise Lost(self.name, "died at birth")
        if self.lives in self.faults.get("slow", ()):
            await asyncio.sleep(10**9)
        if "wrong" in self.faults:
            raise Failure(f"{self.name} failed: ValueError: no such model")
        await asyncio.sleep(10 * self.second)

    async def call(self, method, *args):
        if self.gone.is_set():
            raise Lost(self.name, "died")
        self.told.append(method)
        self.open, self.beats = self.open + 1, self.beats + 1
        try:
            return await self._or_dies(getattr(self, method)(*args))
        finally:
            self.open, self.beats = self.open - 1, self.beats + 1

    async def _or_dies(self, work):
        gone, task = asyncio.ensure_future(self.gone.wait()), asyncio.ensure_future(work)
        try:
            await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                await asyncio.sleep(self.faults.get("found_after", 0.0))  # until Ray has seen it
                raise Lost(self.name, "died")
            return task.result()
        finally:
            gone.cancel()
            task.cancel()

    async def step(self, groups):
        self.steps += 1
        fault = self.faults.get("at", {}).get(self.steps)
        await asyncio.sleep(self.second)
        if fault == "dies":
            self.gone.set()
            await asyncio.sleep(self.second)
        if isinstance(fault, Exception):
            raise fault
        if fault == "hangs":
            await asyncio.sleep(10**9)
        self.beats += 1  # its own share is done
        await self.group.meet(self.world)
        self.version += 1
        return {"loss": 1.0, "diverged": float(fault == "diverges"), "rank": self.number} | self.faults.get("more", {})

    async def save(self, path, state):
        await asyncio.sleep(self.second * (1 + self.number))
        if "full" in self.faults:
            raise StorageError(f"{self.name}: {path}: No space left on device")
        (checkpoint.Path(path) / f"rank-{self.number}").write_text(json.dumps(state))

    async def export(self, path):
        folder = checkpoint.Path(path)
        if self.number == 0:
            folder.mkdir(parents=True)
            (folder / "model").write_text("weights")

    async def publish(self):
        return {"from": self.number}

    async def release_memory(self): ...

    async def digest(self):
        return f"digest of {self.number}"

    async def restore(self, path):
        self.version = json.loads((checkpoint.Path(path) / f"rank-{self.number}").read_text())["version"]
        return {"version": self.version}

    async def pulse(self, within):
        if self.gone.is_set():
            raise Lost(self.name, "died")
        if "mute" in self.faults:
            await asyncio.sleep(within)
            raise Lost(self.name, f"has said nothing for {within:g} s", True)
        return Pulse(1, beats=self.beats, open=self.open, doing=f"step {self.steps}")

    async def stacks(self):
        self.told.append("stacks")

    def kill(self):
        self.gone.set()


class Life:
    """What a test does with learners, and what came of it."""

    def __init__(self, tmp_path, *faults, **recovery):
        self.group = Ranks()
        self.ranks = [Local(number, len(faults), self.group, **fault) for number, fault in enumerate(faults)]
        config = Config(
            model="m", out=str(tmp_path), recovery=RecoveryConfig(**({"hung": HUNG} | recovery)), loop=LoopConfig(keep=2),
            learner=LearnerConfig(workers=len(faults), deepspeed={"zero_optimization": {"stage": 2}}),
        )  # fmt: skip
        self.events, self.texts = [], []
        self.learners = Learners(config, self.ranks, ("config",), lambda value: value, self.say)
        self.loop = Joining()

    def say(self, event, text, **details):
        self.events.append((event, details))
        self.texts.append(text)

    def does(self, work):
        return self.loop.run_until_complete(work(self.learners))

    def steps(self, number):
        async def work(learners):
            await learners.begin()
            return [await learners.step([]) for _ in range(number)]

        return self.does(work)


def fails(life, steps, what):
    with pytest.raises(what) as caught:
        life.steps(steps)
    return caught.value


CUT_OFF = Lost("learner-0", "cannot go on: RuntimeError: Connection closed by peer", True)
UNKNOWN = Failure("learner-0 failed: RuntimeError: something else that comes of it")

# ---- steps ----


def test_all_ranks_step_and_rank_0_tells(tmp_path):
    life = Life(tmp_path, {}, {}, {})
    assert [m["rank"] for m in life.steps(3)] == [0, 0, 0]
    assert (life.learners.version, [rank.version for rank in life.ranks]) == (3, [3, 3, 3])
    assert [rank.made[0] for rank in life.ranks] == [0, 1, 2]
    assert {rank.made[-1] for rank in life.ranks} == {"here:1001"}, "they meet at rank 0"


@pytest.mark.parametrize("first", [CUT_OFF, UNKNOWN], ids=["cut off", "another error"])
def test_the_rank_that_died_is_named_also_where_another_fails_first_for_want_of_it(tmp_path, first):
    life = Life(tmp_path, {"at": {2: first}}, {"at": {2: "dies"}, "found_after": 1.5})
    lost = fails(life, 2, Lost)
    assert (lost.name, lost.alive) == ("learner-1", False)
    assert life.learners.version == 1


def test_a_death_is_told_at_once_where_others_only_wait(tmp_path):
    life = Life(tmp_path, {}, {"at": {2: "dies"}}, {})
    assert fails(life, 2, Lost).name == "learner-1"
    assert life.loop.now < 10 * SECOND + 2 * SECOND + 3


def test_who_is_cut_off_is_named_where_nobody_died(tmp_path):
    """The network between two nodes, say: the process lives, and has to be killed."""
    lost = fails(Life(tmp_path, {"at": {1: CUT_OFF}}, {}), 1, Lost)
    assert (lost.name, lost.alive) == ("learner-0", True)


def test_an_error_of_one_rank_alone_is_told_as_it_is(tmp_path):
    """A fault of the code would befall new learners too."""
    life = Life(tmp_path, {}, {"at": {2: Failure("learner-1 failed: ValueError: negative")}})
    assert str(fails(life, 2, Failure)) == "learner-1 failed: ValueError: negative"
    assert life.loop.now < 20, "and not after the others were taken for hung"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_rank_that_hangs_is_blamed_and_not_one_that_waits_for_it(tmp_path, number):
    faults = [{}, {}, {}]
    faults[number] = {"at": {2: "hangs"}}
    life = Life(tmp_path, *faults)
    lost = fails(life, 2, Lost)
    assert (lost.name, lost.alive) == (f"learner-{number}", True)
    assert "has made no progress for 30 s" in lost.why
    assert "learner-0: step 2" in lost.why, "and what each was doing"
    assert all("stacks" in rank.told for rank in life.ranks), "all wrote where they stand"
    assert HUNG < life.loop.now - 11 < 1.3 * HUNG


def test_a_rank_that_is_stopped_is_blamed_and_not_one_that_waits_for_it(tmp_path):
    life = Life(tmp_path, {}, {"at": {1: "hangs"}, "mute": True})
    lost = fails(life, 1, Lost)
    assert (lost.name, lost.alive) == ("learner-1", True)
    assert "is stopped or blocked" in lost.why


def test_steps_in_a_row_that_diverge_end_the_run_and_single_ones_do_not(tmp_path):
    at = dict.fromkeys((2, 3, 5, 6, 7), "diverges")
    life = Life(tmp_path, {"at": at}, {}, diverged=3)
    error = fails(life, 9, Failure)
    assert life.learners.version == 7
    assert str(error).startswith("the last 3 steps came to NaN or infinity and were skipped (recovery.diverged)")
    assert str(tmp_path / "diverged") in str(error)


# ---- a start ----


def test_a_start_that_fails_is_tried_again_with_all_ranks_anew(tmp_path):
    life = Life(tmp_path, {}, {"unborn": (1, 2)}, retries=2)
    life.steps(1)
    assert [rank.lives for rank in life.ranks] == [3, 3]
    assert [event for event, _ in life.events] == ["learners", "learners"]
    assert life.events[0][1] == {"what": "lost", "name": "learner-1", "why": "died at birth"}


def test_one_that_never_comes_up_ends_the_run_and_says_how_often_it_was_tried(tmp_path):
    life = Life(tmp_path, {}, {"unborn": range(99)}, retries=2)
    error = fails(life, 1, Failure)
    assert str(error) == "the learners could not be started 3 times in a row; the last time: learner-1 died at birth"
    assert all(rank.gone.is_set() for rank in life.ranks), "nobody is left"


def test_an_error_in_a_start_is_told_at_once(tmp_path):
    life = Life(tmp_path, {}, {"wrong": True})
    assert "no such model" in str(fails(life, 1, Failure))
    assert life.ranks[0].lives == 1


@pytest.mark.parametrize("fault", [{"slow": (1,)}, {"nowhere": True}], ids=["in its constructor", "before it"])
def test_a_start_that_comes_to_nothing_ends_in_its_time(tmp_path, fault):
    life = Life(tmp_path, fault, {}, retries=0, start=60)
    assert "the learners were not ready 60 s after they were started (recovery.start)" in str(fails(life, 1, Failure))
    assert 60 <= life.loop.now < 65


def test_new_learners_go_on_from_the_checkpoint(tmp_path):
    life = Life(tmp_path, {"at": {4: "dies"}}, {})

    async def work(learners):
        await learners.begin()
        for _ in range(3):
            await learners.step([])
        await learners.save(12, ["a"])
        with pytest.raises(Lost):
            await learners.step([])
        life.group.waiting = 0  # a new group
        await learners.begin()
        assert learners.version == 0
        state = await learners.restore(checkpoint.newest(tmp_path / "checkpoints").folder)
        await learners.step([])
        return state

    assert life.does(work) == {"version": 3}
    assert (life.learners.version, [rank.version for rank in life.ranks]) == (4, [4, 4])


# ---- checkpoints ----


def test_a_checkpoint_counts_after_every_rank_has_written_its_part(tmp_path):
    life = Life(tmp_path, {}, {}, {})

    async def work(learners):
        await learners.begin()
        await learners.step([])
        saving = asyncio.create_task(learners.save(4, ["a", "b"]))
        await asyncio.sleep(2.5 * SECOND)  # two of three have
        assert len(list((tmp_path / "checkpoints" / "v1").iterdir())) == 2
        assert checkpoint.newest(tmp_path / "checkpoints") is None
        await saving

    life.does(work)
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found.state == {"version": 1, "cursor": 4, "pending": ["a", "b"], "ranks": 3, "stage": 2}
    assert (tmp_path / "weights" / "last").resolve() == tmp_path / "weights" / "v1"


def test_a_rank_that_cannot_write_leaves_no_checkpoint_and_the_older_ones_as_they_were(tmp_path):
    life = Life(tmp_path, {}, {})

    async def work(learners):
        await learners.begin()
        await learners.step([])
        await learners.save(4)
        await learners.step([])
        life.ranks[1].faults["full"] = True
        with pytest.raises(StorageError, match="No space left"):
            await learners.save(8)
        assert checkpoint.newest(tmp_path / "checkpoints").state["version"] == 1
        await learners.step([])
        del life.ranks[1].faults["full"]
        await learners.save(12)

    life.does(work)
    assert checkpoint.newest(tmp_path / "checkpoints").state["cursor"] == 12
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["v1", "v3"], "its part is gone"


def test_a_commit_whose_pointer_fails_is_pointed_at_when_it_is_saved_again(tmp_path):
    life, obstacle = Life(tmp_path, {}), tmp_path / "weights" / ".last.partial"
    (obstacle / "in the way").mkdir(parents=True)

    async def work(learners):
        await learners.begin()
        with pytest.raises(StorageError):
            await learners.save(4, [])
        written = [*life.ranks[0].told]
        (obstacle / "in the way").rmdir()
        obstacle.rmdir()
        await learners.save(4, [])
        assert life.ranks[0].told == written, "what is committed is not written again"

    life.does(work)
    assert (tmp_path / "weights" / "last").is_symlink()


def test_a_commit_that_stands_still_is_told_as_the_storage_s_trouble(tmp_path):
    """Who opens a file that another holds a lease on waits in the kernel, as for a file system that is gone."""
    life = Life(tmp_path, {}, hung=1)
    life.loop = asyncio.new_event_loop()  # threads do not wait for a clock that jumps
    (rank,) = life.ranks
    rank.second = 0.01
    held = []

    async def work(learners):
        await learners.begin()
        await learners.step([])
        part = tmp_path / "checkpoints" / "v1" / "rank-0"
        saving = asyncio.create_task(learners.save(4))
        while not part.exists() or not part.stat().st_size:
            await asyncio.sleep(0)
        held.append(os.open(part, os.O_WRONLY))
        fcntl.fcntl(held[0], fcntl.F_SETLEASE, fcntl.F_WRLCK)
        await saving

    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # that it is wanted
    try:
        with pytest.raises(StorageError, match=r"GB were not read and hashed within 1 s; is the storage gone, or very slow"):
            life.does(work)
        assert checkpoint.newest(tmp_path / "checkpoints") is None
    finally:
        fcntl.fcntl(held[0], fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(held[0])
        signal.signal(signal.SIGIO, before)
        life.loop.close()


# ---- the rest ----


def test_what_all_hold_is_told_by_rank_0(tmp_path):
    life = Life(tmp_path, {}, {})

    async def work(learners):
        await learners.begin()
        return await learners.publish(), await learners.digest()

    assert life.does(work) == ({"from": 0}, "digest of 0")


def test_engines_on_the_same_device_sleep_before_the_learners_start_and_step(tmp_path):
    """And the learners give memory back before the engines may wake: after a step, and after what they publish."""
    life, order = Life(tmp_path, {}), []

    class Engines:
        device = asyncio.Lock()

        async def drain(self):
            assert not self.device.locked(), "an engine that is replaced meanwhile needs the device to answer"
            order.append("drain")

        async def sleep(self):
            assert self.device.locked()
            order.append(("sleep", life.ranks[0].lives, life.ranks[0].steps))

    learners = TakingTurns(life.learners.config, life.ranks, (), lambda value: value, life.say, Engines())

    async def work():
        await learners.begin()
        await learners.step([])
        await learners.publish()
        await learners.step([])

    life.loop.run_until_complete(work())
    assert order == [("sleep", 0, 0), "drain", ("sleep", 1, 0), "drain", ("sleep", 1, 1)]
    assert life.ranks[0].told == ["step", "release_memory", "publish", "release_memory", "step", "release_memory"]


# ---- stragglers ----


def alone(*seconds):
    """Ranks that take so long by themselves in every step."""
    return [{"more": {"alone": one}} for one in seconds]


def test_the_slowest_is_compared_with_the_median_of_the_others(tmp_path):
    assert [m["time/straggle"] for m in Life(tmp_path, *alone(1.0, 1.5)).steps(1)] == [1.5]
    (metrics,) = Life(tmp_path, *alone(1.0, 1.2, 9.0, 1.1)).steps(1)
    assert metrics["time/straggle"] == pytest.approx(9 / 1.1)
    assert "alone" not in metrics, "it is rank 0's own"


@pytest.mark.parametrize("faults", [alone(3.0), [{}, {}]], ids=["one rank", "ZeRO-3"])
def test_where_nobody_can_be_compared_nothing_is_told(tmp_path, faults):
    (metrics,) = Life(tmp_path, *faults).steps(1)
    assert "time/straggle" not in metrics
    assert "alone" not in metrics


def test_a_straggler_is_told_once_until_it_recovers(tmp_path):
    life = Life(tmp_path, *alone(1.0, 1.0, 1.0))

    async def work(learners):
        await learners.begin()
        for seconds in [3.0] * (IN_A_ROW - 1) + [1.0] + [3.0] * 3 * IN_A_ROW + [2.0] + [2.1] * IN_A_ROW:
            life.ranks[1].faults["more"]["alone"] = seconds
            await learners.step([])

    life.does(work)
    assert life.events == [
        ("straggler", {"name": "learner-1", "times": 3.0, "step": 2 * IN_A_ROW}),
        ("straggler", {"name": "learner-1", "times": 2.1, "step": 5 * IN_A_ROW + 1}),
    ]
    assert life.texts[0].startswith("learner-1 took over 2 times as long as the other learners in 5 steps in a row (3.0 times")


def test_ranks_that_are_slow_in_turns_are_no_stragglers(tmp_path):
    life = Life(tmp_path, *alone(1.0, 1.0))

    async def work(learners):
        await learners.begin()
        for step in range(20):
            for number, rank in enumerate(life.ranks):
                rank.faults["more"]["alone"] = 5.0 if step % 2 == number else 1.0
            await learners.step([])

    life.does(work)
    assert not life.events


def test_no_time_at_all_is_no_division_by_zero(tmp_path):
    assert Life(tmp_path, *alone(0.0, 0.0)).steps(1)[0]["time/straggle"] == 0.0
    assert body.STRAGGLES > 1


def test_a_rank_that_dies_while_nothing_is_asked_of_it_is_known_all_the_same(tmp_path):
    """Engines may wait for weights that died with it, and the loop for the engines."""
    life = Life(tmp_path, {}, {})

    async def work(learners):
        await learners.begin()
        before = learners.gone
        life.ranks[1].gone.set()
        await asyncio.sleep(3)
        lost = learners.gone
        await learners.begin()
        after = learners.gone
        learners.end()
        return before, lost.name, after

    assert life.does(work) == (None, "learner-1", None)
