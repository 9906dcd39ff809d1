"""Every method through the real learner, on one rank and on two: reference, teacher, proximal policy, credit and losses."""

import json
import math
import os
import socket
import subprocess
import sys
import tempfile

import pytest

pytestmark = pytest.mark.e2e

COMMON = """
import json, os, sys
from dataclasses import replace
from rlreason.placement import Placement, environment
os.environ.update(environment(Placement("cpu", False, "shm", 1, 1)))
import numpy as np, torch
from rlreason.algorithms import ADVANTAGES, CORRECTIONS, LOSSES
from rlreason.config import AlgorithmConfig, Config, LearnerConfig, LoopConfig, RolloutConfig, TasksConfig
from rlreason.learner import Learner
from rlreason.types import Group, Sample, Task

rng = np.random.default_rng(0)
made, out, teacher, rank, world, address = sys.argv[1:7]

def learner(algorithm, stage=0, **options):
    options = {"lr": 1e-3, "tokens": 64, "deepspeed": {"zero_optimization": {"stage": stage}}} | options
    options = LearnerConfig(workers=int(world), **options)
    config = Config(model=made, out=out, learner=options, loop=LoopConfig(steps=4), rollout=RolloutConfig(max_tokens=16),
                    tasks=TasksConfig(reward={"exact": 1.0, "format": 0.5}), algorithm=algorithm)
    return Learner(int(rank), config, made, False, "cpu", "shm", address)

def sample(length, reward):
    tokens = rng.integers(2, 90, 4 + length).astype(np.int32)
    mask = np.arange(4 + length) >= 4
    logprobs = np.where(mask, -4.0 - rng.random(4 + length), 0).astype(np.float32)
    parts = {"exact": reward, "format": reward and 1 - reward}
    return Sample(tokens, mask, logprobs, "", 0, reward=reward, parts=parts, truncated=length == 15)

def group(name):
    return Group(Task(name, ""), [sample(int(n), float(r)) for n, r in zip(rng.integers(1, 16, 4), [0, 1, 1, 0])])

groups = [group(name) for name in "abcd"]
groups[0].samples.append(sample(9, None))  # could not be judged
KL = dict(kl_loss=0.1, kl_reward=0.01, kl_credit=0.05)
told = {}

def weights(l):
    return [float(p.detach().double().abs().sum()) for p in l.engine.module.parameters()]
"""

ONE = """
l = learner(AlgorithmConfig())
for name, registry in {"advantage": ADVANTAGES, "loss": LOSSES, "correction": CORRECTIONS}.items():
    for method in registry:
        l.config.algorithm = AlgorithmConfig(**{name: method}, entropy=0.01, overlong="mask", covariance="clip_cov")
        told[f"{name} {method}"] = l.step(groups)
nothing = Group(Task("flat", ""), [sample(3, 1.0), sample(4, 1.0)])
l.config.algorithm = AlgorithmConfig(keep="differ", refill=False)
told["flat"] = l.step([nothing])
l.config.algorithm = AlgorithmConfig(overlong="mask")
told["truncated"] = l.step([Group(Task("long", ""), [sample(15, 1.0), sample(15, 0.0)])])

own = learner(AlgorithmConfig(**KL, reference_every=2))
for g in groups:  # the policy itself sampled
    for s, logp in zip(g.samples, own._logprobs(own._logits, g.samples)):
        s.logprobs = (logp * s.mask).astype(np.float32)
told["first"] = own.step(groups)["reference_kl"]
before = own._logprobs(own.reference, groups[0].samples)
own.step(groups)  # and now the reference is the policy
after = own._logprobs(own.reference, groups[0].samples)
policy = own._logprobs(own._logits, groups[0].samples)
told["moved"] = float(np.abs(np.concatenate(before) - np.concatenate(after)).max())
told["is policy"] = float(np.abs(np.concatenate(policy) - np.concatenate(after)).max())
own.save(out, {"version": own.version, "cursor": 0})
own.step(groups)
again = learner(AlgorithmConfig(**KL, reference_every=2))
again.restore(out)
again.step(groups)
told["resumed"] = weights(again) == weights(own)

student = learner(AlgorithmConfig(advantage="none", kl_credit=1.0, reference=teacher), lr=2e-3, tokens=4096)
for p in student.reference.model.parameters():  # a random teacher says next to nothing; this one is surer
    p.data *= 1.5
prompts = torch.from_numpy(rng.integers(2, 90, (64, 4)))  # 64 contexts

@torch.no_grad()
def distance():
    ours, theirs = (torch.log_softmax(m(prompts)[:, -1], -1) for m in (student._logits, student.reference))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())

told["distance"] = [distance()]
for _ in range(60):
    with torch.no_grad():
        logp = torch.log_softmax(student._logits(prompts)[:, -1], -1)
    tokens = torch.multinomial(logp.exp(), 8, replacement=True)
    rows = torch.cat([prompts.repeat_interleave(8, 0), tokens.reshape(-1, 1)], 1).numpy().astype(np.int32)
    logprobs = logp.gather(1, tokens).reshape(-1).numpy()
    mask = np.arange(5) >= 4
    student.step([Group(Task(str(i), ""), [Sample(row, mask, (mask * lp).astype(np.float32), "", 0, reward=0.0)])
                  for i, (row, lp) in enumerate(zip(rows, logprobs))])
told["distance"].append(distance())
print(json.dumps(told))
"""

