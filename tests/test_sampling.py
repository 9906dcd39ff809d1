"""Rejection sampling: which answers are kept, and that a stage which is cut off goes on where it was."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import ClassVar

import numpy as np
import pytest

from rlreason import tasks as sources
from rlreason.cli import main
from rlreason.config import Config, EvalConfig, LoopConfig, RolloutConfig, SampleConfig, TasksConfig
from rlreason.errors import RecipeError
from rlreason.loop import train
from rlreason.sampling import Harvest, Steady, chosen, demonstrations, reasons, refused, written
from rlreason.types import Group, Sample, Task


def answer(text: str, right: float | None, length: int = 3, truncated: bool = False, **parts: float | None) -> Sample:
    all_parts = {"exact": right, **parts}
    reward = None if None in all_parts.values() else sum(all_parts.values())
    mask = np.ones(length, np.bool_)
    return Sample(np.zeros(length, np.int32), mask, np.zeros(length, np.float32), text, 0, truncated, reward, all_parts)


def config(tmp_path=None, **sample) -> Config:
    return Config(
        model="m", out=str(tmp_path), kind="sample", sample=SampleConfig(**sample), seed=3,
        tasks=TasksConfig(generate="sort", reward={"exact": 1.0, "form": 0.5}), eval=EvalConfig(), rollout=RolloutConfig(),
        loop=LoopConfig(groups=4, samples=2),
    )  # fmt: skip


ROW = written(
    Group(Task("t", "p", "a", domain="d"), [
        answer("long", 1, 9, form=1.0),      # 0
        answer("wrong", 0, 2, form=1.0),     # 1
        answer("short", 1, 2, form=0.0),     # 2
        answer("cut", 1, 4, True, form=1.0), # 3
        answer("dark", None, form=1.0),      # 4
        answer("long", 1, 9, form=1.0),      # 5: the text of 0 again
        answer("middle", 1, 5, form=1.0),    # 6
    ]),
    "exact",
)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 6, 2]),  # right, by reward, then as they came
        ({"by": "shortest"}, [2, 6, 0]),
        ({"by": "first"}, [0, 2, 6]),
        ({"best": 1}, [0]),
        ({"best": 2, "by": "shortest"}, [2, 6]),
        ({"least": {"form": 1}}, [0, 6]),
        ({"keep": "all"}, [0, 6, 1, 2]),
        ({"keep": "all", "least": {"form": 2}}, []),
        ({"least": {"unheard": 1}}, [0, 6, 2]),  # a task with rewards of its own need not have it
    ],
)
def test_which_answers_are_kept(options, kept):
    assert chosen(ROW, config(**options)) == kept


def test_every_answer_that_is_not_kept_has_a_reason():
    told = [refused(ROW, sample, config(least={"form": 1})) for sample in ROW["samples"]]
    assert told == ["", "exact", "form", "truncated", "unjudged", "", ""]


def test_what_is_left_out_is_told_by_reason():
    assert reasons(ROW, config(least={"form": 1}, best=1)) == [
        "", "exact", "form", "truncated", "unjudged", "the same text again", "beyond the best",
    ]  # fmt: skip
    assert reasons(ROW, config(best=1, by="shortest")) == [
        "beyond the best", "exact", "", "truncated", "unjudged", "the same text again", "beyond the best",
    ]  # fmt: skip


def test_a_demonstration_is_a_task_and_names_its_parents(tmp_path):
    rows = [*demonstrations(lambda: [ROW], config(best=1), "abc")]
    assert rows == [
        {"id": "t#0", "prompt": "p", "answer": "a", "response": "long", "domain": "d",
         "parents": {"task": "t", "sample": 0, "model": "abc"}, "scores": {"exact": 1, "form": 1.0}},
    ]  # fmt: skip
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sources.load(str(path), TasksConfig(path=str(path))) == [Task("t#0", "p", "a", "long", domain="d")]


def test_of_all_epochs_of_a_task_the_best_answers_are_kept_and_no_text_twice():
    again = written(Group(Task("t@1", "p", "a"), [answer("great", 1, 3, form=2.0), answer("long", 1, 9, form=1.0)]), "exact")

    def kept(best: int, **more) -> list[str]:
        return [row["id"] for row in demonstrations(lambda: [ROW, again, ROW | {"task": "u"}], config(best=best, **more), None)]

    assert kept(1) == ["t@1#0", "u#0"]
    assert kept(2) == ["t#0", "t@1#0", "u#0", "u#6"]
    assert kept(0) == ["t#0", "t#6", "t#2", "t@1#0", "u#0", "u#6", "u#2"]
    assert kept(1, by="shortest") == ["t#2", "u#2"]


def test_two_tasks_of_one_id_are_told_at_once(tmp_path):
    stream = iter([Task("same", "p", "a"), Task("same", "q", "b")])
    loop = LoopConfig(groups=2, samples=1, steps=1, save_every=1)
    with pytest.raises(RecipeError, match="two have the id 'same'"):
        asyncio.run(train(loop, stream, Steady(Instant(), 0), Harvest(config(tmp_path))))


class Instant:
    async def sample(self, task, n):
        return Group(task, [answer("x", 1.0, form=1.0)])


class Echo:
    """A rollout that answers with the task's own answer, at once or, for some, late."""

    async def sample(self, task, n):
        await asyncio.sleep(int(task.id[-1]) / 1000)
        return Group(task, [answer(f"{task.answer} {i}", 1.0, form=1.0) for i in range(n)])

    async def load(self, weights, version):
        raise AssertionError("a rollout that samples keeps its weights")


