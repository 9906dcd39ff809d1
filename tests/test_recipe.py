"""Recipes: how they compose, and that every mistake in them is told before anything starts."""

import re
from pathlib import Path

import pytest

from rlreason import pipeline
from rlreason.algorithms import PRESETS
from rlreason.cli import main
from rlreason.config import arithmetic
from rlreason.errors import RecipeError
from rlreason.recipe import load, read

ROOT = Path(__file__).parent.parent
RECIPES = sorted([*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "benchmarks").glob("*.yaml")])


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Write a recipe that is right but for what the test adds to it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str = "", name: str = "run.yaml") -> Path:
        (tmp_path / name).write_text("model: some/model\nout: o\ntasks: {path: tasks.jsonl}\n" + text)
        return tmp_path / name

    return write


def problems(path, *overrides) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    assert caught.value.code == 2
    return caught.value.problems


def test_later_wins(recipe, tmp_path):
    (tmp_path / "base.yaml").write_text("loop: {steps: 5, groups: 2}\nrollout: {vllm: {dtype: float32, max_num_seqs: 4}}\n")
    config = load(recipe("extends: [base.yaml]\nloop: {steps: 7}\n"), ["loop.groups=3", "rollout.vllm.max_num_seqs=8"])
    assert (config.loop.steps, config.loop.groups, config.loop.samples) == (7, 3, 8)
    assert config.rollout.vllm == {"dtype": "float32", "max_num_seqs": 8}


def test_rewards_of_a_recipe_take_the_place_of_the_default(recipe):
    assert load(recipe()).tasks.reward == {"exact": 1.0}
    assert load(recipe(), ["tasks.reward.numeric=1", "tasks.reward.format=0.1"]).tasks.reward == {"numeric": 1, "format": 0.1}


def test_a_model_made_from_a_config_can_be_changed_in_part(recipe):
    path = recipe()
    path.write_text("model: {from_config: {model_type: qwen2, hidden_size: 64}}\nout: o\ntasks: {path: x.jsonl}\n")
    config = load(path, ["model.from_config.hidden_size=32"])
    assert config.model == {"from_config": {"model_type": "qwen2", "hidden_size": 32}}
    assert load(path, ["model=some/where"]).model == "some/where"


def test_a_reward_of_ones_own_has_dots_in_its_name(recipe):
    mine = "rlreason.rewards.answer.exact"
    path = recipe()
    path.write_text(f"model: m/m\nout: o\ntasks: {{path: x.jsonl, reward: {{{mine}: 0.5}}}}\n")
    assert load(path, [f"tasks.reward.{mine}=0.7"]).tasks.reward == {mine: 0.7}
    assert load(recipe(), [f"tasks.reward.{mine}=0.7"]).tasks.reward == {mine: 0.7}


