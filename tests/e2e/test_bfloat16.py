"""The learner in bfloat16, as on a GPU, with the real DeepSpeed: ZeRO 0 to 3, one rank and two, every option of the recipe."""

import pytest
from test_methods import ended, free_port, start

pytestmark = pytest.mark.e2e

BFLOAT16 = """
from rlreason.weights import tensors
stages = [*map(int, sys.argv[7].split(","))]
BATCH = [group(name) for name in "efghijkl"]  # 32 samples; the ones above have one that could not be judged
FLAT = [Group(Task(n, ""), [sample(k, 1.0) for k in (3, 9, 14)]) for n in "mn"]

def gradient(l, step=None):
    # The whole gradient of one step, by what DeepSpeed hands to the optimizer: in float32, before clipping.
    from deepspeed.utils import safe_get_full_grad
    held, real = {}, l.engine.step
    def spy(*a, **k):
        for name, p in l.engine.module.named_parameters():
            g = p.grad if l.engine.zero_optimization_stage() == 0 else safe_get_full_grad(p)
            held[name] = g.detach().double().flatten().clone()
        return real(*a, **k)
    l.engine.step = spy
    metrics = l.step(BATCH)
    l.engine.step = real
    return torch.cat([held[name] for name in sorted(held)]), metrics

def off(one, other):
    return float((one - other).norm() / other.norm())

TOLD = ("loss", "grad_norm", "policy_gap", "diverged", "idle")

exact, first = gradient(learner(AlgorithmConfig(), 0, dtype="float32", deepspeed={"zero_optimization": {"stage": 0},
                                                                                 "gradient_clipping": 0.0}))
for stage in stages:
    ds = {"zero_optimization": {"stage": stage}, "gradient_clipping": 0.0}
    l = learner(AlgorithmConfig(), stage, dtype="bfloat16", deepspeed=ds)
    one, metrics = gradient(l)
    seen = {"stage": l.stage, "dtypes": sorted({str(p.dtype) for p in l.engine.module.parameters()}), "moved": l.moved,
            "off": off(one, exact), "first": {k: metrics[k] for k in TOLD}, "flat": {k: l.step(FLAT)[k] for k in TOLD}}
    half, _ = gradient(learner(AlgorithmConfig(), stage, dtype="bfloat16",
                               deepspeed=ds | {"data_types": {"grad_accum_dtype": "bf16"}})) if stage in (1, 2) else (one, 0)
    seen["accumulated in bfloat16"] = off(half, exact)
    if stage == 3:  # whole, but for the bucket at hand: each parameter is gathered, and given back
        bucket, tensors.BUCKET = tensors.BUCKET, 20000
        total = sum(p.ds_numel for p in l.engine.module.parameters())
        there = lambda: sum(p.numel() for p in l.engine.module.parameters() if p.ds_numel > 20000 // 2)
        seen["gathered"] = [max(there() for _ in l._weights().tensors()) / total, there() / total]
        tensors.BUCKET = bucket
    handle = l.publish()
    seen["published"] = sorted({*handle["dtypes"]}) if rank == "0" else ["bfloat16"]
    l.save(f"{out}/{stage}", {"version": l.version, "cursor": 4})
    l.step(BATCH)
    again = learner(AlgorithmConfig(), stage, dtype="bfloat16", deepspeed=ds)
    again.restore(f"{out}/{stage}")
    again.step(BATCH)
    seen["resumed"] = again.digest() == l.digest()
    l.export(f"{out}/hf-{stage}")
    if rank == "0":
        from safetensors.torch import load_file
        read = load_file(f"{out}/hf-{stage}/model.safetensors")
        seen["exported"] = sorted({str(t.dtype) for t in read.values()})
    told[stage] = seen

OPTIONS = {"head": {"logits": 1e-6}, "float32_head": {"float32_head": True}, "packing": {"packing": True},
           "eager": {"attention": "eager"}, "checkpointing": {"gradient_checkpointing": True}, "two updates": {"updates": 2}}
METHODS = {"reference": AlgorithmConfig(**KL, reference_every=1), "entropy": AlgorithmConfig(entropy=0.01)}
for stage in stages:
    plain = learner(AlgorithmConfig(), stage, dtype="bfloat16").step(BATCH)
    for name, options in OPTIONS.items():
        l = learner(AlgorithmConfig(), stage, dtype="bfloat16", **options)
        steps = [l.step(BATCH) for _ in range(2)]
        told[f"{stage} {name}"] = [{k: step[k] for k in TOLD} for step in (plain, *steps)]
    for name, method in METHODS.items():
        l = learner(method, stage, dtype="bfloat16")
        steps = [l.step(BATCH) for _ in range(2)]
        told[f"{stage} {name}"] = [{k: step[k] for k in TOLD} for step in (plain, *steps)]

sick = learner(AlgorithmConfig(), stages[-1], dtype="bfloat16")
BATCH[0].samples[0].logprobs[-1] = float("nan")
told["nan"] = sick.step(BATCH)["diverged"]
print(json.dumps(told))
"""


def right(told: dict, stages: list[int]) -> None:
    for stage in stages:
        seen = told[str(stage)]
        assert seen["stage"] == max(stage, 1), "DeepSpeed's own stage 0 hides its float32 masters"
        assert seen["moved"], "the step was looked at, and every parameter moved"
        assert seen["dtypes"] == ["torch.bfloat16"]
        assert seen["published"] == ["bfloat16"]
        assert seen["off"] < 0.02, "beside float32"
        assert seen["off"] < seen["accumulated in bfloat16"] or stage not in (1, 2)
        assert seen["first"]["diverged"] == 0
        assert seen["first"]["grad_norm"] > 0
        assert (seen["flat"]["idle"], seen["flat"]["grad_norm"]) == (1.0, 0.0)
        assert seen["resumed"]
        if stage == 3:
            most, after = seen["gathered"]
            assert most < 0.5
            assert after == 0
        assert seen.get("exported", ["torch.bfloat16"]) == ["torch.bfloat16"]
    for name, steps in told.items():
        if " " in name:
            plain, *rest = steps
            assert all(step["diverged"] == 0 and step["grad_norm"] > 0 for step in rest), name
            if "reference" not in name and "entropy" not in name and "updates" not in name:
                assert rest[0]["loss"] == pytest.approx(plain["loss"], abs=2e-2), name
    assert told["nan"] == 1.0


@pytest.mark.parametrize("stages", ["0,1", pytest.param("2,3", marks=pytest.mark.long)])
def test_one_rank_in_bfloat16(models, tmp_path, stages):
    told = ended(start(BFLOAT16, models("qwen2-tied"), tmp_path, "", 0, 1, free_port(), stages))
    right(told, [*map(int, stages.split(","))])


@pytest.mark.parametrize("stages", [pytest.param("1,2", marks=pytest.mark.long), "3"])
def test_two_ranks_in_bfloat16(models, tmp_path, stages):
    port = free_port()
    ranks = [start(BFLOAT16, models("qwen2-untied"), tmp_path, "", rank, 2, port, stages) for rank in range(2)]
    told = [ended(rank) for rank in ranks]
    for one in told:
        right(one, [*map(int, stages.split(","))])
