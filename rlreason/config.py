"""Every option, declared once. Loads no engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf


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
    keep: int = 2  # checkpoints that are kept, the newest ones; weights/best is kept beside them
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
    dtype: str = "auto"  # of the weights that are trained: bfloat16 or float32; auto: bfloat16 on a GPU, float32 on a CPU
    lr: float = 1e-6
    warmup: int = 0  # steps over which the learning rate rises to lr
    schedule: str = "constant"  # constant, linear (to 0) or cosine (to a tenth), over loop.steps
    weight_decay: float = 0.0
    updates: int = 1  # optimizer steps per batch
    tokens: int = 8192  # per micro-batch and worker at most, padding included
    gradient_checkpointing: bool = False
    attention: str = "sdpa"  # transformers' kernel: sdpa, eager, flex_attention, or, to be installed, flash_attention_2, …3
    packing: bool = False  # short samples share a row, in which each sees itself alone: less padding
    logits: float = 1.0  # GiB of a micro-batch's logits, in float32; where there would be more they are worked out in parts
    float32_head: bool = False  # the last layer in float32, of learner and engines: less mismatch between the two in bfloat16
    deepspeed: dict[str, Any] = field(default_factory=dict)  # handed to DeepSpeed as it is


@dataclass
class RolloutConfig:
    workers: int = 1
    temperature: float = 1.0
    top_p: float = 1.0  # the likeliest tokens of this much probability are sampled from; below 1 only where nothing learns
    max_tokens: int = 256  # per answer; a longer one is cut off and marked truncated
    stop: list[str] = field(default_factory=list)  # strings that end an answer, beside the end-of-sequence token
    vllm: dict[str, Any] = field(default_factory=dict)  # handed to vLLM as it is


@dataclass
class SampleConfig:
    tasks: int = 0  # how many are asked, loop.groups at a time and loop.samples times each; 0 asks every row once
    keep: str = "correct"  # which answers are written to samples.jsonl: correct (eval.metric is 1 or more) or all
    least: dict[str, float] = field(default_factory=dict)  # reward -> what an answer has to earn of it beside: {readable: 1}
    best: int = 0  # answers written per task at most; 0 is no limit
    by: str = "reward"  # which those are: of the highest reward, the shortest, or the first
    teacher: dict[str, Any] = field(default_factory=dict)  # an OpenAI-compatible endpoint that answers: {url: …, model: …}


@dataclass
class EvalConfig:
    tasks: int = 0  # distinct prompts held out, answered before and after training; 0 evaluates nothing
    samples: int = 1  # answers per task, at rollout.temperature
    path: str = ""  # where they are; empty: held out of tasks, and never trained on
    metric: str = ""  # the reward that is the accuracy; empty: the first in tasks.reward
    k: list[int] = field(default_factory=lambda: [1])  # of pass@k and maj@k, each at most samples
    every: int = 0  # steps between evaluations in training, by which the best checkpoint is kept; 0 makes none
    gate: str = "report"  # a domain that training made worse by two standard errors: report, or stop the pipeline


@dataclass
class ExportConfig:
    scores: str = ""  # scores.json of a kind: eval stage, for the model card


@dataclass
class RecoveryConfig:
    start: float = 600.0  # seconds in which a process has to be ready, its model loaded and compiled
    hung: float = 300.0  # seconds without a sign of progress after which a process is taken for dead, and killed
    restarts: int = 3  # starts in a row of an engine that came to nothing, after which it is left out
    floor: int = 1  # engines that have to be left, or else the run ends
    retries: int = 3  # times that learners are put together again without a new checkpoint in between
    diverged: int = 5  # steps in a row with NaN or infinity, each of them skipped, after which the run ends


@dataclass
class ChaosConfig:
    kill: str = ""  # rollout:0.05,learner:0.01,driver:0.001: the chance per step that such a process is killed
    hang: str = ""  # the same, and it is stopped where it stands instead
    every: str = ""  # rollout:45,learner:120: seconds between two kills of such a process
    seed: int = 0


@dataclass
class LogConfig:
    rollouts: int = 16  # samples written per step, for people to read
    wandb: str = ""  # a Weights & Biases project; empty: none. WANDB_MODE=offline works too


@dataclass
class Config:
    model: Any = MISSING  # a Hugging Face name or directory, or {from_config: {…}, characters: "…"}
    out: str = MISSING  # the run's folder
    kind: str = "train"  # what is done: train, sample (answers, kept if good), eval (answers, scored) or export
    seed: int = 0
    device: str = "auto"  # cuda where there is one, else cpu
    trust_remote_code: bool = False  # run the Python files that come with a model: they may do whatever you may
    transport: str = "auto"  # of weights: shm, file, delta, broadcast or ipc; auto: the fastest here
    share: bool | None = None  # learners and engines take turns on one device; empty: where there is one GPU for both
    tasks: TasksConfig = field(default_factory=TasksConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    log: LogConfig = field(default_factory=LogConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    chaos: ChaosConfig = field(default_factory=ChaosConfig)

    @property
    def metric(self) -> str:
        """The reward that is the accuracy."""
        return self.eval.metric or next(iter(self.tasks.reward))


def dtype_of(name: str, device: str) -> str:
    """What `learner.dtype` stands for on a device."""
    return ("bfloat16" if device == "cuda" else "float32") if name == "auto" else name


FIELDS = ("prompt", "answer", "response", "reward", "info", "domain", "id")  # what a task's row may say


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def arithmetic(config: Config) -> list[tuple[str, str]]:
    """What a step consists of, worked out: rows of a table (name, value)."""
    loop, learner, rollout = config.loop, config.learner, config.rollout
    if config.kind == "export":
        return [("model", str(config.model))]
    each = config.eval.samples if config.kind == "eval" else loop.samples
    samples = loop.groups * each
    if config.kind != "train":
        asked = config.eval.tasks if config.kind == "eval" else config.sample.tasks
        return [
            ("tasks", f"{asked or 'every row once'}"),
            ("answers a step", f"{loop.groups} tasks × {each} = {samples}"),
            ("answer tokens a step", f"at most {samples} × {rollout.max_tokens} = {samples * rollout.max_tokens}"),
        ]
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
