"""Prompts as token ids: what is put around them, and what becomes of those that are too long."""

import pytest

from rlreason.config import TasksConfig
from rlreason.errors import RecipeError, RolloutError
from rlreason.model import check_chat, directory
from rlreason.tasks.prompts import chat_template, dressed, encode, fit
from rlreason.types import Task

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "think"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One token per character."""
    from transformers import AutoTokenizer

    characters = "".join(map(chr, range(32, 127)))
    model = {"from_config": {"model_type": "qwen2"}, "characters": characters}
    return AutoTokenizer.from_pretrained(directory(model, tmp_path_factory.mktemp("m")))


@pytest.mark.parametrize(
    ("prompt", "options", "result"),
    [
        ("hi", {}, "hi"),
        ("hi", {"template": "Q: {prompt} {x}"}, "Q: hi {x}"),
        ("hi", {"system": "think"}, [SYSTEM, USER]),
        ("hi", {"system": "think", "template": "<{prompt}>"}, [SYSTEM, {"role": "user", "content": "<hi>"}]),
        ([USER], {"template": "<{prompt}>"}, [USER]),
        ([USER], {"system": "think"}, [SYSTEM, USER]),
        ([{"role": "system", "content": "own"}, USER], {"system": "think"}, [{"role": "system", "content": "own"}, USER]),
    ],
)
def test_what_a_recipe_puts_around_a_prompt(prompt, options, result):
    assert dressed(prompt, TasksConfig(**options)) == result


def test_a_chat_template_of_the_recipe_is_used_whether_text_or_file(tokenizer, tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    for given in (CHATML, str(tmp_path / "chat.jinja")):
        ids = encode(tokenizer, [SYSTEM, USER], chat_template(given))
        assert tokenizer.decode(ids) == "<system>think</system><user>hi</user><a>"
    assert chat_template("") is None


def test_a_chat_template_that_cannot_be_used_is_told_before_anything_starts(tmp_path):
    for given, told in [
        ("nowhere.jinja", "neither Jinja text"),
        ("{% for m in messages %}", r"chat_template: line 1: .*endfor"),
        ("a\n{{ oops", "line 2: "),
    ]:
        with pytest.raises(RecipeError, match=told):
            chat_template(given)
    masked = "{%- for m in messages -%}{%- generation -%}{% continue %}{%- endgeneration -%}{%- endfor -%}"
    assert chat_template(masked) == masked, "transformers' own tag and loop controls are no mistakes"


def test_chat_messages_want_a_template_of_the_model_or_the_recipe(tmp_path):
    chat, text = [Task("0", [USER], "a")], [Task("0", "hi", "a")]
    (tmp_path / "config.json").write_text("{}")
    for model in ({"from_config": {}}, str(tmp_path)):
        check_chat(model, text)
        with pytest.raises(RecipeError, match=r"say tasks\.chat_template"):
            check_chat(model, chat)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    check_chat(str(tmp_path), chat)


def test_a_prompt_that_fits_is_asked_as_it_is(tokenizer):
    task = Task("0", "12345", "a")
    for overlong in ("drop", "truncate", "error"):
        assert fit(tokenizer, task, TasksConfig(overlong=overlong), 5)[0] is task


def test_a_longer_one_is_left_out_or_ends_the_run(tokenizer):
    task = Task("mine", "123456", "a")
    assert fit(tokenizer, task, TasksConfig(overlong="drop"), 5) is None
    with pytest.raises(RolloutError, match="task mine: its prompt has 6 tokens, and at most 5"):
        fit(tokenizer, task, TasksConfig(overlong="error"), 5)


def test_truncated_plain_text_keeps_its_end_and_its_beginning_of_sequence(tokenizer):
    from copy import deepcopy

    task, ids = fit(tokenizer, Task("0", "1+2+3=", "6"), TasksConfig(overlong="truncate"), 4)
    assert (task.prompt, tokenizer.decode(ids), task.answer) == ("2+3=", "2+3=", "6")
    begins = deepcopy(tokenizer)
    begins.bos_token = "1"
    task, ids = fit(begins, Task("0", "1+2+3=", "6"), TasksConfig(overlong="truncate"), 4)
    assert (task.prompt, tokenizer.decode(ids)) == ("+3=", "1+3=")


def test_truncated_chat_keeps_every_marker_and_the_end_of_the_longest_user_message(tokenizer):
    config = TasksConfig(overlong="truncate", chat_template=CHATML)
    prompt = [SYSTEM, {"role": "user", "content": "0123456789"}, {"role": "assistant", "content": "well"}, USER]
    whole = len(encode(tokenizer, prompt, CHATML))
    task, ids = fit(tokenizer, Task("0", prompt, "a"), config, whole - 3)
    assert len(ids) == whole - 3
    assert [m["content"] for m in task.prompt] == ["think", "3456789", "well", "hi"]
    assert prompt[1]["content"] == "0123456789"
    assert fit(tokenizer, Task("0", prompt, "a"), config, whole - 9)[0].prompt[1]["content"] == "9"
    assert fit(tokenizer, Task("0", prompt, "a"), config, whole - 10) is None, "the markers alone are too long"
