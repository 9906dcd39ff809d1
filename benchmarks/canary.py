"""How far apart may a healthy engine and its learner be on the canary, and which faults are further apart than that?

    python benchmarks/canary.py [--whole] [directory of a trained model ...]

Hugging Face stands for the learner. Healthy engines are vLLM with the same weights, and three other ways through the same
model in torch; faulty ones are the model in torch with a loader's mistake in its weights. docs/canary.md says
what came out. Minutes on two cores, some of them for the training of a small model on Python's own library; `--whole`,
with deep models and all of them in float32 as well, takes twenty.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from rlreason.canary import FACTOR, ROWS, TOKENS, disturbed, judge

WRITTEN = 24  # tokens that the learner writes itself, where the canary is to be of probable ones
TRAINING = 150  # steps of the small model
DEEP = 12  # layers from which on a model of random weights is left for `--whole`
COMMON = {"max_position_embeddings": 128, "tie_word_embeddings": False}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2, 4 layers of 128": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 500,
    },
    "qwen2 tied, 2 layers of 64": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 120,
        "tie_word_embeddings": True,
    },
    "qwen3, 6 layers of 256": {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 2000,
    },
    "llama, 12 layers of 256": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 8000,
    },
    "mistral, 24 layers of 256": {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4000,
    },
    "qwen2, 24 layers of 896": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 2432,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 32000,
    },
}  # fmt: skip
# Of random weights: the factor on every matrix of a layer, and the standard deviation that logits are to have.
WEIGHTS = {"fresh": (1, None), "gain 1": (1, 3.0), "gain 2": (2, 3.0), "gain 3": (3, 5.0), "heavy tails": (2, 3.0)}
LARGE = ("gain 1", "gain 3")  # weights that the largest model is tried with
RATES = (1e-6, 1e-5, 1e-4, 1e-3)


# ---- models ----


def train(folder: Path) -> None:
    """A model of 12 layers that has read a little of Python's library: trained weights, deeper than the quickstart's."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    files = sorted(map(str, Path(sysconfig.get_paths()["stdlib"]).glob("*.py")))[:150]
    level = pre_tokenizers.ByteLevel
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = level(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train(files, trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["<|end|>"], initial_alphabet=level.alphabet(), show_progress=False
    ))  # fmt: skip
    text = torch.tensor([i for f in files for i in tokenizer.encode(Path(f).read_text(errors="ignore")).ids])
    torch.manual_seed(0)
    about = AutoConfig.for_model(
        "qwen2", hidden_size=256, intermediate_size=768, num_hidden_layers=12, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, vocab_size=4096, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
        architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(about, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20, (TRAINING - step) / 50))
    for _ in range(TRAINING):
        rows = torch.stack([text[i : i + 64] for i in torch.randint(len(text) - 64, (16,))])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        warm.step()
    print(f"trained for {TRAINING} steps, loss {loss:.2f}", file=sys.stderr)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)


def draw(model: Any, kind: str, vocabulary: int) -> None:
    """Give `model`, whose weights are fresh, weights of another `kind`. Norms and biases are not left at 1 and 0."""
    import torch

    gain, spread = WEIGHTS[kind]
    for name, p in model.named_parameters():
        if kind != "fresh" and name.endswith("bias"):
            p.copy_(0.3 * torch.randn(p.shape))
        if kind != "fresh" and "norm" in name:
            p.mul_(torch.exp(0.3 * torch.randn(p.shape)))
        if "layers" not in name or p.dim() < 2:
            continue
        p.mul_(gain)
        if kind == "heavy tails":  # Student's t of 3 degrees, and two channels of the stream ten times as large
            p.mul_((3 / torch.distributions.Chi2(3.0).sample(p.shape)).sqrt() / 1.7)
            if "down_proj" in name:
                p[[3, 17]] *= 10
    if spread:
        logits = model(torch.randint(vocabulary, (1, 32))).logits
        model.model.norm.weight.mul_(spread / logits.std(-1).mean())


# ---- faults: what an engine holds instead ----


