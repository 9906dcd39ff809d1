"""Whole runs, from the command to the summary."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest
from real import ROOT, Run, command, rlreason

pytestmark = pytest.mark.e2e
DEBUG = "recipes/debug.yaml"


def plain(rows: list[dict]) -> list[dict]:
    """Metrics without what a clock told."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def debug(models, digits, tmp_path_factory) -> Run:
    """The debug recipe, as a user types it."""
    out = tmp_path_factory.mktemp("debug") / "run"
    return rlreason("train", DEBUG, f"model={models('qwen2-tied')}", f"tasks.path={digits}", f"out={out}", out=out)


def test_the_debug_recipe_ends_well_within_a_minute(debug):
    assert debug.code == 0, debug.text
    assert debug.seconds < 60
    assert len(debug.rows) == 10
    assert "samples a step" in debug.text, "the batch arithmetic is shown at start"
    assert "report.html" in debug.text


def test_every_step_has_something_to_learn_from(debug):
    assert min(row["grad_norm"] for row in debug.rows) > 0, "else the tests below would compare weights that never moved"


def test_on_policy_the_gap_is_rounding(debug):
    assert max(row["policy_gap"] for row in debug.rows) < 1e-5
    assert all(row["lag"] == 0 for row in debug.rows)


def test_the_first_step_begins_within_45_seconds(debug):
    assert debug.summary["seconds_to_first_step"] < 45


def test_the_summary_says_what_is_promised(debug):
    summary = debug.summary
    for when in ("accuracy_before", "accuracy_after"):
        score = summary[when]
        assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
        assert score["n"] == 40, "half of the ten prompts, with the eight rows that each has"
    assert summary["steps"] == 10
    assert summary["tokens"] == sum(row["tokens"] for row in debug.rows)
    assert summary["policy_gap_max"] == max(row["policy_gap"] for row in debug.rows)
    assert summary["peak_rss_bytes"] > 5e8


def test_phases_add_up_to_the_wall_clock(debug):
    for row in debug.rows:
        phases = sum(row.get(f"time/{p}", 0) for p in ("rollout", "train", "sync", "save", "log"))
        assert phases == pytest.approx(row["time/step"], rel=0.01)
    elapsed = [row["time/elapsed"] for row in debug.rows]
    assert elapsed[-1] - elapsed[0] == pytest.approx(sum(row["time/step"] for row in debug.rows[1:]), rel=0.01)


def test_what_is_published_is_a_whole_model(debug):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(debug.summary["model"])
    tokenizer = AutoTokenizer.from_pretrained(debug.summary["model"])
    text = "say 7: \n<think>a b</think>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert model.config.model_type == "qwen2"


def test_rollouts_and_reward_parts_are_written_for_people(debug):
    files = sorted((debug.out / "rollouts").glob("step-*.jsonl"))
    assert len(files) == 10
    row = json.loads(files[0].read_text().splitlines()[0])
    assert row["prompt"].startswith("say ")
    assert set(row["parts"]) == {"real.letters", "exact"}
    assert row["reward"] == pytest.approx(sum(row["parts"].values()))


def test_the_same_seed_gives_the_same_metrics_and_nothing_is_left_in_the_temporary_folder(debug, models, digits, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    again = rlreason(
        "train",
        DEBUG,
        f"model={models('qwen2-tied')}",
        f"tasks.path={digits}",
        f"out={tmp_path / 'again'}",
        out=tmp_path / "again",
        TMPDIR=str(folder),
    )
    assert again.code == 0, again.text
    assert plain(again.rows) == plain(debug.rows)
    assert not [file for file in folder.rglob("*") if file.is_file()], "torch makes a folder for what it compiles, and no more"


def test_a_run_that_is_stopped_goes_on_and_ends_as_if_it_had_not_been(debug, models, digits, tmp_path):
    out = tmp_path / "run"
    arguments = ("train", DEBUG, f"model={models('qwen2-tied')}", f"tasks.path={digits}", f"out={out}")
    process = command(*arguments)
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 75, text
    assert "the same command goes on" in text
    cut = len((out / "metrics.jsonl").read_text().splitlines())
    assert 0 < cut < 10
    rest = rlreason(*arguments, out=out)
    assert rest.code == 0, rest.text
    assert plain(rest.rows) == plain(debug.rows)
    weights = (Path(p) / "model.safetensors" for p in (rest.summary["model"], debug.summary["model"]))
    assert next(weights).read_bytes() == next(weights).read_bytes()
    assert rest.summary["accuracy_before"] == debug.summary["accuracy_before"]
    done = rlreason(*arguments, out=out)
    assert done.code == 0
    assert done.seconds < 10, "what is done is not done again"
    other = rlreason(*arguments, "learner.lr=1", out=out)
    assert other.code == 2
    assert "holds other work than this recipe makes" in other.text


@pytest.fixture(scope="module")
def two_of_each(models, tmp_path_factory):
    """Two learners under ZeRO 3 and two engines, on a Llama with a chat template and a Parquet file: run it for so long."""
    import pyarrow
    from pyarrow import parquet

    model, folder = models("llama"), tmp_path_factory.mktemp("two")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}a: ")
    rows = [{"prompt": [{"role": "user", "content": f"say {i % 10}"}], "answer": str(i % 10)} for i in range(60)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "chat.parquet")

    def run(name: str, steps: int) -> Run:
        done = rlreason(
            "train", DEBUG, f"model={model}", f"tasks.path={folder / 'chat.parquet'}", f"out={folder / name}",
            f"loop.steps={steps}", "learner.workers=2", "rollout.workers=2", "learner.updates=2", "learner.warmup=2",
            "learner.deepspeed.zero_optimization.stage=3", "learner.gradient_checkpointing=true", "tasks.reward.real.letters=1",
            out=folder / name,
        )  # fmt: skip
        assert done.code == 0, done.text
        return done

    return run