def harvested(tmp_path, stop_after: int | None = None, wanted: int = 10) -> Harvest:
    """Ask the first `wanted` tasks, four at a time, until done or until so many steps are written."""
    chosen = config(tmp_path)
    harvest = Harvest(chosen)
    loop = LoopConfig(groups=4, samples=2, steps=3, save_every=1)
    left = islice(sources.Tasks(chosen).stream(harvest.cursor), wanted - harvest.cursor)
    stop = (lambda: harvest.version >= stop_after) if stop_after else (lambda: False)
    asyncio.run(train(loop, left, Steady(Echo(), harvest.version), harvest, cursor=harvest.cursor, stop=stop))
    return harvest


def test_a_harvest_that_is_cut_off_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    whole = [*harvested(tmp_path / "whole").written()]
    assert len(whole) == 10  # four, four and the rest
    assert [*harvested(tmp_path / "cut", stop_after=1).written()] == whole[:4]
    (tmp_path / "cut" / "answers" / ".000002.json.partial").write_text("half")  # a crash while writing
    rest = harvested(tmp_path / "cut")
    assert [*rest.written()] == whole
    assert (rest.version, rest.cursor) == (3, 10)


def test_a_sample_tells_how_many_steps_it_waited(tmp_path):
    """With max_lag 1 the second step's tasks are asked while the first is written."""
    chosen = config(tmp_path)
    lags = []
    loop = LoopConfig(groups=2, samples=1, steps=3, save_every=1, max_lag=1)
    stream = islice(sources.Tasks(chosen).stream(), 6)
    asyncio.run(train(loop, stream, Steady(Echo(), 0), Harvest(chosen), log=lambda s, g, m: lags.append(m["lag"])))
    assert lags[:2] == [0, 1]
    assert max(lags) == 1


# ---- a teacher behind an endpoint, from the command line ----


class Chat(BaseHTTPRequestHandler):
    """Answers "say 7" with the last digit asked for, right three times in four, after some thought."""

    asked: ClassVar[list[dict]] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        right = body["seed"] % 4 > 0
        text = body["messages"][-1]["content"].split()[-1] if right else "nothing"
        message = {"role": "assistant", "reasoning_content": f"they want {body['seed']}", "content": text}
        reply = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 5}}
        raw = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


