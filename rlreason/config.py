"""Every option, declared once. Loads no engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from rlreason.algorithms import ADVANTAGES, AVERAGES, CORRECTIONS, COVARIANCE, FILTERS, KL, LOSSES, PRESETS
from rlreason.named import find, near, wrong_options
from rlreason.rewards import find as find_reward
from rlreason.rewards import wrong_options as wrong_reward_options


@dataclass
class TasksConfig:
    path: str = ""  # a JSONL or Parquet file, a folder of them, or the name of a Hugging Face data set
    split: str = "train"  # of a data set
    generate: str = ""  # instead of a path: the name of a generator in rlreason.tasks, or my_package.my_generator
    options: dict[str, Any] = field(default_factory=dict)  # handed to the generator as they are
    fields: dict[str, str] = field(default_factory=dict)  # our name -> the file's: {prompt: question}
    reward: dict[str, float] = field(default_factory=dict)  # function -> weight, 0 only logs it; none: {exact: 1}
    mixture: dict[str, Any] = field(default_factory=dict)  # instead: name -> {weight: 1, and path or generate, …}
    template: str = ""  # put around every plain-text prompt, with {prompt} where it goes
    system: str = ""  # a system message before every prompt, which is then sent as chat messages
    chat_template: str = ""  # Jinja text, or a file of it, in place of the tokenizer's own
    max_prompt: int = 512  # tokens
    overlong: str = "drop"  # a longer prompt is left out (drop), loses its beginning (truncate), or ends the run (error)
    solved: float = 0.0  # a task whose answers passed at this rate or above is not asked again; 0 asks always
    curriculum: str = "none"  # how likely a task is asked again, by its pass rate: none, hard or frontier


@dataclass
class RewardsConfig:
    options: dict[str, Any] = field(default_factory=dict)  # reward name -> its options: {language: {target: en}}
    workers: int = 2  # processes per engine that judge answers
    timeout: float = 10.0  # seconds for one answer and one reward; then the process is killed
    memory: float = 4.0  # GiB of address space of such a process
    failures: float = 0.5  # the run ends when more than this share of the last ten steps' answers could not be judged


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
    preset: str = ""  # the method of a paper, by name; the options below win over it
    answers: str = "policy"  # who answers: policy (vLLM) or recorded (the tasks' own responses)
    keep: str = "all"  # which groups are trained on: all, or those whose rewards differ
    refill: bool = True  # a group that is not kept is replaced by another; else the step has fewer
    overlong: str = "keep"  # a truncated sample is trained on (keep), is not (mask), or loses reward before it is (soft)
    overlong_buffer: int = 0  # soft: tokens before rollout.max_tokens over which the reward falls; 0 is a fifth of them
    advantage: str = "grpo"
    advantage_options: dict[str, Any] = field(default_factory=dict)
    loss: str = "clip"
    loss_options: dict[str, Any] = field(default_factory=dict)  # clip: {low: 0.2, high: 0.28, dual: 0}
    per: str = "token"  # what the loss is a mean of: token, sequence, prompt or constant
    kl: str = "k3_ratio"  # estimator of the KL to the reference in the loss
    kl_loss: float = 0.0  # times that is added to the loss of every token
    kl_reward: float = 0.0  # times log(policy / reference) of the whole answer is taken from its reward
    kl_credit: float = 0.0  # times log(policy / reference) of a token is taken from its advantage
    reference: str = ""  # a model's name or directory: the teacher of a distillation; empty: the run's first weights
    reference_every: int = 0  # steps after which the reference becomes the policy of the day; 0 is never
    proximal: str = "auto"  # whose log-probabilities ratios compare with: the sampler's, or the learner's before the step
    correction: str = "token_tis"  # weight of a token by learner / sampler; 1 where they agree
    correction_options: dict[str, Any] = field(default_factory=dict)
    off_policy_mask: float = 0.0  # leave out bad answers whose mean log(sampler / policy) exceeds it; 0 is off
    covariance: str = "none"  # clip_cov or kl_cov: keep the few tokens that make entropy collapse from doing so
    covariance_options: dict[str, Any] = field(default_factory=dict)
    entropy: float = 0.0  # times the entropy of every token is added to the objective

    @property
    def compares(self) -> bool:
        """Is the policy compared with a reference?"""
        return bool(self.kl_loss or self.kl_reward or self.kl_credit)


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
    tasks: int = 0  # distinct prompts held out, answered before and after training; 0 evaluates nothing
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
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def metric(self) -> str:
        """The reward that is the accuracy."""
        return self.eval.metric or next(iter(self.tasks.reward))


CHOICES: dict[str, Sequence[str]] = {
    "device": ("auto", "cpu", "cuda"),
    "transport": ("auto", "shm", "file", "nccl", "ipc"),
    "tasks.overlong": ("drop", "truncate", "error"),
    "tasks.curriculum": ("none", "hard", "frontier"),
    "algorithm.answers": ("policy", "recorded"),
    "algorithm.keep": [*FILTERS],
    "algorithm.per": AVERAGES,
    "algorithm.overlong": ("keep", "mask", "soft"),
    "algorithm.kl": [*KL],
    "algorithm.proximal": ("auto", "sampler", "learner"),
    "algorithm.covariance": ("none", *COVARIANCE),
    "learner.schedule": ("constant", "linear", "cosine"),
}
AT_LEAST: dict[str, float] = {
    "seed": 0, "tasks.max_prompt": 1, "tasks.solved": 0,
    "rewards.workers": 1, "rewards.timeout": 0.1, "rewards.memory": 0.25, "rewards.failures": 0,
    "loop.steps": 1, "loop.groups": 1, "loop.samples": 1, "loop.max_lag": 0, "loop.save_every": 0, "loop.seconds": 0,
    "algorithm.overlong_buffer": 0, "algorithm.kl_loss": 0, "algorithm.kl_reward": 0, "algorithm.kl_credit": 0,
    "algorithm.reference_every": 0, "algorithm.off_policy_mask": 0,
    "learner.workers": 1, "learner.lr": 0, "learner.warmup": 0, "learner.weight_decay": 0, "learner.updates": 1,
    "learner.tokens": 1, "rollout.workers": 1, "rollout.temperature": 1e-3, "rollout.max_tokens": 1,
    "eval.tasks": 0, "eval.samples": 1, "log.rollouts": 0,
}  # fmt: skip


FIELDS = ("prompt", "answer", "response", "reward", "info", "id")  # what a task's row may say
OURS = {  # what the recipe says elsewhere, and these mappings must not say again
    "learner.deepspeed": ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
                          "optimizer", "scheduler"),
    "rollout.vllm": ("model", "tokenizer", "load_format", "seed", "logprobs_mode", "disable_log_stats",
                     "weight_transfer_config"),
}  # fmt: skip


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


def impossible(config: Config) -> Iterator[tuple[str, str]]:
    """(key, problem) for what no single option's type can tell."""
    for key, choices in CHOICES.items():
        value = _at(config, key)
        if value not in choices:
            yield key, f"{value!r} is not one of {', '.join(choices)}{near(str(value), choices)}"
    for key, least in AT_LEAST.items():
        if _at(config, key) < least:
            yield key, f"{_at(config, key)} is below {least:g}"
    tasks, loop, algorithm = config.tasks, config.loop, config.algorithm
    if [bool(tasks.path), bool(tasks.generate), bool(tasks.mixture)].count(True) != 1:
        yield "tasks.path", "say where the tasks come from: tasks.path, tasks.generate or tasks.mixture, and only one of them"
    if (tasks.solved or tasks.curriculum != "none") and algorithm.answers == "recorded":
        yield "tasks.solved", "and tasks.curriculum go by what the policy answers, and the answers are recorded"
    if (tasks.solved or tasks.curriculum != "none") and tasks.generate:
        yield "tasks.solved", "and tasks.curriculum mean nothing here: a generated task never comes again"
    if tasks.solved > 1:
        yield "tasks.solved", f"{tasks.solved} is a pass rate, and at most 1"
    for name in tasks.fields:
        if name not in FIELDS:
            yield f"tasks.fields.{name}", f"is not one of {', '.join(FIELDS)}{near(name, FIELDS)}"
    if "" in config.rollout.stop:
        yield "rollout.stop", "an empty string would end every answer at once"
    for name in dict.fromkeys([*tasks.reward, *config.rewards.options]):
        reward, problem = find_reward(name)
        if problem := problem or wrong_reward_options(name, config.rewards.options.get(name, {})):
            yield f"rewards.options.{name}" if reward or name not in tasks.reward else "tasks.reward", problem
    if config.eval.metric and config.eval.metric not in tasks.reward:
        yield "eval.metric", f"{config.eval.metric!r} is not among tasks.reward ({', '.join(tasks.reward)})"
    if tasks.template and "{prompt}" not in tasks.template:
        yield "tasks.template", "has no {prompt} in it"
    for key, names in OURS.items():
        for name in names:
            if name in _at(config, key):
                yield f"{key}.{name}", "is not for a recipe to say: rlreason sets it from its other options"
    yield from _methods(algorithm, config.rollout.max_tokens)
    recorded = algorithm.answers == "recorded"
    if not recorded and algorithm.advantage != "none" and not any(tasks.reward.values()):
        yield "tasks.reward", "every weight is 0, so there is nothing to learn from"
    if algorithm.advantage == "passk" and (k := algorithm.advantage_options.get("k", 4)) > loop.samples:
        yield (
            "algorithm.advantage_options.k",
            f"pass@{k} wants {k} samples or more per task, and loop.samples is {loop.samples}",
        )
    if recorded and algorithm.compares:
        yield "algorithm.kl_loss", "recorded answers have no log-probabilities of a sampler to compare with a reference's"
    if recorded != (algorithm.loss == "nll"):
        yield "algorithm.loss", f"{algorithm.loss} with answers: {algorithm.answers}: recorded answers have no " \
                                "log-probabilities of a sampler, and go with the loss nll only"  # fmt: skip
    if recorded and loop.samples != 1:
        yield "loop.samples", f"{loop.samples}, but a recorded task has one answer: say 1"
    if recorded and loop.max_lag:
        yield "loop.max_lag", "recorded answers do not age: say 0"
    if not recorded and loop.samples == 1 and algorithm.advantage not in ("none", "raw", "reinforce_pp"):
        yield "loop.samples", f"with one sample per task the advantage {algorithm.advantage} is always 0: say 2 or more"
    if config.learner.updates > loop.groups:
        yield "learner.updates", f"{config.learner.updates} optimizer steps cannot share {loop.groups} groups"
    if not isinstance(config.model, str):
        if not isinstance(config.model, dict) or "from_config" not in config.model:
            yield "model", "is neither a name or directory nor {from_config: …}"
        elif not isinstance(config.model["from_config"], dict) or "model_type" not in config.model["from_config"]:
            yield "model", "from_config has to say its model_type, such as qwen2"