@pytest.fixture(scope="module")
def whole(two_of_each) -> Run:
    return two_of_each("whole", 4)


def test_two_learners_with_zero_3_and_two_engines_are_on_policy(whole):
    assert max(row["policy_gap"] for row in whole.rows) < 1e-5
    assert min(row["grad_norm"] for row in whole.rows) > 0
    assert [row["lr"] for row in whole.rows[:2]] == pytest.approx([5e-6, 1e-5])
    first = json.loads((whole.out / "rollouts" / "step-000001.jsonl").read_text().splitlines()[0])
    assert first["prompt"][0]["role"] == "user"


def test_two_of_each_repeat_to_the_bit_across_a_restart_too(two_of_each, whole):
    part = two_of_each("cut", 2)
    # As if it had been asked for four steps and cut.
    (part.out / "evaluations" / "after.json").unlink()
    made = json.loads((part.out / "manifest.json").read_text())
    made["recipe"]["loop.steps"] = 4
    (part.out / "manifest.json").write_text(json.dumps(made | {"state": "begun", "outputs": {}}))
    rest = two_of_each("cut", 4)
    assert "going on from" in rest.text
    assert plain(rest.rows) == plain(whole.rows)
    weights = [(run.out / "weights" / "last" / "model.safetensors").read_bytes() for run in (rest, whole)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_stages_learn_the_same_as_zero_0(debug, models, digits, tmp_path, stage):
    out = tmp_path / "run"
    run = rlreason(
        "train", DEBUG, f"model={models('qwen2-tied')}", f"tasks.path={digits}", f"out={out}", "loop.steps=3", "eval.tasks=16",
        "learner.workers=2", f"learner.deepspeed.zero_optimization.stage={stage}", out=out,
    )  # fmt: skip
    assert run.code == 0, run.text
    for mine, reference in zip(run.rows, debug.rows, strict=False):
        assert mine["policy_gap"] < 1e-5
        assert mine["reward"] == reference["reward"]
        assert mine["loss"] == pytest.approx(reference["loss"], abs=1e-5)
        assert mine["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-3)


def test_asynchrony_reaches_its_bound_and_never_passes_it(models, digits, tmp_path):
    out = tmp_path / "run"
    run = rlreason(
        "train", DEBUG, f"model={models('qwen3')}", f"tasks.path={digits}", f"out={out}", "loop.max_lag=2", "loop.steps=12",
        "rollout.workers=2", "eval.tasks=0", "algorithm.preset=r1", "algorithm.reference_every=4", "learner.updates=2",
        "learner.lr=1e-3", "algorithm.loss=real.surrogate", "algorithm.loss_options.scale=2", out=out,
    )  # fmt: skip
    assert run.code == 0, run.text
    assert max(row["lag"] for row in run.rows) == 2
    # What was sampled two versions ago is off-policy, and every line says by how much.
    assert max(row["mismatch/k3"] for row in run.rows if row["lag"]) > 1e-6
    assert {"mismatch/kl", "mismatch/ppl_ratio", "mismatch/chi2_token", "mismatch/masked"} <= run.rows[-1].keys()
    # The reference is the policy that sampled first, and not the one that samples later.
    assert run.rows[0]["reference_kl"] == pytest.approx(0, abs=1e-5)
    assert max(abs(row["reference_kl"]) for row in run.rows) > 1e-5


def test_a_saved_model_is_scored_by_eval(debug, digits, tmp_path):
    run = rlreason(
        "eval", debug.summary["model"], DEBUG, f"tasks.path={digits}", f"out={tmp_path}", "eval.samples=2", out=tmp_path
    )
    assert run.code == 0, run.text
    assert "95" not in run.text.splitlines()[-1]
    assert "exact of" in run.text
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == 80


def test_a_report_is_written_on_demand(debug):
    (debug.out / "report.html").unlink()
    run = rlreason("report", debug.out, out=debug.out)
    assert run.code == 0, run.text
    assert (debug.out / "report.html").stat().st_size > 10_000


def test_a_dead_engine_that_may_not_be_replaced_ends_the_run_with_its_last_words(models, digits, tmp_path):
    out, more = tmp_path / "run", ("loop.steps=10000", "recovery.restarts=0")
    process = command("train", DEBUG, f"model={models('qwen2-tied')}", f"tasks.path={digits}", f"out={out}", *more)
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        log = str((out / "logs" / "rollout-0.log").absolute())
        engine = next(p for p in psutil.Process(process.pid).children(recursive=True) if _writes_to(p, log))
        engine.kill()
        text = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 4, text
    assert "rollout-0 died" in text
    assert "Traceback" not in text


def _writes_to(process: psutil.Process, path: str) -> bool:
    try:
        return path == str(Path(f"/proc/{process.pid}/fd/1").resolve())
    except OSError:
        return False


def test_a_service_that_is_down_does_not_stop_training(models, digits, tmp_path):
    """W&B at an address where nobody listens: the run ends well, and events.jsonl says what happened."""
    out = tmp_path / "run"
    run = rlreason(
        "train", DEBUG, f"model={models('qwen2-tied')}", f"tasks.path={digits}", f"out={out}", "log.wandb=test", "loop.steps=2",
        "eval.tasks=0", out=out, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0" * 40,
    )  # fmt: skip
    assert run.code == 0, run.text
    assert len(run.rows) == 2
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert any(e["event"] == "wandb" and "goes on" in e.get("note", "") for e in events)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("recipes/quickstart.yaml", "algoritm.loss=clip"), 2, "did you mean algorithm.loss?"),
        ((DEBUG, "model={model}", "tasks.path={digits}", "out=/dev/null/x"), 5, "Not a directory"),
        ((DEBUG, "model=./nowhere", "tasks.path=nowhere.jsonl", "out={out}"), 2, "./nowhere is no directory here"),
        ((DEBUG, "out=x"), 2, "model is missing"),
        ((DEBUG, "model=./nowhere", "tasks.path={digits}", "out={out}"), 2, "./nowhere is no directory here"),
        ((DEBUG, "model={model}", "tasks.path=nowhere.jsonl", "out={out}"), 2, "there is no such file"),
        ((DEBUG, "model={model}", "tasks.path={digits}", "out={out}", "device=cuda"), 3, "there are 0"),
    ],
)
def test_mistakes_end_early_with_their_code(models, digits, tmp_path, arguments, code, told):
    values = {"model": models("qwen2-tied"), "digits": digits, "out": tmp_path / "run"}
    run = rlreason("train", *(a.format(**values) for a in arguments), out=tmp_path)
    assert run.code == code, run.text
    assert told in run.text
    assert "Traceback" not in run.text