def test_a_teacher_writes_what_a_student_then_imitates(tmp_path, monkeypatch, capsys):
    """`rlreason train` with `sample.teacher`: no engine, no model; ten prompts, four answers each, the right ones kept."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rows = [{"prompt": f"say {i}", "answer": str(i)} for i in range(10)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "teach.yaml").write_text(
        "kind: sample\nloop: {groups: 4, samples: 4}\nsample: {best: 2}\nrollout: {max_tokens: 64}\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "teach.yaml", "tasks.path=t.jsonl", "out=run", "sample.teacher.model=big",
                 f"sample.teacher.url=http://127.0.0.1:{server.server_port}/v1"]  # fmt: skip
    try:
        assert main(arguments) == 0
        assert len(Chat.asked) == 40
        assert main(arguments) == 0  # what is done is not asked again
        assert len(Chat.asked) == 40
    finally:
        server.shutdown()
    made = sources.load("run/samples.jsonl", TasksConfig(path="run/samples.jsonl"))
    assert len(made) == 20
    assert all(task.response.startswith("<think>\nthey want ") and task.response.endswith(task.answer) for task in made)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["samples"] == 20
    assert summary["left_out"]["exact"] == sum(body["seed"] % 4 == 0 for body in Chat.asked)
    assert "kept 20 of 40 answers" in capsys.readouterr().out
    (tmp_path / "run" / "summary.json").unlink()
    assert main(arguments) == 5
    assert "summary.json is not there any more" in capsys.readouterr().err


def test_a_teacher_of_whom_nothing_can_be_kept_is_told(tmp_path, monkeypatch, capsys):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "say 1", "answer": "no such word"}) + "\n")
    (tmp_path / "teach.yaml").write_text("kind: sample\nloop: {groups: 4, samples: 4}\nrollout: {max_tokens: 64}\n")
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["train", "teach.yaml", "tasks.path=t.jsonl", "out=run", "sample.teacher.model=big",
                     f"sample.teacher.url=http://127.0.0.1:{server.server_port}/v1"])  # fmt: skip
    finally:
        server.shutdown()
    assert code == 4
    assert "of 4 answers none was kept (4 exact)" in capsys.readouterr().err


def test_an_answer_that_cannot_be_judged_is_told_and_not_replaced(tmp_path):
    """The second of three tasks has no answer that anybody could judge: it is a row all the same."""

    class Dark(Echo):
        async def sample(self, task, n):
            return Group(task, [answer("?", None if task.id.endswith("1") else 1.0, form=1.0)])

    made = config(tmp_path)
    harvest = Harvest(made)
    stream = [Task(f"t{i}", "p", "a") for i in range(3)]
    loop = LoopConfig(groups=2, samples=1, steps=2, save_every=1)
    asyncio.run(train(loop, iter(stream), Steady(Dark(), 0), harvest, keep=lambda group: True))
    assert [row["task"] for row in harvest.written()] == ["t0", "t1", "t2"]
    assert [reasons(row, made) for row in harvest.written()] == [[""], ["unjudged"], [""]]


@pytest.mark.parametrize("damage", [b"", b'{"cursor": 8, "tas', b"[]", b"\xff"])
def test_answers_that_are_damaged_are_moved_aside_with_what_came_after_and_asked_again(tmp_path, damage):
    whole = [*harvested(tmp_path).written()]
    (tmp_path / "answers" / "000002.json").write_bytes(damage)
    again = Harvest(config(tmp_path))
    assert (again.version, again.cursor) == (1, 4)
    assert [line.split("/")[-1].split()[0] for line in again.damaged] == ["000002.json", "000003.json"]
    assert sorted(p.name for p in (tmp_path / "answers").iterdir()) == [
        "000001.json", "damaged-000002.json", "damaged-000003.json",
    ]  # fmt: skip
    assert [*harvested(tmp_path).written()] == whole
    assert Harvest(config(tmp_path)).damaged == []
