"""Recipes, models and data that are wrong, missing, too large or hostile: told before anything starts. Cases 1 to 17."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from case import Case, Seen
from real import ROOT, Run, rlreason

from rlreason import model
from rlreason.config import Config, EvalConfig, LoopConfig, TasksConfig
from rlreason.errors import RolloutError
from rlreason.history import History
from rlreason.loop import train
from rlreason.recipe import load
from rlreason.recorded import Recorded
from rlreason.rewards.pool import Pool
from rlreason.tasks import Tasks
from rlreason.types import Batch, Group, Sample, micro_batches, token_weights

MADE = {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
SCREEN = 45  # lines


def write(folder: Path, *lines: str, extends: str = "recipes/debug.yaml") -> Path:
    """A recipe that is right but for what `lines` say."""
    path = folder / "run.yaml"
    path.write_text("\n".join([f"extends: [{ROOT / extends}]", *lines]) + "\n")
    return path


RIGHT = (f"model: {{from_config: {json.dumps(MADE)}}}", "tasks: {generate: add, path: ''}")  # lines 2 and 3


def refused(folder: Path, recipe: Path, *told: str, code: int = 2, options: Sequence[str] = (), **environment: str) -> Run:
    """Train, for real: it ends with `code`, says every one of `told` on one screen, and has started nothing."""
    out = folder / "run"
    run = rlreason("train", recipe, *options, out=out, timeout=60, **environment)
    assert run.code == code, f"exit {run.code}: {run.text[-2000:]}"
    words = run.text[run.text.find("rlreason: ") :]
    for one in told:
        assert one in words, f"{one!r} is not in: {words[:2000]}"
    assert "Traceback" not in run.text, run.text[-2000:]
    assert words.count("\n") < SCREEN
    assert len(words) < 10_000
    assert not list(out.glob("logs/*")) if out.is_dir() else True
    return run


def seen(run: Run, what: str, *more: str) -> Seen:
    return Seen("; ".join([f"exit {run.code} in {run.seconds:.1f} s: {what}", *more]))


def unknown_option(folder: Path) -> Seen:
    told = "run.yaml:4: lop.steps: there is no such option; did you mean loop.steps?"
    run = refused(folder, write(folder, *RIGHT, "lop: {steps: 3}"), told, options=[f"out={folder / 'run'}"])
    return seen(run, told)


def wrong_values(folder: Path) -> Seen:
    lines = ("learner: {lr: abc}", "loop: {samples: 0, groups: 2.5}", "rollout: {top_p: 3}")
    told = ("run.yaml:4: learner.lr: Value 'abc'", "run.yaml:5: loop.samples: 0 is below 1", "run.yaml:5: loop.groups: Value",
            "run.yaml:6: rollout.top_p: 3.0 is not above 0 and at most 1")  # fmt: skip
    run = refused(folder, write(folder, *RIGHT, *lines), *told, options=[f"out={folder / 'run'}"])
    return seen(run, "4 of 4 problems at once, each with its line")


def leads_nowhere(folder: Path) -> Seen:
    lines = ("learner:", "  lr: ${learner.ler}", "  warmup: ${learner.updates}", "  updates: ${learner.warmup}")
    told = ("run.yaml:5: learner.lr: Interpolation key 'learner.ler' not found; did you mean learner.lr?",
            "run.yaml:6: learner.warmup: Recursive interpolation", "run.yaml: out is missing")  # fmt: skip
    run = refused(folder, write(folder, *RIGHT, *lines), *told)
    return seen(run, "; ".join(told))


def uneven(folder: Path) -> Seen:
    """Seven tasks of three answers for four learners and three updates: every answer is trained on once, the weights add
    up to one. Only what has no meaning is refused."""
    load(write(folder, *RIGHT, "out: o", "loop: {groups: 7, samples: 3}", "learner: {workers: 4, updates: 3}"))
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 60, 21)]
    plan = micro_batches(lengths, 4, 64)
    assert sorted(i for rank in plan for cut in rank for i in cut) == [*range(21)]
    weights = token_weights(lengths, [i // 3 for i in range(21)], "token", 60)
    assert abs(sum(w * n for w, n in zip(weights, lengths, strict=True)) - 1) < 1e-12
    told = ("eval.every: 16 is no multiple of loop.save_every (5), so the best could not be kept: 5 × 3 = 15, 5 × 4 = 20",
            "learner.updates: 9 optimizer steps cannot share 4 groups")  # fmt: skip
    lines = ("loop: {save_every: 5}", "eval: {every: 16}", "learner: {updates: 9}", "out: o")
    run = refused(folder, write(folder, *RIGHT, *lines), *told)
    return seen(run, told[0], "7 × 3 answers over 4 ranks: each once, weights sum to 1")


def too_few_gpus(folder: Path) -> Seen:
    lines = ("device: cuda", "learner: {workers: 999}", f"out: {folder / 'run'}", "eval: {tasks: 0}")
    told = "the recipe wants 999 learners and 1 engines of 1 GPUs each, 1000 GPUs; there are"
    run = refused(folder, write(folder, *RIGHT, *lines), told, code=3)
    return seen(run, told, "no model was loaded")


def heads(folder: Path) -> Seen:
    told = (
        "rollout.vllm.tensor_parallel_size: 2 attention heads (and 2 of keys and values) cannot be shared out among 3 "
        "GPUs: 2 / 3 = 0.667; say 2"
    )
    run = refused(folder, write(folder, *RIGHT, "out: o", "rollout: {vllm: {tensor_parallel_size: 3}}"), told)
    return seen(run, told)


@contextmanager
def gate() -> Iterator[str]:
    """The URL of a hub where every model is gated."""

    class Gate(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", "Access to this model is restricted.")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def no_model(folder: Path) -> Seen:
    recipe = write(folder, RIGHT[1], "eval: {tasks: 0}", f"out: {folder / 'run'}")
    (folder / "empty").mkdir()
    (folder / "cut").mkdir()
    (folder / "cut" / "config.json").write_text(json.dumps(MADE | {"eos_token_id": 0}))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "cut" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "cut" / "model-00001-of-00002.safetensors").touch()
    refused(folder, recipe, "model: ./nowhere is no directory here", options=["model=./nowhere"])
    refused(folder, recipe, "is a directory without config.json", options=[f"model={folder / 'empty'}"])
    refused(folder, recipe, "is not whole: 1 of its 2 files of weights are not there", options=[f"model={folder / 'cut'}"])
    hub = {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    offline = refused(folder, recipe, "not to be had from the hub", "HF_HUB_OFFLINE=1", options=["model=some/model"], **hub)
    with gate() as url:
        hub = {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": url}
        gated = refused(folder, recipe, "gated repo", "accept its terms", "HF_TOKEN", options=["model=some/model"], **hub)
    return seen(
        gated, "missing, empty, half there, offline, gated: each told, with what to do", f"offline {offline.seconds:.1f} s"
    )


def whole(folder: Path, rows: int | None = None, **settings: Any) -> Path:
    """A model's directory as far as it is looked at before anything starts; `settings` go into tokenizer_config.json, and
    its embedding has as many rows as its tokenizer has tokens, or `rows`."""
    path = Path(model.make({"from_config": MADE, "characters": "ab"}, folder))
    about = json.loads((path / "config.json").read_text())
    ends = settings.get("eos_token", "") is not None
    about |= {"vocab_size": rows or about["vocab_size"], "eos_token_id": 0 if ends else None}
    (path / "config.json").write_text(json.dumps(about))
    said = json.loads((path / "tokenizer_config.json").read_text()) | settings
    (path / "tokenizer_config.json").write_text(json.dumps(said))
    (path / "model.safetensors").touch()
    return path


def tokenizers(folder: Path) -> Seen:
    """None is needed for padding: rows are filled up with 0 and masked. Without an end a stop string is, for chat messages
    a template."""
    plain = write(folder, RIGHT[1], "out: o")
    load(plain, [f"model={whole(folder / 'unpadded', pad_token=None)}"])
    batch = Batch.collate([row(3), row(1)])
    assert batch.tokens.shape == (2, 3)
    assert batch.mask[1].tolist() == [1, 0, 0]
    endless = whole(folder / "endless", eos_token=None)
    run = refused(folder, plain, "has no end-of-sequence token", "say rollout.stop", options=[f"model={endless}"])
    load(plain, [f"model={endless}", "rollout.stop=[x]"])
    (folder / "chat.jsonl").write_text('{"prompt": [{"role": "user", "content": "a"}], "answer": "b"}\n')
    chat = [f"model={whole(folder / 'plain')}", f"tasks.path={folder / 'chat.jsonl'}", "tasks.generate=", "eval.tasks=0"]
    refused(folder, plain, "has no chat template; say tasks.chat_template", options=[*chat, f"out={folder / 'run'}"])
    return seen(run, "no end-of-sequence token: say rollout.stop", "no chat template: say tasks.chat_template", "no pad: fine")


def row(length: int) -> Sample:
    return Sample(np.ones(length, np.int32), np.ones(length, np.bool_), np.zeros(length, np.float32), "", 0)


def vocabulary(folder: Path) -> Seen:
    plain = write(folder, RIGHT[1], "out: o")
    told = "its tokenizer has a token number 3, and its embedding has 3 rows, 0 to 2"
    run = refused(folder, plain, told, options=[f"model={whole(folder / 'small', rows=3)}"])
    # Of this one only the four tags are beyond it, which nothing writes: as with Gemma's token for an image.
    load(plain, [f"model={whole(folder / 'tags', rows=4)}"])
    template = whole(folder / "template", rows=4, chat_template="{{ messages }}<think>")
    refused(folder, plain, "its tokenizer has a token number 4", options=[f"model={template}"])
    return seen(run, told, "an added token that no template writes is let be")


def bad_rows(folder: Path) -> Seen:
    rows = {  # a line -> what is told of it
        b'{"prompt": "p", "answer": "1"}': "",
        b'{"prompt": "caf\xe9", "answer": 1}': "is not UTF-8 (byte 0xe9 at 15)",
        b'{"prompt": "p", "answer": NaN}': "answer is NaN",
        b'{"question": "p", "answer": 1}': "has no prompt; it has question, answer",
        b'{"prompt": "p", "answer": 1, "id": "a"}': "",
        b'{"prompt": "q", "answer": 1, "id": "a"}': "has the id 'a' of",
        b'{"prompt": "p"}': "has neither answer nor response nor info",
        b'{"prompt": "\\ud800", "answer": 1}': "prompt holds half a character",
        b"[" * 100_000: "is not JSON",
        b'{"answer": ' + b"9" * 5000 + b"}": "is not JSON",
        b'"' + b"x" * 1_000_000: "is not JSON",
    }
    told = [f"tasks.jsonl:{i}: {problem}" for i, problem in enumerate(rows.values(), 1) if problem]
    path = folder / "tasks.jsonl"
    path.write_bytes(b"\n".join(rows))
    recipe = write(folder, RIGHT[0], f"tasks: {{path: {path}}}", f"out: {folder / 'run'}", "eval: {tasks: 0}")
    run = refused(folder, recipe, *told)
    path.write_text("")
    refused(folder, recipe, "tasks.jsonl: is empty")
    path.write_text('{"question": "p", "answer": 1}\n' * 1000)
    refused(folder, recipe, "… and 980 more such rows")
    return seen(run, "all 9 bad rows at once, with file and line", "an empty file too", "of 1000 bad rows 20 and a count")


class Counting:
    """A learner that learns nothing."""

    def __init__(self) -> None:
        self.version = 0
        self.learned: list[str] = []

    async def step(self, groups: list[Group]) -> dict[str, float]:
        self.version += 1
        self.learned += [group.task.id.rpartition(":")[2].partition("@")[0] for group in groups]
        return {}

    async def publish(self) -> None:
        return None

    async def save(self, cursor: int, pending: Sequence[str]) -> None:
        pass


@cache
def tokenizer() -> Any:
    """One token per character."""
    from transformers import AutoTokenizer

    made = {"from_config": MADE, "characters": "".join(map(chr, range(32, 127)))}
    with TemporaryDirectory() as folder:
        return AutoTokenizer.from_pretrained(model.directory(made, Path(folder)), trust_remote_code=False)


def answered(folder: Path, prompts: Sequence[str], **tasks: Any) -> tuple[list[str], float]:
    """Two steps of two tasks, answered from a file: which rows were learned from, and how many were too long a step."""
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": "1"}) + "\n" for p in prompts))
    config = Config(
        model="m", out=str(folder), tasks=TasksConfig(path=str(path), max_prompt=4, reward={"exact": 1.0}, **tasks),
        loop=LoopConfig(steps=2, groups=2, samples=1), eval=EvalConfig(tasks=0),
    )  # fmt: skip
    overlong: list[float] = []

    async def run() -> list[str]:
        learner = Counting()
        async with Pool(config.rewards, config.tasks.reward, folder / "log") as pool:
            source = Tasks(config)
            history = History(config, source, Recorded(config, tokenizer(), pool), lambda group: True)
            await train(
                config.loop, history.stream(0), history, learner,
                keep=history.keep, log=lambda step, groups, metrics: overlong.append(history.metrics["overlong"]),
            )  # fmt: skip
        return learner.learned

    return asyncio.run(run()), sum(overlong)


def too_long(folder: Path) -> Seen:
    prompts = ["1+1=", "12345", "2+2=", "123456", "3+3=", "4+4="]
    kept, dropped = answered(folder, prompts)
    assert sorted(kept) == ["1", "3", "5", "6"], kept
    assert dropped in (0, 1, 2)  # as many as came before the fourth short one
    kept, cut = answered(folder, prompts, overlong="truncate")
    assert len(kept) == 4
    try:
        answered(folder, prompts, overlong="error")
    except RolloutError as error:
        told = str(error)
    assert "its prompt has" in told
    assert "tasks.overlong: error ends the run" in told
    return Seen(f"drop: {dropped:.0f} left out and counted; truncate: {cut:.0f} cut and counted; error: exit 4, {told[:90]} …")


def none_left(folder: Path) -> Seen:
    began = time.monotonic()
    try:
        answered(folder, ["12345"] * 3)
        raise AssertionError("it ended well")
    except RolloutError as error:
        told = str(error)
    seconds = time.monotonic() - began
    assert "groups were all dropped" in told
    assert "no prompt fits tasks.max_prompt" in told
    return Seen(f"exit {RolloutError.code} after 201 groups in {seconds:.1f} s: {told[:70]} …")


@contextmanager
def teacher() -> Iterator[tuple[str, list[int]]]:
    """A chat endpoint that answers 1; its URL, and its requests."""
    asked: list[int] = []

    class Teacher(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(len(self.rfile.read(int(self.headers["content-length"]))))
            message = {"role": "assistant", "content": "<answer>1</answer>"}
            choice = {"message": message, "finish_reason": "stop"}
            body = json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def folder_in_use(folder: Path) -> Seen:
    """The same command resumes or, when all is done, does nothing; another recipe is refused; --fresh moves aside."""
    out = folder / "run"
    with teacher() as (url, asked):
        recipe = write(
            folder, "kind: sample", "tasks: {generate: add, path: ''}", f"out: {out}", "loop: {groups: 2, samples: 1}",
            "eval: {tasks: 0}", f"sample: {{tasks: 4, keep: all, teacher: {{url: '{url}', model: m}}}}",
            extends="recipes/base.yaml",
        )  # fmt: skip
        first = rlreason("train", recipe, out=out, timeout=60)
        assert first.code == 0, first.text
        assert len(asked) == 4
        again = rlreason("train", recipe, out=out, timeout=60)
        assert (again.code, len(asked)) == (0, 4), again.text
        before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and p.name != ".lock"}
        other = rlreason("train", recipe, "seed=1", out=out, timeout=60)
        assert other.code == 2, other.text
        assert "seed was 0, is 1" in other.text
        assert "--fresh" in other.text
        after = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and p.name != ".lock"}
        assert {name: after[name] for name in before if not name.startswith("report")} == {
            name: text for name, text in before.items() if not name.startswith("report")
        }
        fresh = rlreason("train", recipe, "seed=1", "--fresh", out=out, timeout=60)
        assert (fresh.code, len(asked)) == (0, 8), fresh.text
        assert len(list(folder.glob("run.*"))) == 2, "the recipe, and the old run"  # run.yaml and run.<time>
    return Seen(
        f"again: nothing asked twice, {again.seconds:.1f} s; other seed: exit 2, 'seed was 0, is 1'; --fresh: moved aside"
    )


def not_writable(folder: Path) -> Seen:
    (folder / "file").touch()
    told = []
    for out in (folder / "file" / "run", Path("/proc/run")):  # root may write into any folder that is one
        run = rlreason("train", write(folder, *RIGHT, f"out: {out}", "eval: {tasks: 0}"), out=out, timeout=60)
        assert run.code == 5, f"exit {run.code}: {run.text[-2000:]}"
        assert "Traceback" not in run.text
        words = run.text[run.text.find("rlreason: ") + 10 :].strip()
        assert str(out) in words or str(out.parent) in words, words
        told.append(words.splitlines()[0][:100])
    return seen(run, " | ".join(told))


def older(folder: Path) -> Seen:
    told = "run.yaml:4: algorithm.clip_low: is called algorithm.loss_options.low now; say that"
    lines = ("algorithm: {clip_low: 0.2, clip_high: 0.3}", "out: o")
    run = refused(folder, write(folder, *RIGHT, *lines), told, "is called algorithm.loss_options.high now")
    return seen(run, told)


def bombs(folder: Path) -> Seen:
    laughs = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    files = {
        "billion laughs": "\n".join(laughs),
        "long text": "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 1000) + "]",
        "itself": "a: &a [*a]",
        "deep": "a: " + "[" * 10_000,
        "large": "#" * 3_000_000,
        "digits": "seed: " + "9" * 100_000,
        "object": "model: !!python/object/apply:os.system [touch planted]",
        "module": "model: !!python/name:os.system",
    }
    slowest = 0.0
    for name, text in files.items():
        recipe = folder / "run.yaml"
        recipe.write_text(text + "\n")
        run = refused(folder, recipe, "is not a recipe")
        slowest = max(slowest, run.seconds)
        assert run.seconds < 20, f"{name}: {run.seconds:.1f} s"
    assert not (ROOT / "planted").exists()
    return seen(run, f"{len(files)} of {len(files)} refused, the slowest in {slowest:.1f} s")


def not_finite(folder: Path) -> Seen:
    lines = ("learner: {lr: .nan, weight_decay: 1e999}", "rollout: {vllm: {gpu_memory_utilization: .inf, x: [1, [-.inf]]}}",
             "algorithm: {loss_options: {low: .nan}}", "out: o", "loop: {steps: .inf}")  # fmt: skip
    told = ("run.yaml:4: learner.lr: nan is not a finite number", "run.yaml:4: learner.weight_decay: inf is not",
            "run.yaml:5: rollout.vllm.gpu_memory_utilization: inf is", "run.yaml:5: rollout.vllm.x: -inf is",
            "run.yaml:6: algorithm.loss_options.low: nan is", "run.yaml:8: loop.steps: Value 'inf'",
            "command line: tasks.reward.exact: nan is")  # fmt: skip
    run = refused(folder, write(folder, *RIGHT, *lines), *told, options=["tasks.reward.exact=nan"])
    made = folder / "made.yaml"
    made.write_text("model: {from_config: {model_type: qwen2, rms_norm_eps: .nan}}\nout: o\ntasks: {generate: add}\n")
    refused(folder, made, "made.yaml:1: model: nan is not a finite number")
    return seen(run, "8 of 8 told, in lists and in mappings for vLLM too")


CASES = [
    Case(1, "unknown option in a recipe", "exit 2: file, line and key, and the nearest option", unknown_option),
    Case(2, "options of a wrong type or range", "exit 2: all of them at once, with file and line", wrong_values),
    Case(3, "interpolation that leads nowhere, option missing", "exit 2: the key by name, with file and line", leads_nowhere),
    Case(4, "batch that cannot be shared out evenly",
         "it can: any batch is cut over any ranks; what has to be a multiple is told with its equation", uneven),
    Case(5, "more GPUs than there are", "exit 3 with both numbers, before a model is loaded", too_few_gpus, engines=True),
    Case(6, "tensor parallelism that does not divide the heads", "exit 2: the division, and what does", heads),
    Case(7, "model missing, cut off, gated, or no network", "exit 2: one clear line, and what to do", no_model),
    Case(8, "tokenizer without pad, end or chat template", "pad is not needed; else exit 2, and what to say", tokenizers),
    Case(9, "tokenizer larger than the embedding", "exit 2 with both numbers", vocabulary),
    Case(10, "data file empty, columns missing, NaN, ids twice, not UTF-8",
         "exit 2: all bad rows at once, with file and line; nothing is skipped in silence", bad_rows),
    Case(11, "prompt longer than tasks.max_prompt", "drop, truncate or error, as tasks.overlong says; counted", too_long),
    Case(12, "every prompt is filtered out", "exit 4 with the reason after a bounded number, no refill without end", none_left),
    Case(13, "the run's folder holds a run", "the same recipe goes on; another is refused with what differs; --fresh moves it",
         folder_in_use),
    Case(14, "the run's folder cannot be written", "exit 5: which path, and why; before anything starts", not_writable),
    Case(15, "recipe of an older version", "exit 2: what the option is called now", older),
    Case(16, "YAML bombs, object tags", "exit 2 in bounded time and memory; nothing is run", bombs),
    Case(17, "NaN and infinity in a recipe", "exit 2: each with its key, file and line", not_finite),
]  # fmt: skip
