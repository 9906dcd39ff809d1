"""Models made from a config, and their tokenizers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlreason.errors import RecipeError
from rlreason.model import directory, strange, write_tokenizer
from rlreason.tasks import encode

CHARACTERS = "".join(map(chr, range(32, 127))) + "\n\té字"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Loaded as the learner loads it, in a directory of a Qwen2-type model: the case in which files are not believed."""
    from transformers import AutoTokenizer

    path = tmp_path_factory.mktemp("qwen")
    model = {"from_config": {"model_type": "qwen2"}, "characters": CHARACTERS}
    return AutoTokenizer.from_pretrained(directory(model, path))


@given(text=st.text(alphabet=CHARACTERS, max_size=40))
def test_every_text_of_the_alphabet_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_tag_is_one_token_and_a_character_another(tokenizer):
    assert len(tokenizer("<think>ab \n</think>").input_ids) == 6
    assert tokenizer.decode([tokenizer.eos_token_id, 5], skip_special_tokens=True) == tokenizer.decode([5])


def test_the_config_knows_its_vocabulary(tmp_path):
    path = directory({"from_config": {"model_type": "qwen2", "hidden_size": 64}, "characters": "ab"}, tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["vocab_size"], config["hidden_size"], config["eos_token_id"]) == (2 + 2 + 4, 64, 0)
    assert path == str(tmp_path / "model")
    assert write_tokenizer(tmp_path, "aab") == 2 + 2 + 4, "a character twice is one token"


def test_chat_messages_want_a_template(tokenizer):
    with pytest.raises(ValueError, match="no chat template"):
        encode(tokenizer, [{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "one/two/three", "plain"])
def test_a_model_that_is_not_there_is_told_at_once(model, tmp_path):
    with pytest.raises(RecipeError, match="no directory here"):
        directory(model, tmp_path)


def test_a_directory_that_is_no_model_is_told_at_once(tmp_path):
    with pytest.raises(RecipeError, match=r"without config\.json"):
        directory(str(tmp_path), tmp_path)


def test_a_teacher_has_to_read_the_same_tokens(tmp_path):
    made = {"from_config": {"model_type": "qwen2"}, "characters": "01"}
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    same, other = directory(made, tmp_path / "same"), directory(made | {"characters": "ab"}, tmp_path / "other")
    assert strange(same, made, tmp_path / "run") == []
    assert "has another tokenizer" in strange(other, made, tmp_path / "run")[0]
    assert "is no directory here" in strange("./nowhere", made, tmp_path / "run")[0]
