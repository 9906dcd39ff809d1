"""Contracts with vLLM, DeepSpeed, Ray and torch, against what is installed; `make contracts` has the CUDA wheels."""

import os
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from contracts import check, lock
from contracts.check import exists, has, holds, takes
from contracts.sources import Sources
from contracts.table import TABLE

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rlreason"
LIBRARIES = ("vllm", "deepspeed", "ray", "torch")


def folder_of(library: str) -> Path:
    spec = find_spec(library)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def installed() -> Sources:
    return Sources(*{folder_of(library).parent for library in LIBRARIES})


def test_installed_libraries_fulfil_the_table(installed):
    assert all(installed.holds(contract.name) for contract in TABLE)
    assert check.unmet(TABLE, installed) == []


def test_compiled_names_are_in_what_is_installed():
    assert [contract.name for contract in TABLE if contract.compiled and check.absent(contract)] == []
    assert check.absent(check.compiled("torch.distributed.ProcessGroupGloo.nothing"))


def test_subclasses_fit_their_bases(installed):
    assert check.subclasses(PACKAGE, installed) == []


def test_no_use_without_a_contract():
    problems = check.unlisted(TABLE, PACKAGE)
    assert not problems, "\n".join(["Uses without a contract:", *problems])


def test_no_contract_without_a_use():
    text = "\n".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    problems = check.stale(TABLE, text + (ROOT / "pyproject.toml").read_text())
    assert not problems, "\n".join(problems)


def test_every_environment_variable_of_vllm_is_listed():
    """Its names are strings in rlreason, which no import gives away."""
    listed = {text for contract in TABLE for text in contract.literals}
    assert check.environment(PACKAGE, "VLLM_") <= listed


# ---- the checks themselves, on doctored sources ----


def copied(library: str, file: str, to: Path, was: str, now: str) -> Sources:
    """A package of one real file, in which `was` is replaced."""
    text = (folder_of(library) / file).read_text()
    assert re.search(was, text), f"{library}/{file} has no {was!r}: doctor something else"
    target = to / library / file
    target.parent.mkdir(parents=True)
    for folder in [target.parent, *target.parent.parents]:
        if folder == to:
            break
        (folder / "__init__.py").touch()
    target.write_text(re.sub(was, now, text))
    return Sources(to)


@pytest.mark.parametrize(
    ("file", "was", "now", "contract", "miss"),
    [
        ("v1/engine/llm_engine.py", r"\blevel: int", "depth: int",
         takes("vllm.v1.engine.llm_engine.LLMEngine.sleep", "level="), "no parameter 'level'"),
        ("v1/engine/llm_engine.py", r"\brequest_ids: list", "ids: list",
         takes("vllm.v1.engine.llm_engine.LLMEngine.abort_request", "request_ids"), "positional parameter 1 is 'ids'"),
        ("v1/engine/llm_engine.py", r"def step\(self\)", "def step(self, budget)",
         takes("vllm.v1.engine.llm_engine.LLMEngine.step"), "'budget' is required"),
        ("sampling_params.py", r"\bflat_logprobs: bool", "flat: bool",
         takes("vllm.sampling_params.SamplingParams", "flat_logprobs="), "no parameter 'flat_logprobs'"),
        ("sampling_params.py", r"FINAL_ONLY = ", "LAST = ",
         has("vllm.sampling_params.RequestOutputKind", "FINAL_ONLY"), "no attribute 'FINAL_ONLY'"),
        ("envs.py", r'"VLLM_HOST_IP"', '"VLLM_HOST"',
         holds("vllm.envs.environment_variables", "VLLM_HOST_IP"), "no 'VLLM_HOST_IP'"),
    ],
)  # fmt: skip
def test_a_change_in_a_library_is_reported(tmp_path, installed, file, was, now, contract, miss):
    assert check.misses(contract, installed) == []
    (problem,) = check.misses(contract, copied("vllm", file, tmp_path, was, now))
    assert miss in problem


def test_another_abstract_method_is_reported(tmp_path, installed):
    base = "distributed/weight_transfer/base.py"
    new = (
        "    @abstractmethod\n    def verify(self) -> None: ...\n\n    @abstractmethod\n    def start_weight_update(self, round"
    )
    sources = copied("vllm", base, tmp_path, r"    @abstractmethod\n    def start_weight_update\(self", new)
    problems = "\n".join(check.subclasses(PACKAGE, sources))
    assert "abstract method verify is not implemented" in problems
    assert "start_weight_update takes (), and is called with (round)" in problems


def test_an_attribute_that_a_base_loses_is_reported(tmp_path):
    sources = copied("vllm", "distributed/weight_transfer/base.py", tmp_path, r"self\.model\b", "self.network")
    assert "reads self.model, which neither it nor its base has" in "\n".join(check.subclasses(PACKAGE, sources))


@pytest.mark.parametrize(
    ("contract", "miss"),
    [
        (exists("ray.exceptions.Nothing"), "not found"),
        (takes("ray.remote", "nonsense=", via="ray._common.ray_option_utils"), "no parameter 'nonsense'"),
        (takes("ray.remote", "num_cpus="), "no parameter 'num_cpus'"),  # without a place that names it, no option is known
        (takes("vllm.LLMEngine.step", "_"), "takes 0 positional arguments, not 1"),
        (takes("deepspeed.DeepSpeedEngine.load_checkpoint", "tag="), "'load_dir' is required"),
        (takes("torch.distributed.TCPStore", "host_name, port, volume="), "no parameter 'volume'"),
    ],
)
def test_what_no_library_offers_is_reported(installed, contract, miss):
    (problem,) = check.misses(contract, installed)
    assert miss in problem


