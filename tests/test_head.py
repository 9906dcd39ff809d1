"""The last layer read in parts: the same log-probabilities, entropies and gradients as with all logits at hand."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlreason.forward import read, readable
from rlreason.head import Head, _LogProbs

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64}  # fmt: skip


def made(kind="qwen2", **more):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | more), attn_implementation="sdpa")


def model_of(module):
    return lambda tokens, positions: (
        module(input_ids=tokens, use_cache=False, **({} if positions is None else {"position_ids": positions})).logits
    )


def test_gradients_are_those_of_the_formula():
    torch.manual_seed(0)
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((7, 5), (11, 5), (11,))]
    targets = torch.randint(11, (7,))
    # In double precision, so that finite differences tell: `float()` would round them away.
    original, torch.Tensor.float = torch.Tensor.float, lambda tensor: tensor
    try:
        assert torch.autograd.gradcheck(lambda h, w, b: _LogProbs.apply(h, w, b, targets, 0.7, 3), given)
    finally:
        torch.Tensor.float = original


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_a_step_is_the_same_as_with_logits(tied, packed, rows):
    lengths = [12, 9, 9, 4, 3, 3]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(97, (length,), generator=generator)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    found = []
    for in_parts in (False, True):
        module = made(tie_word_embeddings=tied)
        head = Head(module, 4 * 97 * rows) if in_parts else None
        assert head is None or head.rows == rows
        told = read(model_of(module), tokens, lengths, 0.8, 32 if packed else None, True, head)
        logp, entropy = (value.masked_fill(~real, 0.0) for value in told[:2])
        weight = torch.randn(logp.shape, generator=torch.Generator().manual_seed(2))
        ((logp - 0.3 * entropy) * weight).sum().backward()
        found.append((logp, entropy, torch.cat([p.grad.flatten() for p in module.parameters()]), told.area))
    (logp, entropy, gradient, area), (in_parts, spread, theirs, size) = found
    assert (logp - in_parts).abs().max() < 1e-5
    assert (entropy - spread).abs().max() < 1e-5
    assert (gradient - theirs).norm() < 1e-5 * gradient.norm()
    assert area == size


def test_outside_of_asking_a_model_gives_logits():
    module, tokens = made(), torch.arange(6)[None]
    before = module(input_ids=tokens).logits
    Head(module, 1e6)
    assert torch.equal(module(input_ids=tokens).logits, before)


def test_a_head_in_float32_does_not_round():
    module = made().bfloat16()
    with torch.no_grad():
        module.get_output_embeddings().weight.mul_(20)
    tokens = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(1))
    hidden, weight = module.model(tokens).last_hidden_state.double(), module.get_output_embeddings().weight.double()
    truth = torch.log_softmax(hidden @ weight.T, -1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    rough = read(model_of(module), tokens, [12, 12], 1.0).logp[:, 1:]
    fine = read(model_of(module), tokens, [12, 12], 1.0, head=Head(module, 1e6, whole=True)).logp[:, 1:]
    assert (rough - truth).abs().max() > 1e-3
    assert (fine - truth).abs().max() < 1e-5
    assert module(input_ids=tokens).logits.dtype == torch.float32


@pytest.mark.parametrize(("kind", "more", "fine"), [
    ("qwen2", {}, True), ("llama", {}, True), ("qwen3", {"head_dim": 16}, True),
    ("gemma2", {"head_dim": 16, "final_logit_softcapping": 1.0}, False), ("cohere", {"logit_scale": 0.5}, False),
])  # fmt: skip
def test_a_model_that_changes_its_logits_after_the_head_is_found_out(kind, more, fine):
    module = made(kind, **more)
    with torch.no_grad():
        module.get_output_embeddings().weight.mul_(20)
    head = Head(module, 1e6)
    assert readable(model_of(module), head, 97, 1e-3, torch.device("cpu")) is fine
