"""Contracts against a library's sources, and rlreason's own code against the contracts."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from contracts.sources import Found, Function, Signature, Sources, dotted, signature, strings, targets

LIBRARIES = ("vllm", "deepspeed", "ray")
TORCH = ("torch.distributed", "torch.cuda", "torch.accelerator", "torch.multiprocessing")  # of torch only these
IGNORED_BASES = {"ABC", "Generic", "Protocol", "object", "Any"}


@dataclass(frozen=True)
class Contract:
    """What rlreason relies on, about the definition behind a dotted name. Made by the functions below."""

    name: str
    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    called: bool = False
    via: str = ""
    attributes: tuple[str, ...] = ()
    literals: tuple[str, ...] = ()
    compiled: bool = False

    @property
    def library(self) -> str:
        return self.name.partition(".")[0]

    @property
    def names(self) -> set[str]:
        return {self.name, *(f"{self.name}.{attribute}" for attribute in self.attributes)}


def exists(name: str) -> Contract:
    """A definition that is imported, raised, caught or assigned to."""
    return Contract(name)


def takes(name: str, parameters: str = "", via: str = "") -> Contract:
    """A function, method or class that is called.

    Args:
        name: Dotted, as rlreason imports it; of a method, behind its class.
        parameters: What is passed: "request_id, prompt, level=". Positional parameters go by name too, since a new order
            fails silently; "_" stands for any name. A parameter without a default that is not passed is a miss.
        via: Definition that names what may be passed in `**kwargs`. Without it, the function itself has to.
    """
    given = [part.strip() for part in parameters.split(",") if part.strip()]
    positional = tuple(part for part in given if not part.endswith("="))
    return Contract(name, positional, tuple(part[:-1] for part in given if part.endswith("=")), called=True, via=via)


def has(name: str, attributes: str) -> Contract:
    """A class whose instances, or a module which, has these attributes; methods that are passed nothing need no `takes`."""
    return Contract(name, attributes=tuple(attributes.split()))


def holds(name: str, literals: str) -> Contract:
    """A definition in which these strings stand: keys of a table, members of an enumeration, values that are compared."""
    return Contract(name, literals=tuple(literals.split()))


def compiled(name: str) -> Contract:
    """A name of a C extension that its stubs lack: no source has it, so only what is installed is asked, by import."""
    return Contract(name, compiled=True)


def absent(contract: Contract) -> bool:
    """Whether what is installed lacks a compiled name."""
    module, *rest = contract.name.split(".")
    found = importlib.import_module(module)
    for part in rest:
        if not hasattr(found, part):
            return True
        found = getattr(found, part)
    return False


def misses(contract: Contract, sources: Sources) -> list[str]:
    """What `sources` do not fulfil of a contract."""
    found = sources.find(contract.name)
    if found is None:
        return [f"{contract.name}: not found"]
    problems = [
        f"{contract.name}: no attribute {attribute!r} ({found.where})"
        for attribute in contract.attributes
        if sources.find(f"{contract.name}.{attribute}") is None
    ]
    if contract.literals:
        there = strings(found.node) if found.node else set()
        problems += [f"{contract.name}: no {text!r} ({found.where})" for text in contract.literals if text not in there]
    if contract.called:
        taken = sources.signature(found)
        what = _refused(contract, taken, sources) if taken else ["is no function or class"]
        problems += [f"{contract.name}: {problem} ({found.where})" for problem in what]
    return problems


def _refused(contract: Contract, taken: Signature, sources: Sources) -> Iterator[str]:
    for at, name in enumerate(contract.positional):
        if at >= len(taken.positional):
            if not taken.variadic:
                yield f"takes {len(taken.positional)} positional arguments, not {len(contract.positional)}: {taken}"
                break
        elif name not in ("_", taken.positional[at]):
            yield f"positional parameter {at + 1} is {taken.positional[at]!r}, not {name!r}: {taken}"
    behind = sources.find(contract.via) if contract.via else None
    if contract.via and behind is None:
        yield f"{contract.via}, which names its options, not found"
    elsewhere = taken.open if behind is None else behind.node
    unnamed = strings(elsewhere) if taken.open and elsewhere else set()
    for name in contract.keywords:
        if name not in taken.keyword and name not in unnamed:
            yield f"no parameter {name!r}: {taken}"
    for name in sorted(taken.required - {*contract.keywords, *taken.positional[: len(contract.positional)]}):
        yield f"parameter {name!r} is required and not passed: {taken}"


def unmet(table: Iterable[Contract], sources: Sources) -> list[str]:
    """Every miss, of the libraries that `sources` hold."""
    return [
        miss
        for contract in table
        if sources.holds(contract.name) and not contract.compiled
        for miss in misses(contract, sources)
    ]


# ---- rlreason's own code ----


@dataclass(frozen=True)
class Use:
    """A name of a library in a file of ours; `keywords` where it is called."""

    name: str
    where: str
    called: bool = False
    keywords: tuple[str, ...] = ()


def watched(name: str) -> bool:
    return name.partition(".")[0] in LIBRARIES or any(f"{name}.".startswith(f"{prefix}.") for prefix in TORCH)


def imported(tree: ast.Module) -> dict[str, str]:
    """Local names, at whatever depth they are imported, and the dotted names that they stand for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                names |= {alias.asname: alias.name} if alias.asname else {first: first}
    return names


