"""How recipes compose, and how mistakes in them are told: all at once, each with its file and line."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from rlreason.algorithms import PRESETS
from rlreason.checks import impossible
from rlreason.config import Config
from rlreason.errors import RecipeError, short
from rlreason.named import near

LARGEST = 1 << 20  # bytes of a recipe file
WRITTEN_OUT = 4 << 20  # characters of one when its aliases are followed
MOVED = {  # options of older versions -> what they are called now
    "algorithm.clip_low": "algorithm.loss_options.low",
    "algorithm.clip_high": "algorithm.loss_options.high",
}


@dataclass(frozen=True)
class Setting:
    """One value that somebody wrote, and where."""

    key: str  # loop.steps
    value: Any
    where: str  # recipes/base.yaml:12, or the command line


def document(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What a YAML file says, and the line of every key in it. Raises `RecipeError`, in bounded time and memory."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 20} MiB")
        text = raw.decode("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _length(root, {}) > WRITTEN_OUT:
            raise ValueError(f"with its aliases (*name) written out it has more than {WRITTEN_OUT >> 20} MiB, or no end")
        values = OmegaConf.to_container(OmegaConf.create(text)) if root is not None else {}
    except OSError as error:
        raise RecipeError([f"{shown(path)}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise RecipeError([f"{shown(path)}:{line}: is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown(path)}:{mark.line + 1}" if mark else shown(path)
        why = ", ".join(filter(None, [error.context, error.problem]))
        raise RecipeError([f"{where}: is not a recipe: {short(why)}"]) from None
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise RecipeError([f"{shown(path)}: is not a recipe: {short(error)}"]) from None
    if not isinstance(values, dict):
        raise RecipeError([f"{shown(path)}: is not a recipe: expected a mapping of keys to values"])
    return {str(key): value for key, value in values.items()}, dict(_lines(root)) if root is not None else {}


def _length(node: yaml.Node, known: dict[int, float]) -> float:
    """Characters of a value, about, with its aliases written out; without end for one that contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        known[id(node)] = 1 + own + sum(_length(part, known) for part in parts)
    return known[id(node)]


def read(path: Path, seen: tuple[Path, ...] = ()) -> tuple[list[Setting], list[str]]:
    """Every setting of a recipe file, those of the files that it `extends` first; and what is wrong with it."""
    if path in seen:
        return [], [f"{path}: extends itself, by way of {' -> '.join(map(str, seen))}"]
    try:
        values, lines = document(path)
    except RecipeError as error:
        return [], error.problems
    settings, problems = [], []
    bases = values.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        return [], [f"{shown(path)}:{lines['extends']}: extends: expected the names of recipe files, not {bases!r}"]
    for base in bases:
        more, wrong = read((path.parent / base).resolve(), (*seen, path))
        settings += more
        problems += wrong
    settings += ordered([Setting(k, v, f"{shown(path)}:{lines.get(k, 1)}") for k, v in leaves(values)])
    return settings, problems


def ordered(settings: Sequence[Setting]) -> list[Setting]:
    """A preset before what wins over it, a method before its options: within one source their order means nothing."""
    first = ("algorithm.preset", "algorithm.advantage", "algorithm.loss", "algorithm.correction")
    return sorted(settings, key=lambda s: first.index(s.key) if s.key in first else len(first))


def shown(path: Path) -> str:
    """`path` as people write it: relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def command_line(overrides: Sequence[str], where: str = "command line") -> tuple[list[Setting], list[str]]:
    """`a.b=c` pairs, each value read as YAML."""
    settings, problems = [], []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            problems.append(f"{where}: {short(repr(override))} is not of the form key=value")
            continue
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
            problems.append(f"{where}: {short(repr(override))}: {short(error)}")
            continue
        settings += [Setting(k, v, where) for k, v in leaves(value)]
    return ordered(settings), problems


def build(settings: Sequence[Setting], source: str) -> Config:
    """Check every setting against the options, merge them (later wins), check the whole.

    Raises `RecipeError` with all problems at once.
    """
    problems: list[str] = []
    node: DictConfig = OmegaConf.structured(Config)
    origin: dict[str, str] = {}
    wrong: set[str] = set()
    for setting in expanded(settings):
        for method in ("advantage", "loss", "correction"):  # the options of another mean something else to this one
            if setting.key == f"algorithm.{method}" and setting.value != node.algorithm[method]:
                node.algorithm[f"{method}_options"] = {}
        if problem := _problem(node, setting):
            problems.append(f"{setting.where}: {problem}")
            wrong.add(setting.key)
        else:
            origin[setting.key] = setting.where
    for key, problem in _dangling(node, origin):
        problems.append(f"{origin[key]}: {key}: {problem}")
        wrong.add(key)
    try:
        if node.sample.teacher and OmegaConf.is_missing(node, "model"):
            node.model = ""  # it is an endpoint that answers
        for key in sorted(OmegaConf.missing_keys(node)):
            problems.append(f"{source}: {key} is missing: the recipe has to say it")
            OmegaConf.update(node, key, "-")  # so that what is there can be checked as well
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise RecipeError([*problems, f"{source}: {short(error)}"]) from None
    assert isinstance(config, Config)
    config.tasks.reward = config.tasks.reward or {"exact": 1.0}  # not a default above: mappings merge, and it would stay
    for key, problem in impossible(config):
        if key not in wrong:
            where = next((where for at, where in origin.items() if at == key or at.startswith(f"{key}.")), source)
            if not where.endswith("a part of a preset"):  # what is left of a preset when its other settings are overruled
                problems.append(f"{where}: {key}: {problem}")
    if problems:
        raise RecipeError(problems)
    return config


def _dangling(node: DictConfig, keys: Iterable[str]) -> list[tuple[str, str]]:
    """(key, problem) for each interpolation that leads nowhere; a stand-in takes its place, so that the rest is checked."""
    found = []
    for key in keys:
        try:
            OmegaConf.select(node, key)
        except OmegaConfBaseException as error:
            what = str(error).splitlines()[0]
            sought = re.match(r"Interpolation key '([^']+)' not found", what)
            found.append((key, short(what) + (near(sought[1], KEYS) if sought else "")))
    defaults = OmegaConf.structured(Config)
    for key, _ in found:
        default = OmegaConf.select(defaults, key)
        OmegaConf.update(node, key, "-" if default is None else default)
    return found


def expanded(settings: Sequence[Setting]) -> Iterator[Setting]:
    """`settings`, each preset followed by what it stands for."""
    for setting in settings:
        yield setting
        if setting.key == "algorithm.preset" and setting.value in PRESETS:
            where = f"{setting.where}, as a part of a preset"
            yield from (Setting(k, v, where) for k, v in leaves(PRESETS[setting.value].settings))


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Merge, weakest first: the defaults above, files named by `extends`, the file, `a.b=c` overrides."""
    settings, problems = read(Path(path))
    if problems and not settings:
        raise RecipeError(problems)  # whatever else there is to say follows from them
    more, wrong = command_line(overrides)
    return checked([*settings, *more], [*problems, *wrong], shown(Path(path)))