def faults(weights: dict[str, Any], about: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each with a name and the tensors that are wrong, in a layer in the middle and in all of them."""
    import torch

    def noise(like: Any) -> Any:
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(3)) * like.std()

    def swapped(a: Any, b: Any) -> tuple[Any, Any]:
        n = min(len(a), len(b))
        return torch.cat([b[:n], a[n:]]), torch.cat([a[:n], b[n:]])

    def in_layer(i: int) -> Iterator[tuple[str, dict[str, Any]]]:
        at, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        q, k, v, o = (weights[f"{at}{x}_proj.weight"] for x in "qkvo")
        gate, up, down = (weights[f"{mlp}{x}_proj.weight"] for x in ("gate", "up", "down"))
        yield "k drawn anew", {f"{at}k_proj.weight": noise(k)}
        yield "v drawn anew", {f"{at}v_proj.weight": noise(v)}
        yield "down drawn anew", {f"{mlp}down_proj.weight": noise(down)}
        yield "q and k swapped", dict(zip((f"{at}q_proj.weight", f"{at}k_proj.weight"), swapped(q, k), strict=True))
        yield "k and v swapped", {f"{at}k_proj.weight": v, f"{at}v_proj.weight": k}
        yield "gate and up swapped", {f"{mlp}gate_proj.weight": up, f"{mlp}up_proj.weight": gate}
        yield "q off by a head", {f"{at}q_proj.weight": q.roll(len(q) // about.num_attention_heads, 0)}
        yield "down off by a column", {f"{mlp}down_proj.weight": down.roll(1, 1)}
        if o.shape[0] == o.shape[1]:
            yield "o transposed", {f"{at}o_proj.weight": o.t().contiguous()}
        norm = f"model.layers.{i}.input_layernorm.weight"
        yield "norm at 1", {norm: torch.ones_like(weights[norm])}
        for x in "qkv":
            if (bias := f"{at}{x}_proj.bias") in weights:
                yield f"bias of {x} dropped", {bias: torch.zeros_like(weights[bias])}

    yield from ((f"{name}, one layer", change) for name, change in in_layer(about.num_hidden_layers // 2))
    every: dict[str, dict[str, Any]] = defaultdict(dict)
    for i in range(about.num_hidden_layers):
        for name, change in in_layer(i):
            every[name] |= change
    yield from ((f"{name}, every layer", change) for name, change in every.items())
    yield "last norm at 1", {"model.norm.weight": torch.ones(about.hidden_size)}
    rows = weights["model.embed_tokens.weight"].clone()
    last = max(1, len(rows) // 100)
    rows[-last:] = noise(rows[-last:])
    yield "last 1 % of the embedding's rows drawn anew", {"model.embed_tokens.weight": rows}


# ---- one model in one type ----


def measure(folder: str, kind: str, name: str, type_: str, trained: bool) -> None:
    """Print every pair of one model as a line of JSON. `kind`: of its weights, or several, with commas between them."""
    from rlreason.placement import Placement, environment

    os.environ.update(environment(Placement("cpu", False, "shm", 1, 1)))
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlreason.config import Config, RolloutConfig, TasksConfig
    from rlreason.rollout import Rollout
    from rlreason.weights import Publisher

    torch.set_num_threads(1)
    dtype = getattr(torch, type_)
    eps = torch.finfo(dtype).eps
    about = AutoConfig.from_pretrained(folder)
    vocabulary = about.vocab_size

    def new(attention: str) -> Any:
        options = {"dtype": torch.float32, "attn_implementation": attention}
        if trained:
            return AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        return AutoModelForCausalLM.from_config(about, **options).eval()

    def said(logits: Any, tokens: list[int]) -> Any:
        return torch.log_softmax(logits[:-1].float(), -1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]

    def random(n: int, seed: int) -> list[int]:
        found: list[int] = torch.randint(vocabulary, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
        return found

    def written(model: Any, seed: int, choose: Callable[[Any], Any]) -> list[int]:
        tokens = random(TOKENS - WRITTEN, seed)
        for _ in range(WRITTEN):
            tokens.append(int(choose(model(torch.tensor([tokens])).logits[0, -1].float())))
        return tokens

    async def main() -> None:
        torch.manual_seed(0)
        torch.set_grad_enabled(False)
        master, policy, eager, exact = new("sdpa"), new("sdpa").to(dtype), new("eager").to(dtype), new("eager")
        fresh = {n: p.clone() for n, p in master.named_parameters()}
        recipe = Config(
            model=folder, out="", tasks=TasksConfig(max_prompt=64), rollout=RolloutConfig(max_tokens=16, vllm={"dtype": type_})
        )
        rollout, publisher = Rollout(recipe, folder, "cpu"), Publisher("shm")
        for version, weights in enumerate(kind.split(",")):
            torch.manual_seed(version)
            for n, p in master.named_parameters():
                p.copy_(fresh[n])
            if not trained:
                draw(master, weights, vocabulary)
            for p, a, b, c in zip(*(m.parameters() for m in (master, policy, eager, exact)), strict=True):
                a.copy_(p), b.copy_(p), c.copy_(a)
            prompts = {("random", seed): random(TOKENS, seed) for seed in range(6)}
            for seed in range(2):
                prompts["greedy", seed] = written(policy, seed, lambda z: z.argmax())
                prompts["sampled", seed] = written(policy, seed, lambda z: torch.multinomial(z.softmax(-1), 1))
            known: dict[Any, Any] = {}
            for key, tokens in prompts.items():
                with disturbed(policy.get_input_embeddings()):
                    logits = policy(torch.tensor([tokens] * (1 + ROWS))).logits
                start = 0 if key[0] == "random" else TOKENS - WRITTEN - 1  # the first token that is compared, less 1
                _, tolerance = judge(logits[:, start:], torch.tensor(tokens[start:]), eps)
                own = torch.log_softmax(logits[0, start:-1].float(), -1)
                p = own.exp()
                weighted = ((p * own * own).sum(-1) - (p * own).sum(-1) ** 2).clamp(0).sqrt()
                known[key] = (start, said(logits[0], tokens)[start:], {
                    "fixed": 1.0, "spread": float(own.std(-1).mean()), "spread by p": float(weighted.mean()),
                    "own": tolerance / FACTOR,
                })  # fmt: skip
            common = {"model": name, "type": type_, "weights": weights}

            def tell(case: str, healthy: bool, key: Any, theirs: Any, known: Any = known, common: Any = common) -> None:
                start, mine, scales = known[key]
                off = (theirs[start:] - mine).abs()
                told = {"case": case, "healthy": healthy, "prompt": key[0], "gap": float(off.mean())}
                print(json.dumps(common | told | {"median": float(off.median())} | scales), flush=True)

            await rollout.load(publisher.publish(policy.named_parameters()), version)
            for key, tokens in prompts.items():
                tell("vLLM", True, key, torch.tensor(await rollout.score(tokens))[1:])
                row = torch.tensor([tokens])
                tell("eager attention", True, key, said(eager(row).logits[0], tokens))
                tell("computed in float32", True, key, said(exact(row).logits[0], tokens))
            with torch.enable_grad():  # the direction of a step: that of its gradient, as long everywhere, as Adam's first
                rows = torch.tensor([written(policy, seed, lambda z: torch.multinomial(z.softmax(-1), 1)) for seed in (8, 9)])
                master.zero_grad()
                master(rows, labels=rows).loss.backward()
            now = {n: p.detach() for n, p in master.named_parameters()}
            head = "model.embed_tokens.weight" if about.tie_word_embeddings else "lm_head.weight"
            step = {n: p.grad.sign() for n, p in master.named_parameters()}
            wrong = [*faults(now, about)]
            wrong += [(f"all weights a step of {r:g} old", {n: p + r * step[n] for n, p in now.items()}) for r in RATES]
            wrong += [(f"head a step of {r:g} old", {"head": now[head] + r * step[head]}) for r in (*RATES, 1e-2)]
            for case, change in wrong:
                for n, b in eager.named_parameters():
                    b.copy_(change.get(n, now[n]))
                if all(n != "head" and torch.equal(now[n], change[n]) for n in change):
                    continue  # no fault: a bias that is 0 may be dropped
                tied = eager.lm_head.weight
                if "head" in change:
                    eager.lm_head.weight = torch.nn.Parameter(change["head"].to(dtype))
                for key, tokens in prompts.items():
                    if key[1] < 2:
                        tell(case, False, key, said(eager(torch.tensor([tokens])).logits[0], tokens))
                eager.lm_head.weight = tied
        await rollout.close()

    asyncio.run(main())


# ---- tables ----


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] + ["---:"] * (len(head) - 1), *rows]) + "\n"


def number(x: float) -> str:
    return f"{x:.2g}" if x < 99.5 else f"{x:.0f}"


def tables(pairs: list[dict[str, Any]]) -> str:
    told = []
    types = sorted({p["type"] for p in pairs})
    half = [p for p in pairs if p["type"] == "bfloat16"]

    rows = []  # of formulas: how well does one factor fit all healthy pairs, and what is caught by three times the largest?
    for prompt in ("random", "greedy", "sampled"):
        for gap in ("gap", "median"):
            for scale in ("fixed", "spread", "spread by p", "own"):
                here = [p for p in half if p["prompt"] == prompt]
                healthy = [p[gap] / p[scale] for p in here if p["healthy"] and p["case"] == "vLLM"]
                most = max(p[gap] / p[scale] for p in here if p["healthy"])
                wrong = [p[gap] / p[scale] for p in here if not p["healthy"]]
                caught = sum(x > 3 * most for x in wrong) / len(wrong)
                middle = statistics.median(healthy)
                rows.append([f"{prompt}, {'mean' if gap == 'gap' else gap} of differences", scale, number(middle), number(most),
                             number(most / middle), f"{100 * caught:.0f} %"])  # fmt: skip
    told.append(table(["canary", "relative to", "median healthy", "largest", "largest / median", "faults caught"], rows))

    rows = []  # of models: the recommended canary, healthy
    for type_ in types:
        mine = [p for p in pairs if p["type"] == type_ and p["prompt"] == "random" and p["healthy"]]
        for name, weights in dict.fromkeys((p["model"], p["weights"]) for p in mine):
            here = [p for p in mine if (p["model"], p["weights"]) == (name, weights)]
            vllm = [p for p in here if p["case"] == "vLLM"]
            ratio = [p["gap"] / (FACTOR * p["own"]) for p in vllm]
            other = [p["gap"] / (FACTOR * p["own"]) for p in here if p["case"] != "vLLM"]
            rows.append([f"{name}, {weights}", type_, number(statistics.mean(p["spread"] for p in vllm)),
                         number(statistics.mean(p["gap"] for p in vllm)),
                         number(statistics.mean(FACTOR * p["own"] for p in vllm)),
                         number(statistics.median(ratio)), number(max(ratio)), number(max(other))])  # fmt: skip
    told.append(table(["healthy", "type", "spread", "gap to vLLM", "tolerance", "gap / tolerance", "largest", "other kernels"],
                      rows))  # fmt: skip

    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for p in pairs:  # of faults: the recommended canary
        if p["prompt"] == "random" and not p["healthy"]:
            kind = p["model"] if p["weights"] == "trained" else "random weights"
            ratio = p["gap"] / (FACTOR * p["own"])
            found[p["case"]][f"{p['type']}: {kind}"].append(ratio)
            found[p["case"]][p["type"]].append(ratio)
    columns = sorted({c for by in found.values() for c in by if c.startswith("bfloat16:")})
    rows = []
    for case, by in found.items():
        cells = [f"{number(min(by[c]))} to {number(max(by[c]))}" if by.get(c) else "" for c in columns]
        caught = [f"{sum(x > 1 for x in by[t])} of {len(by[t])}" if by.get(t) else "" for t in types]
        rows.append([case, *cells, *caught])
    told.append(table(["fault: gap / tolerance", *columns, *(f"caught in {t}" for t in types)], rows))
    return "\n".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description="calibrate the canary")
    parser.add_argument("trained", nargs="*", help="directories of trained models")
    parser.add_argument("--whole", action="store_true", help="deep models too, and random weights in float32")
    parser.add_argument("--pairs", type=Path, help="a file of pairs: read if it is there, else written")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        folder, kind, name, type_, trained = asked.one
        measure(folder, kind, name, type_, trained == "True")
        return
    if asked.pairs and asked.pairs.exists():
        lines = asked.pairs.read_text()
    else:
        with tempfile.TemporaryDirectory() as folder:
            lines = "".join(pairs(Path(folder), asked.trained, asked.whole))
        if asked.pairs:
            asked.pairs.write_text(lines)
    print(tables([json.loads(line) for line in lines.splitlines()]))


def pairs(out: Path, trained: list[str], whole: bool) -> Iterator[str]:
    from rlreason.model import directory

    jobs = [(name, folder, "trained") for name, folder in ((Path(f).parent.parent.name, f) for f in trained)]
    train(out / "library")
    jobs.append(("library", str(out / "library"), "trained"))
    for i, (name, about) in enumerate(MODELS.items()):
        if about["num_hidden_layers"] >= DEEP and not whole:
            continue
        made = directory({"from_config": COMMON | about, "characters": "".join(map(chr, range(32, 127)))}, out / str(i))
        jobs.append((name, made, ",".join(LARGE if about["hidden_size"] > 512 else WEIGHTS)))
    for name, folder, kind in jobs:
        for type_ in ("bfloat16", "float32"):
            if type_ == "float32" and (kind == ",".join(LARGE) or (kind != "trained" and not whole)):
                continue  # the largest would take a gigabyte for each of four models, and an engine
            command = [sys.executable, __file__, "--one", folder, kind, name, type_, str(kind == "trained")]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found = [line + "\n" for line in done.stdout.splitlines() if line.startswith('{"model"')]
            print(f"{name}, {type_}: {len(found)} pairs", file=sys.stderr)
            yield from found


if __name__ == "__main__":
    main()