def uses(file: Path, root: Path) -> Iterator[Use]:
    """Imports from the libraries, dotted names that begin with an import, and calls of either."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names, place = imported(tree), file.relative_to(root)

    def full(node: ast.AST) -> str:
        first, *rest = dotted(node) or [""]
        name = ".".join([names[first], *rest]) if first in names else ""
        return name if watched(name) else ""

    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        where = f"{place}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if watched(name := f"{node.module}.{alias.name}"):
                    yield Use(name, where)
        elif isinstance(node, ast.Attribute) and id(node) not in inner and (name := full(node)):
            yield Use(name, where)
        elif isinstance(node, ast.Call) and (name := full(node.func)):
            yield Use(name, where, True, tuple(k.arg for k in node.keywords if k.arg))


def unlisted(table: Iterable[Contract], package: Path) -> list[str]:
    """Uses in `package` without a contract, each with the line to add."""
    contracts = list(table)
    known = {name for contract in contracts for name in contract.names}
    problems: dict[str, str] = {}
    for file in sorted(package.rglob("*.py")):
        for use in uses(file, package.parent):
            callable_as = [c for c in contracts if c.name == use.name and c.called]
            if any(c.compiled and f"{c.name}.".startswith(f"{use.name}.") for c in contracts):
                continue
            passed = ", ".join(f"{keyword}=" for keyword in use.keywords)
            if use.called and not callable_as:
                line = f'takes("{use.name}", "{passed}"),  # and what is passed by position'
                problems[use.name] = f"{use.where} calls {use.name}. Add to tests/contracts/table.py: {line}"
            elif not use.called and not any(name == use.name or name.startswith(f"{use.name}.") for name in known):
                line = f'exists("{use.name}"),'
                problems.setdefault(use.name, f"{use.where} uses {use.name}. Add to tests/contracts/table.py: {line}")
            elif callable_as and (new := {*use.keywords} - {k for c in callable_as for k in c.keywords}):
                more = ", ".join(f"{keyword}=" for keyword in sorted(new))
                problems[f"{use.name}({more})"] = (
                    f'{use.where} passes {more} to {use.name}. Add it to its line in tests/contracts/table.py: '
                    f'takes("{use.name}", "…, {more}"),'
                )  # fmt: skip
    return list(problems.values())


def stale(table: Iterable[Contract], text: str) -> list[str]:
    """Contracts of which no word stands in `text`, rlreason's code: it does without them by now."""
    words = {*re.findall(r"\w+", text)}
    problems = []
    for contract in table:
        parts = [*contract.keywords, *contract.attributes, *contract.literals] or [contract.name.rpartition(".")[2]]
        if gone := [part for part in parts if not {*re.findall(r"\w+", part)} <= words]:
            problems.append(
                f"tests/contracts/table.py, {contract.name}: rlreason has no {', '.join(gone)} any more. Remove it."
            )
    return problems


def subclasses(package: Path, sources: Sources) -> list[str]:
    """What is wrong with classes of rlreason that extend a library's: missing methods, other parameters, unknown attributes."""
    problems = []
    for file in sorted(package.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = imported(tree)
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
            for base in node.bases:
                first, *rest = dotted(base.value if isinstance(base, ast.Subscript) else base) or [""]
                name = ".".join([names.get(first, ""), *rest])
                if name.partition(".")[0] in LIBRARIES and sources.holds(name):
                    where = f"{file.relative_to(package.parent)}:{node.lineno} {node.name}({name})"
                    parent = sources.find(name)
                    wrong = _unlike(node, parent, sources) if parent else ["its base is not found"]
                    problems += [f"{where}: {problem}" for problem in wrong]
    return problems


def _unlike(node: ast.ClassDef, parent: Found, sources: Sources) -> Iterator[str]:
    own = {s.name: s for s in node.body if isinstance(s, Function)}
    for name in sorted(sources.abstract(parent) - {*own}):
        yield f"abstract method {name} is not implemented"
    for name, method in own.items():
        theirs = sources.member(parent, name)
        if theirs is None or not isinstance(theirs.node, Function) or name == "__init__":
            continue
        asked, taken = signature(theirs.node, bound=True), signature(method, bound=True)
        if not taken.variadic and taken.positional[: len(asked.positional)] != asked.positional:
            yield f"{name} takes ({taken}), and is called with ({asked})"
        elif extra := taken.required - {*asked.positional} - asked.keyword:
            yield f"{name} requires {', '.join(sorted(extra))}, which its base does not pass"
    if any(last not in IGNORED_BASES for last in _unresolved(parent, sources)):
        return  # what its ancestors have is not known
    fields = {t.id for s in node.body for t in targets(s) if isinstance(t, ast.Name)} | {*own}
    fields |= {parts[1] for n in ast.walk(node) for t in _stored(n) if (parts := dotted(t))[:1] == ["self"] and len(parts) == 2}
    read = {
        n.attr
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
    }
    for name in sorted(read - fields):
        if not name.startswith("__") and sources.member(parent, name) is None:
            yield f"reads self.{name}, which neither it nor its base has"


def _stored(node: ast.AST) -> list[ast.expr]:
    return targets(node) if isinstance(node, ast.Assign | ast.AnnAssign) else []


def _unresolved(parent: Found, sources: Sources) -> Iterator[str]:
    for each in sources.lineage(parent):
        assert isinstance(each.node, ast.ClassDef)
        for base in each.node.bases:
            parts = dotted(base.value if isinstance(base, ast.Subscript) else base)
            if not parts or sources.resolve(each.module, parts) is None:
                yield parts[-1] if parts else ""


def environment(package: Path, prefix: str) -> set[str]:
    """Environment variables with this prefix that stand in `package`."""
    pattern = re.compile(prefix + r"[A-Z0-9_]+")
    return {
        text
        for file in package.rglob("*.py")
        for text in strings(ast.parse(file.read_text(encoding="utf-8")))
        if pattern.fullmatch(text)
    }
