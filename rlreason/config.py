"""Every option, declared once; how recipes compose, and how mistakes in them are told. Loads no engine."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlreason.algorithms import ADVANTAGES, AVERAGES, FILTERS, LOSSES
from rlreason.errors import RecipeError
from rlreason.rewards import find as find_reward


@dataclass
class TasksConfig:
    path: str = ""  # a JSONL or Parquet file, a folder of them, or the name of a Hugging Face data set
    split: str = "train"  # of a data set
    generate: str = ""  # instead of a path: the name of a generator in rlreason.tasks, or my_package.my_generator
    options: dict[str, Any] = field(default_factory=dict)  # handed to the generator as they are
    fields: dict[str, str] = field(default_factory=dict)  # our name -> the file's: {prompt: question}
    reward: dict[str, float] = field(default_factory=lambda: {"exact": 1.0})  # function name -> weight
    template: str = ""  # put around every plain-text prompt, with {prompt} where it goes
    max_prompt: int = 512  # tokens; a longer prompt is left out and counted


@dataclass
class LoopConfig:
    steps: int = 100
    groups: int = 8  # tasks per step
    samples: int = 8  # answers per task
    max_lag: int = 0  # how many weight versions old a sample may be; 0 is on-policy
    save_every: int = 0  # steps between checkpoints; 0 saves one, at the end
    seconds: float = 0.0  # stop after the step that passes this much training time; 0 is no limit


@dataclass
class AlgorithmConfig:
    answers: str = "policy"  # who answers: policy (vLLM) or recorded (the tasks' own responses)
    keep: str = "all"  # which groups are trained on: all, or those whose rewards differ
    advantage: str = "grpo"
    loss: str = "clip"
    clip_low: float = 0.2  # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.28
    per: str = "token"  # what the loss is a mean of: token, sequence, prompt or constant


@dataclass
class LearnerConfig:
    workers: int = 1
    lr: float = 1e-6
    warmup: int = 0  # steps over which the learning rate rises to lr
    schedule: str = "constant"  # constant, linear (to 0) or cosine (to a tenth), over loop.steps
    weight_decay: float = 0.0
    updates: int = 1  # optimizer steps per batch
    tokens: int = 8192  # per micro-batch and worker at most, padding included
    gradient_checkpointing: bool = False
    deepspeed: dict[str, Any] = field(default_factory=dict)  # handed to DeepSpeed as it is


@dataclass
class RolloutConfig:
    workers: int = 1
    temperature: float = 1.0
    max_tokens: int = 256  # per answer; a longer one is cut off and marked truncated
    stop: list[str] = field(default_factory=list)  # strings that end an answer, beside the end-of-sequence token
    vllm: dict[str, Any] = field(default_factory=dict)  # handed to vLLM as it is


@dataclass
class EvalConfig:
    tasks: int = 0  # held-out tasks, answered before and after training; 0 evaluates nothing
    samples: int = 1  # answers per task, at rollout.temperature
    path: str = ""  # where they are; empty: held out of tasks, and never trained on
    metric: str = ""  # the reward that is the accuracy; empty: the first in tasks.reward


@dataclass
class LogConfig:
    rollouts: int = 16  # samples written per step, for people to read
    wandb: str = ""  # a Weights & Biases project; empty: none. WANDB_MODE=offline works too


@dataclass
class Config:
    model: Any = MISSING  # a Hugging Face name or directory, or {from_config: {…}, characters: "…"}
    out: str = MISSING  # the run's folder
    seed: int = 0
    device: str = "auto"  # cuda where there is one, else cpu
    transport: str = "auto"  # of weights: shm, file, nccl or ipc; auto is the fastest that fits the device
    tasks: TasksConfig = field(default_factory=TasksConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def metric(self) -> str:
        return self.eval.metric or next(iter(self.tasks.reward), "")


CHOICES: dict[str, Sequence[str]] = {
    "device": ("auto", "cpu", "cuda"),
    "transport": ("auto", "shm", "file", "nccl", "ipc"),
    "algorithm.answers": ("policy", "recorded"),
    "algorithm.keep": [*FILTERS],
    "algorithm.advantage": [*ADVANTAGES],
    "algorithm.loss": [*LOSSES],
    "algorithm.per": AVERAGES,
    "learner.schedule": ("constant", "linear", "cosine"),
}
AT_LEAST: dict[str, float] = {
    "seed": 0, "tasks.max_prompt": 1,
    "loop.steps": 0, "loop.groups": 1, "loop.samples": 1, "loop.max_lag": 0, "loop.save_every": 0, "loop.seconds": 0,
    "algorithm.clip_low": 0, "algorithm.clip_high": 0,
    "learner.workers": 1, "learner.lr": 0, "learner.warmup": 0, "learner.weight_decay": 0, "learner.updates": 1,
    "learner.tokens": 1, "rollout.workers": 1, "rollout.temperature": 1e-3, "rollout.max_tokens": 1,
    "eval.tasks": 0, "eval.samples": 1, "log.rollouts": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One value that somebody wrote, and where."""

    key: str  # loop.steps
    value: Any
    where: str  # recipes/base.yaml:12, or the command line


