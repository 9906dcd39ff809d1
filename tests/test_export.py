"""A model that is exported is the model that it was, and its card tells what the manifests tell."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from rlreason import card, checkpoint, evaluate, export, manifest, model
from rlreason.config import AlgorithmConfig, Config, EvalConfig, ExportConfig, LearnerConfig, RolloutConfig, TasksConfig
from rlreason.errors import Failure, Interrupted, RecipeError, ResourceError, StorageError
from rlreason.lineage import ancestors, lineage, settings, shown
from rlreason.pipeline import MADE

SIZES = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
ABOUT = {"model_type": "qwen2", "parameters": 1234, "dtype": "float32"}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}a: "


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A whole model of one layer, with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    model.make({"from_config": SIZES, "characters": "".join(map(chr, range(32, 127))) + "\n"}, folder)
    model.draw(str(folder), 0)
    return folder


# ---- the directory ----


def test_what_is_exported_is_the_same_bytes_again(tiny, tmp_path):
    about = export.convert(tiny, tmp_path / "once")
    assert export.convert(tiny, tmp_path / "twice") == about
    assert about["parameters"] == sum(
        size
        for size in [102 * 64, 4 * 64 * 64, 3 * 64, 3 * 64 * 128, 3 * 64]  # tied head, attention, its biases, MLP, norms
    )
    names = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert [(tmp_path / "once" / n).read_bytes() for n in names] == [(tmp_path / "twice" / n).read_bytes() for n in names]
    assert manifest.weights_of(tmp_path / "once") == manifest.weights_of(tiny)


def test_the_type_is_the_one_that_is_stored_whatever_the_config_says(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny, tmp_path / "half")
    tensors = {name: t.bfloat16() for name, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert export.convert(folder, tmp_path / "out")["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert manifest.weights_of(tmp_path / "out") == manifest.weights_of(folder)


def broken(tiny: Path, folder: Path, how: str) -> Path:
    """A copy of the model with something wrong."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    norm = "model.norm.weight"
    if how == "missing":
        del tensors[norm]
    if how == "unexpected":
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(1)
    if how == "mismatched":
        tensors[norm] = torch.zeros(3)
    if how == "not a number":
        tensors[norm][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if how == "cut off":
        os.truncate(folder / "model.safetensors", 10_000)
    if how == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", r"has no weights for model\.norm\.weight"),
        ("unexpected", r"has no use for: model\.layers\.7\.mlp\.up_proj\.weight"),
        ("mismatched", r"has weights of another shape for model\.norm\.weight"),
        ("not a number", "not finite"),
        ("cut off", "cannot be read"),
        ("no tokenizer", "knows no text at all"),
    ],
)
def test_what_is_no_whole_model_is_refused(tiny, tmp_path, how, told):
    with pytest.raises(RecipeError, match=told):
        export.convert(broken(tiny, tmp_path / "bad", how), tmp_path / "out")


def exported(config: Config) -> dict:
    return asyncio.run(export.run(config, "export", None, time.time()))


def test_the_driver_gets_a_whole_directory_and_a_summary(tiny, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    for stale in ("model.partial", "model"):  # of a run that was cut off
        (out / stale).mkdir(parents=True)
        (out / stale / "garbage").write_text("x")
    config = Config(model=str(tiny), out=str(out), kind="export", tasks=TasksConfig(chat_template=TEMPLATE))
    summary = exported(config)
    assert sorted(path.name for path in out.iterdir()) == ["logs", "model"]
    assert not (out / "model" / "garbage").exists()
    assert summary["model"] == str(out / "model")
    assert summary["peak_rss_bytes"] > 1e8
    assert (summary["steps"], summary["tokens"], summary["policy_gap_max"], summary["accuracy_after"]) == (0, 0, None, None)
    mine, theirs = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out / "model", tiny))
    ids = torch.arange(40).reshape(2, 20)
    assert torch.equal(mine(ids).logits, theirs(ids).logits)
    assert AutoTokenizer.from_pretrained(out / "model").chat_template == TEMPLATE
    text = (out / "model" / "README.md").read_text()
    assert "No manifest speaks of it" in text
    code = text.split("```python\n")[1].split("```")[0]  # what the card says of how to use it
    exec(code.replace('path = "."', f"path = {str(out / 'model')!r}").replace("max_new_tokens=256", "max_new_tokens=3"), {})


