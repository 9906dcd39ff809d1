"""The broadcast of weights: a real group over gloo, and the engines and learners that use it, on a clock that jumps."""

import asyncio
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_body import Life
from test_fleet import Local
from test_loop import Jumping

from rlreason.config import RecoveryConfig
from rlreason.errors import Lost, WeightsUnavailable
from rlreason.fleet import ATTEMPTS, Broadcaster, Directory, Rollouts
from rlreason.types import Task
from rlreason.weights import Publisher, Source, parted, tensors
from rlreason.weights.broadcast import BroadcastGroup

HERE = "127.0.0.1"
CPU = torch.device("cpu")
SOON = 5.0  # seconds within which nobody waits any more


def weights(seed: int = 0) -> Source:
    g = torch.Generator().manual_seed(seed)
    return Source.of([(name, torch.randn(shape, generator=g).to(dtype)) for name, shape, dtype in [
        ("a", (300, 7), torch.float32), ("b", (5,), torch.bfloat16), ("c", (), torch.float32)]])  # fmt: skip


@pytest.fixture(autouse=True)
def _left(monkeypatch):
    """No test that fails leaves a group behind: when it is collected, gloo waits for members that take nothing."""
    groups, init = weakref.WeakSet(), BroadcastGroup.__init__

    def kept(self, *args):
        init(self, *args)
        groups.add(self)

    monkeypatch.setattr(BroadcastGroup, "__init__", kept)
    yield
    for group in groups:
        group.close()


def member(port: int, rank: int, world: int, timeout: float = 60.0) -> BroadcastGroup:
    group = BroadcastGroup.enter(HERE, port, rank, world, CPU, timeout)
    group.connect()
    return group


def received(group: BroadcastGroup, source: Source) -> dict[str, torch.Tensor]:
    def receive(size):
        buffer = torch.empty(size, dtype=torch.uint8)
        group.broadcast(buffer)
        return buffer

    return {name: t.clone() for bucket in parted(source.describe(), receive) for name, t in bucket}


def test_every_member_receives_every_bit_and_again(monkeypatch):
    monkeypatch.setattr(tensors, "BUCKET", 2000)
    publisher = Publisher("broadcast")
    with ThreadPoolExecutor(4) as pool:
        port = publisher.open(HERE, 4, 60.0)
        joining = [pool.submit(member, port, rank, 4) for rank in (1, 2, 3)]
        assert publisher.connect()
        members = [one.result(SOON) for one in joining]
        for seed in range(3):
            source = weights(seed)
            handle = publisher.publish(source)
            assert handle["kind"] == "broadcast"
            waiting = [pool.submit(received, one, source) for one in members]
            assert publisher.send(source)
            for one in waiting:
                assert all(torch.equal(t, dict(source.tensors())[name]) for name, t in one.result(SOON).items())
    for one in (publisher, *members):
        one.close()


def test_a_bucket_is_complete_before_the_next_is_gathered_all_in_the_thread_that_trains(monkeypatch):
    """A gathered tensor is gone when the next is requested, and work on another thread, or stream, would read what follows."""
    monkeypatch.setattr(tensors, "BUCKET", 2000)
    publisher, whole, threads = Publisher("broadcast"), dict(weights().tensors()), set()

    def gather():
        for name, t in whole.items():
            threads.add(threading.get_ident())
            now = t.clone()
            yield name, now
            now.fill_(float("nan"))

    source = Source(weights().specs, gather, transient=True)
    with ThreadPoolExecutor(2) as pool:
        port = publisher.open(HERE, 2, 60.0)
        joining = pool.submit(member, port, 1, 2)
        assert publisher.connect()
        waiting = pool.submit(received, joining.result(SOON), source)
        assert publisher.send(source)
        assert all(torch.equal(t, whole[name]) for name, t in waiting.result(SOON).items())
    assert threads == {threading.get_ident()}
    joining.result().close()
    publisher.close()


