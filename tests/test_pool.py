"""Rewards that misbehave, for real: each costs its own answer, and nothing else."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlreason.config import RewardsConfig
from rlreason.errors import RolloutError
from rlreason.rewards.pool import AUDIT, Pool, settle
from rlreason.rewards.pool.process import Asked
from rlreason.types import Task

MINE = """
import asyncio, ctypes, os, re, sys, time
from decimal import Decimal; import numpy as np

def size(task, text): return len(text)
def same(task, text): return text == task.answer
def raises(task, text): return 1 / 0
def leaves(task, text): sys.exit(4)
def sleeps(task, text): time.sleep(1000)
def loops(task, text): return re.match("(a|aa)+$", "a" * 100 + "b") is None  # in C, where no signal handler of Python runs
def eats(task, text): return len(bytearray(10 << 30))
def nan(task, text): return float("nan")
def huge(task, text): return 10 ** 400
def yes(task, text): return "yes"
def many(task, text): return [1, 2]
def odd(task, text): return Odd()
def exits(task, text): os._exit(3)
def exits_oddly(task, text): os._exit(200)
def killed(task, text): os.kill(os.getpid(), 9)
def crashes(task, text): return ctypes.string_at(0)
def unknown(task, text): return None
def true(task, text): return True
def single(task, text): return np.float32(0.5)
def array(task, text): return np.array(2)
async def later(task, text):
    await asyncio.sleep(0.1)
    return len(text)
async def never(task, text): await asyncio.sleep(1000)
async def fails(task, text): raise LookupError("no such\\nverdict")
def loop(task, text): return asyncio.run(later(task, text))  # as people do who need a coroutine in a plain function
def prints(task, text):
    print('["part", 0, "mine.prints", 7, "", 0.0]', flush=True)
    os.write(1, b"[[[\\n")
    return len(text)
def forks(task, text):
    os.fork()  # and the child comes back, too
    return len(text)

async def blocks(task, text):
    if text == "block": time.sleep(1000)
    await asyncio.sleep(0.1)
    return len(text)
async def deaf(task, text):
    while True:
        try: await asyncio.sleep(1000)
        except asyncio.CancelledError: pass

def counted(task, text):
    with open(task.info["log"], "a") as log: log.write(text + "\\n")
    if text == "13": time.sleep(1000)
    if text == "26": ctypes.string_at(0)
    return int(text)
def family(task, text):  # a child, one in a session of its own, and one that has left its parent too; then it hangs
    for depth in range(3):
        if os.fork() == 0:
            if depth: os.setsid()
            if depth == 2 and os.fork(): os._exit(0)
            with open(task.info["log"], "a") as log: log.write(f"{os.getpid()}\\n")
            time.sleep(1000)
    with open(task.info["log"], "a") as log: log.write(f"{os.getpid()}\\n{os.getppid()}\\n")
    if text == "hang": time.sleep(1000)
    if text == "guard": os.kill(os.getppid(), 9); time.sleep(1000)  # who would have ended them all
    time.sleep(0.3)
    return 1

def facts(task, text, *, length, limit, truncated, bonus=0.0): return length + limit / 100 + truncated / 1000 + bonus
def slow(task, text): time.sleep(0.8); return 1
def slow_itself(task, text, *, timeout=3.0): time.sleep(0.8); return timeout

def naps(task, text): return float(ctypes.CDLL(None).sleep(1000))  # in C, and a signal ends it: a value comes back
def holds(task, text): return float(ctypes.PyDLL(None).sleep(2))  # with Python's lock in hand
def scribbles(task, text):
    for fd in map(int, os.listdir("/proc/self/fd")):
        try: fd > 2 and os.write(fd, b"garbage\\n")
        except OSError: pass
    return 1.0

def money(task, text): return Decimal("0.5")
def served(task, text):  # by a service that is up as long as a file is there, and that one text brings down
    if text == "bomb" or not os.path.exists(task.info["up"]): raise ConnectionRefusedError("nobody is there")
    return len(text)
async def served_later(task, text): return served(task, text)
calls = []
def dice(task, text): calls.append(text); return len(calls)
async def async_dice(task, text): return dice(task, text)

