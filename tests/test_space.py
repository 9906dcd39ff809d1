"""The room that a run takes: arithmetic by hand, and models whose parameters torch counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlreason import space
from rlreason.config import AlgorithmConfig, Config, EvalConfig, LearnerConfig, LoopConfig
from rlreason.errors import StorageError
from rlreason.space import Room, by_config, check, parameters, room

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
ZERO = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [  # of a model of 1000 parameters: 12 kB of checkpoint and 4 kB of model on the CPU, 14 and 2 on a GPU
        (Config(loop=LoopConfig(steps=10, save_every=1, keep=2)), Room(2 * 16_000, 16_000)),
        (Config(loop=LoopConfig(steps=10, save_every=1, keep=1)), Room(16_000, 16_000)),
        (Config(loop=LoopConfig(steps=10, save_every=0, keep=2)), Room(16_000, 0)),
        (Config(loop=LoopConfig(steps=10, save_every=6, keep=2)), Room(2 * 16_000, 0)),
        (Config(loop=LoopConfig(steps=10, save_every=1), eval=EvalConfig(every=5)), Room(2 * 16_000 + 4_000, 16_000)),
        (Config(loop=LoopConfig(steps=10, save_every=1), transport="file"), Room(2 * 16_000 + 4_000, 16_000)),
        (Config(loop=LoopConfig(save_every=1), learner=LearnerConfig(deepspeed=ZERO)), Room(2 * 20_000, 20_000)),
        (Config(loop=LoopConfig(save_every=1), device="cuda"), Room(2 * 16_000, 16_000)),
        (
            Config(loop=LoopConfig(save_every=1), algorithm=AlgorithmConfig(kl_loss=0.1, reference_every=5)),
            Room(40_000, 20_000),
        ),
        (Config(kind="sample"), Room(0, 0)),
        (Config(kind="export"), Room(4_000, 0)),
    ],
)
def test_room_by_hand(config, expected):
    assert room(config, 1000) == expected


MODELS = {
    "qwen2": {"model_type": "qwen2", "vocab_size": 500, "tie_word_embeddings": True},
    "untied": {"model_type": "qwen2", "vocab_size": 500, "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "vocab_size": 500, "head_dim": 32},
    "llama": {"model_type": "llama", "vocab_size": 500, "tie_word_embeddings": False},
    "qwen3_moe": {"model_type": "qwen3_moe", "vocab_size": 500, "num_experts": 8, "moe_intermediate_size": 96, "head_dim": 32,
                  "tie_word_embeddings": False},
}  # fmt: skip
COUNT = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
with torch.device("meta"):
    print(json.dumps({name: AutoModelForCausalLM.from_config(AutoConfig.for_model(**about)).num_parameters()
                      for name, about in json.loads(sys.argv[1]).items()}))
"""


def test_a_config_tells_the_size_of_its_model_within_a_few_percent():
    models = {name: TINY | about for name, about in MODELS.items()}
    done = subprocess.run([sys.executable, "-c", COUNT, json.dumps(models)], capture_output=True, text=True, check=True)
    for name, counted in json.loads(done.stdout).items():
        assert by_config(models[name]) == pytest.approx(counted, rel=0.03), name
    assert by_config({"model_type": "unheard of"}) == 0