def test_numbers_as_people_write_them(recipe):
    assert load(recipe("learner: {lr: 1e-6}\n")).learner.lr == 1e-6


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lop: {steps: 3}\n", "run.yaml:4: lop.steps: there is no such option; did you mean loop.steps?"),
        ("algoritm: {loss: clip}\n", "run.yaml:4: algoritm.loss: there is no such option; did you mean algorithm.loss?"),
        ("loop:\n  groups: 4\n  stpes: 3\n", "run.yaml:6: loop.stpes: there is no such option; did you mean loop.steps?"),
        ("loop: {steps: many}\n", "run.yaml:4: loop.steps: Value 'many' of type 'str' could not be converted to Integer"),
        ("loop: 3\n", "run.yaml:4: loop: expected a mapping of options, not 3"),
        ("learner: {lr: .nan}\n", "run.yaml:4: learner.lr: nan is not a finite number"),
        ("learner: {lr: nan}\n", "run.yaml:4: learner.lr: nan is not a finite number"),
        ("rollout: {stop: ['']}\n", "run.yaml:4: rollout.stop: an empty string"),
        ("learner: {lr: .inf}\n", "run.yaml:4: learner.lr: inf is not a finite number"),
        ("loop: {samples: 0}\n", "run.yaml:4: loop.samples: 0 is below 1"),
        (
            "algorithm: {loss: clp}\n",
            "run.yaml:4: algorithm.loss: 'clp' is not one of clip, cispo, gspo, gmpo, sapo, dppo, nll; did you mean clip?",
        ),
        (
            "algorithm: {loss_options: {hgh: 3}}\n",
            "run.yaml:4: algorithm.loss_options.hgh: is no option of clip; did you mean high?",
        ),
        ("algorithm: {loss_options: {high: big}}\n", "algorithm.loss_options.high: 'big' is not of the type float"),
        ("algorithm: {advantage: passk, advantage_options: {k: 2.5}}\n", "advantage_options.k: 2.5 is not of the type int"),
        ("algorithm: {preset: dap}\n", "run.yaml:4: algorithm.preset: 'dap' is not one of r1, dapo"),
        ("algorithm: {preset: distill}\n", "algorithm.reference: is missing: name the teacher's model"),
        (
            "algorithm: {overlong: soft, overlong_buffer: 999}\n",
            "overlong_buffer: 999 is above rollout.max_tokens, which is 256",
        ),
        ("algorithm: {reference_every: 3}\n", "nothing compares with the reference"),
        ("algorithm: {overlong_buffer: 9}\n", "overlong_buffer: has nothing to apply to: algorithm.overlong is keep"),
        ("algorithm: {covariance_options: {share: 1}}\n", "covariance_options: have nothing to apply to"),
        ("algorithm: {loss_options: {low: -1}}\n", "run.yaml:4: algorithm.loss_options.low: -1 is below 0"),
        ("algorithm: {loss_options: {dual: 0.5}}\n", "algorithm.loss_options.dual: has to be above 1, or 0 for none"),
        ("algorithm: {advantage: gdpo, advantage_options: {over: tokenz}}\n", "over: 'tokenz' is not one of samples, tokens"),
        ("algorithm: {advantage: passk, advantage_options: {k: 0}}\n", "advantage_options.k: 0 is below 1"),
        ("algorithm: {advantage: passk, advantage_options: {k: 9}}\n", "pass@9 wants 9 samples or more per task"),
        ("rewards: {options: {cosine: {of: nosuch}}}\n", "rewards.options.cosine: of: 'nosuch' is not one of"),
        ("tasks: {reward: {exact: 0}}\n", "tasks.reward: every weight is 0, so there is nothing to learn from"),
        ("algorithm: {advantage: none}\n", "none learns from kl_credit alone"),
        ("algorithm: {loss: nll}\n", "run.yaml:4: algorithm.loss: nll with answers: policy"),
        ("loop: {samples: 1}\n", "run.yaml:4: loop.samples: with one sample per task"),
        ("rollout: {vllm: {seed: 1}}\n", "run.yaml:4: rollout.vllm.seed: is not for a recipe to say"),
        ("learner: {updates: 9}\n", "run.yaml:4: learner.updates: 9 optimizer steps cannot share 8 groups"),
        ("tasks: {reward: {exakt: 1}}\n", "'exakt' is not one of exact, numeric, math"),
        ("tasks: {reward: {judge: 1}}\n", "rewards.options.judge: judge has to be told its url and model"),
        (
            "rewards: {options: {language: {taget: de}}}\n",
            "run.yaml:4: rewards.options.language: taget: is no option of language",
        ),
        ("rewards: {options: {langauge: {target: de}}}\n", "rewards.options.langauge: 'langauge' is not one of"),
        ("tasks: {reward: {exact: 1}, solved: 2}\n", "tasks.solved: 2.0 is a pass rate"),
        ("algorithm: {clip_high: 0.3}\n", "run.yaml:4: algorithm.clip_high: is called algorithm.loss_options.high now"),
        ("learner:\n  lr: ${learner.ler}\n", "run.yaml:5: learner.lr: Interpolation key 'learner.ler' not found; did you mean"),
        ("rollout: {vllm: {x: [1, [.nan]]}}\n", "run.yaml:4: rollout.vllm.x: nan is not a finite number"),
        ("rollout: {vllm: {tensor_parallel_size: x}}\n", "tensor_parallel_size: 'x' is not a whole number of GPUs"),
        (
            "eval: {tasks: 8, every: 5}\nloop: {save_every: 2}\n",
            "eval.every: 5 is no multiple of loop.save_every (2), so the best could not be kept: 2 × 2 = 4, 2 × 3 = 6",
        ),
        ("eval: {tasks: 8, metric: format}\n", "run.yaml:4: eval.metric: 'format' is not among tasks.reward (exact)"),
    ],
)
def test_a_mistake_is_told_with_its_place(recipe, text, told):
    if text.startswith("tasks"):  # the file of the fixture has that key already
        path = recipe()
        path.write_text(f"model: m/m\nout: o\n{text[:-2]}, path: x.jsonl}}\n")
    else:
        path = recipe(text)
    found = problems(path)
    assert len(found) == 1
    assert told in found[0]


