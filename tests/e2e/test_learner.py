"""One learner in a process of its own, with the real DeepSpeed: how it cuts, clips, schedules, saves, and what it notices."""

import json
import math
import os
import subprocess
import sys

import pytest
from real import FAMILIES
from test_methods import ended, free_port, start

pytestmark = pytest.mark.e2e

SCRIPT = """
import json, os, socket, sys
from rlreason.placement import Placement, environment
os.environ.update(environment(Placement("cpu", False, "shm", 1, 1)))
import numpy as np, torch
from rlreason.config import AlgorithmConfig, Config, LearnerConfig, LoopConfig, RolloutConfig
from rlreason.errors import Wounded
from rlreason.forward import token_entropy
from rlreason.learner import Learner
from rlreason.types import Group, Sample, Task

def learner(**options):
    with socket.socket() as s:
        s.bind(("", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    config = Config(model=sys.argv[1], out=sys.argv[2], learner=LearnerConfig(lr=1e-3, **options), loop=LoopConfig(steps=4),
                    rollout=RolloutConfig(max_tokens=16), algorithm=AlgorithmConfig(advantage="dr_grpo"))
    return Learner(0, config, sys.argv[1], False, "cpu", "shm", address)

rng = np.random.default_rng(0)

def sample(length, reward):
    tokens = rng.integers(2, 90, 4 + length).astype(np.int32)
    mask = np.arange(4 + length) >= 4
    return Sample(tokens, mask, np.where(mask, -4.0, 0).astype(np.float32), "", 0, reward=reward)

def group(name):
    return Group(Task(name, ""), [sample(int(n), float(r)) for n, r in zip(rng.integers(1, 16, 4), [0, 1, 1, 0])])

groups = [group(name) for name in "abcd"]
groups[0].samples.append(sample(9, None))  # could not be judged
told = {}

# Three tokens, of which two were drawn: evenly from four, and from p = 3/4, 1/4 at temperature 2 (logits 2 ln 3 and 0).
logits = torch.tensor([[[0.0, 0, 0, 0], [2 * np.log(3.0), 0, -1e9, -1e9], [5, 0, 0, 0]]])
told["entropies"] = token_entropy(logits, 2.0)[0].tolist()

whole = learner(tokens=4096)
first = whole.step(groups)
cut = learner(tokens=24)
second = cut.step(groups)
told["cut"] = [abs(first[k] - second[k]) / abs(first[k]) for k in ("loss", "grad_norm", "policy_gap")]
pairs = zip(whole.engine.module.parameters(), cut.engine.module.parameters())
told["weights"] = max((a - b).abs().max().item() for a, b in pairs)

groups[0].samples.pop()
told["unjudged"] = abs(learner(tokens=4096).step(groups)["loss"] - first["loss"])

# Two groups more whose answers all earn the same; in the second learner an entropy bonus of nothing wants them read.
flat = [Group(Task(name, ""), [sample(n, 1.0) for n in (3, 9, 14)]) for name in "ef"]
reads, learners = [], []
for entropy in (0.0, 1e-30):
    one = learner(updates=2)
    one.config.algorithm = AlgorithmConfig(advantage="dr_grpo", entropy=entropy)
    reads.append([])
    inner = one.engine.module.forward
    one.engine.module.forward = lambda *a, seen=reads[-1], inner=inner, **k: seen.append(len(k["input_ids"])) or inner(*a, **k)
    learners.append((one, [one.step(groups + flat), one.step(flat)]))
told["rows"] = [sum(seen) for seen in reads]
told["idle"] = [[step["idle"] for step in steps] for _, steps in learners]
told["idle metrics"] = [[[step[k] for k in ("loss", "grad_norm", "entropy")] for step in steps] for _, steps in learners]
pairs = zip(*(one.engine.module.parameters() for one, _ in learners))
told["idle weights"] = max((a - b).abs().max().item() for a, b in pairs)

scheduled = learner(warmup=2, schedule="linear")
told["rates"] = [scheduled.step(groups)["lr"] for _ in range(4)]

clipped = learner(deepspeed={"gradient_clipping": 1e-9})
before = [p.detach().clone() for p in clipped.engine.module.parameters()]
told["norm"] = clipped.step(groups)["grad_norm"]

a = learner()
a.step(groups)
a.save(sys.argv[2], {"version": 1, "cursor": 4})
a.step(groups)
b = learner()
b.restore(sys.argv[2])
told["version"] = b.version
b.step(groups)
told["resumed"] = all(torch.equal(x, y) for x, y in zip(a.engine.module.parameters(), b.engine.module.parameters()))

stuck = learner()
stuck.engine.optimizer.param_groups[0]["params"].pop()
try:
    stuck.step(groups)
except RuntimeError as error:
    told["stuck"] = str(error)

sick = learner()
with torch.no_grad():
    next(sick.engine.module.parameters())[3] = float("nan")
sick.canary = [3] * 16
try:
    sick.publish()
except Wounded as error:
    told["sick"] = str(error)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(models, tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(models("qwen2-untied")), str(tmp_path_factory.mktemp("saved"))],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_entropy_is_that_of_the_distribution_a_token_was_drawn_from(told):
    expected = [0, math.log(4), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    assert told["entropies"] == pytest.approx(expected, abs=1e-6)


def test_how_a_batch_is_cut_changes_nothing(told):
    assert max(told["cut"]) < 1e-4
    assert told["weights"] < 1e-4


def test_a_sample_that_could_not_be_judged_changes_nothing(told):
    assert told["unjudged"] == 0


def test_samples_without_a_gradient_are_not_read_and_nothing_else_differs(told):
    """16 samples that teach, and twice 6 that do not. An update without any reads a row of padding."""
    assert told["idle"] == [[pytest.approx(6 / 22), 1.0], [0.0, 0.0]]
    assert told["rows"] == [16 + 2, 22 + 6]
    assert told["idle weights"] < 1e-6
    skipped, whole = told["idle metrics"]
    assert skipped[0] == pytest.approx(whole[0], rel=1e-4)
    assert skipped[1] == [0.0, 0.0, pytest.approx(4.0)]
    assert whole[1][1] < 1e-20


def test_warm_up_never_is_zero_and_the_schedule_follows(told):
    assert told["rates"] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])


def test_the_norm_is_told_as_it_was_before_clipping(told):
    assert told["norm"] > 1e-3


def test_a_restored_learner_goes_on_to_the_bit(told):
    assert told["version"] == 1
    assert told["resumed"]


def test_a_parameter_that_does_not_move_is_told_by_name(told):
    assert told["stuck"].startswith("1 of ")
    assert "lm_head.weight" in told["stuck"]


def test_weights_with_nan_are_not_published(told):
    assert "NaN" in told["sick"]


PACKED = """
METHODS = {
    "nll": AlgorithmConfig(answers="recorded", loss="nll"),
    "grpo": AlgorithmConfig(**KL, entropy=0.01, proximal="learner"),
}
TOLD = ("loss", "grad_norm", "reference_kl", "policy_gap", "entropy", "mismatch/k3")