MANY = """
found = []
for stage in map(int, sys.argv[7].split(",")):
    l = learner(AlgorithmConfig(**KL, advantage="reinforce_pp", reference_every=1, proximal="learner"), stage=stage, updates=2)
    metrics = [l.step(groups) for _ in range(2)]
    l.save(f"{out}/{stage}", {"version": l.version, "cursor": 0})
    if l.reference:
        torch.distributed.barrier()
        l.reference.restore(f"{out}/{stage}")
    metrics.append(l.step(groups))
    found.append([{k: m[k] for k in ("loss", "grad_norm", "reference_kl", "policy_gap", "mismatch/k3")} for m in metrics])
print(json.dumps(found))
"""


# gloo's threads may abort a process that ends in good order, or hold it for ever; those of a run are ended by a signal too.
END = """
sys.stdout.flush()
torch.distributed.barrier()
os._exit(0)
"""


def start(script: str, model, out, teacher, rank: int, world: int, port: int, *more: str) -> subprocess.Popen:
    # A rank that fills a pipe that nobody reads yet keeps the others waiting.
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  `ended` closes it
    process = subprocess.Popen(
        [sys.executable, "-c", COMMON + script + END, str(model), str(out), str(teacher), str(rank), str(world),
         f"127.0.0.1:{port}", *more],
        stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    process.errors = errors
    return process


def ended(process: subprocess.Popen):
    with process.errors as errors:
        try:
            text, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        errors.seek(0)
        assert process.returncode == 0, errors.read()[-3000:]
    return json.loads(text.splitlines()[-1])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def told(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("saved")
    return ended(start(ONE, models("qwen2-untied"), out, models("qwen2-tied"), 0, 1, free_port()))


def test_every_method_makes_a_step_of_numbers(told):
    steps = {name: metrics for name, metrics in told.items() if isinstance(metrics, dict)}
    assert len(steps) > 25
    for name, metrics in steps.items():
        assert all(map(math.isfinite, metrics.values())), name


def test_the_diagnostics_are_in_every_step(told):
    kinds = ("kl", "k3", "ppl_ratio", "chi2_token", "chi2_sequence", "masked")
    assert {f"mismatch/{kind}" for kind in kinds} <= told["advantage grpo"].keys()
    assert told["advantage grpo"]["mismatch/k3"] > 0


def test_a_step_with_nothing_to_learn_from_has_no_gradient(told):
    assert told["flat"]["grad_norm"] == told["truncated"]["grad_norm"] == 0


def test_the_reference_is_the_first_policy_and_refreshed_when_asked(told):
    assert abs(told["first"]) < 1e-6
    assert told["moved"] > 1e-3
    assert told["is policy"] == 0


def test_a_refreshed_reference_is_part_of_a_checkpoint(told):
    assert told["resumed"] is True


def test_teacher_credit_brings_the_policy_to_the_teacher(told):
    """Eight tokens after each of 64 prompts, sampled anew at every step: KL(policy‖teacher), over the whole vocabulary."""
    before, after = told["distance"]
    assert after < 0.2 * before


def test_ranks_and_zero_stages_agree_with_one_process(models, tmp_path):
    """Credit over the batch, KL in reward, credit and loss, a proximal policy and a reference that is cut in parts."""
    model = models("qwen2-untied")
    alone = ended(start(MANY, model, tmp_path / "one", model, 0, 1, free_port(), "0"))[0]
    port = free_port()
    ranks = [start(MANY, model, tmp_path / "two", model, rank, 2, port, "0,2,3") for rank in range(2)]
    many = ended(ranks[0])
    assert many == ended(ranks[1])
    for stage in many:
        for here, there in zip(alone, stage, strict=True):
            assert here == pytest.approx(there, rel=2e-3, abs=1e-6)