def _methods(algorithm: AlgorithmConfig, limit: int) -> Iterator[tuple[str, str]]:
    """Functions that are not there, and options that they do not have."""
    registries: dict[str, dict[str, Any]] = {"advantage": ADVANTAGES, "loss": LOSSES, "correction": CORRECTIONS}
    for kind, registry in registries.items():
        function, problem = find(registry, getattr(algorithm, kind))
        if function is None:
            yield f"algorithm.{kind}", problem
        else:
            yield from _options(f"algorithm.{kind}_options", function, getattr(algorithm, f"{kind}_options"))
    if algorithm.covariance_options and algorithm.covariance not in COVARIANCE:
        yield "algorithm.covariance_options", "have nothing to apply to: algorithm.covariance is none"
    if algorithm.overlong_buffer and algorithm.overlong != "soft":
        yield "algorithm.overlong_buffer", f"has nothing to apply to: algorithm.overlong is {algorithm.overlong}"
    if algorithm.loss == "clip" and 0 < algorithm.loss_options.get("dual", 0) <= 1:
        yield "algorithm.loss_options.dual", "has to be above 1, or 0 for none"
    if algorithm.covariance in COVARIANCE:
        yield from _options("algorithm.covariance_options", COVARIANCE[algorithm.covariance], algorithm.covariance_options)
    if algorithm.preset and algorithm.preset not in PRESETS:
        yield "algorithm.preset", f"{algorithm.preset!r} is not one of {', '.join(PRESETS)}{near(algorithm.preset, PRESETS)}"
    if algorithm.overlong_buffer > limit:
        yield "algorithm.overlong_buffer", f"{algorithm.overlong_buffer} is above rollout.max_tokens, which is {limit}"
    if algorithm.reference_every and not algorithm.compares:
        yield "algorithm.reference_every", "nothing compares with the reference: say kl_loss, kl_reward or kl_credit"
    if algorithm.reference_every and algorithm.reference:
        yield "algorithm.reference_every", "a reference that is named stays what it is"
    if algorithm.advantage == "none" and not algorithm.kl_credit:
        yield "algorithm.advantage", "none learns from kl_credit alone, which is 0"
    if algorithm.preset == "distill" and not algorithm.reference:
        yield "algorithm.reference", "is missing: name the teacher's model"


def _options(key: str, function: Callable[..., Any], given: dict[str, Any]) -> Iterator[tuple[str, str]]:
    return ((f"{key}.{name}", problem) for name, problem in wrong_options(function, given))


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config
