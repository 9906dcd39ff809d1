"""Demonstrations as a rollout: what is trained on, and what a log shows of them."""

import asyncio

import pytest

from rlreason.config import Config, RolloutConfig, TasksConfig
from rlreason.errors import RecipeError
from rlreason.model import directory
from rlreason.recorded import Recorded
from rlreason.rewards.pool import Pool
from rlreason.types import Task


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    path = directory({"from_config": {"model_type": "qwen2"}, "characters": "0123456789+="}, tmp_path_factory.mktemp("m"))
    return AutoTokenizer.from_pretrained(path)


def one(tokenizer, task, **limits):
    tasks = TasksConfig(max_prompt=limits.pop("max_prompt", 9), reward={"exact": 1.0})
    config = Config(model="m", out="o", tasks=tasks, rollout=RolloutConfig(**limits))

    async def sample():
        async with Pool(config.rewards) as pool:
            return await Recorded(config, tokenizer, pool).sample(task, 1)

    return asyncio.run(sample()).samples


def test_the_response_is_trained_on_to_its_end(tokenizer):
    (s,) = one(tokenizer, Task("0", "1+1=", "2", "<think>1+1=2</think><answer>2</answer>"))
    trained = s.tokens[s.mask]
    assert tokenizer.decode(s.tokens[~s.mask]) == "1+1="
    assert tokenizer.decode(trained[:-1]) == "<think>1+1=2</think><answer>2</answer>"
    assert trained[-1] == tokenizer.eos_token_id
    assert (s.reward, s.truncated) == (1.0, False)


def test_a_wrong_demonstration_is_shown_as_such_and_trained_on(tokenizer):
    (s,) = one(tokenizer, Task("0", "1+1=", "2", "3"))
    assert (s.reward, s.parts) == (0.0, {"exact": 0.0})


def test_without_an_answer_to_compare_with_it_counts_as_right(tokenizer):
    (s,) = one(tokenizer, Task("0", "1+1=", None, "3"))
    assert (s.reward, s.parts) == (1.0, {"exact": None})


def test_what_is_too_long_is_cut_or_left_out(tokenizer):
    (s,) = one(tokenizer, Task("0", "1+1=", "2", "123456"), max_tokens=3)
    assert tokenizer.decode(s.tokens[s.mask]) == "123"
    assert s.truncated
    assert one(tokenizer, Task("0", "1+1=", "2"), max_prompt=3) == []


def test_a_tokenizer_without_an_end_is_refused(tokenizer):
    from copy import deepcopy

    endless = deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(RecipeError, match="no end-of-sequence"):
        one(endless, Task("0", "1+1=", "2"))
