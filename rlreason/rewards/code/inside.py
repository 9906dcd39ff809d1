"""What the interpreter in the sandbox does: run a program, answer calls of its functions, or test another's answers.

Handed as text to a bare interpreter, so it imports nothing of rlreason but `plain.py`, handed along. Three modes:

    run    <source>                  the program, with its standard streams
    serve  <source> <calls> <values> a program's functions: each call comes as a line of JSON, its value goes back as one
    tests  <source> <values> <calls> tests; the functions that they test live in another process, which is asked

The last two keep the verdict out of the program's reach: what a value ought to be is known only where the tests run, and
there a value arrives as plain data, rebuilt from JSON, with no method that the program has written. What is no plain data
stays with the program, and the tests hold a `Remote` of it: they may call it, read it, go through it, but no operator of
theirs reaches it.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys
import types
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from typing import IO, Any

from rlreason.rewards.code.plain import GIVEN, from_json, leave, same, to_json

LONGEST = 1 << 24  # characters of one value
AHEAD = 256  # values taken at once, so that a program cannot count how many of them a test wanted to see
COMPARING = ("startswith", "endswith", "issubset", "issuperset", "isdisjoint")  # Python's methods that are an operator


class Unjudged(BaseException):
    """The tests ask for what cannot be done, whatever the program. No Exception: a test must not catch it."""


class Refused(BaseException):
    """The test asks an object of the program's own class for what Python's values alone are trusted with: it fails."""


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
    program = Served(calls, values)
    try:
        program.module = run(source, "program")
    except BaseException as error:  # whatever it is, SystemExit too, it is the program's, and the answer to every call
        program.failure = error
    program.converse()


class Served:
    """The program, in its own process: what the tests ask of it, one line of JSON each way."""

    def __init__(self, calls: IO[str], values: IO[str]):
        self.calls, self.values = calls, values
        self.module = types.ModuleType("program")
        self.failure: BaseException | None = None  # why it could not be loaded
        self.objects: list[Any] = []  # of its own classes, which the tests know by their place here
        self.actions: dict[str, Callable[..., Any]] = {
            "name": lambda name: getattr(self.module, name), "call": _call, "getattr": getattr, "setattr": setattr, "len": len,
            "iter": iter, "take": _take, "next": next, "str": str, "repr": repr, "bool": bool, "isinstance": isinstance,
        }  # fmt: skip
        self.kinds: dict[str, Callable[[Any], Any]] = {
            "object": self.objects.__getitem__, "function": self.of_the_tests,
            "builtin": lambda name: getattr(builtins, name), "iterator": lambda inner: iter(self.into(inner)),
        }  # fmt: skip

    def converse(self) -> Any:
        """Answer calls; return, or raise, what the tests' own function gave, where the program has called one."""
        for line in iter(self.calls.readline, ""):
            action, *arguments = json.loads(line)
            if action == "gave":
                return self.into(arguments[0])
            if action == "raised":
                raise getattr(builtins, arguments[0], RuntimeError)("of the tests")
            try:
                if self.failure:
                    raise self.failure
                self.say(self.answer(action, [self.into(a) for a in arguments]))
            except BaseException as error:  # the program's own, passed on to the test
                self.say(_told(error))
        return None

    def answer(self, action: str, given: list[Any]) -> dict[str, Any]:
        value = self.actions[action](*given)
        if action == "take":
            taken, error = value
            return {"value": self.out(taken), **({"then": _told(error)} if error is not None else {})}
        if action == "call" and value is None:  # then it may have been called for what it does to its arguments
            return {"value": None, "left": [self.out(a) if isinstance(a, list | dict | set | deque) else None for a in given]}
        return {"value": self.out(value)}

    def say(self, message: Any) -> None:
        self.values.write(json.dumps(message) + "\n")
        self.values.flush()

    def out(self, value: Any) -> Any:
        def refer(value: Any) -> Any:
            self.objects.append(value)
            return {"object": len(self.objects) - 1}

        return to_json(value, refer)

    def into(self, value: Any) -> Any:
        return from_json(value, lambda kind, inner: self.kinds[kind](inner))

    def of_the_tests(self, number: int) -> Callable[..., Any]:
        """A function that the tests have handed over: called here, it is asked of them."""

        def function(*args: Any, **kwargs: Any) -> Any:
            self.say({"function": number, "arguments": [self.out(args), self.out(kwargs)]})
            return self.converse()

        return function


def _call(function: Any, *arguments: Any) -> Any:
    return function(*arguments[:-1], **arguments[-1])


def _take(iterator: Iterator[Any]) -> tuple[list[Any], BaseException | None]:
    """The next values, and what came in the way of more."""
    taken: list[Any] = []
    try:
        while len(taken) < AHEAD:
            taken.append(next(iterator))
    except BaseException as error:  # the program's, told to the tests when they have come that far
        return taken, error
    return taken, None


def _told(error: BaseException) -> dict[str, Any]:
    return {"error": [t.__name__ for t in type(error).__mro__], "words": [a for a in error.args if isinstance(a, str)]}


