"""The canary's tolerance: by hand, and against what it has to tell apart."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlreason import canary

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "vocab_size": 300}  # fmt: skip


def model(dtype=torch.bfloat16, **more):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **SIZES | more), dtype=dtype)


def test_the_tolerance_by_hand():
    """Two words, in row 0 equally likely; in the other row logits of 0 and ln 3: 1/4 and 3/4."""
    logits = torch.tensor([[[0.0, 0.0]] * 3, [[0.0, math.log(3)]] * 3])
    tokens = torch.tensor([0, 0, 1])
    logprobs, tolerance = canary.judge(logits, tokens, 0.5)
    assert logprobs.tolist() == pytest.approx([0, -math.log(2), -math.log(2)])
    noise = (math.log(2) + math.log(1.5)) / 2  # from 1/2 to 1/4, and to 3/4
    assert tolerance == pytest.approx(canary.FACTOR * noise), "row 0 has no spread"
    _, tolerance = canary.judge(torch.tensor([[[0.0, 2.0]] * 3] * 2), tokens, 0.5)
    assert tolerance == pytest.approx(canary.FACTOR * 0.5 * math.sqrt(2) / 4), "rows that are alike: the spread decides"
    _, tolerance = canary.judge(torch.zeros(2, 3, 2), tokens, 0.5)
    assert tolerance == canary.FLOOR


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_another_order_of_sums_is_within_it_and_another_weight_is_not(dtype):
    """Attention by another kernel, and a batch of other shape, as healthy engines are; and a layer that kept old weights."""
    one, tokens = model(dtype), canary.draw(model().config, 0)
    logprobs, tolerance = canary.compare(one, tokens, torch.device("cpu"))
    row = torch.tensor([tokens])

    def gap(other):
        with torch.no_grad():
            logp = torch.log_softmax(other(input_ids=row).logits[:, :-1].float(), -1).gather(2, row[:, 1:, None])[0, :, 0]
        return (logp - torch.tensor(logprobs[1:])).abs().mean().item()

    assert gap(one) <= tolerance
    eager = model(dtype, attn_implementation="eager")
    assert gap(eager) <= tolerance
    with torch.no_grad():
        eager.model.layers[1].mlp.down_proj.weight.normal_(std=0.1)
    assert gap(eager) > 2 * tolerance


def test_it_is_one_pass_and_leaves_no_hook():
    one, passes = model(), []
    one.register_forward_hook(lambda *_: passes.append(1))
    first = canary.compare(one, [1, 2, 3], torch.device("cpu"))
    assert canary.compare(one, [1, 2, 3], torch.device("cpu")) == first, "the same weights, the same tolerance"
    assert passes == [1, 1]
    assert not one.get_input_embeddings()._forward_hooks


def test_a_model_of_few_positions_has_a_shorter_canary():
    assert len(canary.draw(AutoConfig.for_model("qwen2", **SIZES | {"max_position_embeddings": 20}), 0)) == 19
    assert len(canary.draw(AutoConfig.for_model("qwen2", **SIZES), 0)) == canary.TOKENS
