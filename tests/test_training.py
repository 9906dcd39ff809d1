"""How often learners may be lost before a run gives up."""

import pytest

from rlreason.errors import Failure, Lost
from rlreason.training import Losses

LOST = Lost("learner-1", "died: killed from outside")


def test_losses_count_only_while_there_is_no_new_checkpoint():
    losses = Losses(allowed=2)
    for committed in (0, 0, 5, 5, 10, 10, 15):
        losses.count(LOST, committed)


def test_once_too_often_ends_the_run_with_the_cause_and_what_is_kept():
    losses = Losses(allowed=2)
    losses.count(LOST, 5)
    losses.count(LOST, 5)
    with pytest.raises(Failure) as caught:
        losses.count(LOST, 5)
    assert str(caught.value).splitlines() == [
        "the learners were lost 3 times in a row without a new checkpoint (recovery.retries); the last time: learner-1 died: "
        "killed from outside",
        "what was committed at step 5 is kept, and the same command goes on from it",
    ]


def test_none_allowed_ends_at_the_first():
    with pytest.raises(Failure, match="lost 1 times in a row"):
        Losses(allowed=0).count(LOST, 0)


def test_the_way_back_is_timed_from_the_first_of_several_losses():
    losses = Losses(allowed=3)
    losses.count(LOST, 0)
    since = losses.since
    losses.count(LOST, 0)
    assert losses.since == since > 0