def test_all_mistakes_are_told_at_once(recipe):
    found = problems(recipe("lop: {steps: 3}\nlearner: {lr: fast}\n"), "loop.samples=0", "algoritm.loss=clip", "nonsense")
    assert [p.split(": ")[1] for p in found] == ["'nonsense' is not of the form key=value", "lop.steps", "learner.lr",
                                                 "algoritm.loss", "loop.samples"]  # fmt: skip
    assert found[-1].startswith("command line: ")


def test_an_interpolation_may_lead_to_what_follows_it(recipe):
    config = load(recipe("learner:\n  lr: ${learner.weight_decay}\n  weight_decay: 0.1\n"), ["rollout.vllm.a=${seed}"])
    assert (config.learner.lr, config.rollout.vllm) == (0.1, {"a": 0})


def test_interpolations_that_lead_nowhere_are_told_together_with_the_rest(recipe):
    found = problems(recipe("learner:\n  warmup: ${learner.updates}\n  updates: ${learner.warmup}\nloop: {samples: 0}\n"))
    assert [p.split(": ")[1] for p in found] == ["learner.warmup", "learner.updates", "loop.samples"]
    assert "Recursive interpolation" in found[0]


def test_a_value_of_a_megabyte_is_told_in_short(recipe):
    text = "x" * 900_000
    for found in (problems(recipe(f"seed: {text}\n")), problems(recipe(), f"seed={text}"), problems(recipe(), text)):
        assert len(found[0]) < 1000
    many = RecipeError([text] * 1000)
    assert len(str(many)) < 150_000
    assert str(many).endswith("… and 960 more")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("loop: {steps: 3}\n")
    found = problems(Path("run.yaml"))
    assert [p for p in found if "missing" in p] == [
        "run.yaml: model is missing: the recipe has to say it",
        "run.yaml: out is missing: the recipe has to say it",
    ]
    assert any("tasks.path" in p for p in found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1,\n", "is not a recipe"),
        ("- 1\n", "expected a mapping"),
        ("model: !!python/object/apply:os.system [true]\n", "is not a recipe"),
        ("extends: 5\n", "extends: expected the names of recipe files"),
        ("a: &a [*a]\n", "is not a recipe: with its aliases (*name) written out"),
        (
            "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'lol'] * 9)}]\n" for i in range(40)),
            "is not a recipe: with its aliases (*name) written out it has more than 4 MiB, or no end",
        ),
        ("a: &a " + "x" * 9999 + "\nb: [" + "*a, " * 999 + "]\n", "with its aliases"),
        ("a: " + "[" * 9999 + "\n", "run.yaml: is not a recipe"),
        ("#" * 2_000_000, "it has more than 1 MiB"),
        ("seed: " + "9" * 5000 + "\n", "run.yaml: is not a recipe: Exceeds the limit"),
        ("seed: 1\nseed: 2\n", "run.yaml:2: is not a recipe: while constructing a mapping, found duplicate key seed"),
        ("model: ${nope}\nout: o\n", "nope"),
        ("extends: [run.yaml]\n", "extends itself"),
        ("extends: [nowhere.yaml]\n", "nowhere.yaml: cannot be read: No such file or directory"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, monkeypatch, text, told):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    assert any(told in p for p in problems(Path("run.yaml")))


def test_a_recipe_in_another_encoding_is_told_with_its_line(tmp_path):
    (tmp_path / "run.yaml").write_bytes("seed: 1\nmodel: café\n".encode("cp1252"))
    assert problems(tmp_path / "run.yaml")[0].endswith("run.yaml:2: is not UTF-8 (byte 0xe9); save it as UTF-8")


