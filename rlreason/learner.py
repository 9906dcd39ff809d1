"""One DeepSpeed process: batches in, weights out. Knows nothing of Ray or vLLM."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from rlreason import canary, pulse
from rlreason.algorithms import FILTERS, objective
from rlreason.algorithms.columns import columns, cut, moving
from rlreason.algorithms.mismatch import summary
from rlreason.checkpoint import write_lines
from rlreason.config import Config, dtype_of
from rlreason.errors import Wounded
from rlreason.forward import Model, Read, logits, packable, read, readable
from rlreason.frozen import Frozen
from rlreason.head import Head
from rlreason.meeting import meet
from rlreason.moved import assert_moved, fingerprints
from rlreason.packing import cut_packed, cut_padded
from rlreason.pretrained import head_of, policy_of, reference_of
from rlreason.stopwatch import Stopwatch
from rlreason.storage import rename, stored
from rlreason.types import Batch, Group, Metrics, Sample, micro_batches
from rlreason.weights import Handle, Publisher, Source, Spec, buckets
from rlreason.weights.digest import digest

T = TypeVar("T")


def learning_rate(step: int, config: Config) -> float:
    """The factor on `learner.lr` for optimizer step `step`, counted from 0: a warm-up that never is 0, then the schedule."""
    learner = config.learner
    if step < learner.warmup:
        return (step + 1) / learner.warmup
    total = config.loop.steps * learner.updates
    done = min(1.0, (step - learner.warmup) / max(1, total - learner.warmup))
    return {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.1 + 0.45 * (1 + math.cos(math.pi * done)),
    }[learner.schedule]


def deepspeed_config(given: Mapping[str, Any], bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration, with what the recipe says of it (`learner.deepspeed`) over our defaults.

    In bfloat16 ZeRO 0 becomes 1: DeepSpeed's optimizer of stage 0 keeps float32 masters that its own accessors do not
    find. Gradients are summed over micro-batches in float32 there: in bfloat16 many of them are 1.6 % off.
    """
    defaults: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants a number; micro-batches are cut by tokens
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "gradient_clipping": 1.0,  # also DeepSpeed's own default; 0.0 is none
    }
    if bf16:
        zero = dict(given.get("zero_optimization") or {})
        zero["stage"] = zero.get("stage") or 1
        defaults["data_types"] = {"grad_accum_dtype": "fp32"}
        given = {**given, "zero_optimization": zero}
    return {**defaults, **given}


