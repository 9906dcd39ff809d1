"""The mechanics of the GPU check, with trivial commands: states, time limits, budget, table, JSON. Needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent.parent / "benchmarks"
sys.path += [str(HERE / "gpu_check"), str(HERE)]

import machine  # noqa: E402
import models  # noqa: E402
import runner  # noqa: E402
from cases import CASES, budget  # noqa: E402
from runner import Case, Outcome, attempt, cells, closing, exit_code, read, row, run_all, write  # noqa: E402

TRIVIAL = Case("trivial", 1, 1, "nothing", "exit 0")
RESULT = (
    "import json, pathlib; pathlib.Path({path!r}).write_text(json.dumps({{'numbers': {{'gap': 0.0125}}, 'error': {error!r}}}))"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def result(folder: Path, error: str = "") -> str:
    return RESULT.format(path=str(folder / "result.json"), error=error)


def test_a_case_that_ends_well_passes_with_its_numbers_and_its_log(tmp_path):
    outcome = attempt(TRIVIAL, python("print('hello'); " + result(tmp_path)), tmp_path)
    assert (outcome.state, outcome.numbers, outcome.log, outcome.why) == ("passed", {"gap": 0.0125}, ["hello"], "")


def test_a_missed_bar_fails_with_its_reason_and_keeps_the_numbers(tmp_path):
    outcome = attempt(TRIVIAL, python(result(tmp_path, "gap 0.0125, at most 0.01") + "; raise SystemExit(1)"), tmp_path)
    assert (outcome.state, outcome.why, outcome.numbers) == ("failed", "gap 0.0125, at most 0.01", {"gap": 0.0125})


@pytest.mark.parametrize(
    ("code", "why"), [("raise SystemExit(7)", "exit code 7"), ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL")]
)
def test_a_crash_is_an_outcome(tmp_path, code, why):
    outcome = attempt(TRIVIAL, python(code), tmp_path)
    assert (outcome.state, outcome.why) == ("failed", why)


def test_a_program_that_is_missing_is_an_outcome(tmp_path):
    assert attempt(TRIVIAL, [str(tmp_path / "missing")], tmp_path).state == "failed"


def test_numbers_of_an_earlier_check_are_not_taken_for_this_one(tmp_path):
    (tmp_path / "result.json").write_text('{"numbers": {"gap": 1}}')
    assert attempt(TRIVIAL, python(""), tmp_path).numbers == {}


def test_a_case_past_its_limit_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST", 3.0)
    monkeypatch.setattr(runner, "SLOWER", 1.0)
    pid = tmp_path / "pid"
    child = [sys.executable, "-c", "import time; time.sleep(60)"]
    code = (
        f"import subprocess, pathlib, time; p = subprocess.Popen({child!r}, start_new_session=True);"
        f"pathlib.Path({str(pid)!r}).write_text(str(p.pid)); time.sleep(60)"
    )
    began = time.monotonic()
    outcome = attempt(TRIVIAL, python(code), tmp_path)
    assert (outcome.state, outcome.why) == ("timed out", "killed after its time limit of 3 s")
    assert time.monotonic() - began < 30
    left = int(pid.read_text())
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


def test_the_next_case_runs_after_one_that_failed(tmp_path):
    cases = [Case(name, 1, 1, "", "") for name in ("first", "second")]
    codes = {"first": "raise SystemExit(1)", "second": ""}
    reported: list[Outcome] = []
    found = run_all(cases, 1, 60, lambda case: attempt(case, python(codes[case.name]), tmp_path / case.name), reported.append)
    assert [outcome.state for outcome in found] == ["failed", "passed"]
    assert reported == found
    assert exit_code(found) == 1


def test_what_does_not_fit_is_listed_as_not_run():
    cases = [Case("large", 8, 1, "", ""), Case("slow", 1, 500, "", ""), Case("quick", 1, 1, "", "")]
    found = run_all(cases, 2, 60, lambda case: Outcome(case.name, "passed"), lambda outcome: None)
    assert [(outcome.case, outcome.state) for outcome in found] == [
        ("large", "not run"),
        ("slow", "not run"),
        ("quick", "passed"),
    ]
    assert found[0].why == "needs 8 GPUs; there are 2"
    assert found[1].why == "expected to take 500 s; 60 s of the budget are left"
    assert exit_code(found) == 0


def test_time_that_a_case_took_is_missing_to_the_next():
    cases = [Case(name, 1, 0.6, "", "") for name in ("first", "second")]

    def run(case: Case) -> Outcome:
        time.sleep(0.6)
        return Outcome(case.name, "passed")

    assert [outcome.state for outcome in run_all(cases, 1, 1.0, run, lambda outcome: None)] == ["passed", "not run"]


def test_the_table_has_the_reason_before_the_numbers():
    outcome = Outcome("trivial", "failed", 12.34, {"gap": 0.123456, "steps": 3}, "gap | too large\nand more")
    assert row(cells(outcome, TRIVIAL)) == "| trivial | failed | 12 | gap \\| too large; gap 0.123, steps 3 | exit 0 |"
    assert closing([outcome, Outcome("other", "not run")], 12.34) == "1 failed, 1 not run; 12 s in total"


def test_the_json_has_machine_and_cases(tmp_path):
    path = tmp_path / "gpu-check.json"
    write(path, {"driver": "1.2"}, [Outcome("trivial", "timed out", 1.5, {"gap": 0.5}, "killed", ["last line"])], 2.0)
    found = read(path)
    assert found["machine"] == {"driver": "1.2"}
    assert found["cases"] == [
        {
            "case": "trivial",
            "state": "timed out",
            "seconds": 1.5,
            "numbers": {"gap": 0.5},
            "why": "killed",
            "log": ["last line"],
        }
    ]
    assert [*tmp_path.iterdir()] == [path]


def test_every_case_has_a_check_and_one_gpu_fits_its_budget():
    pytest.importorskip("rlreason")
    from checks import CHECKS

    assert [case.name for case in CASES] == [*CHECKS]
    assert sum(case.seconds for case in CASES if case.gpus == 1) <= budget(1) * 0.8, "all of one GPU, some of it slower"
    assert sum(case.seconds for case in CASES) <= budget(8)
    assert [case.gpus for case in CASES] == sorted(case.gpus for case in CASES)


# ---- the machine ----

GOOD = {
    "versions": {}, "shm": 32.0, "disk": 500.0, "compiler": True, "nvcc": True, "allocator": {},
    "gpus": [{"name": "NVIDIA H200", "total": 141 << 30, "free": 140 << 30, "peers": []}],
}  # fmt: skip


@pytest.fixture(name="good")
def _good():
    pins = (line.split("==") for line in (HERE.parent / "requirements" / "gpu.lock").read_text().splitlines() if "==" in line)
    return GOOD | {"versions": {machine.canonicalize_name(name): version for name, version in pins}}


def test_a_machine_with_the_lock_installed_has_no_problems(good):
    assert machine.problems(good, "cuda") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shm": 0.0625}, "--shm-size"),
        ({"disk": 3.0}, "disk"),
        ({"compiler": False}, "Install gcc"),
        ({"allocator": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}}, "Unset it"),
        ({"gpus": [{"name": "T4", "total": 15 << 30, "free": 15 << 30}]}, "at least 20"),
        ({"gpus": [{"name": "H100", "total": 80 << 30, "free": 40 << 30}]}, "another process"),
    ],
)
def test_each_problem_is_named_with_its_fix(good, change, said):
    (problem,) = machine.problems(good | change, "cuda")
    assert said in problem


def test_versions_are_held_against_pyproject(good):
    versions = good["versions"] | {"vllm": "0.1"}
    del versions["deepspeed"]
    found = machine.problems(good | {"versions": versions}, "cuda")
    assert len(found) == 2
    assert "deepspeed is not installed" in found[0]
    assert "vllm 0.1 is outside" in found[1]


# ---- the models ----


@pytest.mark.parametrize(("shape", "billions"), [("qwen2.5-1.5b", 1.54), ("qwen2.5-0.5b", 0.49), ("qwen3-0.6b", 0.6)])
def test_shapes_have_the_size_of_their_name(shape, billions):
    about = models.SHAPES[shape]
    assert models.parameters(about, about["num_hidden_layers"]) == pytest.approx(billions * 1e9, rel=0.02)


def test_a_model_has_as_many_layers_as_fit():
    about = models.SHAPES["qwen2.5-1.5b"]
    assert models.fitting(about, 0.55 * (141 << 30)) == 28
    layers = models.fitting(about, 0.55 * (24 << 30))
    assert 1 < layers < 28
    assert (
        models.STATE * models.parameters(about, layers)
        <= 0.55 * (24 << 30)
        < models.STATE * models.parameters(about, layers + 1)
    )
    assert models.fitting(models.SHAPES["qwen2.5-0.5b"], 0.55 * (22 << 30)) == 24


def test_a_wide_tokenizer_reads_as_before_and_writes_every_token(tmp_path):
    from transformers import AutoTokenizer

    from rlreason.model import directory

    shape = models.SHAPES["short"]
    folder = directory({"from_config": shape, "characters": models.CHARACTERS}, tmp_path)
    before = AutoTokenizer.from_pretrained(folder)("say 7: ").input_ids
    models.widen(Path(folder) / "tokenizer.json", models.TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("say 7: ").input_ids == before
    assert models.TOKENS <= len(tokenizer) < shape["vocab_size"]
    texts = {tokenizer.decode([number]) for number in range(1000, 3000)}
    assert len(texts) == 2000


def test_used_memory_is_unknown_without_a_driver(monkeypatch, tmp_path):
    import watched

    monkeypatch.setenv("PATH", str(tmp_path))
    assert watched.used() is None


def test_the_first_visible_gpus_are_used(monkeypatch):
    main = runner_main()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert main.visible(2) == "4,5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert main.visible(2) == "0,1"


def test_the_list_names_every_case(capsys):
    assert runner_main().main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {case.name} |" in printed for case in CASES)


@pytest.mark.parametrize("given", [["--cases", "nonsense"], ["--cases", "canary-model"]])
def test_wrong_options_end_with_2(given, capsys):
    with pytest.raises(SystemExit) as ended:
        runner_main().main(given)
    assert ended.value.code == 2


def runner_main():
    import importlib.util

    spec = importlib.util.spec_from_file_location("gpu_check_main", HERE / "gpu_check" / "__main__.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_without_a_gpu_it_ends_with_one_sentence_and_3(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "gpu_check"), "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.startswith("gpu_check: no GPU: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_check_that_is_terminated_leaves_no_case_behind(tmp_path):
    check = subprocess.Popen(
        [sys.executable, str(HERE / "gpu_check"), "--device", "cpu", "--cases", "canary-0.5b", "--out", str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(HERE.parent)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "canary-0.5b" / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    below = psutil.Process(check.pid).children(recursive=True)
    check.terminate()
    printed = check.communicate(timeout=30)[0]
    assert check.returncode == 130
    assert "interrupted" in printed
    assert below
    assert not any(process.is_running() for process in below)


def test_a_failed_json_is_an_empty_one(tmp_path):
    (tmp_path / "half").write_text(json.dumps({"a": 1})[:-1])
    assert read(tmp_path / "half") == {}
