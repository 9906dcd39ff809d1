"""One vLLM engine: tasks in, judged answers out. Knows nothing of Ray or DeepSpeed."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
from vllm import EngineArgs, LLMEngine, SamplingParams, TokensPrompt, envs
from vllm.config import ModelConfig, WeightTransferConfig
from vllm.sampling_params import RequestOutputKind

from rlreason import pulse
from rlreason.config import Config, dtype_of
from rlreason.errors import RolloutError, Wounded
from rlreason.placement import parallel_size
from rlreason.rewards.pool import Pool
from rlreason.tasks.prompts import fit
from rlreason.types import Group, Sample, Task
from rlreason.waves import Wave, Waves
from rlreason.weights import BACKEND, Handle, register
from rlreason.weights import receiver as workers
from rlreason.weights.lifetime import own_workers

SEQUENCES = 256  # that a CPU engine writes at a time
CONTEXT = 6  # tokens of a prompt that say how its answer's first ones are spelt
BLOCK = 128  # tokens of a block of its cache: what vLLM takes there


class Forgotten(Exception):
    """Nobody waits for this answer any more."""


class WeightsDiffer(Exception):
    """An engine answers with other weights than the learner published."""


def _bytes_a_token(about: ModelConfig) -> int:
    """Of the cache, in float32."""
    heads: int = about.get_total_num_kv_heads()
    return 2 * 4 * about.hf_text_config.num_hidden_layers * heads * about.get_head_size()


def _assert_heads(about: ModelConfig) -> None:
    """Refuse heads that vLLM's kernels for the CPU were not compiled for: they tell it at the first token of an answer."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend  # not on a GPU

    size, fine = about.get_head_size(), CPUAttentionBackend.get_supported_head_sizes()
    if not about.use_mla and size not in fine:
        raise ValueError(f"model: attention heads of {size} numbers; on a CPU vLLM takes {', '.join(map(str, fine))}")


def _made(args: EngineArgs) -> LLMEngine:
    """An engine of one process meets itself in a file of the temporary folder, needs it never again, and would leave it."""
    if args.tensor_parallel_size * args.pipeline_parallel_size > 1:
        return LLMEngine.from_engine_args(args)
    with tempfile.TemporaryDirectory(prefix="rlreason-engine-") as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            return LLMEngine.from_engine_args(args)
        finally:
            tempfile.tempdir = before