def test_a_member_that_is_lost_releases_the_others_within_a_second():
    """The learner is told by the driver, and every other member by the learner's store."""
    publisher, source = Publisher("broadcast"), weights()
    with ThreadPoolExecutor(3) as pool:
        port = publisher.open(HERE, 3, 60.0)
        joining = [pool.submit(member, port, rank, 3) for rank in (1, 2)]
        assert publisher.connect()
        here, stopped = [one.result(SOON) for one in joining]
        big = Source.of([("a", torch.zeros(64 << 20))])  # more than sockets hold, so that the sender has to wait
        waiting = pool.submit(received, here, big)
        sending = pool.submit(publisher.send, big)
        time.sleep(0.3)
        assert not sending.done(), "the third takes nothing"
        began = time.monotonic()
        publisher.interrupt()
        assert sending.result(SOON) is False
        # gloo passes data on from member to member, so this one may have got everything before.
        assert waiting.exception(SOON) is None or isinstance(waiting.exception(), WeightsUnavailable)
        assert time.monotonic() - began < 2.0
        assert not publisher.send(source), "an interrupted group is of no use any more"
    for one in (publisher, here, stopped):
        one.close()


def test_a_member_that_never_comes_keeps_nobody_waiting_after_an_interrupt():
    publisher = Publisher("broadcast")
    with ThreadPoolExecutor(2) as pool:
        port = publisher.open(HERE, 3, 60.0)
        joining, ours = pool.submit(member, port, 1, 3), pool.submit(publisher.connect)
        time.sleep(0.3)
        assert not joining.done()
        assert not ours.done()
        publisher.interrupt()
        assert ours.result(SOON) is False
        assert isinstance(joining.exception(SOON), WeightsUnavailable)
    publisher.close()


def test_without_any_word_a_member_gives_up_after_its_time():
    publisher = Publisher("broadcast")
    port = publisher.open(HERE, 2, 0.3)
    began = time.monotonic()
    assert publisher.connect() is False
    assert 0.3 <= time.monotonic() - began < SOON
    with pytest.raises(WeightsUnavailable, match="interrupted"):
        member(port, 1, 2)
    publisher.close()


def test_an_error_of_the_sender_is_raised_at_once_and_releases_the_others():
    publisher, source = Publisher("broadcast"), weights()

    def breaks():
        yield next(source.tensors())
        raise torch.OutOfMemoryError("out of memory")

    with ThreadPoolExecutor(2) as pool:
        port = publisher.open(HERE, 2, 60.0)
        joining = pool.submit(member, port, 1, 2)
        assert publisher.connect()
        waiting = pool.submit(received, joining.result(SOON), source)
        with pytest.raises(torch.OutOfMemoryError):
            publisher.send(Source(source.specs, breaks))
        assert isinstance(waiting.exception(SOON), WeightsUnavailable)
    publisher.close()


LEARNER = """
import os, sys, torch
from rlreason.weights import Publisher
publisher = Publisher("broadcast")
print(publisher.open("127.0.0.1", 2, 60.0), flush=True)
assert publisher.connect()
print("connected", flush=True)
sys.stdin.readline()
os._exit(1)
"""


