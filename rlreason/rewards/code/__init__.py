"""Does the program in the answer pass the task's tests? It runs in a sandbox, here or at a URL.

The verdict cannot be forged, because it is not made where the program runs: what a program printed is compared here, and
assertions run in a second sandbox, which asks the program's one for values (`inside.py`). What a value ought to be never
enters the process of the program.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import os
import symtable
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rlreason.rewards.code import sandbox as walls
from rlreason.rewards.code.plain import GIVEN, same
from rlreason.types import Task

LONGEST = 1_000_000  # characters of a program
CONNECTING = 2.0  # seconds, to a remote sandbox
DOWN = {429, 502, 503, 504}  # HTTP statuses of one that is not there now
TRIES, PAUSE = 3, 0.5  # at a remote sandbox that is not reached or fails; seconds before the second, doubled before the third


class Away(walls.SandboxError, ConnectionRefusedError):
    """A remote sandbox is not there; it may come back, and whoever asks may wait for it."""


class Piece(NamedTuple):
    """One statement of the tests; those that are no test prepare the next ones."""

    text: str
    test: bool


class Tests(NamedTuple):
    """What a task asks of a program: outputs for inputs, or assertions."""

    streams: list[tuple[str, str]]  # input, output
    pieces: list[Piece]
    names: list[str]  # of the program's functions, classes and constants, as the pieces use them
    calls: list[tuple[str, str]]  # call, expected: the pieces, where all of them have that form
    given: Sequence[str] = ()  # names of Python's library that the pieces use, and do not import
    errors: Sequence[str] = ()  # the program's exceptions, as `except` names them


def code(
    task: Task,
    text: str,
    *,
    partial: bool = False,  # the share of tests passed, instead of all or nothing
    seconds: float = 4.0,  # for one program: one input, or all assertions together
    timeout: float = 8.0,  # seconds for one answer; tests that it leaves no time for are not passed
    memory: int = 512,  # MiB for one program
    tolerance: float = 0.0,  # relative or absolute, by which a number may differ
    isolation: str = "auto",  # bubblewrap, landlock; auto: the stronger of those that stand here
    sandbox: str = "",  # URL of a remote sandbox (SandboxFusion's /run_code); then nothing runs here
) -> float | None:
    """1 if the answer's program passes the tests of `task.info["tests"]` (or `task.answer`, as text); else 0.

    A test is {"input": …, "output": …}, compared line by line, white space aside; {"call": "f(1, 2)", "expected": "3"};
    or a text with assertions, as in MBPP, or with a function `check`, as in HumanEval (2107.03374), which is called with
    the function that `task.info["entry_point"]` names. Programs have Python's standard library, and no other processes,
    files or network. `None` for a task without tests. ValueError for tests that cannot be used, SandboxError
    where the sandbox and not the program failed, Away (a ConnectionRefusedError) where a remote one is not there.
    """
    tests = read_tests(task)
    if tests is None:
        return None
    program = extract(text)
    if program is None or len(program) > LONGEST:
        return 0.0
    limits = walls.Limits(wall=seconds, cpu=seconds, memory=memory << 20)
    end = time.monotonic() + timeout
    if sandbox:
        results = _remote(sandbox, program, tests, seconds, end, tolerance)
    elif tests.streams:
        results = _streams(program, tests.streams, limits, walls.chosen(isolation), end, tolerance)
    else:
        results = iter(_assertions(program, tests, limits, walls.chosen(isolation), tolerance))
    count = len(tests.streams) or sum(piece.test for piece in tests.pieces)
    if not partial:
        return float(all(results))  # stops at the first that fails
    return sum(results) / count


def extract(text: str) -> str | None:
    """The program of an answer: its last ```python block after </think>; else what stands in the last <answer>; else its
    last block of any language. A block or an <answer> that is never closed is none."""
    text = text.rpartition("</think>")[2]
    blocks = _blocks(text)
    python = [program for language, program in blocks if language in ("python", "python3", "py")]
    if python:
        return python[-1]
    inside, closed, _ = text.rpartition("<answer>")[2].partition("</answer>")
    if "<answer>" in text and closed:
        fenced = _blocks(inside)
        return fenced[-1][1] if fenced else inside.strip() + "\n"
    return blocks[-1][1] if blocks else None


def _blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a text: language, content. Line by line, so a text of nothing but fences costs no more."""
    blocks: list[tuple[str, str]] = []
    language: str | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        if not line.lstrip().startswith("```"):
            lines.append(line)
        elif language is None:
            language, lines = line.strip().strip("`").strip().lower().partition(" ")[0], []
        else:
            blocks.append((language, "\n".join(lines) + "\n"))
            language = None
    return blocks