def read(path: Path, seen: tuple[Path, ...] = ()) -> tuple[list[Setting], list[str]]:
    """Every setting of a recipe file, those of the files that it `extends` first; and what is wrong with it."""
    if path in seen:
        return [], [f"{path}: extends itself, by way of {' -> '.join(map(str, seen))}"]
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = OmegaConf.to_container(OmegaConf.create(text)) if root is not None else {}
    except OSError as error:
        return [], [f"{path}: cannot be read: {error.strerror}"]
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        return [], [f"{path}: is not a recipe: {' '.join(str(error).split())}"]
    if not isinstance(values, dict):
        return [], [f"{path}: is not a recipe: expected a mapping of keys to values"]

    settings, problems = [], []
    bases = values.pop("extends", [])
    for base in [bases] if isinstance(bases, str) else bases:
        more, wrong = read((path.parent / base).resolve(), (*seen, path))
        settings += more
        problems += wrong
    lines = dict(_lines(root)) if root is not None else {}
    settings += [Setting(k, v, f"{shown(path)}:{lines.get(k, 1)}") for k, v in leaves(values)]
    return settings, problems


def shown(path: Path) -> str:
    """`path` as people write it: relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def command_line(overrides: Sequence[str], where: str = "command line") -> tuple[list[Setting], list[str]]:
    """`a.b=c` pairs, each value read as YAML."""
    settings, problems = [], []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            problems.append(f"{where}: {override!r} is not of the form key=value")
            continue
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            problems.append(f"{where}: {override!r}: {' '.join(str(error).split())}")
            continue
        settings += [Setting(k, v, where) for k, v in leaves(value)]
    return settings, problems


def build(settings: Sequence[Setting], source: str) -> Config:
    """Check every setting against the options, merge them (later wins), check the whole.

    Raises `RecipeError` with all problems at once.
    """
    problems: list[str] = []
    node: DictConfig = OmegaConf.structured(Config)
    origin: dict[str, str] = {}
    for setting in settings:
        if problem := _problem(node, setting):
            problems.append(f"{setting.where}: {problem}")
        else:
            origin[setting.key] = setting.where
    wrong_keys = {p.split(":")[-2] for p in problems}
    problems += [
        f"{source}: {key} is missing: the recipe has to say it" for key in sorted(OmegaConf.missing_keys(node))
    ]
    if problems and (missing := OmegaConf.missing_keys(node)):
        for key in missing:  # so that what is there can be checked as well
            OmegaConf.update(node, key, "-")
    config: Config = OmegaConf.to_object(node)
    for key, problem in _impossible(config):
        if key not in wrong_keys:
            problems.append(f"{origin.get(key, source)}: {key}: {problem}")
    if problems:
        raise RecipeError(problems)
    return config


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Merge, weakest first: the defaults above, files named by `extends`, the file, `a.b=c` overrides."""
    settings, problems = read(Path(path))
    more, wrong = command_line(overrides)
    return checked([*settings, *more], [*problems, *wrong], shown(Path(path)))


def checked(settings: Sequence[Setting], problems: Sequence[str], source: str) -> Config:
    """`build`, with the problems met while reading told in the same breath."""
    try:
        config = build(settings, source)
    except RecipeError as error:
        raise RecipeError([*problems, *error.problems]) from None
    if problems:
        raise RecipeError(problems)
    return config


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def arithmetic(config: Config) -> list[tuple[str, str]]:
    """What a step consists of, worked out: rows of a table (name, value)."""
    loop, learner, rollout = config.loop, config.learner, config.rollout
    samples = loop.groups * loop.samples
    longest = config.tasks.max_prompt + rollout.max_tokens
    rows = [
        ("prompts a step", f"{loop.groups}"),
        ("samples a step", f"{loop.groups} × {loop.samples} = {samples}"),
        ("samples a learner", f"{samples} / {learner.workers} = {samples / learner.workers:g}"),
        ("micro-batches a learner", f"of at most {learner.tokens} tokens: {max(1, learner.tokens // longest)}"
                                    f" samples or more each ({longest} = longest prompt + longest answer)"),
        ("optimizer steps", f"{loop.steps} steps × {learner.updates} = {loop.steps * learner.updates}"),
        ("answer tokens a step", f"at most {samples} × {rollout.max_tokens} = {samples * rollout.max_tokens}"),
        ("groups in flight", f"{loop.groups} × (max_lag {loop.max_lag} + 1) = {loop.groups * (loop.max_lag + 1)}"),
    ]  # fmt: skip
    return rows if config.algorithm.answers == "policy" else rows[:-2]


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for f in fields(schema):
        yield prefix + f.name
        if is_dataclass(hints[f.name]):
            yield from _keys(hints[f.name], f"{prefix}{f.name}.")


