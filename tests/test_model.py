"""Models made from a config, and their tokenizers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlreason.errors import RecipeError
from rlreason.model import check_chat, directory, strange, unfit, write_tokenizer
from rlreason.tasks import encode
from rlreason.types import Task

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


# ---- what cannot work with a model is told before it is loaded ----


@pytest.fixture
def whole(tmp_path):
    """A directory as far as it is looked at: a config of two heads, a tokenizer of eight tokens, a file of weights."""
    path = tmp_path / "model"
    directory({"from_config": {"model_type": "qwen2", "num_attention_heads": 2}, "characters": "ab"}, tmp_path)
    (path / "model.safetensors").touch()

    def change(file="config.json", **more):
        (path / file).write_text(json.dumps((json.loads((path / file).read_text()) if (path / file).exists() else {}) | more))
        return str(path)

    return change


def told(model, width=1, stopped=False):
    return [f"{key}: {problem}" for key, problem in unfit(model, width, stopped)]


@pytest.mark.parametrize(
    ("heads", "keys", "width", "fine"),
    [(2, 2, 2, ""), (2, 2, 3, "say 2"), (12, 4, 4, ""), (12, 4, 6, "say 4 or 12"), (12, 4, 12, ""), (8, 1, 8, "")],
)
def test_heads_have_to_be_shared_out_evenly(heads, keys, width, fine):
    found = told({"from_config": {"num_attention_heads": heads, "num_key_value_heads": keys}}, width)
    assert [problem.endswith(fine) for problem in found] == ([True] if fine else [])


def test_a_tokenizer_has_to_fit_the_embedding(whole):
    assert told(whole()) == []
    assert "a token number 3, and its embedding has 3 rows, 0 to 2" in told(whole(vocab_size=3))[0]
    assert told(whole(vocab_size=4)) == [], "beyond it are the four tags, and nothing of the model's own writes them"
    assert "a token number 4" in told(whole("tokenizer_config.json", chat_template="{{ m }}<think>"))[0]


def test_an_answer_has_to_be_able_to_end(whole):
    whole("tokenizer_config.json", eos_token=None)
    assert told(whole()) == [], "config.json names it too"
    assert "has no end-of-sequence token" in told(whole(eos_token_id=None))[0]
    assert told(whole(), stopped=True) == []
    assert told(whole("generation_config.json", eos_token_id=[0])) == []


def test_weights_have_to_be_there_all_of_them(whole, tmp_path):
    index = {"a": "model.safetensors", "b": "model-2.safetensors"}
    assert (
        "1 of its 2 files of weights are not there (model-2.safetensors)"
        in told(whole("model.safetensors.index.json", weight_map=index))[0]
    )
    (tmp_path / "model" / "model.safetensors.index.json").unlink()
    (tmp_path / "model" / "model.safetensors").unlink()
    assert told(whole())[0].endswith("holds no weights (*.safetensors)")


def test_files_of_a_model_that_are_damaged_are_told(whole, tmp_path):
    for file, text in (("config.json", "{"), ("tokenizer.json", "[]"), ("tokenizer_config.json", "\ud800")):
        path = tmp_path / "model" / file
        before = path.read_bytes()
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert f"{file} " in told(str(tmp_path / "model"))[0]
        path.write_bytes(before)
    (tmp_path / "model" / "tokenizer_config.json").write_text("{")
    with pytest.raises(RecipeError, match=r"tokenizer_config\.json cannot be read"):
        check_chat(str(tmp_path / "model"), [Task("0", [{"role": "user", "content": "a"}], "b")])


def test_nothing_is_known_of_a_model_that_is_still_to_be_fetched_or_made():
    assert told("some/model", 7) == []


def test_a_made_models_embedding_has_to_hold_its_characters(tmp_path):
    with pytest.raises(RecipeError, match="vocab_size: 5 is below the 8 tokens of its characters"):
        directory({"from_config": {"model_type": "qwen2", "vocab_size": 5}, "characters": "ab"}, tmp_path)
