"""A teacher behind an OpenAI-compatible chat endpoint, served as a rollout. Loads no engine; httpx when it asks."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self
from zlib import crc32

import numpy as np

from rlreason import named
from rlreason.endpoint import Endpoint, NoReply, OverBudget, digest, key, new_client, readable, remembered, wrong_url
from rlreason.errors import RecipeError, RolloutError, StorageError
from rlreason.loop import WeightSource
from rlreason.types import Group, Sample, Task

if TYPE_CHECKING:
    from rlreason.config import Config
    from rlreason.rewards.pool import Pool

OPTIONS = "sample.teacher"  # where a recipe says them
AT_LEAST = {"request_timeout": 0.1, "retries": 0, "concurrency": 1, "budget": 0}
MOST = 1 << 24  # tokens of an answer: a server that tells of more is not believed
OURS = {  # what `extra` must not say
    "model": f"say {OPTIONS}.model", "messages": "it is the task's prompt", "n": "say loop.samples",
    "stream": "replies are read whole",
}  # fmt: skip


@dataclass(frozen=True)
class TeacherConfig:
    """What a recipe says in sample.teacher."""

    url: str = ""  # the endpoint's base, such as http://host:8000/v1
    model: str = ""  # by the name that the endpoint knows it by
    key_file: str = ""  # the key is its text; empty: $OPENAI_API_KEY, where there is one
    request_timeout: float = 600.0  # seconds that a request may be silent; also the longest Retry-After that is waited for
    retries: int = 8  # of a request that fails for a passing reason: after 0.5 s, 1 s, 2 s, … 30 s, or as Retry-After says
    concurrency: int = 64  # requests at a time
    budget: int = 0  # requests of this process to this model at most, repeated ones included; 0 is no limit
    cache: str = ""  # a SQLite file of replies, which processes may share: what is in it is not asked again
    think: Literal["auto", "none"] = "auto"  # what comes as reasoning apart goes before the answer, in <think>; none: nowhere
    extra: dict[str, Any] = field(default_factory=dict)  # merged into a request's body, and wins; a null takes a field out


class Teacher:
    """`async with Teacher(config, pool, **config.sample.teacher) as teacher: await teacher.sample(task, n)`.

    Temperature, the limit of tokens and the stop strings are those of `config.rollout`; `config.tasks.max_prompt` is in
    the learner's tokens, and not looked at. Answers are judged like an engine's.

    A teacher's token ids mean nothing to our learner. A sample's arrays have the answer's length in tokens, as the server
    counts them (hidden reasoning included; where it tells none, a fourth of the text's bytes), and say no more: tokens and
    logprobs are 0, the mask is True, there is no prompt. The version is 0.
    """

    def __init__(self, config: Config, pool: Pool, **given: Any):
        """`given` is what `TeacherConfig` declares. Raises `RecipeError` where it makes no sense."""
        if problems := [f"{OPTIONS}.{name}: {problem}" for name, problem in wrong_options(given)]:
            raise RecipeError(problems)
        self.config, self.pool = config, pool
        self.options = options = TeacherConfig(**given)
        self.client = new_client(options.concurrency)
        self.free = asyncio.Semaphore(options.concurrency)  # a request keeps its place until its next try: the server is busy
        self.endpoint = Endpoint(
            options.url, self.client, who=f"the teacher {options.model}", options=OPTIONS, key=key(options.key_file, OPTIONS),
            patience=options.request_timeout, retries=options.retries, budget=options.budget, longest=options.request_timeout,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def sample(self, task: Task, n: int) -> Group:
        """Ask for `n` answers, in a request each: not every server knows `n`.

        Each has a seed that follows from `config.seed`, `task.id` and its number: the same task gets the same answers
        again, as far as the server heeds seeds, and from the cache surely.
        Raises `RolloutError` where one of them cannot be had, `StorageError` where the cache cannot be used.
        """
        asking = [asyncio.ensure_future(self._answer(task, number)) for number in range(n)]
        try:
            return Group(task, await asyncio.gather(*asking))
        except OverBudget as error:
            await asyncio.gather(*asking, return_exceptions=True)  # what is asked already is paid for: into the cache with it
            advice = "raise it, or say 0 for no limit; the same command goes on from what is committed"
            raise RolloutError(f"task {task.id}: {error}\n{advice}") from None
        except NoReply as error:
            advice = "the same command goes on from what is committed, and asks it again; a task that this teacher can never " \
                     "answer has to leave the data"  # fmt: skip
            raise RolloutError(f"task {task.id}: {error}\n{advice}") from None
        finally:
            for answer in asking:  # the others, where one has failed
                answer.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def load(self, source: WeightSource, version: int) -> None:
        """A teacher keeps its own weights."""

    async def close(self) -> None:
        """Close the connections; the pool is closed by who made it."""
        await self.client.aclose()

    async def _answer(self, task: Task, number: int) -> Sample:
        rollout = self.config.rollout
        body, seed = self._body(task, number)

        async def ask() -> str:
            async with self.free:
                return await self.endpoint.ask(body, read)

        try:
            reply = json.loads(await remembered(self.options.cache, digest(self.endpoint.url, body, seed), ask))
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"{OPTIONS}.cache: {self.options.cache}: {error}") from None
        text, truncated = written(reply, self.options.think), reply["finish"] == "length"
        length = reply["tokens"] if reply["tokens"] is not None else len(text.encode()) // 4
        reward, parts, failures = await self.pool.judge(
            task, text, self.config.tasks.reward, length=length, limit=rollout.max_tokens, truncated=truncated
        )
        return Sample(
            tokens=np.zeros(length, np.int32),
            mask=np.ones(length, np.bool_),
            logprobs=np.zeros(length, np.float32),
            text=text,
            version=0,
            truncated=truncated,
            reward=reward,
            parts=parts,
            failures=failures,
        )

    def _body(self, task: Task, number: int) -> tuple[dict[str, Any], int]:
        """A request, and its seed, which the request has unless `extra` takes it out."""
        rollout, seed = self.config.rollout, crc32(f"{self.config.seed}/{task.id}/{number}".encode()) >> 1  # 31 bits: an int32
        messages = [{"role": "user", "content": task.prompt}] if isinstance(task.prompt, str) else task.prompt
        body = {
            "model": self.options.model,
            "messages": [message | {"content": readable(message["content"])} for message in messages],
            "temperature": rollout.temperature,
            "max_tokens": rollout.max_tokens,
            "top_p": rollout.top_p if rollout.top_p < 1 else None,
            "stop": rollout.stop or None,  # an empty list is refused by some
            "seed": seed,
        }
        return {name: value for name, value in (body | self.options.extra).items() if value is not None}, seed


def read(completion: Any) -> str:
    """What we keep of a chat completion, as JSON: {content, reasoning, finish, tokens}; tokens may be null.

    Raises `TypeError`, `LookupError` or `AttributeError` where there is neither text nor a reason for there being none.
    """
    choice, usage = completion["choices"][0], completion.get("usage") or {}
    message, finish, tokens = choice["message"], choice.get("finish_reason"), usage.get("completion_tokens")
    content = message.get("content")
    thoughts = [message.get(name) for name in ("reasoning_content", "reasoning")]  # DeepSeek's API; vLLM, OpenRouter
    reasoning = next((text for text in thoughts if text and isinstance(text, str)), "")
    if content is None and (reasoning or finish in ("length", "content_filter")):
        content = ""
    if not isinstance(content, str):
        raise TypeError("no text")
    counted = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens <= MOST
    kept = {"content": content, "reasoning": reasoning, "finish": finish, "tokens": tokens if counted else None}
    return json.dumps(kept)


def written(reply: Mapping[str, Any], think: str) -> str:
    """The answer as one text; a thought that the limit of tokens cut off has no </think>."""
    content, reasoning = readable(reply["content"]), readable(reply["reasoning"]).strip()
    if think == "none" or not reasoning:
        return content
    if reply["finish"] == "length" and not content:
        return f"<think>\n{reasoning}"
    return f"<think>\n{reasoning}\n</think>\n{content}"


def wrong_options(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, problem) for what is wrong with `sample.teacher`. Never tells the key."""
    wrong = dict(named.wrong_options(TeacherConfig, given))
    yield from wrong.items()
    asked = {name: value for name, value in (named.options(TeacherConfig) | dict(given)).items() if name not in wrong}
    for name, what in (("url", "endpoint is asked"), ("model", "of its models answers")):
        if asked.get(name) == "":
            yield name, f"is missing: say which {what}"
    if asked.get("url") and (problem := wrong_url(asked["url"])):
        yield "url", problem
    for name, least in AT_LEAST.items():
        if name in asked and asked[name] < least:
            yield name, f"{asked[name]} is below {least:g}"
    if "key_file" in asked:
        try:
            key(asked["key_file"], OPTIONS)
        except ValueError as error:
            yield "key_file", str(error).removeprefix(f"{OPTIONS}.key_file: ")
    extra = given.get("extra", {})
    if not isinstance(extra, dict):
        yield "extra", f"{extra!r:.80} is not a mapping of fields of a request to values"
    else:
        yield from ((f"extra.{name}", f"is not for extra to say: {why}") for name, why in OURS.items() if name in extra)