def checked(settings: Sequence[Setting], problems: Sequence[str], source: str) -> Config:
    """`build`, with the problems met while reading told in the same breath."""
    try:
        config = build(settings, source)
    except RecipeError as error:
        raise RecipeError([*problems, *error.problems]) from None
    if problems:
        raise RecipeError(problems)
    return config


def put(config: Config, key: str, value: Any) -> None:
    """Set one option of a config that is made: `tasks.path`, or `tasks.mixture.general.path`."""
    *path, last = key.split(".")
    node: Any = config
    for name in path:
        node = node[name] if isinstance(node, dict) else getattr(node, name)
    if isinstance(node, dict):
        node[last] = value
    else:
        setattr(node, last, value)


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for f in fields(schema):
        yield prefix + f.name
        if is_dataclass(hints[f.name]):
            yield from _keys(hints[f.name], f"{prefix}{f.name}.")


KEYS = list(_keys(Config))


def leaves(values: Any) -> list[tuple[str, Any]]:
    """(dotted key, value) for every option that `values` sets."""
    return list(_leaves(values, Config))


def _leaves(values: Any, schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A free-form mapping (rollout.vllm) is set key by key, so that recipes can add to each other's."""
    hints = get_type_hints(schema) if is_dataclass(schema) else {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        inner = hints.get(name)
        whole = inner is Any and name in hints  # a model that is made from a config
        if isinstance(value, dict) and value and not whole:
            yield from _leaves(value, inner if is_dataclass(inner) else None, f"{key}.")
        else:
            yield key, value


def _lines(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _lines(value, f"{prefix}{key.value}.")


def _problem(node: DictConfig, setting: Setting) -> str | None:
    """Put `setting` into `node`, or say why it does not fit."""
    key, value = setting.key, setting.value
    known = key if key in KEYS else next((k for k in KEYS if key.startswith(f"{k}.") and _free(k)), None)
    if key in MOVED:
        return f"{key}: is called {MOVED[key]} now; say that"
    if known is None:
        close = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
        first = key.split(".")[0]
        close = close or difflib.get_close_matches(first, [f.name for f in fields(Config)], n=1)
        return f"{short(key)}: there is no such option" + (f"; did you mean {close[0]}?" if close else "")
    if is_dataclass(get_type_hints(Config).get(key)) and not isinstance(value, dict):
        return f"{key}: expected a mapping of options, not {short(repr(value))}"
    if value == {}:
        return None
    if value is None and _schema(known) is str:  # key= on the command line, or nothing behind the colon
        value = ""
    try:
        if known != key and known in ("tasks.reward", "tasks.fields", "sample.least"):  # there a dot belongs to the name
            OmegaConf.select(node, known)[key.removeprefix(f"{known}.")] = value
            taken = OmegaConf.select(node, known)[key.removeprefix(f"{known}.")]
        else:
            OmegaConf.update(node, key, value, force_add=_free(known))
            taken = OmegaConf.select(node, key)
    except InterpolationResolutionError:
        return None  # what it leads to may follow, and is looked for when all is there
    except (OmegaConfBaseException, ValueError) as error:
        return f"{key}: {short(str(error).splitlines()[0])}"
    # YAML takes a bare nan for a word, and OmegaConf for a number where one is wanted.
    for number in _floats(taken if isinstance(taken, float) else value):
        if not math.isfinite(number):
            return f"{key}: {number} is not a finite number"
    return None


def _floats(value: Any) -> Iterator[float]:
    """The floating-point numbers of a value, however deep in mappings and lists."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _floats(part)


def _free(key: str) -> bool:
    """Is this option a mapping whose keys are not ours to check?"""
    return str(_schema(key)).startswith("dict")


def _schema(key: str) -> Any:
    """The type of an option."""
    schema: Any = Config
    for name in key.split("."):
        schema = get_type_hints(schema)[name]
    return schema