def gradient(l):
    sums = {}
    for name, p in l.engine.module.named_parameters():
        p.register_hook(lambda g, name=name: sums.__setitem__(name, sums.get(name, 0) + g.double()))
    return sums

WAYS = [{}, {"packing": True}, {"logits": 1e-6}, {"packing": True, "logits": 3e-6, "float32_head": True},
        {"attention": "eager"}]

def ways(name, stage):
    # A step as it is, and in other ways that must not matter.
    steps, gradients = [], []
    for way in WAYS:
        l = learner(METHODS[name], stage, updates=2, lr=1e-5, tokens=600, **way)
        assert ("logits" in way) == bool(l.head) == bool(l.reference_head if l.reference else l.head)
        sums = gradient(l) if world == "1" else {}
        steps.append(l.step(groups))
        gradients.append(torch.cat([g.flatten() for g in sums.values()] or [torch.zeros(1).double()]))
    return {"steps": [{k: step[k] for k in TOLD if k in step} for step in steps], "padding": [s["padding"] for s in steps],
            "gradients": [float((g - gradients[0]).norm() / (gradients[0].norm() + 1e-30)) for g in gradients]}

for made in made.split(","):
    for stage in map(int, sys.argv[7].split(",")):
        for name in METHODS:
            told[f"{made} {stage} {name}"] = ways(name, stage)
