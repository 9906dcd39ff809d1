"""Why a process died, from what Ray and the process itself leave behind. The texts are Ray's own, of version 2.60."""

import asyncio
import gc
import weakref

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError

from rlreason.errors import Failure, Lost
from rlreason.pulse import Pulse
from rlreason.worker import Host, Worker, cause_of_death

HEAD = """The actor died unexpectedly before finishing this task.
	class_name: Host
	actor_id: 778e26d2e06db64af91c7b2301000000
	pid: 22467
	namespace: 8d16e905-c267-4004-b694-3cb1820a67bb
	ip: 192.0.2.2
The actor is dead because its worker process has died. Worker exit type: """
END_OF_FILE = HEAD + (
    "SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common "
    "causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force was "
    "called, or (3) the worker crashed unexpectedly due to SIGSEGV or another unexpected error. If the process was killed "
    "by the kernel OOM killer (verifiable by checking for OOM in dmesg of the OOMing node), consider enabling resource "
    "isolation via --enable-resource-isolation to prevent node deaths by resource contention and significant loss of "
    "progress by uninformed kernel OOM killing."
)
EXIT_4 = HEAD + "SYSTEM_ERROR Worker exit detail: Worker exits unexpectedly. Worker exits with an exit code 4."
AT_BIRTH = """The actor died because of an error raised in its creation task, ray::Host.__init__() (pid=22380, ip=192.0.2.2)
  File "concurrent/futures/_base.py", line 449, in result
    return self.__get_result()
           ^^^^^^^^^^^^^^^^^^^
  File "rlreason/worker.py", line 42, in __init__
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
IsADirectoryError: [Errno 21] Is a directory: 'runs/a/logs/rollout-0.log'"""
LOW_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 62de9f) \
was 3.62GB used / 23.54GB limit (0.153873)
OOM kill reason: Memory usage 3847098368B exceeded threshold of 3791478016B (15.0% of 25276518400B limit)
Object store memory usage: [- objects spillable: 0
- bytes spillable: 0]
Ray killed 1 worker(s) based on the killing policy
Total non-selected idle workers: 2
To see more information about memory usage on this node, use `ray logs raylet.out -ip 192.0.2.2`
Top 10 memory users: PID	MEM(GB)	COMMAND
24676	1.92	ray::Host.call
24287	0.07	python -m rlreason train"""
SEGFAULT = """*** SIGSEGV received at time=1795358310 on cpu 0 ***
PC: @     0x7feb62785ad8  (unknown)  (unknown)
[2026-11-22 14:38:30,614 E 22544 22599] logging.cc:474: *** SIGSEGV received at time=1795358310 on cpu 0 ***
Fatal Python error: Segmentation fault

Thread 0x00007fe9645fe6c0 (most recent call first):
  <no Python frame>

Current thread 0x00007feb458b96c0 (most recent call first):
  File "ctypes/__init__.py", line 519 in string_at
  File "rlreason/learner.py", line 57 in step

Thread 0x00007feb62e10b80 (most recent call first):
  File "ray/_private/worker.py", line 1069 in main_loop

