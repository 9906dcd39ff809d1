"""A teacher behind an API, against a real HTTP server on this machine that misbehaves as told."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest
from test_judge import Server, says

from rlreason.checkpoint import write_atomic
from rlreason.config import Config, RolloutConfig, TasksConfig
from rlreason.errors import RecipeError, RolloutError, StorageError
from rlreason.recipe import load
from rlreason.rewards.pool import Pool
from rlreason.rewards.pool import Verdict as Earned
from rlreason.teacher import Teacher, TeacherConfig, wrong_options
from rlreason.types import Task

TASK = Task("7", "What is 6 * 7?", "42")


def reply(finish="stop", tokens=5, **message):
    choice = {"message": {"role": "assistant", "content": None, **message}, "finish_reason": finish}
    return 200, {}, json.dumps({"choices": [choice]} | ({} if tokens is None else {"usage": {"completion_tokens": tokens}}))


class Generous:
    """Finds every answer right."""

    async def judge(self, task, text, weights, **facts):
        return Earned(1.0, dict.fromkeys(weights, 1.0), {})


def config(**rollout):
    return Config(model="m", out="o", seed=3, tasks=TasksConfig(reward={"exact": 1.0}), rollout=RolloutConfig(**rollout))


async def groups(url, tasks, n=1, rollout=None, pool=None, **options):
    async with Teacher(config(**rollout or {}), pool or Generous(), **{"url": url, "model": "m"} | options) as teacher:
        return await asyncio.gather(*(teacher.sample(task, n) for task in tasks))


def ask(server, n=1, task=TASK, **options):
    return asyncio.run(groups(server.url, [task], n, **options))[0].samples


def bodies(server):
    return [body for _, _, body in server.asked]


def test_answers_are_asked_for_one_by_one_and_judged():
    async def judged(url):
        async with Pool(config().rewards, ["exact"]) as pool:
            return await groups(url, [TASK], 2, {"temperature": 0.5, "max_tokens": 9, "stop": ["!"]}, pool)

    with Server(reply(content="42", tokens=3), reply(content="41", tokens=4)) as server:
        (group,) = asyncio.run(judged(server.url))
    one, two = sorted(group.samples, key=lambda s: s.length)
    assert [(s.text, s.reward, s.parts) for s in (one, two)] == [("42", 1.0, {"exact": 1.0}), ("41", 0.0, {"exact": 0.0})]
    assert {type(s.version) is int and s.version for s in (one, two)} == {0}
    assert [(s.tokens.tolist(), s.mask.all(), s.logprobs.tolist()) for s in (one, two)] == [
        ([0] * 3, np.True_, [0.0] * 3), ([0] * 4, np.True_, [0.0] * 4),
    ]  # fmt: skip
    assert [s.tokens.dtype for s in (one, two)] == [np.int32] * 2
    body = bodies(server)[0]
    assert body.pop("seed") != bodies(server)[1]["seed"]
    messages = [{"role": "user", "content": "What is 6 * 7?"}]
    assert body == {"model": "m", "temperature": 0.5, "max_tokens": 9, "stop": ["!"], "messages": messages}


def test_chat_messages_are_sent_as_they_are():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi \ud800"}]
    with Server(reply(content="Hello.")) as server:
        assert [s.text for s in ask(server, task=Task("0", chat))] == ["Hello."]
    assert bodies(server)[0]["messages"] == [chat[0], {"role": "user", "content": "Hi ?"}]
    assert "stop" not in bodies(server)[0], "an empty list is refused by some"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "42"}, "42"),
        ({"content": "42", "reasoning_content": "\n6 * 7\n"}, "<think>\n6 * 7\n</think>\n42"),  # DeepSeek
        ({"content": "42", "reasoning": "6 * 7"}, "<think>\n6 * 7\n</think>\n42"),  # vLLM, OpenRouter
        ({"content": "42", "reasoning_content": "", "reasoning": "6 * 7"}, "<think>\n6 * 7\n</think>\n42"),
        ({"content": "42", "reasoning_content": "  "}, "42"),
        ({"content": "<think>a</think>42"}, "<think>a</think>42"),
        ({"content": "", "reasoning": "6 * 7"}, "<think>\n6 * 7\n</think>\n"),
        ({"content": "\ud83d"}, "?"),
    ],
)  # fmt: skip
def test_reasoning_of_a_separate_field_stands_before_the_answer(message, text):
    with Server(reply(**message)) as server:
        assert [s.text for s in ask(server)] == [text]
        assert [s.text for s in ask(server, think="none")] == [text if "<think>a" in text else text.rpartition(">\n")[2]]


@pytest.mark.parametrize(
    ("finish", "message", "text", "truncated"),
    [
        ("length", {"content": "It is 4"}, "It is 4", True),
        ("length", {"content": None, "reasoning_content": "6 *"}, "<think>\n6 *", True),  # cut off in its thoughts
        ("length", {"content": "It", "reasoning_content": "6 * 7"}, "<think>\n6 * 7\n</think>\nIt", True),
        ("length", {"content": None}, "", True),  # all of it hidden
        ("content_filter", {"content": None}, "", False),
        ("stop", {"content": "It is 42"}, "It is 42", False),
    ],
)  # fmt: skip
def test_what_the_limit_cut_off_is_marked(finish, message, text, truncated):
    with Server(reply(finish, **message)) as server:
        assert [(s.text, s.truncated) for s in ask(server)] == [(text, truncated)]


@pytest.mark.parametrize(
    ("told", "length"), [(0, 0), (7, 7), (None, 3), (-1, 3), ("7", 3), (True, 3), (10**12, 3)]
)  # 13 bytes, a fourth of which is 3
def test_a_length_that_is_not_told_is_guessed_from_the_text(told, length):
    with Server(reply(content="Hello, wörld", tokens=told)) as server:
        assert [s.length for s in ask(server)] == [length]


@pytest.mark.parametrize(
    ("first", "waits"),
    [
        ((429, {"Retry-After": "1"}, "slow down"), 1.0), ((500, {}, "oops"), 0.25), ((200, {}, "<html>"), 0.25),
        (reply(), 0.25), ((200, {}, '{"choices": [{"message": null}]}'), 0.25), ((200, {}, "[]"), 0.25),
        ((3.0, *says("late")), 1.25),
    ],
    ids=["429", "500", "garbage", "no text", "no message", "a list", "slow"],
)  # fmt: skip
def test_what_may_pass_is_tried_again(first, waits):
    with Server(first, says("42")) as server:
        started = time.perf_counter()
        assert [s.text for s in ask(server, request_timeout=1.0)] == ["42"]
        assert time.perf_counter() - started >= waits
    assert len(server.asked) == 2
    assert bodies(server)[0] == bodies(server)[1]


def test_tries_come_to_an_end_and_the_task_and_the_cause_are_told():
    with Server((500, {}, "oops")) as server:
        with pytest.raises(RolloutError, match=r"task 7: the teacher m failed 2 times; the last time: HTTP 500") as told:
            ask(server, retries=1)
        assert "has to leave the data" in str(told.value)
    assert len(server.asked) == 2
    with pytest.raises(RolloutError, match="ConnectError"):  # the server is gone
        ask(server, retries=0)


def test_a_server_that_wants_us_to_wait_for_hours_is_not_waited_for():
    with (
        Server((429, {"Retry-After": "36000"}, "")) as server,
        pytest.raises(RolloutError, match=r"wait for 36000 s; .* HTTP 429"),
    ):
        ask(server)
    assert len(server.asked) == 1


def test_one_answer_that_cannot_be_had_ends_the_sampling_at_once():
    def first_fails(number):
        return (404, {}, "no model m") if number == 0 else (5.0, *says("42"))

    started = time.perf_counter()
    with (
        Server(first_fails) as server,
        pytest.raises(RolloutError, match="task 7: the teacher m answered HTTP 404: no model m"),
    ):
        ask(server, 4)
    assert time.perf_counter() - started < 4, "the others are not waited for"


def test_the_key_is_sent_and_never_told(tmp_path):
    (tmp_path / "key").write_text("sk-secret\n")
    options = {"key_file": str(tmp_path / "key"), "retries": 0}
    for status, shown in ((401, "is the key right"), (402, "with … you owe"), (200, "no chat completion")):
        with (
            Server((status, {}, "with sk-secret you owe us money")) as server,
            pytest.raises(RolloutError, match=shown) as told,
        ):
            ask(server, **options)
        assert server.asked[0][1]["authorization"] == "Bearer sk-secret"
        assert "secret" not in str(told.value)
    (tmp_path / "key").write_text("sk-secrét")
    assert [*wrong_options({"url": "http://h/v1", "model": "m", **options})] == [
        ("key_file", f"{tmp_path}/key does not hold a key")
    ]


def test_what_is_in_the_cache_is_not_asked_again_and_reads_the_same(tmp_path):
    cache = str(tmp_path / "new" / "replies.sqlite")
    tasks = [Task(str(i), "What is 6 * 7?") for i in range(5)]  # the same prompt, and yet other tasks

    def texts(**options):
        return [[s.text for s in group.samples] for group in asyncio.run(groups(server.url, tasks, 2, cache=cache, **options))]

    with Server(lambda number: reply(content=str(number), reasoning="6 * 7")) as server:  # never the same twice
        first = texts()
        assert len({text for group in first for text in group}) == 10
        assert len({body["seed"] for body in bodies(server)}) == 10
        assert texts() == first
        assert len(server.asked) == 10
        seedless = texts(extra={"seed": None})
        assert texts(extra={"seed": None}) == seedless
        assert len({text for group in first + seedless for text in group}) == 20, "without a seed they are drawn apart as well"
        assert len(server.asked) == 20
    assert texts() == first, "the server is gone: no network call"
    assert texts(think="none") == [[text.rpartition("\n")[2] for text in group] for group in first], (
        "how it is read is not kept"
    )


def test_no_failure_is_kept(tmp_path):
    with Server((500, {}, ""), says("42")) as server:
        with pytest.raises(RolloutError):
            ask(server, cache=str(tmp_path / "c"), retries=0)
        assert [s.text for s in ask(server, cache=str(tmp_path / "c"))] == ["42"]


def test_a_cache_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "c").write_text("no database, but long enough to look like one" * 99)
    with Server(says("42")) as server, pytest.raises(StorageError, match=r"sample.teacher.cache: .*not a database"):
        ask(server, cache=str(tmp_path / "c"))


def test_no_more_are_asked_at_a_time_than_allowed():
    with Server((0.05, *says("42"))) as server:
        found = asyncio.run(groups(server.url, [Task(str(i), "?") for i in range(6)], 2, concurrency=3))
    assert [[s.text for s in group.samples] for group in found] == [["42", "42"]] * 6
    assert 1 < server.most <= 3


def test_many_tasks_at_once_each_get_their_own_answers():
    tasks = [Task(str(i), f"{i} + 1 =") for i in range(100)]
    with Server(says("42")) as server:
        found = asyncio.run(groups(server.url, tasks, 2))
    assert [group.task.id for group in found] == [task.id for task in tasks]
    assert sorted(server.prompts()) == sorted(2 * [task.prompt for task in tasks])


def test_beyond_the_budget_nobody_is_asked_and_what_was_paid_for_is_kept(tmp_path):
    options = {"budget": 3, "cache": str(tmp_path / "c")}
    over = r"task 8: the budget of 3 requests is used up \(sample.teacher.budget\)\nraise it, or say 0"
    with Server((0.2, *says("42"))) as server:
        assert len(ask(server, 2, **options)) == 2
        with pytest.raises(RolloutError, match=over):
            ask(server, 2, Task("8", "?"), **options)
    assert len(server.asked) == 3
    with closing(sqlite3.connect(options["cache"])) as replies:
        assert len([*replies.execute("SELECT name FROM verdicts")]) == 3


def test_extra_wins_and_null_takes_a_field_out():
    extra = {"max_tokens": None, "max_completion_tokens": 9, "temperature": 0.1, "chat_template_kwargs": {"thinking": True}}
    with Server(says("42")) as server:
        ask(server, extra=extra)
    assert bodies(server)[0].items() >= {k: v for k, v in extra.items() if v is not None}.items()
    assert "max_tokens" not in bodies(server)[0]


def test_a_recipe_says_them_as_they_are_taken(tmp_path):
    write_atomic(
        tmp_path / "r.yaml",
        "model: m\nout: o\ntasks: {path: t, reward: {exact: 1.0}}\n"
        "sample: {teacher: {url: http://h:1/v1, model: m, retries: 2, extra: {seed: null, top_p: 0.9}}}\n",
    )
    options = load(tmp_path / "r.yaml", ["kind=sample", "sample.teacher.concurrency=2"]).sample.teacher
    assert Teacher(config(), Generous(), **options).options == TeacherConfig(
        "http://h:1/v1", "m", retries=2, concurrency=2, extra={"seed": None, "top_p": 0.9}
    )


GOOD = {"url": "http://host:8000/v1", "model": "m"}


@pytest.mark.parametrize(
    ("options", "name", "told"),
    [
        ({"model": "m"}, "url", "is missing: say which endpoint is asked"),
        ({"url": "http://h/v1"}, "model", "is missing: say which of its models answers"),
        (GOOD | {"url": "host:8000"}, "url", "does not begin with http:// or https://"),
        (GOOD | {"url": "http://"}, "url", "does not begin with http:// or https:// and a host"),
        (GOOD | {"url": "http://h:x/v1"}, "url", "is no URL"),
        (GOOD | {"url": 7}, "url", "is not of the type str"),
        (GOOD | {"concurency": 7}, "concurency", "did you mean concurrency?"),
        (GOOD | {"concurrency": 0}, "concurrency", "0 is below 1"),
        (GOOD | {"retries": -1}, "retries", "-1 is below 0"),
        (GOOD | {"budget": 1.5}, "budget", "1.5 is not of the type int"),
        (GOOD | {"request_timeout": 0}, "request_timeout", "0 is below 0.1"),
        (GOOD | {"key_file": "/nonesuch"}, "key_file", "/nonesuch cannot be read: FileNotFoundError"),
        (GOOD | {"think": "no"}, "think", "'no' is not one of auto, none"),
        (GOOD | {"extra": ["top_p"]}, "extra", "is not a mapping"),
        (GOOD | {"extra": {"stream": True}}, "extra.stream", "is not for extra to say: replies are read whole"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_told_before_anything_starts(options, name, told):
    ((found, problem),) = wrong_options(options)
    assert found == name
    assert told in problem
    with pytest.raises(RecipeError, match=rf"^sample\.teacher\.{name}: "):
        Teacher(config(), Generous(), **options)