def test_the_process_says_what_is_wrong_and_its_driver_repeats_it(tiny, tmp_path, capsys):
    source = broken(tiny, tmp_path / "bad", "missing")
    assert export.main(str(source), str(tmp_path / "out")) == 2
    failure = export._failure(2, f"a warning\n{capsys.readouterr().err}", "it")
    assert isinstance(failure, RecipeError)
    assert failure.problems == [f"model: {source} has no weights for model.norm.weight"]
    (tmp_path / "file").write_text("")
    assert export.main(str(tiny), str(tmp_path / "file" / "out")) == 5
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "log", "kind", "told"),
    [
        (2, "rlreason: model: a\nrlreason: model: b\n", RecipeError, "model: a\nmodel: b"),
        (5, "noise\nrlreason: no space left\n", StorageError, "no space left"),
        (-9, "", ResourceError, "memory runs out"),
        (1, "Traceback\nValueError: x\n", Failure, "    ValueError: x"),
        (2, "usage: python\n", Failure, "    usage: python"),
    ],
)
def test_how_the_process_ended_decides_how_it_is_told(code, log, kind, told):
    failure = export._failure(code, log, "it")
    assert type(failure) is kind
    assert told in str(failure)


def test_a_driver_that_is_asked_to_stop_does_so_at_once(tiny, tmp_path):
    async def stopped() -> None:
        asyncio.get_running_loop().call_later(0.3, os.kill, os.getpid(), signal.SIGTERM)
        await export.run(Config(model=str(tiny), out=str(tmp_path), kind="export"), "export", None, time.time())

    with pytest.raises(Interrupted):
        asyncio.run(stopped())
    assert not psutil.Process().children()


