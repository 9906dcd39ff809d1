"""asked = trained + dropped + pending."""

import json

import pytest

from rlreason import ledger
from rlreason.errors import StorageError


def row(step, trained, dropped=(), pending=()):
    return {"step": step, "trained": list(trained), "dropped": dict.fromkeys(dropped, "not kept"), "pending": list(pending)}


def test_what_adds_up():
    audit = ledger.check([row(1, "ab", "c", "de"), row(2, "de", "", "fg"), row(3, "f", "g")])
    assert audit.wrong == []
    assert str(audit) == "7 tasks asked: 5 trained on, 2 dropped (not kept), 0 pending"


def test_a_task_that_a_checkpoint_has_taken_and_nobody_tells_of_is_lost():
    rows = [row(1, "ab"), row(2, "cd", "e")]
    assert ledger.check(rows, {1: 2, 2: 5}).wrong == []
    assert ledger.check(rows, {1: 3}).wrong == ["step 1: 3 tasks were taken by then, and 2 are told of"]


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([row(1, "ab"), row(2, "bc")], "b was trained on 2 times"),
        ([row(1, "a", "b"), row(2, "b")], "b was trained on, and dropped"),
        ([row(1, "a", pending="bc"), row(2, "b")], "step 2: lost without a reason: c"),
        ([row(1, "a"), row(3, "b")], "step 3 follows step 1"),
        ([row(1, "a", pending="a")], "a was consumed, and is pending"),
        ([row(2, "a")], "step 2 follows step 0"),
    ],
)
def test_what_does_not(rows, wrong):
    assert wrong in ledger.check(rows).wrong


def test_a_ledger_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(StorageError, match="cannot be read"):
        ledger.audit(tmp_path)
    (tmp_path / "ledger.jsonl").write_text(json.dumps(row(1, "a")) + "\n{")
    with pytest.raises(StorageError, match="cannot be read"):
        ledger.audit(tmp_path)
