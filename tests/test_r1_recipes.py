"""DeepSeek-R1 at the paper's scale: the recipes say the paper's numbers, and where each of them is from.

The numbers below were copied from the papers by hand: R1v1 and R1v2 are arXiv 2501.12948 v1 and v2, NAT is Nature
s41586-025-09422-z.
"""

import math
import re
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from rlreason import pipeline
from rlreason.cli import main
from rlreason.config import Config
from rlreason.errors import RecipeError
from rlreason.tasks import mixture

FOLDER = Path(__file__).parent.parent / "recipes" / "r1"
FILES = [FOLDER / "r1-zero.yaml", FOLDER / "r1.yaml", FOLDER / "r1-distill.yaml", *sorted((FOLDER / "paper").glob("*.yaml"))]
SOURCE = re.compile(r"R1v1|R1v2|\bNAT\b|not in the paper: chosen")
NUMBER = re.compile(r"(?<![\w./$-])\d+(\.\d+)?(e-?\d+)?(?![\w./])")  # and not a part of a name, a path or an address

R1_ZERO, R1, R1_DISTILL = (pipeline.load(path) for path in FILES[:3])
STUDENTS = [*R1_DISTILL.stages][4:10]
ALL = [(p.out.name, name, config) for p in (R1_ZERO, R1, R1_DISTILL) for name, config in p.stages.items()]
RL = [(run, name, c) for run, name, c in ALL if c.kind == "train" and c.algorithm.answers == "policy"]
SFT = [(run, name, c) for run, name, c in ALL if c.kind == "train" and c.algorithm.answers == "recorded"]


def steps(config: Config) -> int:
    """Optimizer steps, which are the paper's training steps."""
    return config.loop.steps * config.learner.updates


def rates(config: Config) -> tuple[float, float]:
    """The learning rate at the beginning and at the end."""
    ends = {"constant": 1.0, "cosine": 0.1}
    return config.learner.lr, config.learner.lr * ends[config.learner.schedule]


# ---- RL ----


def test_every_rl_stage_samples_and_learns_as_the_paper_does():
    assert [(run, name) for run, name, _ in RL] == [
        ("r1-zero", "short"), ("r1-zero", "long"), ("r1", "reason"), ("r1", "align"), ("r1", "general")]  # fmt: skip
    for _, name, config in RL:
        loop, learner, algorithm = config.loop, config.learner, config.algorithm
        of_paper = {  # NAT, Methods: first and second stage "retain most of the parameters"
            "outputs a question": (loop.samples, 16),
            "outputs a rollout": (loop.groups * loop.samples, 8192),
            "minibatches a rollout": (learner.updates, 16),
            "questions a training step": (loop.groups / learner.updates, 32),
            "batch": (loop.groups * loop.samples / learner.updates, 512),
            "learning rate": (rates(config), (3e-6, 3e-6)),
            "beta": (algorithm.kl_loss, 0.001),
            "clip": (algorithm.loss_options, {"low": 10.0, "high": 10.0}),
            "training steps between refreshes of the reference": (algorithm.reference_every * learner.updates, 400),
            "estimator of the KL (R1v1 eq. 2)": (algorithm.kl, "k3"),
            "top-p": (config.rollout.top_p, 1.0),
        }
        assert {what: ours for what, (ours, _) in of_paper.items()} == {what: said for what, (_, said) in of_paper.items()}, (
            name
        )


@pytest.mark.parametrize(
    ("stages", "paper", "off"),
    [
        ((R1_ZERO.stages["short"], R1_ZERO.stages["long"]), 10_400, 0),  # NAT, Methods
        ((R1_ZERO.stages["short"],), 8_200, -8),  # "8.2k" (NAT), at which answers may be longer
        ((R1.stages["align"], R1.stages["general"]), 1_700, -4),  # NAT, second RL stage
        ((R1.stages["align"],), 1_300, -4),  # 1,700 - 400 (NAT)
        ((R1.stages["general"],), 400, 0),  # the last, with general prompts and preference (NAT)
    ],
)
def test_the_steps_of_rl_are_the_papers_but_for_what_is_no_multiple_of_16(stages, paper, off):
    assert sum(map(steps, stages)) - paper == off
    assert abs(off) < 16


def test_r1_zero_sees_the_80k_prompts_of_table_4_more_than_four_times_and_not_1_6_times():
    asked = sum(c.loop.steps * c.loop.groups for c in (R1_ZERO.stages["short"], R1_ZERO.stages["long"]))
    assert asked == 10_400 * 32  # NAT, Methods
    assert asked / 1.6 == pytest.approx(208_000)  # what the paper's epochs would make of it
    assert asked / (26_000 + 17_000 + 22_000 + 15_000) == pytest.approx(4.16)  # what R1v2's Table 4 does