def test_a_directory_tells_it_by_its_safetensors_or_its_config(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [30, 4], "data_offsets": [0, 480]},
              "b": {"dtype": "F32", "shape": [7], "data_offsets": [480, 508]}}  # fmt: skip
    text = json.dumps(header).encode()
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes(len(text).to_bytes(8, "little") + text + bytes(508))
    assert parameters(str(tmp_path)) == 2 * 127
    (tmp_path / "model-2.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(StorageError, match="shorter than its header says"):
        parameters(str(tmp_path))
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    (tmp_path / "config.json").write_text(json.dumps(TINY | MODELS["qwen2"]))
    assert parameters(str(tmp_path)) == by_config(TINY | MODELS["qwen2"]) > 50_000
    assert parameters("owner/model-on-a-hub") == 0


def made(out, parameters: int, **more) -> Config:
    """A config whose model, made from sizes, has about so many parameters."""
    sizes = {"hidden_size": 1, "num_hidden_layers": 0, "num_attention_heads": 1, "vocab_size": parameters}
    return Config(model={"from_config": sizes}, out=str(out), loop=LoopConfig(steps=10, save_every=1), **more)


def test_what_does_not_fit_is_refused_with_the_bytes_needed_and_free(tmp_path):
    check({"run": made(tmp_path / "run", 1000)}, tmp_path / "run")
    with pytest.raises(StorageError) as caught:
        check({"run": made(tmp_path / "run", 10**15)}, tmp_path / "run")
    told = str(caught.value)
    assert f"{48 * (10**15 + 1):,} bytes are needed there (43,655.7 TiB" in told
    assert " are free (" in told
    assert "loop.keep" in told
    assert caught.value.code == 5
    assert not (tmp_path / "run").exists()


def test_stages_add_up_through_the_models_that_they_take_and_what_is_done_is_left_out(tmp_path):
    first = made(tmp_path / "a", 10**15)
    second = Config(model=str(tmp_path / "a" / "weights" / "last"), out=str(tmp_path / "b"), loop=first.loop)
    both = {"a": first, "b": second}
    assert space.source("b", both, tmp_path, None) == first.model
    assert space.source("b", {"b": Config(model=str(tmp_path / "base"))}, tmp_path, {"from_config": {}}) == {"from_config": {}}
    with pytest.raises(StorageError, match=f"{(2 * 32 + 16) * (10**15 + 1):,} bytes are needed"):
        check(both, tmp_path)
    for name in both:
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"state": "done", "recipe": {}, "inputs": {}}))
    check(both, tmp_path)


def test_what_a_run_has_written_already_needs_no_room_again(tmp_path, small_disk):
    """On a disk of a megabyte: 40 kB of checkpoints fit beside 900 kB of something else only because they are there."""
    told = small_disk("""
        out = disk / "run"
        config = made(out, 20_000)
        (out / "checkpoints" / "v1").mkdir(parents=True)
        (out / "checkpoints" / "v1" / "shard").write_bytes(bytes(640_000))
        check({"run": config}, out)
        (out / "checkpoints" / "v1" / "shard").unlink()
        (disk / "other").write_bytes(bytes(640_000))
        try:
            check({"run": config}, out)
        except StorageError as error:
            print(error)
    """)
    assert "960,048 bytes are needed" in told


def test_a_checkpoint_that_will_not_fit_is_not_begun(tmp_path, small_disk):
    told = small_disk("""
        space.another(disk)
        (disk / "checkpoints" / "v1").mkdir(parents=True)
        (disk / "weights" / "v1").mkdir(parents=True)
        (disk / "checkpoints" / "v1" / "shard").write_bytes(bytes(300_000))
        (disk / "checkpoints" / "v1" / "MANIFEST.json").write_text("{}")
        (disk / "weights" / "v1" / "model").write_bytes(bytes(100_000))
        space.another(disk)
        (disk / "other").write_bytes(bytes(400_000))
        try:
            space.another(disk)
        except StorageError as error:
            print(error)
    """)
    assert f"{tmp_path}: 400,002 bytes are needed for a checkpoint, and " in told
    assert "make room" in told


@pytest.fixture
def small_disk(tmp_path):
    """A function that runs lines in a process that has a real disk of one megabyte; skips where none may be mounted."""
    script = "import sys; sys.path.insert(0, %r)\nfrom test_space import *\ndisk = Path(%r)\n"

    def run(lines: str) -> str:
        text = script % (str(Path(__file__).parent), str(tmp_path)) + "\n".join(line[8:] for line in lines.splitlines())
        mounted = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -c "$0"'
        done = subprocess.run(["unshare", "-rm", "sh", "-c", mounted, text], capture_output=True, text=True, check=False)
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip(f"no disk of our own here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