def test_a_new_reach_is_reported_with_the_line_to_add(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "new.py").write_text(
        "import ray\nimport torch.distributed as dist\nfrom vllm.sleep import Sleeper\n"
        "from vllm import EngineArgs as Args\n\n"
        "def f():\n    ray.get_actor('a', namespace='b')\n    dist.new_group([0])\n    Args(model='m', novel=1)\n"
    )
    problems = check.unlisted(TABLE, package)
    add = "Add to tests/contracts/table.py:"
    for line in (
        f'package/new.py:3 uses vllm.sleep.Sleeper. {add} exists("vllm.sleep.Sleeper"),',
        f'package/new.py:7 calls ray.get_actor. {add} takes("ray.get_actor", "namespace="),',
        f'package/new.py:8 calls torch.distributed.new_group. {add} takes("torch.distributed.new_group", ""),',
        "package/new.py:9 passes novel= to vllm.EngineArgs.",
    ):
        assert any(problem.startswith(line) for problem in problems), (line, problems)
    assert len(problems) == 4


def test_a_contract_that_nothing_uses_is_reported():
    assert check.stale([exists("vllm.Ancient"), takes("vllm.EngineArgs", "model=")], "EngineArgs(model=1)") == [
        "tests/contracts/table.py, vllm.Ancient: rlreason has no Ancient any more. Remove it."
    ]


# ---- the lock file of the GPU ----


def gpu_lock() -> tuple[str, str, list[str]]:
    requirements = ROOT / "requirements"
    return (
        (requirements / "gpu.lock").read_text(),
        (requirements / "gpu.requires").read_text(),
        lock.bounds(ROOT / "pyproject.toml", "gpu"),
    )


def test_gpu_lock_is_whole_and_without_conflicts():
    assert list(lock.problems(*gpu_lock())) == []


@pytest.mark.parametrize(
    ("package", "version", "miss"),
    [
        ("setuptools", "84.2.1", "needs setuptools<81"),  # vLLM
        ("tabulate", "0.10.0", "needs tabulate==0.9.0"),  # reasoning-gym
        ("torch", "2.14.0", "pyproject.toml needs torch<2.14"),
        ("vllm", "0.33.0", "pyproject.toml needs vllm<0.33"),
    ],
)
def test_an_edited_gpu_lock_is_reported(package, version, miss):
    text, requires, bounds = gpu_lock()
    edited = re.sub(rf"(?m)^{package}==.*", f"{package}=={version}", text)
    problems = list(lock.problems(edited, requires, bounds))
    assert any(miss in problem for problem in problems), problems
    assert f"{package}=={version} is in only one of gpu.lock and gpu.requires: run requirements/lock.sh gpu" in problems


@pytest.mark.parametrize("line", ["numpy>=2", "numpy", "numpy==2.3.5 ; python_version > '3'", "NumPy==2.3.4"])
def test_a_line_that_is_not_one_pin_is_reported(line):
    with pytest.raises(ValueError, match=r"not name==version|pinned twice"):
        lock.pins(f"numpy==2.3.5\n{line}\n")


# ---- the command, without a network: wheels of what is installed ----


def wheel(library: str, version: str, to: Path) -> None:
    """The sources of an installed library, as a release of it."""
    about = f"{library}-{version}.dist-info"
    with zipfile.ZipFile(to / f"{library}-{version}-py3-none-any.whl", "w") as archive:
        for file in folder_of(library).rglob("*.py*"):
            if file.suffix in (".py", ".pyi"):
                archive.write(file, file.relative_to(folder_of(library).parent))
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {library}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def test_the_command_checks_each_allowed_release(tmp_path):
    """`make contracts`: a release that lacks something is a line of the table, and a failure; one out of bounds is neither."""
    shop = tmp_path / "wheels"
    shop.mkdir()
    locked = lock.pins(gpu_lock()[0])
    for library in LIBRARIES:
        wheel(library, locked[library], shop)
    for version in ("0.19.9", "0.20.0"):
        with zipfile.ZipFile(shop / f"deepspeed-{version}-py3-none-any.whl", "w") as broken:
            broken.writestr("deepspeed/__init__.py", "def initialize(model): ...\n")
            broken.writestr(
                f"deepspeed-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: deepspeed\nVersion: {version}\n"
            )
            broken.writestr(f"deepspeed-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shop),
                   "XDG_CACHE_HOME": str(tmp_path / "cache")}  # fmt: skip
    command = [sys.executable, str(ROOT / "tests" / "contracts"), "--no-device"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    rows = [line.split()[:4] for line in done.stdout.splitlines() if line.startswith(LIBRARIES) and "==" not in line]
    found = {(library, version): int(misses) for library, version, _, misses in rows}
    assert done.returncode == 1, done.stdout + done.stderr
    assert {release for release, misses in found.items() if not misses} == {(name, locked[name]) for name in LIBRARIES}
    assert found["deepspeed", "0.19.9"] > 10
    assert ("deepspeed", "0.20.0") not in found
    assert "deepspeed.initialize: no parameter 'optimizer'" in done.stdout


# ---- the learner on a fake accelerator ----


def test_the_learners_tensor_code_stays_on_its_device():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "contracts" / "device.py")],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "mistakes are seen: ok" in done.stdout