@pytest.mark.parametrize(
    ("run", "name", "longest", "temperature"),
    [
        ("r1-zero", "short", 32_768, 1.0),  # NAT, Methods
        ("r1-zero", "long", 65_536, 1.0),  # NAT, Methods
        ("r1-zero", "exam", 32_768, 0.6),  # R1v1 3
        ("r1", "reason", 32_768, 1.0),  # NAT, first RL stage
        ("r1", "align", 32_768, 0.7),  # NAT, second RL stage; the length is "retained"
        ("r1", "general", 32_768, 0.7),
        ("r1", "exam", 32_768, 0.6),  # R1v1 3
        ("r1", "aime", 32_768, 0.6),
        ("r1-distill", "exam-qwen-7b", 32_768, 0.6),
    ],
)
def test_lengths_and_temperatures(run, name, longest, temperature):
    config = next(c for at, stage, c in ALL if (at, stage) == (run, name))
    assert (config.rollout.max_tokens, config.rollout.temperature) == (longest, temperature)
    assert config.kind == "eval" or config.learner.tokens == config.tasks.max_prompt + longest


PROMPTS = {"maths": (26, "math"), "code": (17, "code"), "stem": (22, "choice"), "logic": (15, "math")}  # K rows, R1v2 Table 4
GENERAL = {"helpful": (66, "helpful"), "harmless": (12, "harmless")}  # R1v2 Table 4 and B.3.1


@pytest.mark.parametrize(("run", "name", "config"), RL, ids=lambda x: x if isinstance(x, str) else "")
def test_prompts_and_rewards_are_those_of_the_stage(run, name, config):
    expected = PROMPTS | (GENERAL if name == "general" else {})
    sources, weights = mixture.sources(config.tasks)
    assert {source: int(weight) for source, weight in zip(sources, weights, strict=True)} == {
        source: weight for source, (weight, _) in expected.items()
    }
    for source, (_, reward) in expected.items():  # with one weight: NAT, and eqs. 7 to 10
        assert sources[source].reward == dict.fromkeys([reward, "format", *(["language"] if run == "r1" else [])], 1.0)


def test_r1_zero_is_asked_in_the_template_of_table_1():
    for name in ("short", "long", "exam", "aime"):
        template = R1_ZERO.stages[name].tasks.template
        assert template.startswith(
            "A conversation between User and Assistant. The user asks a question, and the Assistant solves"
        )
        assert template.endswith(
            "i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: {prompt}. Assistant:"
        )
        assert "\n" not in template
        assert "  " not in template


# ---- SFT ----

SAMPLES = {"maths": 395_285, "code": 211_129, "stem": 10_124, "logic": 10_395, "general": 177_812}  # R1v2 Table 5
TABLE_6 = {  # R1v2: initial learning rates of the students
    "Qwen/Qwen2.5-Math-1.5B": 1e-4, "Qwen/Qwen2.5-Math-7B": 8e-5, "Qwen/Qwen2.5-14B": 7e-5, "Qwen/Qwen2.5-32B": 6e-5,
    "meta-llama/Llama-3.1-8B": 5e-5, "meta-llama/Llama-3.3-70B-Instruct": 2e-5,
}  # fmt: skip


@pytest.mark.parametrize(("run", "name", "config"), SFT, ids=lambda x: x if isinstance(x, str) else "")
def test_sft_has_the_papers_batch_context_and_cosine(run, name, config):
    teaching = run == "r1-distill"
    first = TABLE_6[config.model] if teaching else 5e-5  # R1v2 Table 6, B.4.2
    assert rates(config) == pytest.approx((first, first / 10))
    assert config.loop.groups * config.loop.samples == (64 if teaching else 128)  # R1v2 B.4.3, B.4.2
    assert config.learner.updates == 1
    assert config.tasks.max_prompt + config.rollout.max_tokens == config.learner.tokens == 32_768  # R1v2 B.4.2, B.4.3
    assert (config.algorithm.loss, config.learner.warmup) == ("nll", 0)


@pytest.mark.parametrize("config", [R1.stages["second"], *(R1_DISTILL.stages[name] for name in STUDENTS)])
def test_two_epochs_of_table_5_but_for_18_samples(config):
    assert sum(SAMPLES.values()) == 804_745  # as R1v2's Table 5 has it
    assert config.loop.steps * config.loop.groups - 2 * 804_745 == -18
    sources, weights = mixture.sources(config.tasks)
    assert {source: int(weight) for source, weight in zip(sources, weights, strict=True)} == SAMPLES
    assert sum(weights) <= mixture.LONGEST  # as fine as that is not too fine


def test_a_harvests_prompts_are_put_into_the_template_once():
    """R1's own harvest is asked in the template and writes it down; an endpoint is asked without."""
    chat = "<｜User｜>{prompt}<｜Assistant｜>"
    for harvests, learner in ((R1, "second"), *((R1_DISTILL, name) for name in STUDENTS)):
        sources, _ = mixture.sources(harvests.stages[learner].tasks)
        for source in PROMPTS:
            assert [harvests.stages[source].tasks.template, sources[source].template].count(chat) == 1
        assert sources["general"].template == chat


def test_the_students_are_the_six_of_the_paper():
    assert [R1_DISTILL.stages[name].model for name in STUDENTS] == [*TABLE_6]


# ---- rejection sampling, evaluation ----


