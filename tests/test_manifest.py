"""Manifests: what identifies weights, files and recipes, and what counts as a change."""

import json
from pathlib import Path

import pytest

from rlreason import manifest
from rlreason.config import Config, EvalConfig, LearnerConfig, TasksConfig


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl").write_text("{}\n")
    return Config(model="some/model", out="run", tasks=TasksConfig(path="t.jsonl"))


def test_a_manifest_says_what_a_stage_is_made_from(config):
    manifest.begin(config, "cold")
    made = manifest.read(Path("run"))
    assert (made["stage"], made["kind"], made["state"], made["seed"]) == ("cold", "train", "begun", 0)
    assert made["inputs"]["model"] == {"path": "some/model"}  # a name for a hub has no hash
    assert made["inputs"]["tasks.path"]["sha256"] == manifest.checksum(Path("t.jsonl"))
    assert made["code"] == manifest.code()
    assert made["recipe"]["loop.steps"] == 100
    assert not {"out", "log.rollouts", "eval.gate"} & made["recipe"].keys()


def test_the_time_of_the_first_beginning_and_the_first_weights_are_kept_over_a_restart(config):
    manifest.begin(config, "cold")
    manifest.amend(Path("run"), weights={"begin": "abc"})
    first = manifest.read(Path("run"))
    manifest.begin(config, "cold")
    again = manifest.read(Path("run"))
    assert (again["began"], again["weights"]) == (first["began"], {"begin": "abc"})


def test_done_is_a_state_with_outputs(config):
    manifest.begin(config, "cold")
    folder = Path("run/weights/v1")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("x")
    Path("run/weights/last").symlink_to("v1")
    manifest.finish(config, 2.5)
    made = manifest.read(Path("run"))
    assert (made["state"], made["seconds"], [*made["outputs"]]) == ("done", 2.5, ["weights/last"])
    assert manifest.changes(config) == []


def test_a_reward_of_ones_own_is_an_input(config, tmp_path, monkeypatch):
    Path("mine.py").write_text("def good(task, text):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    config.tasks.reward = {"mine.good": 1.0, "exact": 1.0}
    manifest.begin(config, "cold")
    manifest.amend(Path("run"), weights={})
    Path("mine.py").write_text("def good(task, text):\n    return 0.0\n")
    assert manifest.changes(config) == [f"code of mine: {tmp_path / 'mine.py'} is not what it was"]


def test_so_is_what_that_imports_and_what_only_a_mixture_or_a_row_names(config, tmp_path, monkeypatch):
    Path("helper_of_mine.py").write_text("SHARE = 0.1\n")
    for name in ("inner", "rowed"):
        Path(f"{name}_mine.py").write_text(
            "import json\nfrom helper_of_mine import SHARE\n\ndef good(task, text):\n    return SHARE\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    config.tasks = TasksConfig(mixture={"x": {"path": "t.jsonl", "reward": {"inner_mine": {"good": 1.0}}}})
    manifest.begin(config, "cold", rewards={"rowed_mine.good", "exact"})
    manifest.amend(Path("run"), weights={})
    assert {"code of inner_mine", "code of rowed_mine", "code of helper_of_mine"} <= manifest.read(Path("run"))["inputs"].keys()
    Path("helper_of_mine.py").write_text("SHARE = 0.9\n")
    assert manifest.changes(config) == [f"code of helper_of_mine: {tmp_path / 'helper_of_mine.py'} is not what it was"]


def test_an_option_that_a_newer_version_has_is_no_change(config):
    manifest.begin(config, "cold")
    made = manifest.read(Path("run"))
    del made["recipe"]["eval.every"]
    (Path("run") / manifest.FILE).write_text(json.dumps(made | {"weights": {}}))
    assert manifest.changes(config) == []
    config.eval = EvalConfig(every=5)
    assert manifest.changes(config) == ["eval.every was 0, is 5"]


def test_on_how_much_of_what_it_is_made_is_told_and_no_other_work(config):
    manifest.begin(config, "cold")
    manifest.amend(Path("run"), weights={})
    config.learner = LearnerConfig(workers=4, tokens=1024, deepspeed={"zero_optimization": {"stage": 2}})
    config.rollout.workers = 3
    assert manifest.changes(config) == []
    assert manifest.rescaled(config) == [
        "learner.deepspeed.zero_optimization.stage was None, is 2", "learner.tokens was 8192, is 1024",
        "learner.workers was 1, is 4", "rollout.workers was 1, is 3",
    ]  # fmt: skip
    config.learner.deepspeed = {"gradient_clipping": 0.5}
    assert manifest.changes(config) == ["learner.deepspeed.gradient_clipping was None, is 0.5"]


@pytest.mark.parametrize("text", ["{}", '{"state": "done"', ""])
def test_work_whose_manifest_is_damaged_or_gone_is_mixed_with_nothing(config, text):
    """--redo moves it aside, as it does what is stale."""
    manifest.begin(config, "cold")
    Path("run/checkpoints/v3").mkdir(parents=True)
    (Path("run") / manifest.FILE).write_text(text)
    assert manifest.changes(config) == ["run/manifest.json is damaged, so nobody knows what this was made from"]
    (Path("run") / manifest.FILE).unlink()
    assert manifest.changes(config) == ["run has checkpoints, but no manifest.json that says of what"]


def test_a_folder_is_its_names_and_contents(tmp_path):
    for name, content in (("a", "1"), ("b", "2")):
        (tmp_path / name).write_text(content)
    before = manifest.entry(tmp_path)
    assert manifest.same(str(tmp_path), before)
    (tmp_path / "a").rename(tmp_path / "c")
    assert not manifest.same(str(tmp_path), before)


def test_weights_in_memory_and_in_a_directory_have_one_digest(tmp_path):
    """Whatever the order, and in one file or in several; another name, shape, type or value is another model."""
    import torch
    from safetensors.torch import save_file

    from rlreason.weights.digest import digest

    tensors = {"b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "a": torch.ones(4), "c": torch.tensor(2.0)}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    save_file(tensors, tmp_path / "one" / "model.safetensors")
    save_file({"b": tensors["b"]}, tmp_path / "two" / "model-1.safetensors")
    save_file({"a": tensors["a"], "c": tensors["c"]}, tmp_path / "two" / "model-2.safetensors")
    same = {digest(sorted(tensors.items())), manifest.weights_of(tmp_path / "one"), manifest.weights_of(tmp_path / "two")}
    assert len(same) == 1
    others = [tensors | {"a": torch.ones(4) * 2}, tensors | {"a": torch.ones(2, 2)}, tensors | {"a": torch.ones(4).double()},
              {"x": tensors["a"], "b": tensors["b"], "c": tensors["c"]}]  # fmt: skip
    assert len(same | {digest(other.items()) for other in others}) == 5
    assert manifest.weights_of(tmp_path) is None