print(json.dumps(told))
"""

REFUSED = """
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
from rlreason.model import directory

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
for kind, more in {
    "opt": {"architectures": ["OPTForCausalLM"], "ffn_dim": 128, "word_embed_proj_dim": 64},
    "lfm2": {"architectures": ["Lfm2ForCausalLM"], "layer_types": ["conv", "full_attention"], "num_key_value_heads": 2},
    "gpt2": {"architectures": ["GPT2LMHeadModel"]},
}.items():
    made = directory({"from_config": {"model_type": kind} | SIZES | more, "characters": "abc"}, Path(out) / kind)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(made)).save_pretrained(made)
    try:
        told[kind] = learner(AlgorithmConfig(), packing=True).config.learner.packing
    except ValueError as error:
        told[kind] = str(error)

about = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "num_key_value_heads": 2, "head_dim": 32,
         "final_logit_softcapping": 0.5}
made = directory({"from_config": about | SIZES, "characters": "abc"}, Path(out) / "gemma2")
torch.manual_seed(0)
AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(made)).save_pretrained(made)
told["whole"] = learner(AlgorithmConfig(), logits=1e-6).head is None
try:
    learner(AlgorithmConfig(), float32_head=True)
except ValueError as error:
    told["float32"] = str(error)

made = sys.argv[1]
one = Group(Task("by hand", ""), [sample(n - 4, 0.0) for n in (10, 6, 5, 5, 4)])
told["padding"] = [learner(METHOD, packing=packing, tokens=4096).step([one])["padding"] for packing in (False, True)
                   for METHOD in [AlgorithmConfig(answers="recorded", loss="nll")]]
print(json.dumps(told))
"""


def same(told: dict) -> None:
    for what, run in told.items():
        for step in run["steps"][1:]:
            assert step == pytest.approx(run["steps"][0], rel=1e-5, abs=1e-8), what
        assert max(run["gradients"]) < 1e-5, what
        assert run["padding"][0] == run["padding"][2] == run["padding"][4], what
        assert max(run["padding"]) < 0.1, what


def test_packing_and_logits_in_parts_change_no_loss_and_no_gradient(models, tmp_path):
    every = ",".join(str(models(family)) for family in FAMILIES)
    same(ended(start(PACKED, every, tmp_path, "", 0, 1, free_port(), "0")))


def test_nor_does_it_on_two_ranks_under_any_stage_of_zero(models, tmp_path):
    every, port = ",".join(str(models(family)) for family in ("qwen2-tied", "llama")), free_port()
    ranks = [start(PACKED, every, tmp_path, "", rank, 2, port, "0,2,3") for rank in range(2)]
    told = ended(ranks[0])
    assert told == ended(ranks[1])
    same(told)


def test_a_model_that_cannot_be_packed_is_refused_and_padding_is_what_remains(models, tmp_path):
    """Samples of 10, 6, 5, 5 and 4 tokens: five rows of 10, or three that are full."""
    told = ended(start(REFUSED, models("qwen2-untied"), tmp_path, "", 0, 1, free_port()))
    for kind in ("opt", "lfm2"):
        assert told[kind] == f"learner.packing: {kind} lets packed samples see each other; say learner.packing=false"
    assert told["gpt2"] is True
    assert told["whole"] is True, "logits that are capped after the head are worked out all at once"
    assert told["float32"].startswith("learner.float32_head: gemma2 changes its logits after its last layer")
    assert told["padding"] == pytest.approx([0.4, 0.0])