KEYS = list(_keys(Config))


def leaves(values: Any) -> list[tuple[str, Any]]:
    """(dotted key, value) for every option that `values` sets."""
    return list(_leaves(values, Config))


def _leaves(values: Any, schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A free-form mapping (rollout.vllm) is set key by key, so that recipes can add to each other's."""
    hints = get_type_hints(schema) if is_dataclass(schema) else {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        inner = hints.get(name)
        known_mapping = is_dataclass(inner) or str(inner).startswith("dict") or inner is Any
        if isinstance(value, dict) and value and (known_mapping or schema is None or name not in hints):
            yield from _leaves(value, inner if is_dataclass(inner) else None, f"{key}.")
        else:
            yield key, value


def _lines(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _lines(value, f"{prefix}{key.value}.")


def _problem(node: DictConfig, setting: Setting) -> str | None:
    """Put `setting` into `node`, or say why it does not fit."""
    key, value = setting.key, setting.value
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key}: {value} is not a finite number"
    known = next((k for k in KEYS if k == key), None) or next(
        (k for k in KEYS if key.startswith(k + ".") and OmegaConf.select(node, k) is not None and _free(k)), None
    )
    if known is None:
        near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
        first = key.split(".")[0]
        near = near or difflib.get_close_matches(first, [f.name for f in fields(Config)], n=1)
        return f"{key}: there is no such option" + (f"; did you mean {near[0]}?" if near else "")
    if is_dataclass(get_type_hints(Config).get(key)) and not isinstance(value, dict):
        return f"{key}: expected a mapping of options, not {value!r}"
    if value == {}:
        return None
    try:
        if key.startswith("model.") and not isinstance(OmegaConf.select(node, "model", throw_on_missing=False), DictConfig):
            OmegaConf.update(node, "model", {})
        OmegaConf.update(node, key, value, force_add=_free(known))
    except (OmegaConfBaseException, ValueError) as error:
        return f"{key}: {str(error).splitlines()[0]}"
    return None


def _free(key: str) -> bool:
    """Is this option a mapping whose keys are not ours to check?"""
    schema: Any = Config
    for name in key.split("."):
        schema = get_type_hints(schema)[name]
    return str(schema).startswith("dict") or schema is Any


def _impossible(config: Config) -> Iterator[tuple[str, str]]:
    """(key, problem) for what no single option's type can tell."""
    for key, choices in CHOICES.items():
        value = _at(config, key)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield key, f"{value!r} is not one of {', '.join(choices)}{hint}"
    for key, least in AT_LEAST.items():
        if _at(config, key) < least:
            yield key, f"{_at(config, key)} is below {least:g}"
    tasks, loop, algorithm = config.tasks, config.loop, config.algorithm
    if bool(tasks.path) == bool(tasks.generate):
        yield "tasks.path", "say where the tasks come from: either tasks.path or tasks.generate"
    if not tasks.reward and algorithm.answers == "policy":
        yield "tasks.reward", "is empty: without a reward there is nothing to learn from"
    for name in tasks.reward:
        if problem := find_reward(name)[1]:
            yield "tasks.reward", problem
    if config.eval.tasks and config.metric not in tasks.reward:
        yield "eval.metric", f"{config.metric!r} is not among tasks.reward ({', '.join(tasks.reward)})"
    if tasks.template and "{prompt}" not in tasks.template:
        yield "tasks.template", "has no {prompt} in it"
    recorded = algorithm.answers == "recorded"
    if recorded != (algorithm.loss == "nll"):
        yield "algorithm.loss", f"{algorithm.loss} with answers: {algorithm.answers}: recorded answers have no " \
                                "log-probabilities of a sampler, and go with the loss nll only"  # fmt: skip
    if recorded and loop.samples != 1:
        yield "loop.samples", f"{loop.samples}, but a recorded task has one answer: say 1"
    if recorded and loop.max_lag:
        yield "loop.max_lag", "recorded answers do not age: say 0"
    if not recorded and loop.samples == 1 and algorithm.advantage in ADVANTAGES:
        yield "loop.samples", f"with one sample per task the advantage {algorithm.advantage} is always 0: say 2 or more"
    if config.learner.updates > loop.groups:
        yield "learner.updates", f"{config.learner.updates} optimizer steps cannot share {loop.groups} groups"
    if not isinstance(config.model, str):
        if not isinstance(config.model, dict) or "from_config" not in config.model:
            yield "model", "is neither a name or directory nor {from_config: …}"
        elif "model_type" not in (config.model["from_config"] or {}):
            yield "model", "from_config has to say its model_type, such as qwen2"


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config