class Learner:
    """One rank. Every rank is told the same, and takes its share of each batch."""

    def __init__(self, rank: int, config: Config, model: str, made: bool, device: str, transport: str, address: str):
        """`made`: the weights are drawn from the seed. `address`: host:port, where the ranks meet."""
        host, port = address.rsplit(":", 1)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(config.learner.workers), MASTER_ADDR=host, MASTER_PORT=port
        )
        self.config, self.rank, self.world, self.version = config, rank, config.learner.workers, 0
        self.gpu = device == "cuda"
        self.device = torch.device(device)
        self.bf16 = dtype_of(config.learner.dtype, "cuda" if self.gpu else "cpu") == "bfloat16"
        self.publisher = Publisher(transport, Path(config.out).absolute() / "weights" / "live", self.device)
        torch.manual_seed(config.seed)
        disable_progress_bar()  # it would fill the log with every save
        # As would DeepSpeed's calls to older names of torch's collectives: a line each time.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        # Else the first start on a machine compiles a kernel for sums in shared memory: it wants a compiler and half a minute,
        # and uses named files in /dev/shm. gloo sums as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if self.gpu else "gloo"
        if not torch.distributed.is_initialized():  # by another learner in this process
            meet(backend, host, int(port), rank, self.world)
        deepspeed.init_distributed(backend, verbose=False)  # it finds the group
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        trust = config.trust_remote_code
        options = {"dtype": dtype, "attn_implementation": config.learner.attention}
        policy = policy_of(model, made, trust, options)
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust)
        named = config.algorithm.reference
        reference = reference_of(policy, self.tokenizer, named, trust, options) if config.algorithm.compares else None
        self.head, self.reference_head = head_of(policy, config.learner), head_of(reference, config.learner)
        if config.learner.gradient_checkpointing:
            policy.gradient_checkpointing_enable()
        policy.train()
        optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.learner.lr, betas=(0.9, 0.95), weight_decay=config.learner.weight_decay
        )
        self.engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=optimizer,
            lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, config)),
            config=deepspeed_config(config.learner.deepspeed, self.bf16),
        )
        self.stage = self.engine.zero_optimization_stage()
        whole = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": self.bf16}, "zero_optimization": {"stage": 3}}
        self.reference = Frozen(reference, self.device, self.stage == 3, whole) if reference is not None else None
        self.canary = canary.draw(policy.config, config.seed)
        self.moved = False  # has it been seen that every parameter moves?
        self.alone = Stopwatch(partial(torch.cuda.Event, enable_timing=True) if self.gpu else None)  # forward passes
        # Of a token's log-probability, where nothing differs but how it is computed: the canary's is of a mean over tokens.
        self.tolerance = max(0.1, 2 * canary.compare(self.engine.module, self.canary, self.device)[1]) if self.bf16 else 1e-3
        self.hidden: int | None = policy.config.get_text_config().hidden_size if config.learner.packing else None
        self.head = self._fitting(self._logits, self.head, policy.config)
        if self.reference and reference is not None:
            self.reference_head = self._fitting(self.reference, self.reference_head, reference.config)

    def step(self, groups: list[Group]) -> Metrics:
        """Learn from every judged sample of `groups`, in `learner.updates` optimizer steps over a part of them each.

        Credit looks at the whole batch; samples without a gradient are then left out, and `idle` is their share.
        `policy_gap` and `mismatch/*` are those of the first update, before which nothing has moved. `entropy` is the mean of
        -log p over the sampled tokens, as the sampler has it: an unbiased estimate that costs nothing. `alone` is this
        rank's own: seconds in forward passes, where it waits for no other.
        """
        config, algorithm, updates = self.config, self.config.algorithm, self.config.learner.updates
        kept = [group for group in groups if FILTERS[algorithm.keep](group)]
        samples = [s for group in kept for s in group.judged()]
        reference = self._logprobs(self.reference, samples) if self.reference else None
        parts = cut(kept, updates, algorithm.overlong)
        own = columns(
            kept, parts, algorithm, config.tasks.reward, config.rollout.max_tokens, reference, config.seed + self.version
        )
        teach = moving(own, algorithm)
        parts = [[row for row in rows if teach[row]] for rows in parts]
        if self._proximal() == "learner" and updates > 1:  # with one update it is the policy that is being trained
            rows = sorted(itertools.chain(*parts))
            known = dict(zip(rows, self._logprobs(self._logits, [samples[row] for row in rows]), strict=True))
            own["old"] = [known.get(row) for row in range(len(samples))]
        metrics = [self._update([samples[row] for row in rows], {k: [column[row] for row in rows] for k, column in own.items()})
                   for rows in parts]  # fmt: skip
        if (diverged := sum(m["diverged"] for m in metrics)) and self.rank == 0:
            self._keep(samples, own)
        self.version += 1
        alone = self.alone.lap()
        if self.reference and algorithm.reference_every and self.version % algorithm.reference_every == 0:
            self.reference.become(self.engine.module)
        mean = {key: float(np.mean([m[key] for m in metrics])) for key in ("loss", "grad_norm")}
        mean["idle"] = 1 - sum(map(len, parts)) / max(len(samples), 1)
        if algorithm.answers == "policy":
            said = np.concatenate([[0.0], *(s.logprobs[s.mask] for s in samples)])
            mean["entropy"] = -float(said.sum()) / max(len(said) - 1, 1)
        # Under ZeRO-3 ranks wait for each other in every forward pass.
        return metrics[0] | mean | {"diverged": diverged} | ({"alone": alone} if self.stage < 3 else {})

    def _update(self, samples: list[Sample], own: dict[str, list[Any]]) -> Metrics:
        """One optimizer step. `own`: columns of the batch, one entry per sample."""
        algorithm = self.config.algorithm
        here = self._proximal() == "learner" and "old" not in own

        plan = self._plan(samples)
        sums: dict[str, Tensor] = {}
        for i, rows in enumerate(plan):
            self.engine.set_gradient_accumulation_boundary(i == len(plan) - 1)
            chosen = [samples[r] for r in rows]
            micro = self._batch(chosen, {name: [column[r] for r in rows] for name, column in own.items()})
            logp, entropy, area = self._read(self._logits, micro.tokens, chosen, bool(algorithm.entropy))
            per_token, seen = objective(logp, micro._replace(old=logp.detach()) if here else micro, algorithm, entropy)
            loss = (per_token * micro.weight).sum()
            self.engine.backward(loss * self.world)  # DeepSpeed takes the mean over ranks, and the loss is a sum
            seen |= {"loss": loss.detach(), "padded": loss.new_tensor(area)}
            for name, value in seen.items():
                sums[name] = sums.get(name, 0.0) + value.double()
            pulse.beat(f"step {self.version + 1}, micro-batch {i + 1} of {len(plan)}")
        masters = self.stage > 0
        before = None if self.moved else fingerprints(self.engine.module, masters)
        lr = self.engine.get_lr()[0]
        grad_norm = self._plain_norm()
        if math.isfinite(grad_norm):  # ZeRO 0; DeepSpeed looks itself at the other stages, and skips such a step
            self.engine.step()
            stepped = self.engine.was_step_applied()
            grad_norm = float(self.engine.get_global_grad_norm() or grad_norm)
        else:
            self.engine.zero_grad()
            stepped = False
        if before is not None and stepped and grad_norm > 0:
            assert_moved(before, fingerprints(self.engine.module, masters))
            self.moved = True
        torch.distributed.all_reduce(values := torch.stack([*sums.values()]))
        totals = dict(zip(sums, values.tolist(), strict=True))
        real = sum(len(s.tokens) for s in samples)
        padding = 1 - real / totals["padded"] if real else 0.0
        metrics = {"loss": totals["loss"], "grad_norm": grad_norm, "lr": lr, "padding": padding, "diverged": float(not stepped)}
        if algorithm.answers == "policy":
            metrics |= summary(totals)
            if self.reference:
                metrics["reference_kl"] = totals["reference_kl"] / max(totals["tokens"], 1)
        return metrics

    def _proximal(self) -> str:
        """Whose log-probabilities ratios compare with.

        The learner's cost nothing with one update a step, and where sampler and learner differ they tell a moving
        policy from a mismatch (decoupled PPO, 2110.00641). Else the sampler's serve, and save a forward pass.
        """
        asked = self.config.algorithm.proximal
        differ = self.bf16 or self.config.loop.max_lag > 0
        return asked if asked != "auto" else "learner" if differ or self.config.learner.updates == 1 else "sampler"

    def _logits(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        return logits(self.engine, tokens, positions)

    def _plan(self, samples: list[Sample]) -> list[list[int]]:
        """This rank's micro-batches."""
        cut = partial(cut_packed, hidden=self.hidden) if self.hidden else cut_padded
        return micro_batches([len(s.tokens) for s in samples], self.world, self.config.learner.tokens, cut)[self.rank]

    def _read(self, model: Model, tokens: Tensor, samples: list[Sample], entropy: bool = False) -> Read:
        lengths = [len(s.tokens) for s in samples] or [tokens.shape[1]]  # one row of padding
        with self.alone.on():
            head = self.reference_head if model is self.reference else self.head
            return read(model, tokens, lengths, self.config.rollout.temperature, self.hidden, entropy, head)

    @torch.no_grad()
    def _logprobs(self, model: Model, samples: list[Sample]) -> list[NDArray[np.float32]]:
        """Of every sample's tokens under `model`, [P + A] each: every rank works out its share, and gets all."""
        mine: dict[int, NDArray[np.float32]] = {}
        for rows in self._plan(samples):
            chosen = [samples[r] for r in rows]
            logp = self._read(model, self._batch(chosen, {}).tokens, chosen).logp.cpu().numpy()
            mine |= {r: logp[i, : len(samples[r].tokens)] for i, r in enumerate(rows)}
            pulse.beat(f"step {self.version + 1}, log-probabilities")
        shares: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(shares, mine)
        found = {r: logp for share in shares for r, logp in share.items()}
        return [found[r] for r in range(len(samples))]

    def _batch(self, samples: list[Sample], own: dict[str, list[Any]]) -> Batch:
        """A micro-batch on the device. A rank that has run out of samples gets one row of padding, for it still takes
        part: under ZeRO-3 a forward pass is a collective."""
        batch = Batch.collate(samples, **own)
        if not samples:
            batch = Batch(*(np.zeros((1, 2), column.dtype) for column in batch))
        return Batch(*(torch.from_numpy(column).to(self.device) for column in batch))

    def _keep(self, samples: list[Sample], own: dict[str, list[Any]]) -> None:
        """Write down a batch that came to NaN or infinity: its texts and rewards, and the numbers that went in."""
        folder = Path(self.config.out) / "diverged"
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / f"step-{self.version + 1:06}.jsonl", (
            {"text": s.text, "reward": s.reward, "parts": s.parts, "version": s.version, "tokens": s.tokens.tolist(),
             "logprobs": s.logprobs.tolist()} | {name: np.asarray(column[i]).tolist() for name, column in own.items()}
            for i, s in enumerate(samples)
        ))  # fmt: skip

    def _fitting(self, model: Model, head: Head | None, about: Any) -> Head | None:
        """`head`, if the model can be read by it. Raises `ValueError` where it cannot be read as the recipe says."""
        if self.hidden and not packable(model, about, self.tolerance, self.device):
            raise ValueError(
                f"learner.packing: {about.model_type} lets packed samples see each other; say learner.packing=false"
            )
        if not head or readable(model, head, about.get_text_config().vocab_size, self.tolerance, self.device):
            return head
        why = f"{about.model_type} changes its logits after its last layer"
        if head.whole:
            raise ValueError(f"learner.float32_head: {why}, so that layer cannot be read alone; say learner.float32_head=false")
        print(f"{why}, so they are worked out all at once, whatever learner.logits says: fewer learner.tokens need less memory")
        return None

    def _plain_norm(self) -> float:
        """The gradient's norm before clipping; DeepSpeed tells it for every set-up but ZeRO 0 in float32."""
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients and not self.stage else 0.0

    # ---- weights ----

    def publish(self) -> Handle:
        """Make the weights available to the engines. Every rank takes part; only rank 0's handle is of use."""
        prompt, source = self._canary(), self._weights()
        if self.publisher.kind == "broadcast":  # only described here; `send` gathers it
            handle = self.publisher.publish(source) if self.rank == 0 else {}
        else:
            handle = self._on_rank_0(source, self.publisher.publish) or {}
        return handle | {"canary": prompt}

    def open_group(self, host: str, world: int, timeout: float) -> int:
        """Rank 0: open a broadcast group of `world` members at `host`, and return its port. `timeout`: seconds without any
        progress after which a member gives up."""
        return self.publisher.open(host, world, timeout)

    def connect_group(self) -> bool:
        """Rank 0: wait for the engines' workers to join. False if somebody is lost."""
        return self.publisher.connect()

    def send(self) -> bool:
        """Broadcast what `publish` described. Every rank takes part; False on rank 0 if the group was cut off."""
        return self._on_rank_0(self._weights(), self.publisher.send) is not False

    def interrupt(self) -> None:
        """Make `connect_group` and `send` give up; called from another thread."""
        self.publisher.interrupt()

    def release_memory(self) -> None:
        """Give memory that is only cached back to the device, which an engine is about to use."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()

    def export(self, path: str) -> None:
        """Write a whole Hugging Face directory that transformers and vLLM load as it is."""
        state = self._on_rank_0(self._weights(), self._state) if self.stage == 3 else None
        try:
            if self.rank == 0:
                partial = Path(f"{path}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                with stored(partial):
                    self.engine.module.save_pretrained(partial, state_dict=state)
                    self.tokenizer.save_pretrained(partial)
                    shutil.rmtree(path, ignore_errors=True)
                    rename(partial, Path(path))  # whole or not there
        finally:
            torch.distributed.barrier()  # also where rank 0 could not write: the others wait here

    def digest(self) -> str:
        """Of the weights that are held now; every rank takes part, and rank 0's is the answer."""
        return self._on_rank_0(self._weights(by_name=True), lambda source: digest(source.tensors())) or ""

    def save(self, path: str, state: dict[str, Any]) -> None:
        """Write this rank's part of a checkpoint; it counts once `checkpoint.commit` has written its manifest."""
        with stored(Path(path)):
            try:
                self.engine.save_checkpoint(path, tag="deepspeed", client_state=state, save_latest=False)
            except (OSError, RuntimeError):
                torch.distributed.barrier()  # where the others wait, who could write: they go on learning
                raise
            if self.reference and self.config.algorithm.reference_every:  # else it is what it was at the start
                self.reference.save(path, self.rank)

    def restore(self, path: str) -> dict[str, Any]:
        """Go back to a committed checkpoint."""
        loaded, state = self.engine.load_checkpoint(path, tag="deepspeed")
        if loaded is None:
            raise FileNotFoundError(f"{path} does not hold what its manifest promises")
        if self.reference:
            self.reference.restore(path)
        scheduler, config = self.engine.lr_scheduler, self.config  # by force a run may go on with another learning rate
        scheduler.base_lrs = [config.learner.lr] * len(scheduler.base_lrs)
        for group in self.engine.optimizer.param_groups:
            rate = config.learner.lr * learning_rate(scheduler.last_epoch, config)
            group.update(initial_lr=config.learner.lr, lr=rate, weight_decay=config.learner.weight_decay)
        self.version = state["version"]
        return {key: state[key] for key in ("version", "cursor", "pending") if key in state}  # DeepSpeed's own is large

    def _weights(self, by_name: bool = False) -> Source:
        """The model's parameters, in its own order or sorted by name; under ZeRO-3 gathered from all ranks, a bucket at a time.

        A tied head appears once, as the embedding, and the engine ties it again.
        """
        named = [*self.engine.module.named_parameters()]
        named = sorted(named) if by_name else named
        if self.stage < 3:
            return Source.of(named)
        specs = [Spec(name, p.dtype, tuple(p.ds_shape)) for name, p in named]

        def gather() -> Iterator[tuple[str, Tensor]]:
            for part in buckets([spec.nbytes for spec in specs]):
                with deepspeed.zero.GatheredParameters([p for _, p in named[part]]):
                    yield from ((name, p.detach()) for name, p in named[part])

        return Source(specs, gather, transient=True)

    def _on_rank_0(self, source: Source, use: Callable[[Source], T]) -> T | None:
        """What `use` makes of `source` on rank 0, and None on the others, who gather along with it: to the end, even where
        `use` gives up before, for a rank that stops would leave the others waiting."""
        tensors = source.tensors()
        try:
            return use(Source(source.specs, lambda: tensors, source.transient)) if self.rank == 0 else None
        finally:
            for _ in tensors:
                pulse.beat("gathering weights")

    def _state(self, source: Source) -> dict[str, Tensor]:
        """The state dict that `save_pretrained` writes: parameters of `source` in host memory, and persistent buffers."""
        module = self.engine.module
        buffers = {name for name, _ in module.named_buffers()}
        kept = {name: t for name, t in module.state_dict().items() if name in buffers}
        return kept | {name: t.to("cpu", copy=True) for name, t in source.tensors()}

    def _canary(self) -> dict[str, Any]:
        logprobs, tolerance = canary.compare(self.engine.module, self.canary, self.device)
        if not all(map(math.isfinite, logprobs)):
            raise Wounded(f"the weights of v{self.version} give NaN or infinity; they are not published")
        return {"tokens": self.canary, "logprobs": logprobs, "tolerance": tolerance}