def test_a_learner_that_dies_releases_its_engines():
    process = subprocess.Popen([sys.executable, "-c", LEARNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        group = member(int(process.stdout.readline()), 1, 2)
        assert process.stdout.readline().strip() == "connected"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(received, group, weights())
            time.sleep(0.3)
            assert not waiting.done()
            process.communicate("go\n", timeout=10)
            assert isinstance(waiting.exception(SOON), WeightsUnavailable)
        group.close()
    finally:
        process.kill()


def test_a_group_is_destroyed_by_a_thread_of_its_own(monkeypatch):
    """The last reference to it is that thread's, even if the thread finishes before `close` returns."""
    destroyed, left = [], threading.Event()

    class Destroyed:
        def abort(self): ...

        def __del__(self):
            destroyed.append(threading.get_ident())
            left.set()

    class Fast(threading.Thread):
        def start(self):
            super().start()
            self.join(0.5)

    group = BroadcastGroup.open(HERE, 2, CPU, 60.0)
    group.group = Destroyed()
    monkeypatch.setattr(threading, "Thread", Fast)
    group.close()
    assert left.wait(SOON)
    assert len(destroyed) == 1
    assert destroyed != [threading.get_ident()]


def test_a_group_that_is_left_leaves_nothing():
    """No thread and no socket a meeting: engines that come and go would use up both."""
    publisher = Publisher("broadcast")

    def meet():
        with ThreadPoolExecutor(1) as pool:
            port = publisher.open(HERE, 2, 60.0)
            joining = pool.submit(member, port, 1, 2)
            assert publisher.connect()
            joining.result(SOON).close()

    def held():
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    meet()
    publisher.close()
    time.sleep(0.5)
    before = held()
    for _ in range(5):
        meet()
    publisher.close()
    deadline = time.monotonic() + SOON
    while any(now > then for now, then in zip(held(), before, strict=True)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(now <= then for now, then in zip(held(), before, strict=True)), (held(), before)
    assert threading.active_count() < 20


# ---- the engines ----


class Learning:
    """Learners that broadcast, and what they were asked to; `cut`: engines that get a part only, `dies`: at which broadcast."""

    broadcasts = True

    def __init__(self, cut=(), dies=0):
        self.version, self.cut, self.dies, self.sent, self.failed = 0, cut, dies, [], []

    async def publish(self):
        raise AssertionError("what is broadcast is published by `broadcast`")

    async def broadcast(self, engines):
        self.sent.append([name for name, _ in engines])
        await asyncio.sleep(1.0)
        if len(self.sent) == self.dies:
            raise Lost("learner-0", "died")
        outcomes = {}
        for (name, life), process in engines.items():
            if name in self.cut:
                outcomes[name, life] = None
            else:
                try:
                    outcomes[name, life] = await process.call("load", "weights", self.version)
                except Lost as lost:
                    outcomes[name, life] = lost
        return self.version, outcomes

    def fail(self, lost):
        self.failed.append(lost)


def fleet_of(engines, **config):
    events = []
    fleet = Rollouts(engines, (), RecoveryConfig(**config), lambda value: value,
                     lambda event, text, **details: events.append((details["name"], details["what"])))  # fmt: skip
    return fleet, events


def test_an_engine_that_comes_later_gets_the_weights_in_a_broadcast_of_its_own(sample):
    one, two, learning = Local("a", sample, dies_at=(1, 1)), Local("b", sample), Learning()
    fleet, events = fleet_of([one, two])
    assert isinstance(learning, Broadcaster)
    assert not isinstance(Directory(None), Broadcaster)

    async def whole():
        await fleet.begin()
        await fleet.load(learning, 0)
        await asyncio.gather(*(fleet.sample(Task(str(i), "", ""), 1) for i in range(6)))
        await asyncio.sleep(60)
        learning.version = 1
        await fleet.load(learning, 1)
        await fleet.close()

    Jumping().run_until_complete(whole())
    assert learning.sent == [["a", "b"], ["a"], ["a", "b"]], "who answers is not disturbed"
    assert events == [("a", "lost"), ("a", "back")] or events == [("a", "lost")]
    assert (one.version, two.version) == (1, 1)


def test_engines_that_are_lost_in_a_broadcast_cost_the_others_one_more(sample):
    one, two, learning = Local("a", sample), Local("b", sample), Learning()
    fleet, events = fleet_of([one, two])

    async def whole():
        await fleet.begin()
        one.kill()
        await fleet.load(learning, 0)
        group = await fleet.sample(Task("0", "", ""), 1)
        await asyncio.sleep(60)
        await fleet.close()
        return group

    assert Jumping().run_until_complete(whole()).samples[0].version == 0
    assert learning.sent == [["a", "b"], ["a"]]
    assert events[0] == ("a", "lost")
    assert one.version == 0


def test_an_engine_that_is_replaced_while_a_broadcast_waits_for_a_step_is_not_called_before_it_has_started(sample):
    one, two = Local("a", sample), Local("b", sample)

    class Stepping(Learning):
        async def broadcast(self, engines):
            if not self.sent:
                one.kill()
                await asyncio.sleep(5.0)  # in which the loss is found, and a new process is started: that takes longer
                assert one.lives == 2
                assert not one.there
            return await super().broadcast(engines)

    fleet, events = fleet_of([one, two])
    learning = Stepping()

    async def whole():
        await fleet.begin()
        await fleet.load(learning, 0)
        await fleet.sample(Task("0", "", ""), 1)
        await asyncio.sleep(60)
        await fleet.close()

    Jumping().run_until_complete(whole())
    assert learning.sent == [["a", "b"], ["a"]]
    assert events[0] == ("a", "lost")
    assert (one.version, two.version) == (0, 0)


def test_an_engine_that_gets_a_part_only_is_replaced_after_some_broadcasts(sample):
    one, two, learning = Local("a", sample), Local("b", sample), Learning(cut=("a",))
    fleet, events = fleet_of([one, two], restarts=0)

    async def whole():
        await fleet.begin()
        await fleet.load(learning, 0)
        await fleet.sample(Task("0", "", ""), 1)
        await fleet.close()

    Jumping().run_until_complete(whole())
    assert learning.sent == [["a", "b"]] + [["a"]] * (ATTEMPTS - 1)
    assert events == [("a", "lost"), ("a", "out")]


def test_a_loss_of_learners_found_while_an_engine_comes_back_is_theirs_and_breaks_no_engine(sample):
    one, two, learning = Local("a", sample, dies_at=(1, 1)), Local("b", sample), Learning(dies=2)
    fleet, _ = fleet_of([one, two])

    async def whole():
        await fleet.begin()
        await fleet.load(learning, 0)
        await asyncio.gather(*(fleet.sample(Task(str(i), "", ""), 1) for i in range(4)))
        await asyncio.sleep(60)
        assert [lost.name for lost in learning.failed] == ["learner-0"]
        assert fleet.broken is None
        await fleet.load(learning, 0)  # the learners are back
        await fleet.sample(Task("9", "", ""), 1)
        await fleet.close()

    Jumping().run_until_complete(whole())
    assert learning.sent == [["a", "b"], ["a"], ["a", "b"]]


# ---- the learners ----


class Engine:
    """An engine of a group, that does what a test says."""

    def __init__(self, joins=True, loads=0.1, after=1.0):
        self.joins, self.loads, self.after, self.asked = joins, loads, after, []

    async def call(self, method, *args):
        self.asked.append((method, *args))
        await asyncio.sleep(self.after)
        reply = self.joins if method == "join" else self.loads
        if isinstance(reply, Exception):
            raise reply
        return reply


def broadcasting(tmp_path, *faults):
    """Learners whose rank 0 records what the group is asked for."""
    life = Life(tmp_path, *faults)
    rank, told = life.ranks[0], []

    async def open_group(host, world, timeout):
        told.append(("open", host, world))
        return 4711

    async def connect_group():
        await asyncio.sleep(1.0)
        return True

    async def interrupt():
        told.append("interrupt")

    rank.open_group, rank.connect_group, rank.interrupt = open_group, connect_group, interrupt
    for number, one in enumerate(life.ranks):
        one.send = sends(number, told)
    life.learners.broadcasts = True
    life.learners.config.rollout.vllm = {"tensor_parallel_size": 2}
    return life, told


def sends(number, told):
    async def send():
        told.append(("send", number))
        return True

    return send


def test_a_group_is_kept_while_its_members_are_the_same_and_ranks_are_laid_out_by_width(tmp_path):
    life, told = broadcasting(tmp_path, {}, {})
    one, two = Engine(), Engine()

    async def work(learners):
        await learners.begin()
        for members in ([one, two], [one, two], [two]):
            version, outcomes = await learners.broadcast({(str(id(e)), 0): e for e in members})
            assert version == 0
            assert [*outcomes.values()] == [0.1] * len(members)

    life.does(work)
    assert [one for one in told if one[0] == "open"] == [("open", "here", 5), ("open", "here", 3)]
    assert [ask[:5] for ask in one.asked] == [("join", "here", 4711, 1, 5), *[("load", {"from": 0}, 0)] * 2]
    assert [ask[:5] for ask in two.asked if ask[0] == "join"] == [("join", "here", 4711, 3, 5), ("join", "here", 4711, 1, 3)]
    assert [one for one in told if one[0] == "send"] == [("send", 0), ("send", 1)] * 3, "every rank takes part"
    assert "interrupt" not in told


@pytest.mark.parametrize(
    ("sick", "expected"),
    [(Engine(loads=Lost("b", "died")), "Lost"), (Engine(loads=None), "NoneType"), (Engine(joins=Lost("b", "died")), "Lost"),
     (Engine(joins=False), "NoneType")],
)  # fmt: skip
def test_a_lost_member_cuts_the_others_off_and_the_group_is_formed_anew(tmp_path, sick, expected):
    life, told = broadcasting(tmp_path, {})
    well = Engine(after=2.0)

    async def work(learners):
        await learners.begin()
        _, outcomes = await learners.broadcast({("a", 0): well, ("b", 0): sick})
        assert type(outcomes["b", 0]).__name__ == expected
        assert told.count("interrupt") == 1
        assert learners.members == ()
        _, outcomes = await learners.broadcast({("a", 0): well})
        assert outcomes == {("a", 0): 0.1}

    life.does(work)
    assert [one for one in told if one[0] == "open"] == [("open", "here", 5), ("open", "here", 3)]


def test_a_lost_learner_ends_a_broadcast_at_once_and_its_successors_form_another_group(tmp_path):
    life, told = broadcasting(tmp_path, {})
    slow = Engine(after=5.0)

    async def dies():
        life.ranks[0].gone.set()
        await asyncio.sleep(1.0)

    async def work(learners):
        await learners.begin()
        send, life.ranks[0].send = life.ranks[0].send, dies
        with pytest.raises(Lost, match="learner-0"):
            await learners.broadcast({("a", 0): slow})
        life.ranks[0].send = send
        await learners.begin()
        _, outcomes = await learners.broadcast({("a", 0): slow})
        assert outcomes == {("a", 0): 0.1}

    life.does(work)
    assert [one for one in told if one[0] == "open"] == [("open", "here", 3)] * 2


def test_a_broadcast_in_the_background_neither_outlives_the_learners_nor_finds_half_started_ones(tmp_path):
    """An engine comes back while the learners are restarted: it waits, and a loss of the old ones is no loss of the new."""
    life, told = broadcasting(tmp_path, {})
    engine = Engine(after=5.0)

    async def work(learners):
        async def comes_back():
            try:
                await learners.broadcast({("a", 1): engine})
            except Lost as lost:
                learners.fail(lost)

        await learners.begin()
        early = asyncio.ensure_future(comes_back())
        await asyncio.sleep(2.0)  # it joins
        begin = asyncio.ensure_future(learners.begin())
        await asyncio.sleep(2.0)  # the new ones start
        late = asyncio.ensure_future(learners.broadcast({("a", 2): engine}))
        await begin
        assert learners.gone is None
        assert early.done()
        version, outcomes = await late
        assert (version, outcomes) == (0, {("a", 2): 0.1})

    life.does(work)
    assert life.ranks[0].lives == 2
    assert told.count(("open", "here", 3)) == 2


def test_weights_do_not_change_while_they_are_broadcast(tmp_path):
    life, _ = broadcasting(tmp_path, {})

    async def work(learners):
        await learners.begin()
        step = asyncio.ensure_future(learners.step([]))
        await asyncio.sleep(0.1)
        version, _ = await learners.broadcast({("a", 0): Engine()})
        assert step.done()
        assert version == 1
        sending = asyncio.ensure_future(learners.broadcast({("a", 0): Engine()}))
        await asyncio.sleep(0.1)
        await learners.step([])
        assert sending.done()
        assert sending.result()[0] == 1

    life.does(work)