def read_tests(task: Task) -> Tests | None:
    """The tests of a task; None where it has none. ValueError, with the task's id, for those that are malformed."""
    info = task.info or {}
    raw = info.get("tests", task.answer)
    if not raw:
        return None
    try:
        return _parse([raw] if isinstance(raw, str) else raw, info.get("entry_point"))
    except (SyntaxError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"task {task.id}: its tests cannot be used: {error}") from error


def _parse(raw: Sequence[Any], entry: str | None) -> Tests:
    # Parquet gives every test the keys of all, with None where a test has no such key.
    streams = [(str(t["input"]), str(t["output"])) for t in raw if isinstance(t, dict) and t.get("output") is not None]
    if streams and len(streams) < len(raw):
        raise ValueError("some have an output to compare, some not")
    pieces: list[Piece] = []
    calls: list[tuple[str, str]] = []
    for test in raw if not streams else ():
        if isinstance(test, dict):
            expected = test["expected"] if isinstance(test["expected"], str) else repr(test["expected"])
            ast.parse(f"{test['call']}\n{expected}")
            pieces.append(Piece(f"assert same(({test['call']}), ({expected}))", True))
            calls.append((test["call"], expected))
        else:
            pieces += _statements(test, entry)
    if pieces and not any(piece.test for piece in pieces):
        raise ValueError("there is no assertion, and no check function with an entry_point")
    return Tests(streams, pieces, calls=calls if len(calls) == len(pieces) else [], **_names(pieces, entry))


def _statements(text: str, entry: str | None) -> Iterable[Piece]:
    """Each assertion at the top is a test, and so is the call of `check`, where there is one; the rest prepares."""
    checks = False
    for node in ast.parse(text).body:
        yield Piece(ast.unparse(node), isinstance(node, ast.Assert))
        checks = checks or (isinstance(node, ast.FunctionDef) and node.name == "check")
    if checks and entry:
        yield Piece(f"check({entry})", True)


def _names(pieces: Sequence[Piece], entry: str | None) -> dict[str, list[str]]:
    """Whose are the names that the tests neither define nor import: the program's, Python's library's, or nobody's.

    A name of Python's own is never the program's, unless it is the `entry_point`: a program that has its own idea of
    `abs` or `isinstance` must not judge itself with it. Nor is a module's that was not imported, such as `math` or `np`.
    """
    text = "\n".join(piece.text for piece in pieces)
    compile(text, "tests", "exec", dont_inherit=True)  # it finds more than ast.parse
    nodes = list(ast.walk(ast.parse(text)))
    free = _free(symtable.symtable(text, "tests", "exec"))
    free = (free - {"same", *dir(builtins)}) | ({entry} if entry else set())
    owners = {id(n.value) for n in nodes if isinstance(n, ast.Attribute)}
    alone = {n.id for n in nodes if isinstance(n, ast.Name) and id(n) not in owners}  # not only as x in x.y
    called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)} | {entry}
    handled = [n.type for n in nodes if isinstance(n, ast.ExceptHandler) and n.type]
    errors = free & {n.id for kind in handled for n in ast.walk(kind) if isinstance(n, ast.Name)}
    given = {name for name in free if name in sys.stdlib_module_names and name not in called}
    names = free - errors - given
    if names - set(GIVEN):  # else the tests are of a program's own Counter
        given |= (names & set(GIVEN)) - {entry}
        names -= given
    for name in sorted(names):
        if name not in alone and name != entry and name[0].islower():
            raise ValueError(f"NameError: name {name!r} is not defined")
    return {"names": sorted(names), "given": sorted(given), "errors": sorted(errors)}


def _free(table: symtable.SymbolTable, top: frozenset[str] | None = None) -> set[str]:
    """The names that are used in a scope, or in those within it, and bound at none."""
    here = table.get_symbols()
    if top is None:
        top = frozenset(s.get_name() for s in here if s.is_assigned() or s.is_imported())
        used = {s.get_name() for s in here if s.is_referenced()}
    else:
        used = {s.get_name() for s in here if s.is_global() and s.is_referenced()}
        used -= {s.get_name() for s in here if s.is_declared_global() and s.is_assigned()}
    return (used - top).union(*(_free(child, top) for child in table.get_children()))