def test_config_prints_a_recipe_that_reads_back_as_itself(tmp_path):
    arguments = ("config", DEBUG, "model=some/model", "tasks.path=t.jsonl", f"out={tmp_path}", "loop.max_lag=3")
    run = rlreason(*arguments, out=tmp_path)
    assert run.code == 0, run.text
    assert "# groups in flight: 4 × (max_lag 3 + 1) = 16" in run.text
    (tmp_path / "again.yaml").write_text(run.text)
    again = rlreason("config", tmp_path / "again.yaml", out=tmp_path)
    assert again.text == run.text


def test_one_folder_is_one_run(models, digits, tmp_path):
    """A second process is refused while the first runs, and a first attempt that was a mistake leaves no claim."""
    arguments = ("train", DEBUG, f"tasks.path={digits}", f"out={tmp_path}")
    assert rlreason(*arguments, "model=./nowhere", out=tmp_path).code == 2
    first = command(*arguments, f"model={models('qwen2-tied')}", "loop.steps=3")
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "recipe.yaml").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = rlreason(*arguments, f"model={models('qwen2-tied')}", "loop.steps=3", out=tmp_path)
        assert second.code == 5
        assert "another process is running" in second.text
        text = first.communicate(timeout=120)[0]
    finally:
        first.kill()
    assert first.returncode == 0, text


def test_help_is_instant():
    for arguments in ([], ["train"], ["config"], ["eval"], ["report"]):
        run = rlreason(*arguments, "--help", out=ROOT)
        assert run.code == 0
        assert run.seconds < 1
