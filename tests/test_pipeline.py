"""Recipes with stages: a graph, resolved and checked before anything starts, and what a changed recipe makes stale."""

import json
from pathlib import Path

import pytest

from rlreason import checkpoint, manifest, pipeline, stages
from rlreason.config import Config
from rlreason.errors import RecipeError, StorageError


@pytest.fixture
def pipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stage.yaml").write_text("tasks: {path: t.jsonl}\nloop: {steps: 5}\n")

    def write(stages: str, base: str = "base: some/model\n") -> Path:
        Path("pipe.yaml").write_text(f"{base}out: runs/p\nseed: 3\nstages:\n{stages}")
        return Path("pipe.yaml")

    return write


def test_a_stage_is_its_recipe_then_the_pipeline_then_its_own_then_the_command_line(pipe):
    made = pipeline.load(
        pipe("  a: {recipe: stage.yaml, set: [model=$base, loop.groups=2]}\n"
             "  b: {recipe: stage.yaml, set: [model=$a, eval.path=held.jsonl]}\n"),
        ["b.loop.steps=9", "loop.samples=3"],
    ).stages  # fmt: skip
    a, b = made["a"], made["b"]
    assert (a.model, a.out, a.seed, a.loop.steps, a.loop.groups, a.loop.samples) == ("some/model", "runs/p/a", 3, 5, 2, 3)
    assert (b.model, b.eval.path, b.loop.steps) == ("runs/p/a/weights/last", "held.jsonl", 9)


def test_a_base_that_is_made_is_made_once_for_all(pipe):
    made = pipeline.load(pipe("  a: {recipe: stage.yaml, set: [model=$base]}\n", "base: {from_config: {model_type: qwen2}}\n"))
    assert made.stages["a"].model == "runs/p/base"
    assert made.base == {"from_config": {"model_type": "qwen2"}}


@pytest.mark.parametrize(
    ("stages", "override", "told"),
    [
        ("  a: {recipe: stage.yaml, set: [model=$b]}\n", "", "$b is no stage; there is $base"),
        ("  a: {recipe: stage.yaml, set: [model=$a]}\n", "", "$a is no other stage; there is $base"),
        ("  a: {recipe: stage.yaml, set: [model=$bsae]}\n", "", "did you mean $base?"),
        ("  loop: {recipe: stage.yaml, set: [model=$base]}\n", "", "no option's name"),
        ("  base: {recipe: stage.yaml, set: [model=x/y]}\n", "", "no option's name"),
        ("  a/b: {recipe: stage.yaml, set: [model=$base]}\n", "", "a word of letters"),
        (
            "  a: {recipe: stage.yaml, set: [model=$base, tasks.path=$b/samples.jsonl]}\n"
            "  b: {recipe: stage.yaml, set: [model=$base]}\n",
            "",
            "tasks.path: $b/samples.jsonl: a stage of kind train does not make that; it makes $b/weights/last, $b/weights/best",
        ),
        (
            "  a: {recipe: stage.yaml, set: [model=$b]}\n  b: {recipe: stage.yaml, set: [model=$base, kind=sample]}\n",
            "",
            "model: $b: a stage of kind sample does not make that; it makes $b/samples.jsonl",
        ),
        (
            "  a: {recipe: stage.yaml, set: [model=$b]}\n  b: {recipe: stage.yaml, set: [model=$c]}\n"
            "  c: {recipe: stage.yaml, set: [model=$a]}\n",
            "",
            "pipe.yaml:5: stages.a: the stages wait for each other: a -> b -> c -> a",
        ),
        ("  on: {recipe: stage.yaml, set: [model=$base]}\n", "", "True is no word"),
        (
            "  a: {recipe: stage.yaml, set: [model=$base]}\n  b: {recipe: stage.yaml, set: [model=$a/weights/best]}\n",
            "",
            "$a/weights/best: there is none without eval.every",
        ),
        ("  a: {recipe: stage.yaml, set: [modle=x]}\n", "", "modle: there is no such option; did you mean model?"),
        ("  a: {recip: stage.yaml}\n", "", "pipe.yaml:5: stages.a: expected recipe: FILE"),
        ("  a: {recipe: stage.yaml, set: model=x}\n", "", "stages.a: expected recipe: FILE"),
        ("  a: {recipe: stage.yaml, set: [3]}\n", "", "stages.a: expected recipe: FILE"),
        ("  - a\n", "", "expected a mapping of names to stages"),
        ("  a: !!python/name:os.system x\n", "", "is not a recipe"),
        ("  a: {recipe: none.yaml, set: [model=$base]}\n", "", "none.yaml: cannot be read"),
        ("  a: {recipe: stage.yaml, set: [model=$base]}\n", "algoritm.loss=clip", "did you mean algorithm.loss?"),
        ("  a: {recipe: stage.yaml, set: [model=$base]}\n", "a.loop.stpes=2", "did you mean loop.steps?"),
        ("  a: {recipe: stage.yaml, set: [model=$base]}\n", "model=x", "the one it all begins with is base="),
    ],
)
def test_a_pipeline_with_a_mistake_is_refused(pipe, stages, override, told):
    with pytest.raises(RecipeError) as caught:
        pipeline.load(pipe(stages), [override] if override else [])
    assert any(told in p for p in caught.value.problems)