def test_the_process_dies_with_its_driver(tiny, tmp_path):
    code = f"""
import asyncio
from rlreason import export
from rlreason.config import Config
asyncio.run(export.run(Config(model={str(tiny)!r}, out={str(tmp_path)!r}, kind="export"), "export", None, 0.0))"""
    driver = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 30
        while not (children := psutil.Process(driver.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait()
    _, alive = psutil.wait_procs(children, timeout=3)
    assert not alive


# ---- the card ----


def stage(root: Path, name: str, weights: dict, summary: dict, root_of: Path | None = None, **options) -> Config:
    """Write what a stage leaves behind, by the code that does."""
    config = Config(out=str(root / name), **options)
    manifest.begin(config, name, root_of or root)
    manifest.amend(root / name, weights=weights)
    checkpoint.write_atomic(root / name / "summary.json", json.dumps(summary))
    manifest.finish(config, 1.0)
    return config


def score(mean: float) -> dict:
    return {"mean": mean, "n": 50, "low": mean - 0.1, "high": mean + 0.1}


@pytest.fixture
def run(tiny, tmp_path) -> Path:
    """A pipeline: cold start, reinforcement, harvest, fine-tuning from the base again, exam."""
    root = tmp_path / "mini"
    shutil.copytree(tiny, root / "base")
    (root / "base" / MADE).write_text(json.dumps({"base": {}, "seed": 3}))
    (root / "pipeline.json").write_text("{}")
    data = tmp_path / "data" / "cold.jsonl"
    data.parent.mkdir()
    data.write_text('{"prompt": "1 + 1 = ", "answer": "2"}\n')
    digest, base = manifest.weights_of(tiny), "b" * 64
    recorded = AlgorithmConfig(answers="recorded", loss="nll")
    for name in ("cold", "reason", "general"):
        shutil.copytree(tiny, root / name / "weights" / "v4")
        (root / name / "weights" / "last").symlink_to("v4")
    reward = {"exact": 1.0}
    stage(root, "cold", {"begin": base, "end": "c" * 64}, {"steps": 4, "tokens": 1000, "accuracy_after": score(0.2)},
          model=str(root / "base"), algorithm=recorded, tasks=TasksConfig(path=str(data), reward=reward))  # fmt: skip
    stage(root, "reason", {"begin": "c" * 64, "end": "d" * 64},
          {"steps": 9, "tokens": 1234567, "accuracy_before": score(0.2), "accuracy_after": score(0.8),
           "regressions": ["words: 0.500 -> 0.400"]},
          model=str(root / "cold" / "weights" / "last"), tasks=TasksConfig(generate="addition", reward=reward),
          algorithm=AlgorithmConfig(preset="grpo"), learner=LearnerConfig(lr=3e-4))  # fmt: skip
    (root / "harvest").mkdir()
    (root / "harvest" / "samples.jsonl").write_text("{}\n")
    stage(root, "harvest", {"begin": "d" * 64}, {"steps": 2, "tokens": 700, "samples": 31, "accuracy_after": score(0.75)},
          kind="sample", model=str(root / "reason" / "weights" / "last"),
          tasks=TasksConfig(generate="addition", reward=reward))  # fmt: skip
    stage(root, "general", {"begin": base, "end": digest}, {"steps": 4, "tokens": 800, "accuracy_after": score(0.9)},
          model=str(root / "base"), algorithm=recorded, rollout=RolloutConfig(max_tokens=48), tasks=TasksConfig(
              path=str(root / "harvest" / "samples.jsonl"), reward=reward, template="Q: {prompt}\nA:"))  # fmt: skip
    rows = [
        {"task": f"t{i}", "domain": "sums" if i < 3 else "words", "metric": "exact",
         "samples": [{"parts": {"exact": float(right)}, "vote": "", "length": 5, "truncated": False} for right in (i > 0, 1)]}
        for i in range(5)
    ]  # fmt: skip
    (root / "exam").mkdir()
    told = {"model": "…", "weights": digest, "metric": "exact"} | evaluate.evaluation(rows, [1, 2]).dict()
    (root / "exam" / "scores.json").write_text(json.dumps(told))
    stage(root, "exam", {"begin": digest}, {}, kind="eval", model=str(root / "general" / "weights" / "last"),
          tasks=TasksConfig(generate="addition", reward=reward), eval=EvalConfig(samples=2, tasks=5, k=[1, 2]))  # fmt: skip
    return root


def carded(root: Path, folder: Path) -> str:
    return card.card(str(root / "general" / "weights" / "last"), folder, ABOUT, root / "exam" / "scores.json")


def test_the_lineage_goes_through_data_too_and_weights_through_models_alone(run):
    stages = lineage(str(run / "general" / "weights" / "last"))
    assert [s.label for s in stages] == ["cold", "reason", "harvest", "general"]
    assert [s.label for s in ancestors(stages)] == ["general"]
    assert [s.label for s in ancestors(stages[:2])] == ["cold", "reason"]
    assert stages[-1].takes == {"tasks.path": run / "harvest"}


def test_the_card_has_a_row_per_stage_in_order(run, tiny):
    text = carded(run, tiny)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `cold` | imitation (nll) | `base`, drawn at random (seed 3) | `…/cold.jsonl` | 4 | 1,000 "
        "| exact: 0.200 [0.100, 0.300] |",
        "| `reason` | reinforcement (grpo: grpo, clip) | `cold/weights/last` | `addition`, generated | 9 | 1,234,567 "
        "| exact: 0.200 [0.100, 0.300] -> 0.800 [0.700, 0.900] |",
        "| `harvest` | answers, 31 kept | `reason/weights/last` | `addition`, generated | 2 | 700 "
        "| exact: 0.750 [0.650, 0.850] |",
        "| `general` | imitation (nll) | `base`, drawn at random (seed 3) | `harvest/samples.jsonl` | 4 | 800 "
        "| exact: 0.900 [0.800, 1.000] |",
    ]
    assert "- `reason` made it worse: words: 0.500 -> 0.400" in text


def test_the_card_says_whose_weights_a_stage_began_with(run, tiny):
    text = carded(run, tiny)
    assert f"- Began with weights `{'b' * 64}`: those that `cold` began with\n" in text, (
        "the second fine-tuning is from the base"
    )
    assert f"- Began with weights `{'c' * 64}`: those that `cold` ended with\n" in text
    assert f"- Ended with weights `{manifest.weights_of(tiny)}`: **this model's**\n" in text
    data = checkpoint.checksum(run / "harvest" / "samples.jsonl")
    assert f"- tasks.path: `harvest/samples.jsonl`, sha256 `{data}`" in text
    assert "learner.lr: 0.0003" in text
    assert "Q: {prompt}\nA:" in text
    assert "by imitation (nll). It is `general/weights/last -> v4`." in text


def test_the_hub_reads_the_card_and_its_scores(run, tiny, tmp_path):
    from huggingface_hub import ModelCard

    (tmp_path / "README.md").write_text(carded(run, tiny))
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("transformers", "text-generation", None)
    assert data.tags == ["rlreason", "sft"], "its weights come from imitation alone"
    assert data.model_name == "mini"
    found = {(r.dataset_name, r.dataset_config, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {
        ("addition", None, "pass@1"): 0.9, ("addition", None, "pass@2"): 1.0,
        ("addition", None, "maj@2"): pytest.approx(found["addition", None, "maj@2"]),
        ("addition", "sums", "pass@1"): 0.833333, ("addition", "sums", "pass@2"): 1.0,
        ("addition", "sums", "maj@2"): found["addition", "sums", "maj@2"],
        ("addition", "words", "pass@1"): 1.0, ("addition", "words", "pass@2"): 1.0, ("addition", "words", "maj@2"): 1.0,
    }  # fmt: skip


def test_the_scores_stand_in_the_card_with_their_intervals(run, tiny):
    text = carded(run, tiny)
    said = json.loads((run / "exam" / "scores.json").read_text())
    for domain, scores in {"all": said["scores"], **said["domains"]}.items():
        one = scores["pass@1"]
        assert f"| {domain} | {one['n']} | {one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}] |" in text
    assert "2 answers each, sampled at temperature 1, of 256 tokens at most" in text
    assert "What was scored has the hash of these weights." in text


def test_a_run_that_was_moved_has_the_same_card_and_no_path_of_the_machine(run, tiny, tmp_path):
    text = carded(run, tiny)
    assert str(tmp_path) not in text
    assert not [line for line in text.splitlines() if "/tmp" in line or "/home" in line]
    moved = tmp_path / "elsewhere" / "mini"
    moved.parent.mkdir()
    run.rename(moved)
    assert carded(moved, tiny) == text


def test_what_was_made_anew_since_is_said(run, tiny):
    (run / "harvest" / "samples.jsonl").write_text("{}\n{}\n")
    manifest.finish(Config(out=str(run / "harvest"), kind="sample", model=""), 1.0)
    assert "What `general` took as `tasks.path` has been made anew since" in carded(run, tiny)


def test_models_and_data_of_a_hub_are_named_as_the_hub_does(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "gsm" / "weights" / "v300")
    stage(tmp_path, "gsm", {}, {"steps": 300, "tokens": 5}, root_of=tmp_path / "no", model="Qwen/Qwen2.5-1.5B",
          tasks=TasksConfig(path="openai/gsm8k", reward={"math": 1.0}), algorithm=AlgorithmConfig(preset="dapo"))  # fmt: skip
    text = card.card(str(tmp_path / "gsm" / "weights" / "v300"), tiny, ABOUT, None)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "base_model": "Qwen/Qwen2.5-1.5B",
        "datasets": ["openai/gsm8k"], "tags": ["rlreason", "reinforcement-learning", "reasoning"],
    }  # fmt: skip
    assert "[openai/gsm8k](https://huggingface.co/datasets/openai/gsm8k)" in text
    assert "# gsm\n" in text
    assert "of no recorded revision: `Qwen/Qwen2.5-1.5B`, `openai/gsm8k`" in text
    assert "No scores were given for this card" in text


def test_a_model_that_no_manifest_speaks_of_has_a_card_that_says_so(tiny):
    (tiny.parent / "manifest.json").write_text('{"name": "somebody else\'s"}')
    text = card.card(str(tiny), tiny, ABOUT, None)
    assert "No manifest speaks of it" in text
    assert "How it was trained" not in text
    assert "base_model: Qwen/Qwen3-8B" in card.card("Qwen/Qwen3-8B", tiny, ABOUT, None)


def test_scores_of_other_weights_are_refused(run, tiny, tmp_path):
    scores = run / "exam" / "scores.json"
    config = Config(model=str(tiny), out=str(tmp_path / "out"), kind="export", export=ExportConfig(scores=str(scores)))
    assert export._check(scores, str(tiny))["mean"] == 0.9
    said = json.loads(scores.read_text())
    scores.write_text(json.dumps(said | {"weights": "e" * 64}))
    with pytest.raises(RecipeError, match="are not the weights of"):
        exported(config)
    scores.write_text("[]")
    with pytest.raises(RecipeError, match=r"not the scores\.json of a stage of kind eval"):
        exported(config)


def test_the_chat_template_is_that_of_the_stage_that_trained_it(tiny, tmp_path):
    file = tmp_path / "chat.jinja"
    for given, told in (("", None), (TEMPLATE, TEMPLATE), (str(file), TEMPLATE)):
        file.write_text(TEMPLATE)
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)
        stage(tmp_path, "run", {}, {}, model=str(tiny), tasks=TasksConfig(path="openai/gsm8k", chat_template=given))
        config = Config(model=str(out / "weights" / "last"), out=str(tmp_path / "out"), kind="export")
        assert export._template(config) == told
    file.write_text("another {{ 1 }}")
    with pytest.raises(RecipeError, match="which is not what it was"):
        export._template(config)
    config.tasks.chat_template = "own {{ 2 }}"
    assert export._template(config) == "own {{ 2 }}"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/home/me/models/qwen", "…/qwen"),
        ("~/models/qwen", "…/qwen"),
        ("data/cold.jsonl", "data/cold.jsonl"),
        ("$cold/weights/last", "$cold/weights/last"),
        ("http://me:secret@10.0.0.1:8000/v1", "(a URL)"),
        ("see /mnt/nvme/x.json, or http://a/b", "see …/x.json, or (a URL)"),
        ("<think>a</think>\n1/2/3 and/or", "<think>a</think>\n1/2/3 and/or"),
        ({"path": "/a/b", "api_key": "x", "max_tokens": 5}, {"path": "…/b", "api_key": "(not shown)", "max_tokens": 5}),
        (["/a/b", 1, None], ["…/b", 1, None]),
    ],
)
def test_a_card_does_not_tell_what_is_nobody_elses_business(value, told):
    assert shown(value) == told


def test_options_that_are_keys_are_not_shown(tiny, tmp_path):
    teacher = {"url": "http://10.0.0.1/v1", "key_file": "mine.txt", "model": "big"}
    stage(tmp_path, "ask", {}, {}, kind="sample", model=str(tiny), rollout=RolloutConfig(vllm={"hf_token": "hf_x"}))
    made = json.loads((tmp_path / "ask" / "manifest.json").read_text())
    made["recipe"] |= {f"sample.teacher.{key}": value for key, value in teacher.items()}
    (tmp_path / "ask" / "manifest.json").write_text(json.dumps(made))
    assert settings(lineage(str(tmp_path / "ask" / "samples.jsonl"))[0]) == {
        "rollout.vllm.hf_token": "(not shown)", "sample.teacher.url": "(a URL)", "sample.teacher.key_file": "(not shown)",
        "sample.teacher.model": "big",
    }  # fmt: skip
