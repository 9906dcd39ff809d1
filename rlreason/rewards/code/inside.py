"""What the interpreter in the sandbox does: run a program, answer calls of its functions, or test another's answers.

Handed as text to a bare interpreter, so it imports nothing of rlreason. Three modes:

    run    <source>                  the program, with its standard streams
    serve  <source> <calls> <values> a program's functions: each call comes as a line of JSON, its value goes back as one
    tests  <source> <values> <calls> tests; the functions that they test live in another process, which is asked

The last two keep the verdict out of the program's reach: what a value ought to be is known only where the tests run, and
there a value arrives as plain data, rebuilt from JSON, with no method that the program has written.
"""

from __future__ import annotations

import builtins
import itertools
import json
import math
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import IO, Any

LONGEST = 1 << 24  # characters of one value


class Unjudged(BaseException):
    """The test asks for what cannot be told without trusting the program. No Exception: a test must not catch it."""


def to_json(value: Any, refer: Callable[[Any], int]) -> Any:
    """A value as plain JSON; what is no plain data as a reference, `refer` giving its number."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return {"int": hex(value)} if abs(value) >> 256 else int(value)  # decimal digits of a huge one are limited
    if isinstance(value, list):
        return [to_json(v, refer) for v in value]
    if isinstance(value, dict):
        return {"dict": [[to_json(k, refer), to_json(v, refer)] for k, v in value.items()]}
    if isinstance(value, tuple | set | frozenset):
        kind = next(t for t in (tuple, set, frozenset) if isinstance(value, t))
        return {kind.__name__: [to_json(v, refer) for v in value]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"object": refer(value)}


def from_json(value: Any, refer: Callable[[int], Any]) -> Any:
    """The value again, of Python's own types alone. ValueError for what `to_json` does not write."""
    if isinstance(value, list):
        return [from_json(v, refer) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "int":
            return int(inner, 16)
        case "dict":
            return {from_json(k, refer): from_json(v, refer) for k, v in inner}
        case "tuple" | "set" | "frozenset":
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](from_json(v, refer) for v in inner)
        case "bytes":
            return bytes.fromhex(inner)
        case "complex":
            return complex(*inner)
        case "object":
            return refer(inner)
    raise ValueError(f"no such kind of value: {kind!r}")


def read_source(fd: str) -> str:
    with open(int(fd), "rb") as file:
        return file.read().decode("utf-8", "surrogatepass")


def run(source: str, name: str) -> types.ModuleType:
    """Run a program as the module of that name."""
    import site

    site.setquit()  # exit() and quit(), as in any script
    module = sys.modules[name] = types.ModuleType(name)
    sys.argv = ["program.py"]
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    return module


def serve(source: str, calls: IO[str], values: IO[str]) -> None:
    """Answer calls until there are no more. A program that fails as it is loaded fails in every call."""
    objects: list[Any] = []
    failure: BaseException | None = None
    module = types.ModuleType("program")
    try:
        module = run(source, "program")
    except BaseException as error:  # whatever it is, SystemExit too, it is the program's, and the answer to every call
        failure = error

    def refer(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    actions: dict[str, Callable[..., Any]] = {
        "name": lambda name: getattr(module, name), "call": lambda f, *args: f(*args[:-1], **args[-1]), "len": len,
        "getattr": getattr, "getitem": operator.getitem, "setitem": operator.setitem, "iter": iter, "next": next, "str": str,
        "repr": repr, "bool": bool, "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
    }  # fmt: skip
    for line in calls:
        try:
            if failure:
                raise failure
            action, *arguments = json.loads(line)
            value = actions[action](*[from_json(a, objects.__getitem__) for a in arguments])
            answer = json.dumps({"value": to_json(value, refer)})
        except BaseException as error:  # the program's own, passed on to the test
            answer = json.dumps({"error": type(error).__name__})
        values.write(answer + "\n")
        values.flush()


class Remote:
    """Something of the program's in the tests' process: what is done to it is asked of the other."""

    def __init__(self, ask: Callable[..., Any], number: int):
        self.__dict__.update(_ask=ask, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", self, *args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", self, name)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._ask("iter", self)
        while True:
            try:
                yield self._ask("next", iterator)
            except StopIteration:
                return

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Remote):
            raise Unjudged("a test compares two objects of the program's own classes, which only the program could decide")
        return False  # an object that says it equals everything is no answer

    __hash__ = object.__hash__


for _name in ("len", "str", "repr", "bool", "next", "getitem", "setitem", "add", "sub", "mul", "truediv"):
    setattr(Remote, f"__{_name}__", lambda self, *args, _name=_name: self._ask(_name, self, *args))


def asker(values: IO[str], calls: IO[str]) -> Callable[..., Any]:
    """A function that has something done in the program's process, and gives the value or raises what was raised."""

    def number(value: Any) -> int:
        if isinstance(value, Remote):
            return int(value._number)
        raise Unjudged(f"a test hands the program something that is no plain data: {type(value).__name__}")

    def ask(action: str, *arguments: Any) -> Any:
        calls.write(json.dumps([action, *(to_json(a, number) for a in arguments)]) + "\n")
        calls.flush()
        line = values.readline(LONGEST)
        if not line.endswith("\n"):
            raise EOFError("the program has ended, or its value is too long")
        answer = json.loads(line)
        if "error" in answer:
            kind = getattr(builtins, str(answer["error"]), None)
            known = (
                isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError | ExceptionGroup)
            )
            error = kind("of the program") if known and kind else RuntimeError("of the program")
            error.__dict__["of_program"] = True  # not an error of the tests
            raise error
        return from_json(answer["value"], lambda n: Remote(ask, n))

    return ask


def same(value: Any, expected: Any, tolerance: float) -> bool:
    """Equal, or, for numbers however deep in lists and tuples, equal within a relative or absolute tolerance."""
    if isinstance(expected, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(expected, list | tuple) and type(value) is type(expected):
        return len(value) == len(expected) and all(map(same, value, expected, itertools.repeat(tolerance)))
    return bool(value == expected)


def test(pieces: list[dict[str, Any]], names: list[str], tolerance: float, ask: Callable[..., Any], report: IO[str]) -> None:
    """Run the pieces in order. A line for each that is a test: pass, fail, or what keeps it from being judged."""
    space: dict[str, Any] = {"__name__": "tests", "same": lambda a, b: same(a, b, tolerance)}
    for name in names:
        space[name] = lambda *args, _name=name, **kwargs: ask("call", ask("name", _name), *args, kwargs)
    for piece in pieces:
        try:
            exec(compile(piece["text"], "tests", "exec", dont_inherit=True), space)
            result = "pass"
        except (Unjudged, ImportError, NameError, SyntaxError) as error:
            result = "fail" if hasattr(error, "of_program") else f"{type(error).__name__}: {error}"
        except Exception:  # an assertion that does not hold, an error of the program's, or one that its value led to
            result = "fail"
        if piece["test"] or result not in ("pass", "fail"):
            report.write(json.dumps(result) + "\n")
            report.flush()


def main() -> None:
    mode, fd, *pipes = sys.argv[1:-1]  # the last says whose it is, to whoever lists the machine's processes
    source = read_source(fd)
    if mode == "run":
        run(source, "__main__")
        return
    reading, writing = os.fdopen(int(pipes[0])), os.fdopen(int(pipes[1]), "w")
    if mode == "serve":
        serve(source, reading, writing)
        return
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tests print is no verdict
    tests = json.loads(source)
    test(tests["pieces"], tests["names"], tests["tolerance"], asker(reading, writing), report)


if __name__ == "__main__":
    main()