def test_the_seed_of_all_stages_is_that_of_the_base(pipe):
    path = pipe("  a: {recipe: stage.yaml, set: [model=$base]}\n")
    assert (pipeline.load(path).seed, pipeline.load(path, ["seed=7"]).seed, pipeline.load(path, ["a.seed=7"]).seed) == (3, 7, 3)


def test_nothing_is_moved_aside_under_a_command_that_is_running(chain):
    made = pipeline.load(chain, ["a.loop.steps=6"])
    with stages.claimed(made.out):
        with pytest.raises(StorageError, match="another process is running"):
            pipeline.run(made, redo=True)
        with pytest.raises(StorageError, match="another process is running"):
            stages.aside(made.out)
    assert manifest.read(Path("runs/p/a"))["state"] == "done"


def test_stages_run_when_what_they_take_is_there_whatever_their_order_in_the_file(pipe):
    made = pipeline.load(
        pipe("  last: {recipe: stage.yaml, set: [model=$middle, eval.path=$first/samples.jsonl]}\n"
             "  free: {recipe: stage.yaml, set: [model=$base]}\n"
             "  middle: {recipe: stage.yaml, set: [model=$base, tasks.path=$first/samples.jsonl]}\n"
             "  first: {recipe: stage.yaml, set: [model=$base, kind=sample]}\n")
    )  # fmt: skip
    assert [*made.stages] == ["free", "first", "middle", "last"]
    assert made.needs["last"] == {"model": "middle", "eval.path": "first"}
    assert made.stages["middle"].tasks.path == "runs/p/first/samples.jsonl"


def test_what_the_command_line_overrides_is_no_edge(pipe):
    stages = "  a: {recipe: stage.yaml, set: [model=$base]}\n  b: {recipe: stage.yaml, set: [model=$a]}\n"
    assert pipeline.load(pipe(stages), ["b.model=some/other"]).needs["b"] == {}


def test_the_best_weights_of_a_stage_can_be_taken_and_those_of_an_export(pipe):
    made = pipeline.load(
        pipe("  a: {recipe: stage.yaml, set: [model=$base, eval.every=1, loop.save_every=1, eval.tasks=2]}\n"
             "  b: {recipe: stage.yaml, set: [model=$a/weights/best, kind=export]}\n"
             "  c: {recipe: stage.yaml, set: [model=$b]}\n")
    ).stages  # fmt: skip
    assert (made["b"].model, made["c"].model) == ("runs/p/a/weights/best", "runs/p/b/model")


def test_a_source_of_a_mixture_may_come_from_a_stage(pipe):
    made = pipeline.load(
        pipe("  a: {recipe: stage.yaml, set: [model=$base, kind=sample]}\n"
             "  b: {recipe: stage.yaml, set: [model=$base, tasks.path=, tasks.mixture.x.path=$a/samples.jsonl]}\n")
    )  # fmt: skip
    assert made.stages["b"].tasks.mixture == {"x": {"path": "runs/p/a/samples.jsonl"}}
    assert made.needs["b"] == {"tasks.mixture.x.path": "a"}


# ---- what is looked at before the first stage starts ----


def test_every_input_that_exists_is_looked_at_before_anything_starts(pipe):
    """The tasks of the second stage are wrong, and so is the model of the third; what a stage makes is not looked for."""
    Path("t.jsonl").write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n")
    Path("bad.jsonl").write_text(json.dumps({"prompt": "p"}) + "\n")
    made = pipeline.load(
        pipe("  a: {recipe: stage.yaml, set: [model=$base, kind=sample]}\n"
             "  b: {recipe: stage.yaml, set: [model=$a2, tasks.path=bad.jsonl]}\n"
             "  a2: {recipe: stage.yaml, set: [model=$base, tasks.path=$a/samples.jsonl]}\n"
             "  c: {recipe: stage.yaml, set: [model=./nowhere]}\n", "base: {from_config: {model_type: qwen2}}\n")
    )  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        pipeline.check(made, redo=False)
    assert caught.value.problems == [
        "stages.b: bad.jsonl:1: has neither answer nor response nor info",
        "stages.c: model: ./nowhere is no directory here, and no name of the form owner/model",
    ]


def test_of_a_mixture_that_is_partly_still_to_be_made_the_rest_is_looked_at(pipe):
    Path("t.jsonl").write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n")
    made = pipeline.load(
        pipe("  a: {recipe: stage.yaml, set: [model=$base, kind=sample]}\n"
             "  b: {recipe: stage.yaml, set: [model=$base, tasks.path=, tasks.mixture.x.path=$a/samples.jsonl, "
             "tasks.mixture.y.path=none.jsonl, eval.path=held.jsonl]}\n", "base: {from_config: {model_type: qwen2}}\n")
    )  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        pipeline.check(made, redo=False)
    assert caught.value.problems == [
        "stages.b: tasks.mixture.y.path: none.jsonl: there is no such file",
        "stages.b: held.jsonl: there is no such file",
    ]