def test_aliases_are_fine(recipe):
    assert load(recipe("loop: {groups: &n 4, samples: *n}\n")).loop.samples == 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_recipe_parses_and_opens_with_one_line_about_it(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)  # a reward may stand beside it
    assert path.read_text().startswith("# ")
    assert path.read_text().count("\n") <= 40, "a recipe fits on a screen"
    if pipeline.is_pipeline(path):
        assert pipeline.load(path).stages
        return
    said = {setting.key for setting in read(path.resolve())[0] if setting.value != "???"}
    sources = ("tasks.path", "tasks.generate", "tasks.mixture")
    left_open = [] if any(key.startswith(sources) for key in said) else ["tasks.path=x.jsonl"]
    load(path, [f"{key}=my/own" for key in ("model", "out") if key not in said] + left_open)


def test_the_arithmetic_of_a_step(recipe):
    rows = dict(
        arithmetic(load(recipe("loop: {groups: 4, samples: 6, max_lag: 2, steps: 10}\nlearner: {workers: 2, updates: 2}\n")))
    )
    assert rows["samples a step"] == "4 × 6 = 24"
    assert rows["samples a learner"] == "24 / 2 = 12"
    assert rows["optimizer steps"] == "10 steps × 2 = 20"
    assert rows["answer tokens a step"] == "at most 24 × 256 = 6144"
    assert rows["groups in flight"] == "4 × (max_lag 2 + 1) = 12"


# ---- presets ----


def test_a_preset_stands_for_its_settings_and_what_is_said_wins(recipe):
    config = load(recipe("algorithm: {loss_options: {high: 0.3}, preset: dapo}\n"))
    assert (config.algorithm.keep, config.algorithm.overlong, config.algorithm.per) == ("differ", "soft", "token")
    assert config.algorithm.loss_options == {"low": 0.2, "high": 0.3}


def test_a_preset_reaches_beyond_the_algorithm_and_what_is_said_wins_there_too(recipe):
    path = recipe("algorithm: {preset: scale_rl}\n")
    assert load(path).tasks.solved == 0.9
    assert load(path, ["tasks.solved=0.5", "algorithm.preset=scale_rl"]).tasks.solved == 0.5


def test_what_is_left_of_a_preset_is_no_mistake(recipe):
    config = load(recipe("algorithm: {preset: r1}\n"), ["algorithm.kl_loss=0"])
    assert config.algorithm.reference_every == 400
    assert (
        load(recipe(), ["algorithm.correction_options.low=0.1", "algorithm.correction=icepop"]).algorithm.correction == "icepop"
    )


def test_an_option_of_text_may_be_emptied(recipe):
    assert load(recipe(), ["tasks.path=", "tasks.generate=add"]).tasks.generate == "add"


def test_another_loss_does_not_take_over_the_options_of_the_first(recipe):
    config = load(recipe("algorithm: {preset: dapo}\n"), ["algorithm.loss=gspo"])
    assert config.algorithm.loss_options == {}
    config = load(recipe("algorithm: {loss_options: {high: 0.01}, loss: gspo}\n"))
    assert config.algorithm.loss_options == {"high": 0.01}


@pytest.mark.parametrize("name", [*PRESETS])
def test_every_preset_can_be_loaded_and_names_its_paper(recipe, name):
    more = ["algorithm.reference=some/teacher"] if name == "distill" else []
    config = load(recipe(f"algorithm: {{preset: {name}}}\n"), more)
    assert config.algorithm.preset == name
    assert re.search(r"\d{4}\.\d{5}", PRESETS[name].paper)


def test_config_shows_what_a_preset_stands_for(recipe, capsys):
    main(["config", str(recipe("algorithm: {preset: r1}\n"))])
    told = capsys.readouterr().out
    assert "# preset r1: DeepSeek-R1 (2501.12948" in told
    assert "#   algorithm.reference_every: 400" in told
    assert "reference_every: 400" in told.partition("\nmodel:")[2]


def test_a_method_of_ones_own_is_named_by_its_path(recipe, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def loss(logp, batch, scale=1.0):\n    return -scale * logp * batch.advantage\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = load(recipe("algorithm: {loss: mine.loss, loss_options: {scale: 2}}\n"))
    assert config.algorithm.loss == "mine.loss"
    assert "is no option of loss" in problems(recipe("algorithm: {loss: mine.loss, loss_options: {scael: 2}}\n"))[0]
