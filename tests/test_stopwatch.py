"""A rank's own time: what passes inside the blocks, and no more."""

import time

import pytest

from rlreason.stopwatch import Stopwatch


def test_what_passes_inside_the_blocks_is_added_up_and_a_lap_begins_anew():
    watch = Stopwatch()
    for _ in range(2):
        with watch.on():
            time.sleep(0.02)
        time.sleep(0.05)
    assert 0.04 <= watch.lap() < 0.06 + 0.03
    assert watch.lap() == 0


class Event:
    """As torch.cuda.Event: two of them know the milliseconds between them, once the GPU has passed both."""

    now = 0.0

    def record(self):
        self.at = Event.now

    def elapsed_time(self, other):
        return other.at - self.at


def test_on_a_gpu_its_events_are_asked():
    watch = Stopwatch(Event)
    for milliseconds in (1500, 500):
        with watch.on():
            Event.now += milliseconds
        Event.now += 10_000
    assert watch.lap() == pytest.approx(2.0)
    assert watch.lap() == 0
