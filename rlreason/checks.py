"""Which options make sense, alone and together: what no type of a single option can tell. Loads no engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlreason.algorithms import ADVANTAGES, AVERAGES, CORRECTIONS, COVARIANCE, FILTERS, KL, LOSSES, PRESETS
from rlreason.chaos import rates
from rlreason.confidential import secrets
from rlreason.config import FIELDS, AlgorithmConfig, Config
from rlreason.model import unfit
from rlreason.named import find, near, wrong_options
from rlreason.placement import ALIASES
from rlreason.rewards import find as find_reward
from rlreason.rewards import wrong_options as wrong_reward_options
from rlreason.teacher import wrong_options as wrong_teacher

CHOICES: dict[str, Sequence[str]] = {
    "kind": ("train", "sample", "eval", "export"),
    "device": ("auto", "cpu", "cuda"),
    "transport": ("auto", "shm", "file", "delta", "broadcast", "ipc", *ALIASES),
    "tasks.overlong": ("drop", "truncate", "error"),
    "tasks.curriculum": ("none", "hard", "frontier"),
    "algorithm.answers": ("policy", "recorded"),
    "algorithm.keep": [*FILTERS],
    "algorithm.per": AVERAGES,
    "algorithm.overlong": ("keep", "mask", "soft"),
    "algorithm.kl": [*KL],
    "algorithm.proximal": ("auto", "sampler", "learner"),
    "algorithm.covariance": ("none", *COVARIANCE),
    "sample.keep": ("correct", "all"),
    "sample.by": ("reward", "shortest", "first"),
    "eval.gate": ("report", "stop"),
    "learner.dtype": ("auto", "bfloat16", "float32"),
    "learner.schedule": ("constant", "linear", "cosine"),
    "learner.attention": ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"),
}
AT_LEAST: dict[str, float] = {
    "seed": 0, "tasks.max_prompt": 1, "tasks.solved": 0,
    "rewards.workers": 1, "rewards.timeout": 0.1, "rewards.memory": 0.25, "rewards.failures": 0,
    "loop.steps": 1, "loop.groups": 1, "loop.samples": 1, "loop.max_lag": 0, "loop.save_every": 0, "loop.seconds": 0,
    "loop.keep": 1, "recovery.start": 1, "recovery.hung": 1, "recovery.restarts": 0, "recovery.floor": 1,
    "recovery.retries": 0, "recovery.diverged": 1,
    "algorithm.overlong_buffer": 0, "algorithm.kl_loss": 0, "algorithm.kl_reward": 0, "algorithm.kl_credit": 0,
    "algorithm.reference_every": 0, "algorithm.off_policy_mask": 0,
    "learner.workers": 1, "learner.lr": 0, "learner.warmup": 0, "learner.weight_decay": 0, "learner.updates": 1,
    "learner.tokens": 1, "learner.logits": 1e-9, "rollout.workers": 1, "rollout.temperature": 1e-3, "rollout.max_tokens": 1,
    "sample.tasks": 0, "sample.best": 0, "eval.tasks": 0, "eval.samples": 1, "eval.every": 0, "log.rollouts": 0,
}  # fmt: skip
OURS = {  # what the recipe says elsewhere, and these mappings must not say again
    "learner.deepspeed": ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
                          "optimizer", "scheduler", "bf16", "fp16"),
    "rollout.vllm": ("model", "tokenizer", "load_format", "seed", "logprobs_mode", "disable_log_stats",
                     "weight_transfer_config", "trust_remote_code"),
}  # fmt: skip


def impossible(config: Config) -> Iterator[tuple[str, str]]:
    """(key, problem) for what no single option's type can tell."""
    for key, choices in CHOICES.items():
        value = _at(config, key)
        if value not in choices:
            yield key, f"{value!r} is not one of {', '.join(choices)}{near(str(value), choices)}"
    for key, least in AT_LEAST.items():
        if _at(config, key) < least:
            yield key, f"{_at(config, key)} is below {least:g}"
    for key, names in OURS.items():
        for name in names:
            if name in _at(config, key):
                yield f"{key}.{name}", "is not for a recipe to say: rlreason sets it from its other options"
    for name in ("kill", "hang", "every"):
        try:
            rates(_at(config, f"chaos.{name}"))
        except ValueError as error:
            yield f"chaos.{name}", str(error)
    if config.recovery.floor > config.rollout.workers:
        yield "recovery.floor", f"{config.recovery.floor} engines have to be left, and there are {config.rollout.workers}"
    yield from secrets(config)
    yield from _model(config)
    if config.kind == "export":
        return  # asks nothing, and learns nothing
    yield from _tasks(config)
    yield from _answers(config)
    yield from _evaluation(config)
    if config.kind == "train":
        yield from _methods(config.algorithm, config.rollout.max_tokens)
        yield from _training(config)


def _model(config: Config) -> Iterator[tuple[str, str]]:
    if isinstance(config.model, str):
        if not config.sample.teacher:
            yield from _unfit(config)
    elif not isinstance(config.model, dict) or "from_config" not in config.model:
        yield "model", "is neither a name or directory nor {from_config: …}"
    elif not isinstance(config.model["from_config"], dict) or "model_type" not in config.model["from_config"]:
        yield "model", "from_config has to say its model_type, such as qwen2"
    elif config.kind != "train":
        yield "model", f"is to be made from a config, and kind: {config.kind} wants one that exists"
    else:
        yield from _unfit(config)


