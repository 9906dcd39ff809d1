"""Definitions in a library's source files, found by AST.

Follows imports, aliases, star imports, module-level `__getattr__` tables and base classes, through `.py` and `.pyi` files.
Knows nothing that only exists at run time: `setattr`, metaclasses, C extensions without stubs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
FIELDS = {"TypedDict", "NamedTuple", "Struct", "BaseModel"}  # bases whose annotated fields are the constructor's parameters


@dataclass
class Module:
    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @cached_property
    def statements(self) -> list[ast.stmt]:
        return list(flat(self.tree.body))

    @property
    def package(self) -> str:
        return self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]


@dataclass
class Found:
    """A definition, and where it was found. `node` is None for what a module-level `__getattr__` provides."""

    name: str
    module: Module
    node: ast.AST | None
    owner: ast.ClassDef | None = None

    @property
    def where(self) -> str:
        return f"{self.module.path}:{getattr(self.node, 'lineno', 1)}"


@dataclass
class Signature:
    """Parameters of a call. `required` have no default; `open` is the function that takes `**kwargs`, if it does."""

    positional: list[str] = field(default_factory=list)
    keyword: set[str] = field(default_factory=set)
    required: set[str] = field(default_factory=set)
    variadic: bool = False
    open: ast.AST | None = None

    def __str__(self) -> str:
        names = [*self.positional, *sorted(self.keyword - {*self.positional})]
        return ", ".join([*names, *(["*args"] if self.variadic else []), *(["**kwargs"] if self.open else [])])


def flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, and those under `if`, `try`, `with` and loops in it."""
    for statement in body:
        yield statement
        for part in ("body", "orelse", "finalbody"):
            if not isinstance(statement, Function | ast.ClassDef):
                yield from flat(getattr(statement, part, []))
        for handler in getattr(statement, "handlers", []):
            yield from flat(handler.body)


def last_name(node: ast.AST) -> str:
    """The last part of a dotted name: of `msgspec.Struct`, of a decorator with arguments, of `Generic[T]`."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def dotted(node: ast.AST) -> list[str]:
    """Parts of `a.b.c`; empty for any other expression."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts, node = [node.attr, *parts], node.value
    return [node.id, *parts] if isinstance(node, ast.Name) else []


def in_dict(node: ast.AST) -> str:
    """`name` of `self.__dict__["name"]`, with which DeepSpeed keeps torch from registering a module."""
    if isinstance(node, ast.Subscript) and dotted(node.value) == ["self", "__dict__"] and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return ""