class Rollout:
    """An engine in this very process, stepped by one coroutine, so that weights change only between two steps.

    It starts with random weights and answers nothing until `load` has given it the learner's.
    """

    def __init__(self, config: Config, model: str, device: str, share: bool = False):
        """`share`: the learner lives on the same GPU, so the engine can be put to sleep."""
        register()
        self.config, self.version, self.loads, self.asleep = config, -1, 0, False
        self.pool = Pool(config.rewards, config.tasks.reward)  # its processes start while the engine loads
        gpu = device == "cuda"
        wanted = max(64, config.tasks.max_prompt + config.rollout.max_tokens)  # 64: room for the learner's canary
        about = EngineArgs(model=model, trust_remote_code=config.trust_remote_code).create_model_config()
        defaults: dict[str, Any] = {
            "dtype": dtype_of(config.learner.dtype, device),
            "enforce_eager": not gpu,
            "max_model_len": min(wanted, about.max_model_len),
        }
        if share and gpu:  # a CPU's memory is not given back: there sleeping and waking does nothing
            defaults |= {"enable_sleep_mode": True, "gpu_memory_utilization": 0.4}
        if parallel_size(config.rollout.vllm) > 1:
            # Else vLLM starts actors of its own where it finds itself in a placement group of Ray's.
            defaults["distributed_executor_backend"] = "mp"
            own_workers()
        if config.learner.float32_head:
            defaults["hf_overrides"] = {"head_dtype": "float32"}
        if not gpu:
            _assert_heads(about)
            # A prompt that is read in parts turns its generator back after each of them, which those of the CPU cannot.
            defaults |= {"max_num_seqs": SEQUENCES, "block_size": BLOCK, "enable_chunked_prefill": False}
            asked = defaults | config.rollout.vllm
            blocks = asked["max_num_seqs"] * -(-asked["max_model_len"] // asked["block_size"]) + 1  # vLLM keeps one
            if blocks * asked["block_size"] * _bytes_a_token(about) < envs.VLLM_CPU_KVCACHE_SPACE << 30:
                defaults["num_gpu_blocks_override"] = blocks  # else all of that space is filled with zeros
            if config.tasks.max_prompt < asked["block_size"]:
                defaults["enable_prefix_caching"] = False  # only whole blocks of a prompt are shared: there is none
        args = EngineArgs(
            model=model,
            trust_remote_code=config.trust_remote_code,
            load_format="dummy",
            seed=config.seed,
            disable_log_stats=True,
            logprobs_mode="processed_logprobs",  # those of the distribution that is sampled from: after temperature
            weight_transfer_config=WeightTransferConfig(backend=BACKEND),
            **defaults | config.rollout.vllm,
        )
        self.engine = _made(args)
        if parallel_size(config.rollout.vllm) > 1 and not gpu:
            self.engine.collective_rpc(workers.unlink_shared_memory)
        self.tokenizer = self.engine.get_tokenizer()
        room = self.engine.model_config.max_model_len - config.rollout.max_tokens
        if room < 1:
            raise ValueError(f"rollout.max_tokens: {config.rollout.max_tokens} leaves no room for a prompt: the model takes "
                             f"{self.engine.model_config.max_model_len} tokens in all")  # fmt: skip
        self.longest = min(config.tasks.max_prompt, room)  # tokens of a prompt
        self.numbers = itertools.count()
        self.waves: dict[int, dict[int, tuple[Any, ...] | None]] = {}
        self.asked = Waves(self.sample)
        self.answer, self.more = self.asked.answer, self.asked.more
        self.answers: dict[str, asyncio.Future[Any]] = {}
        self.pump: asyncio.Task[None] | None = None

    async def sample(self, task: Task, n: int, wave: Wave | None = None) -> Group:
        """Answer `task` `n` times; a prompt that is left out for its length gives a group without samples.

        The requests of a `wave` enter the engine together and in order: how they are batched, and so the last bit of
        their log-probabilities, must not depend on when their messages arrive.

        A sample's `version` is that of the weights it began under. They may change midway.
        """
        if self.version < 0:
            raise RuntimeError("this engine was asked before it had weights")
        version, rollout = self.version, self.config.rollout
        try:
            fitted = fit(self.tokenizer, task, self.config.tasks, self.longest)
        except (ValueError, RolloutError):
            self._admit(None, wave)  # its wave must not wait for it
            raise
        if fitted is None:
            self._admit(None, wave)
            return Group(task, [])
        task, prompt = fitted
        params = SamplingParams(
            n=n,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_tokens=rollout.max_tokens,
            stop=rollout.stop,
            logprobs=0,
            flat_logprobs=True,  # one list of numbers, and not a dictionary a token
            seed=crc32(f"{self.config.seed}/{task.id}/{version}".encode()),
            detokenize=bool(rollout.stop),  # token by token takes an eighth of a small model's time; else see `_text`
            skip_special_tokens=True,
            output_kind=RequestOutputKind.FINAL_ONLY,  # else each of the n arrives in an output of its own
        )
        output = await self._ask(prompt, params, wave)
        judging = (self._judged(task, prompt, answer, version) for answer in output.outputs)
        return Group(task, await asyncio.gather(*judging))

    async def score(self, tokens: list[int]) -> list[float]:
        """Log-probability of each token given those before it, at temperature 1; 0 for the first."""
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0, detokenize=False)
        output = await self._ask(tokens, params)
        given = zip(tokens[1:], output.prompt_logprobs[1:], strict=True)
        return [0.0, *(places[token].logprob for token, places in given)]

    async def load(self, weights: Handle, version: int) -> float | None:
        """Swap weights between two steps; requests in flight go on with the new ones. Returns the seconds it took, or
        `None` if the publication is gone or was replaced meanwhile: then the engine answers nothing until the next.

        Raises `WeightsDiffer` if the engine then disagrees with the learner about the canary, a fixed prompt whose
        log-probabilities the learner sent along.
        """
        started = time.perf_counter()
        if self.asleep:
            self.engine.wake_up(tags=["weights"])
        handle = {key: value for key, value in weights.items() if key != "canary"}
        self.version = -1  # until all of them are in
        if not self._in_workers(workers.load, handle):
            return None
        if self.asleep:
            self.engine.wake_up(tags=["kv_cache"])
            self.asleep = False
        self.version, self.loads = version, self.loads + 1
        self._step_on()
        seconds = time.perf_counter() - started
        if canary := weights.get("canary"):
            self._compare(canary, await self.score(canary["tokens"]), weights["kind"])
        return seconds

    def _in_workers(self, function: Callable[..., workers.Outcome], argument: Any) -> bool:
        """Run `function` in every vLLM worker, between two steps of the engine. False if what was asked for is unavailable.

        Raises `Wounded` if this engine cannot get it, and `RuntimeError` with the worker's traceback for a bug.
        """
        state, why = workers.outcome(self.engine.collective_rpc(function, args=(argument,)))
        if state == "unavailable":
            print(f"weights: {why}", flush=True)
        if state == "damaged":
            raise Wounded(why)
        if state == "failed":
            raise RuntimeError(why)
        return state == "done"

    async def forget(self) -> None:
        """Drop every request: who asked does not wait any more, and what comes next is to be alone in the engine."""
        self.waves.clear()
        self.engine.abort_request([*self.answers])
        for future in self.answers.values():
            if not future.done():
                future.set_exception(Forgotten())
        self.answers.clear()

    async def sleep(self) -> None:
        """Give the GPU's memory to the learner: weights and cache are dropped, and come back with the next `load`."""
        if not self.asleep:
            self.engine.sleep(level=2)
            self.asleep = True

    async def join(self, address: str, port: int, rank: int, world: int, timeout: float) -> bool:
        """Join the group over which the learner broadcasts weights; `rank`: of this engine's first worker. False if the
        group did not come about."""
        info = {"address": address, "port": port, "rank": rank, "world": world, "timeout": timeout}
        return self._in_workers(workers.join, info)

    async def close(self) -> None:
        if self.pump:
            self.pump.cancel()
        await self.pool.close()
        if self.engine.vllm_config.parallel_config.world_size > 1:  # else nothing is left once this process has ended
            self.engine.engine_core.shutdown()

    def _compare(self, canary: dict[str, Any], seen: list[float], kind: str) -> None:
        gap = float(np.abs(np.array(seen[1:]) - np.array(canary["logprobs"][1:])).mean())
        if self.loads == 1:
            print(f"canary: {gap:.2g} nats off the learner's in the mean, at most {canary['tolerance']:.2g}", flush=True)
        if not gap <= canary["tolerance"]:  # NaN included
            loader = f"vLLM's {'/'.join(self.engine.model_config.architectures)}.load_weights"
            raise WeightsDiffer(
                f"after weights v{self.version} arrived by {kind}, the engine's log-probabilities of the canary prompt "
                f"are {gap:.2g} off the learner's in the mean (rounding explains {canary['tolerance']:.2g}). {loader} did not "
                "take every tensor as the learner has it: look for tied, fused or renamed ones."
            )

    async def _ask(self, prompt: list[int], params: SamplingParams, wave: Wave | None = None) -> Any:
        request = str(next(self.numbers))
        future = self.answers[request] = asyncio.get_running_loop().create_future()
        # Cached prefixes of older weights must not be used: the salt keeps those of each load to itself.
        self._admit((request, TokensPrompt(prompt_token_ids=prompt, cache_salt=f"load {self.loads}"), params), wave)
        return await future

    def _admit(self, request: tuple[Any, ...] | None, wave: Wave | None) -> None:
        """Give the engine a request, or hold it until its wave is complete."""
        if wave is None:
            ready = [request]
        else:
            number, index, size = wave
            held = self.waves.setdefault(number, {})
            held[index] = request
            if len(held) < size:
                return
            ready = [held[i] for i in sorted(held)]
            del self.waves[number]
        for arguments in ready:
            if arguments is None:
                continue
            try:
                self.engine.add_request(*arguments)
            except Exception as error:  # this request's, and not that of whoever completed the wave
                self.answers.pop(arguments[0]).set_exception(error)
        self._step_on()

    def _step_on(self) -> None:
        """Step the engine from now on, if it has requests and weights to answer them with."""
        if self.version >= 0 and self.engine.has_unfinished_requests() and (self.pump is None or self.pump.done()):
            self.pump = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Step the engine while it has requests and whole weights, and hand out what is finished.

        A load that was cut off leaves layers without memory (vLLM reloads them one by one): requests in flight wait.
        """
        try:
            while self.version >= 0 and self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    if output.finished and (future := self.answers.pop(output.request_id, None)):
                        future.set_result(output)
                pulse.beat("generating")
                await asyncio.sleep(0)
        except Exception as error:  # whatever it is, this engine is not to be trusted any more
            for future in self.answers.values():
                future.set_exception(Wounded(f"{type(error).__name__}: {error}"))
            self.answers.clear()
            raise

    def _text(self, prompt: list[int], ids: Sequence[int]) -> str:
        """What `ids` say after `prompt`: some tokenizers drop the space before the first word of a text."""
        before = prompt[-CONTEXT:]
        said, whole = (
            self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for tokens in (before, [*before, *ids])
        )
        return str(whole[len(said) :])

    async def _judged(self, task: Task, prompt: list[int], answer: Any, version: int) -> Sample:
        ids = answer.token_ids
        tokens = np.array([*prompt, *ids], np.int32)
        logprobs = np.zeros(len(tokens), np.float32)
        logprobs[len(prompt) :] = answer.logprobs.logprobs  # of the sampled tokens alone
        truncated = answer.finish_reason == "length"
        text = (
            answer.text if self.config.rollout.stop else self._text(prompt, ids[:-1] if answer.finish_reason == "stop" else ids)
        )
        reward, parts, failures = await self.pool.judge(
            task, text, self.config.tasks.reward,
            length=len(ids), limit=self.config.rollout.max_tokens, truncated=truncated,
        )  # fmt: skip
        pulse.beat("judging")
        return Sample(
            tokens=tokens,
            mask=np.arange(len(tokens)) >= len(prompt),
            logprobs=logprobs,
            text=text,
            version=version,
            truncated=truncated,
            reward=reward,
            parts=parts,
            failures=failures,
        )