@pytest.mark.parametrize("run", [R1, R1_DISTILL], ids=["r1", "r1-distill"])
@pytest.mark.parametrize("source", PROMPTS)
def test_what_is_kept_is_right_readable_in_one_language_and_enough_for_table_5(run, source):
    config = run.stages[source]
    rows, reward = PROMPTS[source]
    assert (config.kind, config.sample.keep, config.metric) == ("sample", "correct", reward)
    assert {"format", "language", "readable"} == config.sample.least.keys()
    share = SAMPLES[source] / (1000 * rows)
    assert config.sample.best == math.ceil(share) <= config.loop.samples
    assert bool(config.sample.teacher) == (run is R1_DISTILL)


def test_evaluation_is_the_papers():
    for run, name, config in ALL:
        if config.kind != "eval":
            continue
        longest = name == "aime"
        assert (config.rollout.top_p, config.eval.samples) == (0.95, 64 if longest else 4), (run, name)  # R1v1 3: 4 to 64
        assert config.eval.k == [1, 64 if longest else 4]


# ---- the graph ----


def test_the_edges_of_the_graph():
    assert R1_ZERO.needs == {
        "short": {},
        "long": {"model": "short"},
        "aime": {"model": "long"},
        "exam": {"model": "long"},
        "release": {"model": "long", "export.scores": "exam"},
    }
    harvested = {f"tasks.mixture.{name}.path": name for name in PROMPTS}
    assert R1.needs == {
        "cold": {},
        "reason": {"model": "cold"},
        **{name: {"model": "reason"} for name in PROMPTS},
        "second": harvested,
        "align": {"model": "second"},
        "general": {"model": "align"},
        "aime": {"model": "general"},
        "exam": {"model": "general"},
        "release": {"model": "general", "export.scores": "exam"},
    }
    assert R1_DISTILL.needs == {
        **{name: {} for name in PROMPTS},
        **dict.fromkeys(STUDENTS, harvested),
        **{f"exam-{name}": {"model": name} for name in STUDENTS},
        **{f"release-{name}": {"model": name, "export.scores": f"exam-{name}"} for name in STUDENTS},
    }


def test_the_second_sft_begins_with_the_base_model():
    base = "deepseek-ai/DeepSeek-V3-Base"
    assert [name for name, config in R1.stages.items() if config.model == base] == ["cold", "second"]
    assert R1_ZERO.stages["short"].model == base
    assert pipeline.load(FOLDER / "r1.yaml", ["base=mine"]).stages["second"].model == "mine"


def test_learners_and_engines_take_the_papers_512_gpus_in_rl():
    for _, name, config in RL:  # R1v2 Table 7: 64 nodes of 8
        assert config.learner.workers + config.rollout.workers * config.rollout.vllm["tensor_parallel_size"] == 512, name


# ---- what is told ----


@pytest.mark.parametrize("path", FILES[:3], ids=lambda p: p.stem)
def test_every_file_that_is_missing_is_told_at_once_before_anything_starts(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")  # so that no hub is asked
    many = pipeline.load(path, [f"base={tmp_path / 'base'}"])
    for config in many.stages.values():
        if config.model and not config.model.startswith(str(many.out)):
            config.model = str(tmp_path / "base")
    with pytest.raises(RecipeError) as caught:
        pipeline.check(many, redo=False)
    assert caught.value.code == 2
    wanted = {
        place
        for config in many.stages.values()
        for place in (config.tasks.path, config.eval.path, *(s["path"] for s in config.tasks.mixture.values()))
        if place.startswith("data/")
    }
    told = "\n".join(caught.value.problems)
    assert wanted <= set(re.findall(r"(data/\S+): there is no such file", told))
    assert len(wanted) >= 5


def test_config_prints_every_stage(capsys):
    assert main(["config", str(FILES[0])]) == 0
    told = capsys.readouterr().out
    assert all(f"# {name}\n" in told for name in R1_ZERO.stages)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_number_has_its_source_beside_it_or_directly_above(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 128
    missing = []
    above = ""  # the lines of comment that end directly above
    for is_comment, block in groupby(lines, lambda line: line.lstrip().startswith("#")):
        if is_comment:
            above = "\n".join(block)
            continue
        for number, line in enumerate(block):
            said, _, comment = line.partition("  # ")
            if NUMBER.search(said) and not SOURCE.search(comment + (above if number == 0 else "")):
                missing.append(line)
    assert not missing


def test_the_test_of_sources_finds_numbers_and_not_names():
    found = [m.group() for m in NUMBER.finditer("{lr: 3e-6, k: [1, 64], sample.best=16, share: 0.95}")]
    assert found == ["3e-6", "1", "64", "16", "0.95"]
    assert not NUMBER.search(
        "model: Qwen/Qwen2.5-Math-1.5B  data/r1/x http://localhost:8000/v1 $qwen-1b exam-llama-70b r1-zero"
    )


def test_every_stage_recipe_is_used():
    text = "".join(path.read_text() for path in FILES)
    unused = [path.name for path in FILES[3:] if len(re.findall(rf"[\s\[/]{re.escape(path.name)}", text)) == 0]
    assert not unused
    assert all(a != b for a, b in pairwise(sorted(path.name for path in FILES)))
