"""A wave is told of as it is answered: everything once, nothing twice, and errors to whoever asks."""

import asyncio
import pickle

import numpy as np
import pytest

from rlreason.types import Group, Task
from rlreason.waves import Waves


def tasks(count):
    return [(Task(str(i), f"what is {i}?", str(i)), 2) for i in range(count)]


def told(delays, ask=0.0):
    """Ask for a task per delay, in seconds, and for more every `ask` seconds; returns what each message held."""

    async def sample(task, n, wave):
        await asyncio.sleep(delays[int(task.id)])
        assert wave == (7, int(task.id), len(delays))
        return Group(task, [])

    async def whole():
        waves = Waves(sample)
        messages = [await waves.answer(7, tasks(len(delays)))]
        while waves.open:
            await asyncio.sleep(ask)
            messages.append(await waves.more(7))
        assert all(group.task.id == str(place) for found in messages for place, group in found)
        return [[place for place, _ in found] for found in messages]

    return asyncio.run(whole())


def test_each_answer_is_told_once_as_it_comes():
    assert told([0.03, 0.0, 0.06]) == [[1], [0], [2]]


def test_who_asks_slowly_is_told_much_at_a_time():
    assert told([0.0, 0.02, 0.04, 0.03], ask=0.2) == [[0], [1, 2, 3]]


def test_what_is_answered_at_once_is_one_message():
    assert told([0.0] * 64) == [[*range(64)]]


def test_an_error_is_raised_to_whoever_asks_and_the_wave_is_over():
    async def sample(task, n, wave):
        if task.id == "2":
            raise ValueError("no template")
        await asyncio.sleep(0 if task.id == "0" else 60)
        return Group(task, [])

    async def whole():
        waves = Waves(sample)
        assert [place for place, _ in await waves.answer(1, tasks(1))] == [0]
        with pytest.raises(ValueError, match="no template"):
            await waves.answer(2, tasks(3)[1:])
        assert not waves.open

    asyncio.run(whole())


def test_a_group_is_the_same_behind_the_wire(sample):
    samples = [sample(3, 5, 1.0, version=4), sample(1, 2, None, version=3)]
    samples[1].failures = {"exact": "raised"}
    for group in (Group(Task("a", "p", "1", info={"x": 1}), samples), Group(Task("b", "p"), [])):
        there = pickle.loads(pickle.dumps(group))
        assert there.task == group.task
        assert len(there.samples) == len(group.samples)
        for a, b in zip(there.samples, group.samples, strict=True):
            for name in ("tokens", "mask", "logprobs"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
                assert getattr(a, name).dtype == getattr(b, name).dtype
            rest = ("text", "version", "truncated", "reward", "parts", "failures")
            assert [getattr(a, name) for name in rest] == [getattr(b, name) for name in rest]
