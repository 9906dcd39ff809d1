"""A reward model: a tiny one, made here, and others that cannot score."""

import asyncio
import json
import math

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from rlreason.config import RewardsConfig
from rlreason.model import write_tokenizer
from rlreason.rewards.pool import Pool
from rlreason.rewards.scorer import scorer
from rlreason.types import Task

LETTERS = "abcdefghijklmnopqrstuvwxyz 0123456789+=.:<>|/\nA"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}"
DROPS = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}\n{% endfor %}"
TASK = Task("0", "6 + 7 = ", "13")
CHAT = Task("1", [{"role": "system", "content": "be brief"}, {"role": "user", "content": "6 + 7 = "}], "13")
TEXT = "<think>a sum</think>13"


def make(folder, kind=Qwen2ForSequenceClassification, template="", **options):
    folder.mkdir()
    size = write_tokenizer(folder, LETTERS)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=1, max_position_embeddings=256, **options,
    )  # fmt: skip
    model = kind(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(20.0) if weight.dim() > 1 else None  # scores that differ from each other
    model.save_pretrained(folder)
    if template:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model without a chat template, and the same with one."""
    folder = tmp_path_factory.mktemp("models")
    return make(folder / "plain", num_labels=1), make(folder / "chat", num_labels=1, template=TEMPLATE)


def forward(folder, text, last=None):
    """The score of a text, worked out by hand."""
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, return_tensors="pt").input_ids
    model = Qwen2ForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(input_ids=ids[:, -last:] if last else ids).logits[0, 0].item()


@pytest.mark.parametrize(
    ("which", "task", "options", "read"),
    [
        (0, TASK, {}, "6 + 7 = <think>a sum</think>13"), (0, TASK, {"part": "answer"}, "6 + 7 = 13"),
        (0, CHAT, {}, "system: be brief\n\nuser: 6 + 7 = \n\nassistant: <think>a sum</think>13"),
        (1, TASK, {}, "<user>6 + 7 =\n<assistant><think>a sum</think>13\n"),
        (1, CHAT, {"part": "answer"}, "<system>be brief\n<user>6 + 7 =\n<assistant>13\n"),
    ],
)  # fmt: skip
def test_the_value_is_that_of_a_forward_pass(models, which, task, options, read):
    score = forward(models[which], read)
    assert scorer(task, TEXT, model=models[which], squash="none", **options) == score
    assert scorer(task, TEXT, model=models[which], **options) == pytest.approx(1 / (1 + math.exp(-score)), abs=1e-12)


def test_of_too_many_tokens_the_last_are_read_which_hold_the_response(models):
    plain, _ = models
    whole = "6 + 7 = 13"  # a token a character
    assert scorer(TASK, "13", model=plain, squash="none", max_tokens=5) == forward(plain, whole, last=5)
    assert forward(plain, whole, last=5) != forward(plain, whole)
    much = "a sum " * 100
    assert scorer(TASK, much, model=plain, squash="none") == forward(plain, much, last=256), "the model has 256 positions"
    assert scorer(TASK, "13", model=plain, squash="none", max_tokens=1) == forward(plain, "3")


def test_an_empty_response_is_the_bottom_of_the_scale_where_there_is_one(models):
    plain, _ = models
    assert scorer(TASK, "<think>a", model=plain, part="answer") == 0.0
    assert scorer(TASK, "<think>a", model=plain, part="answer", squash="none") == forward(plain, "6 + 7 = ")
    assert scorer(TASK, "\ud800 13", model=plain) > 0, "half a surrogate pair, which no tokenizer takes"


def test_a_template_that_hides_a_part_of_the_response_is_told(tmp_path):
    model = make(tmp_path / "m", num_labels=1, template=DROPS)
    with pytest.raises(ValueError, match=r"leaves out a part of the response.*part: answer"):
        scorer(TASK, TEXT, model=model)
    assert scorer(TASK, TEXT, model=model, part="answer", squash="none") == forward(model, "<user>6 + 7 = \n<assistant>13\n")


def test_what_is_no_reward_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"model_type": "qwen2"}')
    for name, told in {
        "nonesuch": "is no directory here",
        "empty": "is a directory without config.json",
        "torn": "cannot be read: ",
        make(tmp_path / "two", num_labels=2): "has 2 outputs, and a reward model has one",
        make(tmp_path / "writes", kind=Qwen2ForCausalLM): "has no weights for score.weight: it was not trained to score",
        make(tmp_path / "one", kind=Qwen2ForCausalLM, num_labels=1): "has no weights for score.weight",
    }.items():
        for _ in range(2):  # the second time from memory
            with pytest.raises(ValueError, match=f"^model: .*{told}"):
                scorer(TASK, TEXT, model=str(tmp_path / name))


@pytest.mark.parametrize("options", [{"part": "end"}, {"squash": "tanh"}, {"max_tokens": 0}])
def test_options_that_make_no_sense_are_told(options):
    with pytest.raises(ValueError, match="but part is all or answer, squash is sigmoid or none, and max_tokens is at least 1"):
        scorer(TASK, TEXT, model="x", **options)


def test_a_text_that_the_tokenizer_cannot_write_is_told(models):
    with pytest.raises(ValueError, match="knows no character of 'ÄÖ'"):
        scorer(Task("0", "Ä"), "Ö", model=models[0])


def test_it_scores_in_a_process_that_judges(models, tmp_path):
    _, chat = models
    options = {"scorer": {"model": chat, "squash": "none"}}
    config = RewardsConfig(options=options, workers=1, timeout=2)  # its own timeout is longer: it reads a model

    async def judged(texts):
        async with Pool(config, ["scorer"], tmp_path / "log") as pool:
            return await asyncio.gather(*(pool.judge(TASK, text, {"scorer": 2.0}) for text in texts))

    texts = [f"<think>{i}</think>{i + i}" for i in range(4)] * 2
    verdicts = asyncio.run(judged(texts))
    assert [v.failures for v in verdicts] == [{}] * 8
    assert [v.parts["scorer"] for v in verdicts] == [scorer(TASK, text, model=chat, squash="none") for text in texts]
    assert len({v.reward for v in verdicts}) == 4