Extension modules: msgpack._cmsgpack, google._upb._message
"""
SEEN = Pulse(22467, "192.0.2.2", 40, "step 7, micro-batch 2 of 3", 1, int(3.25 * 2**30))
WAS = "It was process 22467, step 7, micro-batch 2 of 3, 3.2 GiB."
LESS = "Fewer or smaller processes a node, or a smaller learner.tokens, need less"


@pytest.mark.parametrize(
    ("told", "words", "struck", "cause"),
    [
        (END_OF_FILE, "step 7", False,
         f"killed from outside (SIGKILL), or ended by its own code; it had no time for a last word. {WAS}"),
        (END_OF_FILE, "step 7", None,
         "killed from outside (SIGKILL), by the kernel for want of memory, or ended by its own code; it had no time for a last "
         f"word. {WAS}"),
        (END_OF_FILE, "step 7", True, f"killed by the kernel, which ran out of memory. {WAS} {LESS}"),
        (END_OF_FILE, SEGFAULT, None,
         "Segmentation fault in string_at (ctypes/__init__.py:519); its stacks are in its log"),
        (END_OF_FILE, SEGFAULT, True,  # its own word counts for more than what befell some process
         "Segmentation fault in string_at (ctypes/__init__.py:519); its stacks are in its log"),
        (END_OF_FILE, "Fatal Python error: Aborted\n\nThread 0x1 (most recent call first):\n  <no Python frame>", None,
         "Aborted; its stacks are in its log"),
        (AT_BIRTH, "it left no log", None, "IsADirectoryError: [Errno 21] Is a directory: 'runs/a/logs/rollout-0.log'"),
        (EXIT_4, "", False, "Worker exits unexpectedly. Worker exits with an exit code 4."),
        (LOW_MEMORY, "", False,
         "killed by Ray, for the node ran low on memory: 3.62GB used / 23.54GB limit (RAY_memory_usage_threshold). "
         f"{WAS} {LESS}"),
    ],
    ids=["SIGKILL", "SIGKILL on another node", "the kernel", "SIGSEGV", "SIGSEGV while memory is short", "SIGABRT",
         "in its constructor", "sys.exit", "Ray's memory monitor"],
)  # fmt: skip
def test_the_cause_of_a_death_is_told_in_a_line(told, words, struck, cause):
    assert cause_of_death(told, words, SEEN, struck) == cause


def test_who_died_before_it_was_ever_seen_is_told_too():
    assert cause_of_death(END_OF_FILE, "").endswith("it had no time for a last word.")


@pytest.fixture
def worker(tmp_path):
    made = Worker("rollout-0", str(tmp_path), Failure)
    made.log.parent.mkdir()
    return made


def test_the_last_words_are_the_last_lines_of_the_log(worker):
    worker.log.write_text("".join(f"line {i}\n" for i in range(10_000)) + "x" * 1000)
    told = worker.words(3).splitlines()
    assert told == [f"the last lines of {worker.log}:", "    " + "x" * 300]
    worker.log.write_text("".join(f"line {i}\n" for i in range(10_000)))
    assert worker.words(3).splitlines()[1:] == ["    line 9997", "    line 9998", "    line 9999"]


def test_what_another_life_wrote_is_not_this_one_s_last_word(worker):
    """Else a place where one process crashed would be said to have crashed when its successor was killed."""
    worker.log.write_text(SEGFAULT)
    worker.born = len(SEGFAULT)  # as `spawn` finds it
    assert worker.words() == f"it wrote nothing to {worker.log}"
    with worker.log.open("a") as log:
        log.write("step 1\n")
    assert worker.words().splitlines()[1:] == ["    step 1"]
    worker.log.write_text("emptied\n")
    assert worker.words().splitlines()[1:] == ["    emptied"]


def test_a_log_that_is_none_is_told(worker):
    assert "it left no log: [Errno 2] No such file" in worker.words()
    worker.log.mkdir()
    assert "it left no log: [Errno 21] Is a directory" in worker.words()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OutOfMemoryError(LOW_MEMORY), "killed by Ray, for the node ran low on memory: 3.62GB used / 23.54GB limit"),
        (NodeDiedError("The node it ran on is dead."), "The node it ran on is dead."),
        (ActorDiedError(), "The actor died unexpectedly"),
    ],
    ids=["memory monitor", "node", "actor"],
)  # fmt: skip
def test_however_ray_says_that_a_process_is_gone_it_is_lost_and_can_be_replaced(worker, error, told):
    async def reply():
        raise error

    with pytest.raises(Lost, match=f"^rollout-0 died: {told}") as caught:
        asyncio.run(worker._told(reply()))
    assert not caught.value.alive


class Littering:
    """What it leaves behind in its constructor refers to itself, as a model that was converted may, device memory included."""

    left = None

    def __init__(self):
        class Node:
            pass

        node = Node()
        node.itself = node
        Littering.left = weakref.ref(node)


def test_what_a_constructor_leaves_behind_is_collected_before_the_rest_is_frozen():
    host = Host.__new__(Host)  # its own constructor redirects the output of this process
    try:
        asyncio.run(host.become(__name__, "Littering"))
        assert type(host.it).left() is None, "the module is imported by its name, so the class may be another"
        assert gc.isenabled()
    finally:
        gc.unfreeze()