def strings(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def targets(statement: ast.stmt) -> list[ast.expr]:
    if isinstance(statement, ast.Assign):
        return [t for target in statement.targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [statement.target] if isinstance(statement, ast.AnnAssign) else []


class Sources:
    """Libraries whose packages lie in `folders`."""

    def __init__(self, *folders: Path):
        self.folders = folders
        self.modules: dict[str, Module | None] = {}

    def holds(self, name: str) -> bool:
        return self.module(name.partition(".")[0]) is not None

    def module(self, name: str) -> Module | None:
        if name not in self.modules:
            paths = (
                folder.joinpath(*name.split(".")[:-1], tail)
                for folder in self.folders
                for last in [name.rpartition(".")[2]]
                for tail in (f"{last}/__init__.py", f"{last}.py", f"{last}/__init__.pyi", f"{last}.pyi")
            )
            path = next((path for path in paths if path.is_file()), None)
            self.modules[name] = Module(name, path) if path else None
        return self.modules[name]

    def find(self, name: str) -> Found | None:
        """The definition behind a dotted name: a module, or a name in one, or a member of a class, inherited or not."""
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            if module := self.module(".".join(parts[:cut])):
                found: Found | None = Found(module.name, module, module.tree)
                for part in parts[cut:]:
                    found = self._inside(found, part) if found else None
                return found
        return None

    def _inside(self, found: Found, name: str) -> Found | None:
        if isinstance(found.node, ast.Module):
            return self._global(found.module, name, set())
        if isinstance(found.node, ast.ClassDef):
            return self.member(found, name)
        return None

    def _global(self, module: Module, name: str, seen: set[tuple[str, str]]) -> Found | None:
        """`name` as `module` has it. The last definition counts, but one that is typed only for overloads never does."""
        if (module.name, name) in seen:
            return None
        seen.add((module.name, name))
        for statement in reversed(module.statements):
            if found := self._defined(module, statement, name, seen):
                return found
        if sub := self.module(f"{module.name}.{name}"):
            return Found(sub.name, sub, sub.tree)
        return self._provided(module, name, seen)

    def _defined(self, module: Module, statement: ast.stmt, name: str, seen: set[tuple[str, str]]) -> Found | None:
        here = f"{module.name}.{name}"
        if isinstance(statement, Function | ast.ClassDef):
            return Found(here, module, statement) if statement.name == name and not overload(statement) else None
        if isinstance(statement, ast.ImportFrom):
            source = self._source(module, statement)
            for alias in statement.names:
                if alias.name == "*" and (star := self.module(source)) and (found := self._global(star, name, seen)):
                    return found
                if (alias.asname or alias.name) == name and (origin := self.module(source)):
                    return self._global(origin, alias.name, seen)
            return None
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    origin = self.module(alias.name if alias.asname else name)
                    return Found(origin.name, origin, origin.tree) if origin else None
            return None
        for target in targets(statement):
            if isinstance(target, ast.Name) and target.id == name:
                parts = dotted(statement.value) if isinstance(statement, ast.Assign) else []
                alias_of = self._chain(module, parts, seen) if parts and parts[0] != name else None
                return alias_of or Found(here, module, statement)
        return None

    def resolve(self, module: Module, parts: list[str]) -> Found | None:
        """What a dotted name means in a module."""
        return self._chain(module, parts, set())

    def _chain(self, module: Module, parts: list[str], seen: set[tuple[str, str]]) -> Found | None:
        found = self._global(module, parts[0], {*seen})
        for part in parts[1:]:
            found = self._inside(found, part) if found else None
        return found

    def _source(self, module: Module, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        above = module.package.split(".")
        base = above[: len(above) - (statement.level - 1)]
        return ".".join([*base, *([statement.module] if statement.module else [])])

    def _provided(self, module: Module, name: str, seen: set[tuple[str, str]]) -> Found | None:
        """What a module-level `__getattr__` answers to: the entry "module:attribute" of a table, or a name that it mentions."""
        getter = next((s for s in module.statements if isinstance(s, ast.FunctionDef) and s.name == "__getattr__"), None)
        if getter is None:
            return None
        for table in (s.value for s in module.statements if isinstance(s, ast.Assign | ast.AnnAssign)):
            if not isinstance(table, ast.Dict):
                continue
            for key, value in zip(table.keys, table.values, strict=True):
                if not isinstance(key, ast.Constant) or key.value != name:
                    continue
                if isinstance(value, ast.Constant) and isinstance(value.value, str) and ":" in value.value:
                    origin, _, attribute = value.value.partition(":")
                    source = self.module(module.package + origin if origin.startswith(".") else origin)
                    return self._global(source, attribute, seen) if source else None
                return Found(f"{module.name}.{name}", module, value)
        return Found(f"{module.name}.{name}", module, None) if name in strings(getter) else None

    # ---- classes ----

    def lineage(self, found: Found, seen: set[str] | None = None) -> list[Found]:
        """A class and its bases, depth first, as far as their sources are here."""
        seen = set() if seen is None else seen
        if not isinstance(found.node, ast.ClassDef) or found.name in seen:
            return []
        seen.add(found.name)
        classes = [found]
        for base in found.node.bases:
            parts = dotted(base.value if isinstance(base, ast.Subscript) else base)
            parent = self.resolve(found.module, parts) if parts else None
            if parent:
                classes += self.lineage(parent, seen)
        return classes

    def member(self, found: Found, name: str) -> Found | None:
        """A method, property, class attribute, annotated field, or attribute that a method sets on `self`."""
        for each in self.lineage(found):
            assert isinstance(each.node, ast.ClassDef)
            here = f"{each.name}.{name}"
            for statement in reversed(list(flat(each.node.body))):
                if isinstance(statement, Function | ast.ClassDef):
                    if statement.name == name and not overload(statement):
                        return Found(here, each.module, statement, each.node)
                elif any(isinstance(t, ast.Name) and t.id == name for t in targets(statement)):
                    return Found(here, each.module, statement, each.node)
            for statement in (n for n in ast.walk(each.node) if isinstance(n, ast.Assign | ast.AnnAssign)):
                if any(dotted(t) == ["self", name] or in_dict(t) == name for t in targets(statement)):
                    return Found(here, each.module, statement, each.node)
        return None

    def abstract(self, found: Found) -> set[str]:
        """Methods that a subclass has to implement: abstract where the lineage has them first."""
        first: dict[str, bool] = {}
        for each in self.lineage(found):
            assert isinstance(each.node, ast.ClassDef)
            for method in (s for s in flat(each.node.body) if isinstance(s, Function)):
                first.setdefault(method.name, any(last_name(d) == "abstractmethod" for d in method.decorator_list))
        return {name for name, abstract in first.items() if abstract}

    def signature(self, found: Found) -> Signature | None:
        """Of a call of `found` as rlreason makes it: without `self` or `cls`. None where the source does not tell."""
        if isinstance(found.node, ast.ClassDef):
            return self._constructor(found)
        if not isinstance(found.node, Function):
            return None
        static = any(last_name(d) == "staticmethod" for d in found.node.decorator_list)
        return signature(found.node, bound=found.owner is not None and not static)

    def _constructor(self, found: Found) -> Signature:
        lineage = self.lineage(found)
        for each in lineage:
            assert isinstance(each.node, ast.ClassDef)
            own = {s.name: s for s in flat(each.node.body) if isinstance(s, Function) and not overload(s)}
            if method := own.get("__init__") or own.get("__new__"):
                return signature(method, bound=True)
            if any(last_name(d) in ("dataclass", "config") for d in each.node.decorator_list) or any(
                last_name(base) in FIELDS for one in lineage for base in _bases(one)
            ):
                return self._fields(lineage)
        return Signature()

    def _fields(self, lineage: list[Found]) -> Signature:
        fields: dict[str, bool] = {}  # and whether they are required
        for each in reversed(lineage):
            assert isinstance(each.node, ast.ClassDef)
            optional = any(k.arg == "total" and getattr(k.value, "value", True) is False for k in each.node.keywords)
            for statement in flat(each.node.body):
                if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                    continue
                kind = {last_name(n) for n in ast.walk(statement.annotation)}
                value = statement.value
                excluded = isinstance(value, ast.Call) and any(
                    k.arg == "init" and getattr(k.value, "value", True) is False for k in value.keywords
                )
                if not kind & {"ClassVar", "KW_ONLY"} and not excluded:
                    fields[statement.target.id] = value is None and not optional and "NotRequired" not in kind
        return Signature(list(fields), {*fields}, {name for name, required in fields.items() if required})


def _bases(found: Found) -> list[ast.expr]:
    assert isinstance(found.node, ast.ClassDef)
    return found.node.bases


def overload(node: Function | ast.ClassDef) -> bool:
    return any(last_name(d) == "overload" for d in node.decorator_list)


def signature(node: Function, bound: bool) -> Signature:
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = len(arguments.defaults)
    required = {a.arg for a in (plain[:-defaults] if defaults else plain)}
    required |= {a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None}
    names = [a.arg for a in plain]
    if bound and names:
        required.discard(names[0])
        names = names[1:]
    return Signature(
        names,
        ({a.arg for a in arguments.args} & {*names}) | {a.arg for a in arguments.kwonlyargs},
        required & ({*names} | {a.arg for a in arguments.kwonlyargs}),
        arguments.vararg is not None,
        node if arguments.kwarg else None,
    )