class Remote:
    """Something of the program's in the tests' process: what is done to it is asked of the other.

    Calls, attributes, what it holds and how it is written: arguments go in, plain values come out, to be compared here. No
    operator does, so that nothing to compare with goes in, and none is what the program says it is.
    """

    def __init__(self, ask: Callable[..., Any], number: int):
        self.__dict__.update(_ask=ask, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", self, *args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in COMPARING:
            raise Refused(name)
        if name.startswith("__") and name not in ("__name__", "__qualname__", "__doc__"):
            raise AttributeError(name)  # Python's own library asks for some, and would hand them what it holds
        return self._ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        iterator, then = self._ask("iter", self), None
        while then is None:
            taken, then = self._ask("take", iterator)
            yield from taken
        if not isinstance(then, StopIteration):
            raise then

    def __eq__(self, other: object) -> bool:
        if other is None:
            return False  # which is so, whatever the program
        raise Refused("==")

    __hash__ = object.__hash__

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._ask("isinstance", value, self) is True

    def __format__(self, form: str) -> str:
        if form:
            raise Refused("format")
        return str(self)


def _refuse(self: Remote, *others: Any) -> Any:
    raise Refused("an operator")


for _name in ("len", "str", "repr", "bool", "next"):
    setattr(Remote, f"__{_name}__", lambda self, _name=_name: self._ask(_name, self))
BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "xor", "or")
OTHER = (
    "lt", "le", "gt", "ge", "contains", "getitem", "setitem", "delitem", "delattr", "neg", "pos", "abs", "invert", "int",
    "float", "complex", "index", "round", "trunc", "floor", "ceil", "bytes",
)  # fmt: skip
for _name in (*OTHER, *(side + name for name in BINARY for side in ("", "r", "i"))):
    setattr(Remote, f"__{_name}__", _refuse)


def error_of(told: dict[str, Any], errors: dict[str, type[Exception]]) -> Exception:
    """The program's error, as one of what `except` can name here: Python's, and those that the tests name."""
    names = [str(name) for name in told["error"]]
    kinds = [errors.get(name, getattr(builtins, name, None)) for name in names]
    fit = [k for k in kinds if isinstance(k, type) and issubclass(k, Exception)]
    fit = [k for k in fit if not issubclass(k, UnicodeError | ExceptionGroup)] or [RuntimeError]
    return type(names[0], tuple(fit), {})(*map(str, told["words"]))


def asker(values: IO[str], calls: IO[str], errors: dict[str, type[Exception]]) -> Callable[..., Any]:
    """A function that has something done in the program's process, and gives the value or raises what was raised."""
    functions: list[Callable[..., Any]] = []  # of the tests', which the program may call

    def out(value: Any) -> Any:
        if isinstance(value, Remote):
            return {"object": value._number}
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return {"builtin": name}
        if isinstance(value, types.FunctionType):
            functions.append(value)
            return {"function": len(functions) - 1}
        if isinstance(value, Iterator | KeysView | ValuesView | ItemsView):
            return {"iterator": [to_json(item, out) for item in list(value)]}
        if "tests" in (type(value).__module__, getattr(value, "__module__", "")):
            raise Unjudged(f"a test hands the program something of its own that is no plain data: {type(value).__name__}")
        raise Refused(f"{type(value).__name__} is no plain data")

    def into(value: Any) -> Any:
        def refer(kind: str, inner: Any) -> Any:
            if kind != "object" or not isinstance(inner, int):
                raise ValueError(f"no such kind of value: {kind!r}")
            return Remote(ask, inner)

        return from_json(value, refer)

    def say(*message: Any) -> dict[str, Any]:
        calls.write(json.dumps(message) + "\n")
        calls.flush()
        line = values.readline(LONGEST)
        if not line.endswith("\n"):
            raise EOFError("the program has ended, or its value is too long")
        return dict(json.loads(line))

    def ask(action: str, *arguments: Any) -> Any:
        answer, stop = say(action, *(to_json(a, out) for a in arguments)), None
        while "function" in answer:
            try:
                args, kwargs = into(answer["arguments"])
                reply = ("gave", to_json(functions[answer["function"]](*args, **kwargs), out))
            except Exception as error:  # of the tests' function, which the program may expect
                reply = ("raised", type(error).__name__)
            except (Refused, Unjudged) as error:
                stop, reply = error, ("raised", "RuntimeError")
            answer = say(*reply)
        if stop:
            raise stop
        if "error" in answer:
            raise error_of(answer, errors)
        value = into(answer["value"])
        if action == "take":
            return list(value), error_of(answer["then"], errors) if "then" in answer else None
        if action == "call" and value is None:
            left = into(answer.get("left", [])) or [{}]
            for old, new in [
                *zip(arguments[1:-1], left[1:], strict=False),
                *((arguments[-1].get(k), left[-1][k]) for k in left[-1]),
            ]:
                leave(old, new)
        return value

    return ask


class Space(dict[str, Any]):
    """The tests' names; those of the program's are asked for whenever they are used."""

    def __init__(self, names: list[str], ask: Callable[..., Any]):
        super().__init__(__name__="tests")
        self.names, self.ask = frozenset(names), ask

    def __missing__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        try:
            return self.ask("name", name)
        except Exception as error:
            raise NameError(f"the program has no {name}") from error


def test(tests: dict[str, Any], values: IO[str], calls: IO[str], report: IO[str]) -> None:
    """Run the pieces in order. A line for each that is a test: pass, fail, or what keeps it from being judged."""
    errors = {name: type(name, (Exception,), {}) for name in tests["errors"]}
    space = Space(tests["names"], asker(values, calls, errors))
    space.update(errors, same=lambda a, b: same(a, b, tests["tolerance"]))
    for name in tests["given"]:
        space[name] = getattr(importlib.import_module(GIVEN[name]), name) if name in GIVEN else importlib.import_module(name)
    for piece in tests["pieces"]:
        result = "fail"
        try:
            exec(compile(piece["text"], "tests", "exec", dont_inherit=True), space)
            result = "pass"
        except Unjudged as error:
            result = f"{type(error).__name__}: {error}"
        except ImportError as error:
            if piece["text"].startswith(("import ", "from ")):  # nothing of the program's is in it
                result = f"{type(error).__name__}: {error}"
        except (Refused, Exception):  # an assertion that does not hold, an error of the program's, or one it led to
            pass
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
    test(json.loads(source), reading, writing, report)


if __name__ == "__main__":
    main()