def test_an_examination_needs_no_tasks_to_train_on(pipe):
    Path("held.jsonl").write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n")
    set_ = "kind=eval, tasks.path=, eval.path=held.jsonl, eval.tasks=5"
    made = pipeline.load(
        pipe(f"  a: {{recipe: stage.yaml, set: [model=$base, {set_}]}}\n", "base: {from_config: {model_type: qwen2}}\n")
    )
    pipeline.check(made, redo=False)


# ---- what a changed recipe makes stale ----


def work(config: Config, root: Path) -> None:
    """Pretend that the stage ran: the files of its kind, and a manifest."""
    out = Path(config.out)
    manifest.begin(config, out.name, root)
    manifest.amend(out, weights={"begin": "0"})
    (out / "weights" / "v1").mkdir(parents=True)
    (out / "weights" / "v1" / "model.safetensors").write_text(f"{out.name} {config.loop.steps}")
    checkpoint.point(out / "weights" / "last", "v1")
    manifest.finish(config, 1.0)


@pytest.fixture
def chain(pipe):
    Path("t.jsonl").write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n")
    path = pipe("  a: {recipe: stage.yaml, set: [model=$base]}\n  b: {recipe: stage.yaml, set: [model=$a]}\n"
                "  c: {recipe: stage.yaml, set: [model=$base]}\n")  # fmt: skip
    made = pipeline.load(path)
    for config in made.stages.values():
        work(config, made.out)
    return path


def test_nothing_is_stale_when_nothing_has_changed(chain):
    assert pipeline.stale(pipeline.load(chain)) == {}


def test_a_changed_option_is_named_and_what_comes_after_it_is_stale_too(chain):
    found = pipeline.stale(pipeline.load(chain, ["a.loop.steps=6"]))
    assert found == {"a": ["loop.steps was 5, is 6"], "b": ["it takes up a, which is stale"]}


def test_options_that_change_nothing_make_nothing_stale(chain):
    assert pipeline.stale(pipeline.load(chain, ["log.rollouts=3", "eval.gate=stop"])) == {}


def test_a_changed_file_is_named(chain):
    Path("t.jsonl").write_text(json.dumps({"prompt": "q", "answer": "a"}) + "\n")
    assert pipeline.stale(pipeline.load(chain))["c"] == ["tasks.path: t.jsonl is not what it was"]
    Path("t.jsonl").write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n")  # another time, the same content
    assert pipeline.stale(pipeline.load(chain)) == {}
    Path("t.jsonl").unlink()
    assert pipeline.stale(pipeline.load(chain))["c"] == ["tasks.path: t.jsonl is not there any more"]


def test_an_output_that_somebody_touched_is_named(chain):
    Path("runs/p/a/weights/v1/model.safetensors").write_text("other")
    found = pipeline.stale(pipeline.load(chain))
    assert found["a"] == ["runs/p/a/weights/last is not what it was when the stage ended"]
    assert found["b"][0] == "model: runs/p/a/weights/last is not what it was"


def test_a_pipeline_may_be_moved(chain):
    Path("runs/p").rename("runs/q")
    assert pipeline.stale(pipeline.load(chain, ["out=runs/q"])) == {}


def test_stale_stages_are_refused_by_name_and_with_the_way_out(chain):
    with pytest.raises(RecipeError) as caught:
        pipeline.check(pipeline.load(chain, ["b.loop.steps=6"]), redo=False)
    told = str(caught.value)
    assert "loop.steps was 5, is 6" in told
    assert "--redo" in told
    assert "\n    a" not in told
    pipeline.check(pipeline.load(chain, ["b.loop.steps=6"]), redo=True)


def test_force_goes_on_with_what_was_begun_and_leaves_what_is_done(chain):
    changed = pipeline.load(chain, ["loop.steps=6"])
    with pytest.raises(RecipeError, match="--force goes on from what is there"):
        pipeline.check(changed, redo=False)
    pipeline.check(changed, redo=False, force=True)
    for name, config in changed.stages.items():
        checkpoint.write_atomic(Path(config.out) / "summary.json", json.dumps({"model": name}))
        assert stages.run(config, name, root=changed.out, force=True) == {"model": name}


def test_a_start_that_failed_before_it_had_weights_is_no_work(pipe):
    Path("t.jsonl").write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n")
    path = pipe("  a: {recipe: stage.yaml, set: [model=$base]}\n")
    made = pipeline.load(path)
    manifest.begin(made.stages["a"], "a", made.out)
    assert pipeline.stale(pipeline.load(path, ["loop.steps=6"])) == {}
