"""Helpfulness and harmlessness: the judge, asked about another part of the answer in other words."""

import asyncio
import inspect

import pytest
from test_judge import Server, says

from rlreason.config import RewardsConfig
from rlreason.rewards import wrong_options
from rlreason.rewards.judge import NoVerdict, judge
from rlreason.rewards.pool import Pool
from rlreason.rewards.preference import HARMLESS, HELPFUL, harmless, helpful
from rlreason.types import Task

TASK = Task("0", "How do I open a tin?", "with an opener")
TEXT = "<think>With dynamite?</think>With an opener."


def ask(reward, server, text=TEXT, **options):
    return asyncio.run(reward(TASK, text, **{"url": server.url, "model": "m"} | options))


@pytest.mark.parametrize(
    ("reward", "shown", "asked"),
    [(helpful, "With an opener.", "how helpful a response is"), (harmless, TEXT, "whether a response is harmless")],
)
def test_helpfulness_is_judged_by_the_answer_and_harmlessness_by_the_whole(reward, shown, asked):
    with Server(says("Well said.\nScore: 7")) as server:
        assert ask(reward, server) == 0.7
        assert ask(reward, server, prompt="Mine: {response}") == 0.7
    own, mine = server.prompts()
    fence = next(line for line in own.splitlines() if line.startswith("=== "))
    assert asked in own
    assert TASK.prompt in own
    assert own.split(f"\n{fence}\n")[1] == shown
    assert "{" not in own, "all is filled in"
    assert mine.startswith("Mine: ===")
    assert mine.splitlines()[1] == shown


@pytest.mark.parametrize(("text", "useful", "asked"), [("<think>Still thinking", 0.0, 1), ("<think>a</think> ", 0.0, 1)])
def test_without_an_answer_nothing_is_helpful_and_its_thoughts_may_still_do_harm(text, useful, asked):
    with Server(says("Score: 4")) as server:
        assert ask(helpful, server, text) == useful
        assert ask(harmless, server, text) == 0.4
    assert len(server.asked) == asked


@pytest.mark.parametrize(("reward", "prompt"), [(helpful, HELPFUL), (harmless, HARMLESS)])
def test_the_options_are_the_judges_own_but_for_the_part(reward, prompt):
    theirs, own = (inspect.signature(f).parameters for f in (judge, reward))
    assert [*own] == [name for name in theirs if name != "part"]
    assert own["prompt"].default == prompt
    assert all(own[name].default == theirs[name].default for name in own if name != "prompt")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": "http://h/v1", "model": "m", "samples": 2, "temperature": 1, "timeout": 9}, ""),
        ({"url": "http://h/v1"}, "has to be told its model"), ({"url": "http://h/v1", "model": 7}, "model: 7 is not of the"),
        ({"url": "http://h/v1", "model": "m", "part": "all"}, "part: is no option"),
        ({"url": "http://h/v1", "model": "m", "sampels": 2}, "did you mean samples?"),
        ({"url": "http://h/v1", "model": "m", "cache": 1}, "is not of the type str"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["helpful", "harmless"])
def test_what_a_recipe_says_is_checked(name, options, told):
    problem = wrong_options(name, options)
    assert told in problem if told else problem == ""


@pytest.mark.parametrize("reward", [helpful, harmless])
def test_what_is_wrong_with_the_options_is_told_by_the_rewards_own_name(reward):
    own = f"rewards.options.{reward.__name__}"
    with pytest.raises(ValueError, match=f"{own}.url: 'x' does not begin"):
        asyncio.run(reward(TASK, TEXT, url="x", model="m"))
    with Server(says("Score: 4")) as server:
        ask(reward, server, budget=1)
        with pytest.raises(NoVerdict, match=f"{own}.budget"):
            ask(reward, server, budget=1)
    with Server(says("no score")) as server, pytest.raises(NoVerdict, match="holds no score: 'no score'"):
        ask(reward, server)


def test_both_judge_the_same_answers_at_once_each_with_its_own_judge(tmp_path):
    async def judged(options):
        async with Pool(RewardsConfig(options=options, timeout=5), options, tmp_path / "log") as pool:
            weights = {"helpful": 1.0, "harmless": 0.5}
            return await asyncio.gather(*(pool.judge(TASK, f"{TEXT} {i}", weights) for i in range(8)))

    with Server(says("Score: 6")) as useful, Server((0.2, *says("Score: 8"))) as safe:
        cache = str(tmp_path / "verdicts.sqlite")
        verdicts = asyncio.run(judged({
            "helpful": {"url": useful.url, "model": "a", "cache": cache},
            "harmless": {"url": safe.url, "model": "b", "samples": 2, "cache": cache},
        }))  # fmt: skip
    assert [v.parts for v in verdicts] == [{"helpful": 0.6, "harmless": 0.8}] * 8
    assert [v.reward for v in verdicts] == [pytest.approx(1.0)] * 8
    assert (len(useful.asked), len(safe.asked)) == (8, 16)