def _unfit(config: Config) -> Iterator[tuple[str, str]]:
    asks = config.kind != "export" and (config.kind != "train" or config.algorithm.answers == "policy")
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = config.rollout.vllm.get(name, 1)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            yield f"rollout.vllm.{name}", f"{size!r} is not a whole number of GPUs"
    width = config.rollout.vllm.get("tensor_parallel_size", 1)
    width = width if isinstance(width, int) and width > 0 else 1
    if config.rollout.vllm.get("data_parallel_size", 1) != 1:
        yield "rollout.vllm.data_parallel_size", "has to be 1: every engine is a replica. Set rollout.workers instead"
    yield from unfit(config.model, width, bool(config.rollout.stop) or not asks)


def _tasks(config: Config) -> Iterator[tuple[str, str]]:
    tasks = config.tasks
    sources = [bool(tasks.path), bool(tasks.generate), bool(tasks.mixture)].count(True)
    if sources != 1 and not (config.kind == "eval" and config.eval.path and not sources):
        yield "tasks.path", "say where the tasks come from: tasks.path, tasks.generate or tasks.mixture, and only one of them"
    if (tasks.solved or tasks.curriculum != "none") and config.algorithm.answers == "recorded":
        yield "tasks.solved", "and tasks.curriculum go by what the policy answers, and the answers are recorded"
    if (tasks.solved or tasks.curriculum != "none") and tasks.generate:
        yield "tasks.solved", "and tasks.curriculum mean nothing here: a generated task never comes again"
    if tasks.solved > 1:
        yield "tasks.solved", f"{tasks.solved} is a pass rate, and at most 1"
    for name in tasks.fields:
        if name not in FIELDS:
            yield f"tasks.fields.{name}", f"is not one of {', '.join(FIELDS)}{near(name, FIELDS)}"
    for name in dict.fromkeys([*tasks.reward, *config.rewards.options]):
        reward, problem = find_reward(name)
        if problem := problem or wrong_reward_options(name, config.rewards.options.get(name, {})):
            yield f"rewards.options.{name}" if reward or name not in tasks.reward else "tasks.reward", problem
    if tasks.template and "{prompt}" not in tasks.template:
        yield "tasks.template", "has no {prompt} in it"


def _answers(config: Config) -> Iterator[tuple[str, str]]:
    """What is asked for, and what of it is kept."""
    sample, tasks = config.sample, config.tasks
    if "" in config.rollout.stop:
        yield "rollout.stop", "an empty string would end every answer at once"
    if not 0 < config.rollout.top_p <= 1:
        yield "rollout.top_p", f"{config.rollout.top_p} is not above 0 and at most 1"
    elif config.rollout.top_p < 1 and config.kind == "train" and config.algorithm.answers == "policy":
        yield "rollout.top_p", f"{config.rollout.top_p} cuts off a part of the distribution that the learner trains; say 1"
    for name in sample.least:
        if name not in tasks.reward:
            yield f"sample.least.{name}", f"is not among tasks.reward ({', '.join(tasks.reward)}); there a weight of 0 will do"
    if config.kind != "sample":
        for key, given in (
            ("tasks", sample.tasks),
            ("best", sample.best),
            ("least", sample.least),
            ("teacher", sample.teacher),
        ):
            if given:
                yield f"sample.{key}", f"has nothing to apply to: kind is {config.kind}"
        return
    for name, problem in wrong_teacher(sample.teacher) if sample.teacher else ():
        yield f"sample.teacher.{name}", problem
    if not sample.tasks and (tasks.generate or any("generate" in source for source in tasks.mixture.values())):
        yield "sample.tasks", "is 0, which asks every row once, and generated tasks have no end; say how many"


def _evaluation(config: Config) -> Iterator[tuple[str, str]]:
    chosen, loop = config.eval, config.loop
    if chosen.metric and chosen.metric not in config.tasks.reward:
        yield "eval.metric", f"{chosen.metric!r} is not among tasks.reward ({', '.join(config.tasks.reward)})"
    if config.kind == "eval" and not chosen.tasks:
        yield "eval.tasks", "is 0, and there is nothing else to do; say how many"
    if not chosen.k or min(chosen.k) < 1 or (chosen.tasks and max(chosen.k) > chosen.samples):
        yield "eval.k", f"{chosen.k} are not all from 1 to eval.samples, which is {chosen.samples}"
    if not chosen.every:
        return
    if not chosen.tasks:
        yield "eval.every", "has nothing to evaluate on: eval.tasks is 0"
    if not loop.save_every or chosen.every % loop.save_every:
        yield (
            "eval.every",
            f"{chosen.every} is no multiple of loop.save_every ({loop.save_every}), so the best could not be kept"
            + _multiples(chosen.every, loop.save_every),
        )


def _multiples(value: int, of: int) -> str:
    """The two multiples nearest to `value`, with their arithmetic."""
    times = max(1, value // of) if of else 0
    return f": {of} × {times} = {of * times}, {of} × {times + 1} = {of * (times + 1)}" if times else ""


def _training(config: Config) -> Iterator[tuple[str, str]]:
    tasks, loop, algorithm = config.tasks, config.loop, config.algorithm
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
