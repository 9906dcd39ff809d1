"""The learner's tensor code on fake tensors of an accelerator, in bfloat16; a process of its own, since it changes torch.

Passes run on a private device type, which torch treats as an accelerator: with a CPU build of torch, too. With a CUDA build
they run on "cuda" as well, but forward alone: without a GPU, torch's autograd refuses tensors of "cuda", fake or not.

Shown: a tensor left on the CPU, or made there, meets one of the device; log-probabilities, losses and gradients have another
dtype or shape than intended; a parameter gets no gradient; the host reads a value in the middle of a pass, which fake
tensors do not have; buckets of weights are not taken apart as they were packed.

Not shown: any number. No kernel runs, so overflow, memory, speed, streams, NCCL, IPC and CUDA graphs are untouched. On the
private device type libraries take their branch for an unknown device; kernels that CUDA lacks, or alone has, go unnoticed.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also where there is a GPU: nothing is to run there
if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).resolve().parents[2])]  # not this folder, whose modules are the package's

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import AutoModelForCausalLM, Qwen2Config

from rlreason.algorithms import objective
from rlreason.config import AlgorithmConfig
from rlreason.forward import Read, logits, read, token_logprobs
from rlreason.head import Head
from rlreason.types import Batch, Sample
from rlreason.weights import tensors

LENGTHS = (7, 13, 18, 9)  # tokens of each sample, 4 of them the prompt's
TINY = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "tie_word_embeddings": False}  # fmt: skip
PRIVATE = "pretended"
DTYPE = torch.bfloat16


def devices() -> Iterator[tuple[torch.device, bool]]:
    """Device types to run on, and whether they have a backward pass. "cuda" first, as the private one is there to stay."""
    if torch.version.cuda:
        yield torch.device("cuda"), False
    _setup_privateuseone_for_python_backend(PRIVATE)
    yield torch.device(PRIVATE), True


class Mode(FakeTensorMode):
    """Builds values of `torch.tensor` on the CPU and moves them, as torch itself does where no GPU is found.

    It takes the private device type for one that is found.
    """

    avoid_device_init = True


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)

    def one(length: int) -> Sample:
        mask = np.arange(length) >= 4
        tokens = rng.integers(2, TINY["vocab_size"], length).astype(np.int32)
        return Sample(tokens, mask, np.where(mask, -4.0, 0.0).astype(np.float32), "", 0, reward=1.0)

    return [one(length) for length in LENGTHS]


class Case:
    """A model on the device, and a batch there."""

    def __init__(self, device: torch.device, attention: str, learns: bool):
        self.device, self.learns = device, learns
        config = Qwen2Config(**TINY)
        with device:
            self.model = AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation=attention)
        self.model.train()
        self.batch = Batch(*(torch.from_numpy(column).to(device) for column in Batch.collate(samples())))

    def read(self, packed: bool, head: Head | None = None) -> Read:
        hidden = TINY["hidden_size"] if packed else None
        return read(partial(logits, self.model), self.batch.tokens, [*LENGTHS], 0.7, hidden, True, head)

    def expect(self, value: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        seen, wanted = (value.device.type, value.dtype, tuple(value.shape)), (self.device.type, dtype, shape)
        if seen != wanted:
            raise AssertionError(f"{seen} instead of {wanted}")

    def backward(self, total: Tensor) -> None:
        """Every parameter gets a gradient of its own dtype. Nothing where the device has no backward pass."""
        if not self.learns:
            return
        total.backward()
        for name, parameter in self.model.named_parameters():
            if parameter.grad is None:
                raise AssertionError(f"{name} has no gradient")
            self.expect(parameter.grad, DTYPE, tuple(parameter.shape))
        self.model.zero_grad()


def forward_and_backward(case: Case, packed: bool, head: Head | None) -> None:
    found = case.read(packed, head)
    shape = (len(LENGTHS), max(LENGTHS))
    case.expect(found.logp, torch.float32, shape)
    assert found.entropy is not None
    case.expect(found.entropy, torch.float32, shape)
    case.backward(found.logp.sum() + found.entropy.sum())


def loss(case: Case, algorithm: AlgorithmConfig) -> None:
    found = case.read(packed=False)
    batch = case.batch._replace(old=found.logp.detach())
    per_token, seen = objective(found.logp, batch, algorithm, found.entropy)
    total = (per_token * batch.weight).sum()
    case.expect(total, torch.float32, ())
    for name, value in seen.items():
        if value.device.type != case.device.type:
            raise AssertionError(f"metric {name} is on {value.device}")
    case.backward(total)


def canary(case: Case) -> None:
    with torch.no_grad():
        tokens = torch.tensor([[1] * 16], device=case.device)
        case.expect(token_logprobs(logits(case.model, tokens), tokens), torch.float32, (1, 16))


def buckets(case: Case) -> None:
    source = tensors.Source.of(case.model.named_parameters())
    tensors.BUCKET = 20_000  # bytes: several buckets, and tensors larger than one
    sent = [*tensors.messages(source)]
    assert len(sent) > 1

    def receive(size: int) -> Tensor:
        bucket = sent.pop(0)
        case.expect(bucket, torch.uint8, (size,))
        return bucket

    arrived = [pair for bucket in tensors.parted(source.describe(), receive) for pair in bucket]
    assert not sent
    assert [name for name, _ in arrived] == [spec.name for spec in source.specs]
    for (_, t), spec in zip(arrived, source.specs, strict=True):
        case.expect(t, spec.dtype, spec.shape)


def mistakes(case: Case) -> None:
    """Two of the mistakes that all of this looks for are made, and have to be noticed."""
    made: list[Callable[[Tensor], object]] = [
        lambda logp: logp * torch.ones(len(LENGTHS), max(LENGTHS)),  # a tensor left on the CPU
        lambda logp: logp.sum().item(),  # a value read by the host
    ]
    for mistake in made:
        try:
            mistake(case.read(packed=False).logp)
        except RuntimeError:
            continue
        raise AssertionError(f"mistake {made.index(mistake) + 1} went unnoticed")


def cases(device: torch.device, learns: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    for attention in ("sdpa", "eager"):
        case = Case(device, attention, learns)
        for packed in (False, True):
            yield (
                f"{attention}, {'packed' if packed else 'one sample a row'}",
                partial(forward_and_backward, case, packed, None),
            )
        yield f"{attention}, objective", partial(loss, case, AlgorithmConfig())
        yield f"{attention}, canary", partial(canary, case)
        for name in ("bfloat16", "float32"):
            other = Case(device, attention, learns)
            head = Head(other.model, 1000.0, name == "float32")
            yield f"{attention}, logits in parts, {name} head", partial(forward_and_backward, other, False, head)
    yield "buckets", partial(buckets, case)
    yield "mistakes are seen", partial(mistakes, case)


def main() -> int:
    faulthandler.enable()  # where a gradient is on another device than its tensor, autograd aborts on the private type
    failed = False
    for device, learns in devices():
        with Mode(allow_non_fake_inputs=True):  # host tables of transformers and numpy's columns are real
            for name, attempt in cases(device, learns):
                print(f"{device.type}: {name}: ", end="", flush=True)  # first: the process may end in it
                try:
                    attempt()
                    print("ok", flush=True)
                except Exception as error:  # a case that fails is a line, and the others are run
                    failed = True
                    print(f"FAIL {type(error).__name__}: {str(error)[:300]}", flush=True)
                    traceback.print_exc(limit=-8)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