class Odd:
    def __repr__(self): raise RuntimeError
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A user's package, where Python finds it."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE)
    (folder / "tardy.py").write_text("import time; time.sleep(0.7)\ndef size(task, text): time.sleep(0.3); return len(text)\n")
    (folder / "deadly.py").write_text("import os; os._exit(5)\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def judge(mine, tmp_path):
    """Judge answers at the same time: (text, weights, task's answer) -> verdicts, in their order."""

    def run(*answers, names=(), info=None, facts=None, **config):
        async def all_of_them():
            given = RewardsConfig(**{"timeout": 0.5} | config)
            async with Pool(given, names, tmp_path / "log") as pool:
                tasks = [Task(str(i), "p", a[2] if len(a) > 2 else None, info=info) for i, a in enumerate(answers)]
                judging = [pool.judge(t, a[0], a[1], **facts or {}) for t, a in zip(tasks, answers, strict=True)]
                return await asyncio.gather(*judging)

        return asyncio.run(all_of_them())

    return run


CAUSES = {
    "mine.raises": "raised ZeroDivisionError: division by zero (mine.py:7)",
    "mine.leaves": "raised SystemExit: 4 (mine.py:8)",
    "mine.sleeps": "hung for more than 0.5 s and was killed",
    "mine.loops": "hung for more than 0.5 s and was killed",
    "mine.naps": "hung for more than 0.5 s and was killed",
    "mine.scribbles": "wrote into the connection over which rewards are told",
    "mine.eats": "raised MemoryError (mine.py:11)",
    "mine.nan": "gave no finite number: nan",
    "mine.huge": "gave no finite number: 1000000000000000000000000000...00000000000000000000000000000",
    "mine.yes": "gave no number: 'yes'",
    "mine.many": "gave no number: [1, 2]",
    "mine.odd": "gave no number: <Odd instance at ",
    "mine.exits": "exited with status 3",
    "mine.exits_oddly": "exited with status 200",
    "mine.killed": "died of signal 9 (SIGKILL)",
    "mine.crashes": "died of signal 11 (SIGSEGV)",
    "mine.never": "hung for more than 0.5 s and was stopped",
    "mine.fails": "raised LookupError: no such verdict (mine.py:29)",
    "mine.nonesuch": "cannot be loaded: mine.nonesuch: module 'mine' has no attribute 'nonesuch'",
    "nonesuch.at_all": "cannot be loaded: nonesuch.at_all: No module named 'nonesuch'",
}
FINE = {
    "mine.true": 1, "mine.single": 0.5, "mine.array": 2, "mine.money": 0.5, "mine.unknown": None, "mine.prints": 4,
    "mine.forks": 4, "mine.loop": 4, "mine.later": 4, "mine.size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def verdicts(mine):
    """Each of the rewards above on an answer of its own, and ten healthy answers before and after it, all at once."""

    async def run():
        async with Pool(RewardsConfig(timeout=0.5, memory=1), log=mine / "log") as pool:
            names = [name for odd in CAUSES | FINE for name in [*["mine.size"] * 10, odd, *["mine.size"] * 10]]
            judging = [pool.judge(Task(str(i), "p"), "four", {name: 1.0}) for i, name in enumerate(names)]
            return names, await asyncio.gather(*judging)

    return asyncio.run(run())


@pytest.mark.parametrize("name", CAUSES)
def test_a_reward_that_misbehaves_fails_with_its_cause(verdicts, name):
    (verdict,) = (v for n, v in zip(*verdicts, strict=True) if n == name)
    assert verdict.reward is None
    assert verdict.parts == {name: None}
    assert verdict.failures[name].startswith(CAUSES[name])


@pytest.mark.parametrize("name", FINE)
def test_what_looks_odd_may_be_fine(verdicts, name):
    verdict = next(v for n, v in zip(*verdicts, strict=True) if n == name)
    assert verdict == (FINE[name], {name: FINE[name]}, {})


def test_no_healthy_answer_is_lost_among_them(verdicts):
    healthy = [v.reward for n, v in zip(*verdicts, strict=True) if n == "mine.size"]
    assert healthy == [4.0] * 20 * len(CAUSES | FINE) + [4.0]


def test_what_waits_behind_a_culprit_is_judged_once(judge, tmp_path):
    log = tmp_path / "calls"
    found = judge(*[(str(i), {"mine.counted": 1}) for i in range(40)], info={"log": str(log)})
    assert [v.reward for v in found] == [None if i in (13, 26) else i for i in range(40)]
    assert sorted(map(int, log.read_text().split())) == [*range(40)]


def test_the_other_parts_of_an_answer_are_kept(judge):
    weights = {"mine.later": 1.0, "mine.size": 0.5, "mine.sleeps": 2.0, "mine.same": 1.0, "mine.crashes": 1.0}
    (verdict,) = judge(("four", weights, "four"))
    assert verdict.parts == {"mine.later": 4, "mine.size": 4, "mine.sleeps": None, "mine.same": 1, "mine.crashes": None}
    assert [*verdict.parts] == [*weights]
    assert [*verdict.failures] == ["mine.sleeps", "mine.crashes"]
    assert verdict.reward is None


def test_a_part_that_is_only_logged_may_fail(judge):
    (verdict,) = judge(("four", {"mine.raises": 0, "mine.size": 0.5}))
    assert (verdict.reward, verdict.parts) == (2.0, {"mine.raises": None, "mine.size": 4.0})
    assert "mine.raises" in verdict.failures


def test_any_text_arrives_as_it_is(judge):
    odd = ["\x00", "\ud800", "\udfff\ud800", "\u2028\n\r\x85", "𝔸", "", "x" * 1_000_000, '"]\n["ready"]\n']
    assert [v.reward for v in judge(*((text, {"mine.same": 1.0}, text) for text in odd))] == [1.0] * len(odd)


def test_coroutines_wait_side_by_side(judge):
    begun = time.monotonic()
    found = judge(*[(str(i), {"mine.later": 1.0, "mine.size": 1.0}) for i in range(100)], workers=1, timeout=5)
    assert [v.reward for v in found] == [2.0 * len(str(i)) for i in range(100)]
    assert time.monotonic() - begun < 6, "one after the other they take 10 s"


def test_a_death_among_coroutines_is_blamed_on_who_caused_it(judge):
    """Which of them it was nobody knows at first: they are asked again, the likely ones alone."""
    waits = [("four", {"mine.later": 1.0})] * 12
    odd = [("block", {"mine.blocks": 1.0}), ("four", {"mine.crashes": 1.0}), ("four", {"mine.deaf": 1.0})]
    found = judge(*waits, odd[0], *waits, odd[1], *waits, odd[2], timeout=0.4, workers=3)
    assert [v.reward for v in found] == [*[4.0] * 12, None, *[4.0] * 12, None, *[4.0] * 12, None]
    hung = "hung for more than 0.4 s and was killed"
    assert [c for v in found for c in v.failures.values()] == [hung, "died of signal 11 (SIGSEGV)", hung]


def test_a_coroutine_does_not_pay_for_a_plain_function_at_work(judge):
    """One that keeps Python to itself for 2 s, as it may, while others have half a second for a tenth's sleep."""
    answers = [("four", {"mine.later": 1.0}), ("", {"mine.holds": 1.0}), *[("four", {"mine.later": 1.0})] * 3]
    verdicts = judge(*answers, workers=1, options={"mine.holds": {"timeout": 5}})
    assert [v.reward for v in verdicts] == [4, 0, 4, 4, 4]


def test_blame_needs_certainty():
    async def run():
        at_work, waits, also = (Asked(i, "", ["a", "b"], asyncio.get_running_loop().create_future()) for i in range(3))
        waits.left, also.left = [], ["c"]  # the last of them is to be called yet; until then, d of it waits
        waits.waiting, also.waiting = {"d": 0.0}, {"d": 0.0}
        under_way = [(at_work, "a"), (waits, "d"), (also, "d")]
        settle(under_way, [at_work], "died")
        assert [a.alone for a in (at_work, waits, also)] == [True, False, False]
        settle(under_way[1:], [also], "died")
        assert [a.alone for a in (at_work, waits, also)] == [True, True, True], "it was there twice"
        assert not at_work.failures | waits.failures | also.failures
        settle(under_way[:1], [at_work], "died")
        assert (at_work.failures, at_work.parts, at_work.left) == ({"a": "died"}, {"a": None}, ["b"])
        settle(under_way[2:], [], "died")
        assert (also.failures, also.waiting, also.left) == ({"d": "died"}, {}, ["c"])

    asyncio.run(run())


def test_facts_and_options_are_handed_in_by_name(judge):
    given = {"length": 7, "limit": 50, "truncated": True}
    (verdict,) = judge(("x", {"mine.facts": 1.0}), facts=given, options={"mine.facts": {"bonus": 10, "timeout": 3}})
    assert verdict.reward == pytest.approx(17.501)


def test_a_reward_may_be_given_more_time_than_others(judge):
    (verdict,) = judge(("x", {"mine.slow": 1.0, "mine.slow_itself": 1.0}), options={"mine.slow": {"timeout": 5}})
    assert verdict.parts == {"mine.slow": 1, "mine.slow_itself": 3}, "by the recipe, and by its own default"
    (verdict,) = judge(("x", {"mine.slow": 1.0}), options={"mine.slow": {"timeout": 0.2}}, timeout=5)
    assert verdict.failures == {"mine.slow": "hung for more than 0.2 s and was killed"}
    (verdict,) = judge(("x", {"mine.slow_itself": 1.0}), options={"mine.slow_itself": {"timeout": 0.2}}, timeout=5)
    assert verdict.reward == 0.2, "it is to keep that by itself"


def test_the_time_of_an_import_is_not_the_answers(judge):
    for names in ([], ["tardy.size"]):
        assert judge(("four", {"tardy.size": 1.0}), names=names, workers=1)[0].reward == 4


def test_processes_that_never_come_up_end_it(judge):
    with pytest.raises(RolloutError, match="the last 3 exited with status 5 before they were ready"):
        judge(("x", {"deadly.size": 1.0}), names=["deadly.size"])


def test_what_no_json_can_say_fails_that_answer_alone(judge):
    (verdict,) = judge(("x", {"mine.size": 1.0}), info={"tests": {1, 2}})
    assert "the task's info is not JSON" in verdict.failures["mine.size"]
    assert judge(("x", {"mine.size": 1.0}), info={"tests": [1, 2]})[0].reward == 1


def test_a_caller_that_loses_interest_costs_nothing(mine, tmp_path):
    async def run():
        async with Pool(RewardsConfig(workers=1, timeout=30), log=tmp_path / "log") as pool:
            asking = [asyncio.ensure_future(pool.judge(Task("0", "p"), "x", {"mine.slow": 1.0})) for _ in range(40)]
            await asyncio.sleep(0.5)
            for task in asking[1:]:
                task.cancel()
            await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 10)
            return await asyncio.wait_for(pool.judge(Task("0", "p"), "four", {"mine.size": 1.0}), 10)

    assert asyncio.run(run()).reward == 4


def gone(pids: list[int], seconds: float = 5.0) -> list[int]:
    """Those of the processes that are still alive after so long."""
    deadline = time.monotonic() + seconds
    while (alive := [pid for pid in pids if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _pids(log: Path, many: int) -> list[int]:
    deadline = time.monotonic() + 20
    while not log.exists() or len(log.read_text().split()) < many:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [*map(int, log.read_text().split())]


@pytest.mark.parametrize("text", ["hang", "end", "guard"])
def test_nothing_that_a_reward_started_is_left(judge, tmp_path, text):
    """When it was killed for hanging; and, where it ended well, when the pool is closed."""
    log = tmp_path / "pids"
    (verdict,) = judge((text, {"mine.family": 1.0}), info={"log": str(log)}, workers=1)
    assert verdict.reward == (1 if text == "end" else None)
    pids = _pids(log, 5)
    assert len(set(pids)) == 5
    assert gone(pids) == []
    assert os.getpid() not in pids


def test_nothing_is_left_when_the_process_that_asks_is_killed(mine, tmp_path):
    log = tmp_path / "pids"
    code = f"""
import asyncio
from rlreason.config import RewardsConfig
from rlreason.rewards.pool import Pool
from rlreason.types import Task
async def main():
    pool = Pool(RewardsConfig(timeout=1000))
    await pool.judge(Task("0", "p", info={{"log": {str(log)!r}}}), "hang", {{"mine.family": 1.0}})
asyncio.run(main())
"""
    path = os.pathsep.join([str(mine), *sys.path])
    asker = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, start_new_session=True)
    try:
        pids = _pids(log, 5)
        both = [p.pid for p in psutil.Process(asker.pid).children(recursive=True)]
        assert set(pids) <= set(both), "orphans belong to the guard"
        assert gone(pids, 0) == pids
    finally:
        asker.send_signal(signal.SIGKILL)
        asker.wait()
    assert gone(both) == []


def test_trivial_rewards_are_judged_by_the_thousand(mine, tmp_path):
    async def run():
        async with Pool(RewardsConfig(), ["exact"], tmp_path / "log") as pool:
            rates = []
            for _ in range(4):  # the first warms up
                begun = time.monotonic()
                await asyncio.gather(*(pool.judge(Task("0", "p", "x"), "y" * 1000, {"exact": 1.0}) for _ in range(2000)))
                rates.append(2000 / (time.monotonic() - begun))
            return max(rates)

    assert asyncio.run(run()) > 4000, "answers a second, over two processes"


def test_a_process_that_judges_is_up_at_once():
    code = "import time; t = time.process_time(); import rlreason.rewards.pool.worker; print(time.process_time() - t)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    runs = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True) for _ in "abc"]
    assert min(float(run.stdout) for run in runs) < 0.3, "seconds of imports"
    heavy = {"torch", "sympy", "math_verify", "lingua", "reasoning_gym", "httpx", "omegaconf"}
    code = "import sys, json, rlreason.rewards.pool.worker; print(json.dumps([*sys.modules]))"
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert not heavy & set(json.loads(told.stdout))


# ---- services that are away, and rewards that are not deterministic ----


def test_an_outage_costs_time_and_no_answer(mine, tmp_path):
    """A plain reward and a coroutine, and one beside them that needs nobody: it is called once."""
    up, weights = tmp_path / "up", {"mine.served": 1.0, "mine.served_later": 1.0, "mine.dice": 1.0}

    async def run():
        async with Pool(RewardsConfig(workers=1), log=tmp_path / "log") as pool:
            task = Task("0", "p", info={"up": str(up)})
            asking = [asyncio.ensure_future(pool.judge(task, "four", weights)) for _ in range(5)]
            done, _ = await asyncio.wait(asking, timeout=1.5)
            assert not done
            up.touch()
            return await asyncio.wait_for(asyncio.gather(*asking), 10)

    verdicts = asyncio.run(run())
    assert [verdict.parts["mine.served"] for verdict in verdicts] == [4] * 5
    assert [verdict.parts["mine.served_later"] for verdict in verdicts] == [4] * 5
    assert sorted(verdict.parts["mine.dice"] for verdict in verdicts) == [1, 2, 3, 4, 5]
    assert not any(verdict.failures for verdict in verdicts)


def test_a_service_that_does_not_come_back_ends_it_and_one_answer_does_not(mine, tmp_path):
    async def run(text, others):
        up = tmp_path / "up"
        up.touch() if others else up.unlink(missing_ok=True)
        async with Pool(RewardsConfig(workers=1), log=tmp_path / "log", away=1.5) as pool:
            task = Task("0", "p", info={"up": str(up)})
            asking = asyncio.ensure_future(pool.judge(task, text, {"mine.served": 1.0}))
            while others and not asking.done():
                await pool.judge(task, "four", {"mine.served": 1.0})
                await asyncio.sleep(0.05)
            return await asking

    with pytest.raises(RolloutError, match=r"mine.served could not be asked for 1.5 s: raised ConnectionRefusedError"):
        asyncio.run(run("four", others=False))
    assert asyncio.run(run("bomb", others=True)).failures["mine.served"].startswith("raised ConnectionRefusedError")


def test_every_so_often_an_answer_is_judged_twice(judge):
    many = 3 * AUDIT
    noisy = judge(*[("x", {"mine.dice": 1.0, "mine.size": 1.0})] * many, workers=1, timeout=5)
    assert [i for i, v in enumerate(noisy, 1) if v.failures] == [AUDIT, 2 * AUDIT, 3 * AUDIT]
    told = noisy[AUDIT - 1]
    assert (told.reward, told.parts) == (None, {"mine.dice": None, "mine.size": 1})
    assert told.failures["mine.dice"].startswith(f"is not deterministic: it gave {AUDIT} and then ")
    assert not any(v.failures for v in judge(*[("x", {"mine.size": 1.0, "mine.async_dice": 1.0})] * many)), (
        "a service costs money"
    )