def _streams(
    program: str, streams: Iterable[tuple[str, str]], limits: walls.Limits, kind: str, end: float, tolerance: float
) -> Iterable[bool]:
    """One sandbox per input, so that no test learns anything of another."""
    for given, expected in streams:
        left = end - time.monotonic()
        if left <= 0:
            yield False
            continue
        limits = walls.Limits(min(limits.wall, left), limits.cpu, limits.memory)
        cell = walls.run(program, given.encode("utf-8", "surrogatepass"), limits, kind)
        well = not cell.ended and cell.process.returncode == 0
        yield well and agree(cell.stdout.decode("utf-8", "replace"), expected, tolerance)


def agree(output: str, expected: str, tolerance: float) -> bool:
    """The same words line by line, empty lines at the end aside; numbers within the tolerance, if it is not 0."""
    left, right = ([line.split() for line in text.rstrip().splitlines()] for text in (output, expected))
    return len(left) == len(right) and all(
        len(a) == len(b) and all(x == y or (tolerance > 0 and _near(x, y, tolerance)) for x, y in zip(a, b, strict=True))
        for a, b in zip(left, right, strict=True)
    )


def _near(a: str, b: str, tolerance: float) -> bool:
    try:
        return math.isclose(float(a), float(b), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:  # a word
        return False


def _assertions(program: str, tests: Tests, limits: walls.Limits, kind: str, tolerance: float) -> list[bool]:
    """Run the program in one sandbox and the tests in another, with a pipe for calls and one for values between them."""
    text = json.dumps({**tests._asdict(), "pieces": [p._asdict() for p in tests.pieces], "tolerance": tolerance})
    calls_out, calls_in = os.pipe()
    values_out, values_in = os.pipe()
    try:
        cells = [walls.start("serve", program, limits, kind, fds=(calls_out, values_in))]
        try:
            cells.append(walls.start("tests", text, limits, kind, fds=(values_out, calls_in)))
        except BaseException:
            walls.end(cells[0])
            raise
    finally:
        for fd in (calls_out, calls_in, values_out, values_in):
            os.close(fd)
    walls.watch(cells, limits)
    results = [json.loads(line) for line in cells[1].stdout.decode().split("\n")[:-1]]
    for result in results:
        if result not in ("pass", "fail"):
            raise ValueError(f"the tests cannot be judged: {result}")
    return [result == "pass" for result in results] + [False] * (sum(piece.test for piece in tests.pieces) - len(results))


def _remote(url: str, program: str, tests: Tests, seconds: float, end: float, tolerance: float) -> Iterable[bool]:
    """Run it elsewhere, and compare here: one request for each input, or for each call with a literal expected."""
    if not tests.streams and not tests.calls:
        raise ValueError("a remote sandbox runs tests of the form input/output and call/expected; assertions run here only")
    for given, expected in tests.streams:
        output = _post(url, program, given, min(seconds, end - time.monotonic()))
        yield output is not None and agree(output, expected, tolerance)
    for call, expected in tests.calls:
        output = _post(url, f"{program}\nprint()\nprint(ascii({call}))", "", min(seconds, end - time.monotonic()))
        yield output is not None and _literal_agrees(output, expected, tolerance)


def _literal_agrees(output: str, expected: str, tolerance: float) -> bool:
    wanted = ast.literal_eval(expected)  # the data's: what is wrong with it is told
    try:
        value = ast.literal_eval(output.rstrip().rpartition("\n")[2])
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the program's: not a value at all
        return False
    return same(value, wanted, tolerance)


def _post(url: str, program: str, stdin: str, seconds: float) -> str | None:
    """What a program printed at the remote sandbox; None where it failed or ran out of time."""
    import httpx

    if seconds <= 0:
        return None
    request = {"code": program, "language": "python", "stdin": stdin, "run_timeout": seconds}
    address = url.rstrip("/") + ("" if url.rstrip("/").endswith("/run_code") else "/run_code")
    problem, away = "", False
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            patience = httpx.Timeout(seconds + 10, connect=CONNECTING)
            answer = httpx.post(address, json=request, timeout=patience).raise_for_status().json()
            if answer["status"] == "SandboxError":
                problem, away = str(answer.get("message")), False
                continue
            ran = answer["run_result"] or {}
            return str(ran.get("stdout") or "") if answer["status"] == "Success" else None
        except (httpx.HTTPError, ValueError, KeyError) as error:
            problem = f"{type(error).__name__}: {error}"
            status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
            away = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) or status in DOWN
    raise (Away if away else walls.SandboxError)(f"{address} failed {TRIES} times: {problem}")
