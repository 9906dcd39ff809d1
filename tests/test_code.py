"""Code rewards by example: what the program of an answer is, what tests are, and that no program can judge itself."""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rlreason.rewards.code import Away, _names, agree, code, extract, read_tests, sandbox
from rlreason.rewards.code.jail import system_call_filter
from rlreason.rewards.code.plain import from_json, same, to_json
from rlreason.types import Task


def task(*tests, **info) -> Task:
    return Task("t7", "", info={"tests": list(tests), **info})


def block(program: str) -> str:
    return f"<think>hm</think>\n```python\n{program}\n```\n"


ADD = block("def f(a, b):\n    return a + b")
CHECK = "def check(candidate):\n    for i in range(9):\n        assert candidate(i, 1)"
STACK = """
class S:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
    def count(self): yield from range(2)"""
PART = {"partial": True}
SUM = block("print(sum(map(int, input().split())))")


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```", "a\n"), ("```python\na\n```\n```python\nb\n```", "b\n"), ("```py\na\n```", "a\n"),
        ("<think>```python\na\n```</think>b", None), ("<think></think>```python\na\n```", "a\n"),
        ("```python\na\n```\n```text\nb\n```", "a\n"),  # the last in Python, not the last
        ("<answer>a</answer>", "a\n"), ("<answer>a\n", None), ("<answer>```\na\n```</answer>", "a\n"),
        ("```\na\n```", "a\n"), ("```\na\n```\n```cpp\nb\n```", "b\n"),
        ("```python\na\n", None),  # cut off: right by accident is not right
        ("```Python title=x\na\n```", "a\n"), ("", None), ("a", None),
    ],
)  # fmt: skip
def test_the_program_of_an_answer(text, program):
    assert extract(text) == program


def test_an_answer_of_nothing_but_fences_takes_bounded_time():
    assert extract("```python\n" * 200_000) is not None


@pytest.mark.parametrize(
    ("output", "expected", "tolerance", "right"),
    [
        ("3\n", "3", 0, True), ("3 4\n5", "3  4 \n5\n\n", 0, True), ("3\n4", "3 4", 0, False), ("3", "3.0", 0, False),
        ("3", "3.0", 1e-9, True), ("0.3333", "0.33333", 1e-3, True), ("yes", "Yes", 1e-3, False), ("", "", 0, True),
        ("", "0", 1e-3, False), ("nan", "1", 1e-3, False), ("\n3", "3", 0, False),
    ],
)  # fmt: skip
def test_outputs_agree_word_by_word(output, expected, tolerance, right):
    assert agree(output, expected, tolerance) is right


@pytest.mark.parametrize(
    ("given", "answer", "options", "value"),
    [
        (task({"input": "1 2", "output": "3"}, {"input": "5", "output": "5"}), SUM, {}, 1.0),
        (task({"input": "1 2", "output": "3"}, {"input": "5", "output": "6"}), SUM, {}, 0.0),
        (task({"input": "1 2", "output": "3"}, {"input": "5", "output": "6"}), SUM, PART, 0.5),
        (task({"input": "1 2", "output": "3"}), "no program", {}, 0.0),
        (task({"input": "1 2", "output": "3"}), block("print(3"), {}, 0.0),
        (task({"input": "", "output": "1"}), block("print(1)\nraise ValueError"), {}, 0.0),
        (task({"call": "f(1, 2)", "expected": "3"}, {"call": "f([1], [2])", "expected": [1, 2]}), ADD, {}, 1.0),
        (task({"call": "f(1, 2)", "expected": "3"}, {"call": "f(1, 2)", "expected": "4"}), ADD, PART, 0.5),
        (task({"call": "f(0.1, 0.2)", "expected": "0.3"}), ADD, {}, 0.0),
        (task({"call": "f(0.1, 0.2)", "expected": "0.3"}), ADD, {"tolerance": 1e-9}, 1.0),
        (task("assert f(1, 2) == 3", "assert f('a', 'b') == 'ab'"), ADD, {}, 1.0),
        (task("assert f(1, 2) == 3", "assert f(1, 2) == 4", "assert abs(f(1, .5) - 1.5) < 1e-6"), ADD, PART, 2 / 3),
        (Task("t7", "", "import math\nassert math.isclose(f(1, 2), 3.0)"), ADD, {}, 1.0),
        (task(f"{CHECK} == i + 1", entry_point="f"), ADD, {}, 1.0), (task(f"{CHECK} == 3", entry_point="f"), ADD, {}, 0.0),
        (task("try:\n    f(1, 'a')\nexcept TypeError:\n    x = 1\nassert x == 1"), ADD, {}, 1.0),
        (task("assert list(map(f, [1], [2])) == [3]"), ADD, {}, 1.0),
        (task("s = S()\ns.push((1, {2}))\nassert s.pop() == (1, {2})\nassert s.items == []\nassert list(s.count()) == [0, 1]"),
         block(STACK), {}, 1.0),
        (task("assert sum(1, 2) == 3", entry_point="sum"), block("def sum(a, b):\n    return a + b"), {}, 1.0),
        (task("assert g(1) == 1"), ADD, {}, 0.0),  # the program lacks the function
        (task({"input": None, "output": None, "call": "f(1, 2)", "expected": "3"}), ADD, {}, 1.0),  # a row of Parquet
        (Task("t7", "", None), ADD, {}, None), (task(), ADD, {}, None),
    ],
)  # fmt: skip
def test_code(given, answer, options, value):
    assert code(given, answer, timeout=60, seconds=20, **options) == (pytest.approx(value) if value else value)


EQUAL = "    __eq__ = lambda s, o: True\n    __hash__ = None\n"
FORGERIES = {
    "an object that equals everything": f"class E:\n{EQUAL}def f(*a): return E()",
    "a number that equals everything": f"class E(int):\n{EQUAL}def f(*a): return E(1)",
    "an order in which all is less": "class E(int):\n    __lt__ = __le__ = __gt__ = lambda s, o: True\ndef f(*a): return E(99)",
    "a container that holds everything": "class E(list):\n    __contains__ = lambda s, o: True\ndef f(*a): return E()",
    "a difference of nothing": "class E(float):\n    __sub__ = __rsub__ = lambda s, o: 0.0\ndef f(*a): return E(9)",
    "its own abs, all and isinstance": "def abs(x): return 0\ndef all(x): return True\nisinstance = all\ndef f(*a): return 9",
    "its own builtins": "import builtins as b\nb.abs = lambda x: 0\nb.same = b.all = lambda *a: True\ndef f(*a): return 9",
    "an early exit": "import os\ndef f(*a): os._exit(0)",
    "an exit as it is loaded": "import os\nos.write(1, b'\"pass\"\\n' * 9)\nos._exit(0)",
    "a verdict on every pipe": """
import os
for i in range(64):
    try:
        os.write(i, b'"pass"\\n')
    except OSError: pass
def f(*a): return 9""",
    "a forged harness": """
import sys, json
m = sys.modules['__main__']
m.same = m.test = lambda *a: True
json.dumps = lambda x: '"pass"'
def f(*a): return 9""",
    "the expected value, looked for": """
import gc
def f(*a):
    every = [x for x in gc.get_objects() if type(x) in (list, tuple)]
    return next((i for x in every for i in x if type(i) is int and 1953000 < i < 1954000), 9)""",
    "an assertion error": "def f(*a): raise AssertionError",
    "endless values": "def f(*a):\n    while True: yield 1",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_program_cannot_judge_itself(name):
    """Each of these passes where tests run in the program's own process, or where its objects are compared."""
    tests = task(
        "assert f(1, 2) == 1953196", "assert abs(f(1, 2) - 1953196) < 1e-6", "assert f(1, 2) < -7", "assert 1953196 in f(1, 2)",
        "assert isinstance(f(1, 2), dict)", "assert all(x == 1953196 for x in [f(1, 2)])",
        {"call": "f(1, 2)", "expected": "1953196"},
    )  # fmt: skip
    assert code(tests, block(FORGERIES[name]), partial=True, seconds=1.5) == 0.0


TOLD = (
    "class X:\n    def learn(self, *a): X.learnt = next((x for x in a if x == 1953196), X.learnt); return {gives}\n"
    "    learnt = 0\n    __iter__ = lambda s: iter([0])\n"
)
OPERATORS = """
    add sub mul matmul truediv floordiv mod divmod pow and or xor radd rsub rmul rtruediv iadd isub lt le gt ge eq ne contains
    getitem setitem format abs round float int index call_ float_ hash bytes instancecheck class_getitem""".split()  # noqa: SIM905
LEARNS = (
    f"{TOLD}for n in {OPERATORS!r}: setattr(X, f'__{{{{n}}}}__', X.learn)\ndef f(*a): return X()\ndef leaked(): return X.learnt"
)
EXPRESSIONS = (
    "abs(f(1, 2) - 1953196) < 1e-6", "f(1, 2) / 1953196 == 1", "1953196 - f(1, 2) == 0", "f(1, 2) >= 1953196",
     "f(1, 2) == 1953196",
    "not f(1, 2) != 1953196", "1953196 in f(1, 2)", "f(1, 2)[1953196] == 1", "divmod(f(1, 2), 1953196) == (1, 0)",
    "pow(f(1, 2), 1953196) == 1", "math.isclose(f(1, 2), 1953196)", "f'{f(1, 2):1953196}' == '1'",
     "round(f(1, 2), 1953196) == 1",
    "f(1, 2) @ 1953196 == 1", "f(1, 2) % 1953196 == 0", "f(1, 2) in (1953196, 1)", "f(1, 2) == f(1, 2)",
     "int(f(1, 2)) == 1953196",
    "f(1, 2).startswith(1953196)", "f(1, 2).__eq__(1953196)", "copy.deepcopy([1953196, f(1, 2)])[0] == 1",
    "sorted([f(1, 2), 1953196])[0] == 1953196", "set(f(1, 2)) == {1953196}", "isinstance(f(1, 2), int)", "f(1, 2) is None",
    "f(1, 2).__class__ is int", "sum(f(1, 2)) == 1953196",
)  # fmt: skip


@pytest.mark.parametrize("gives", ["0", "0.0", "1", "True", "X()", "(1, 0)", "'1'", "1953196 - 1"])
def test_no_operator_of_the_tests_reaches_the_program(gives):
    """Neither is an operator's outcome what the program says, nor does it learn what it was to be compared with."""
    tests = task(*(f"assert {e}" for e in EXPRESSIONS), "assert leaked() == 1953196")
    assert code(tests, block(LEARNS.format(gives=gives)), partial=True, seconds=20, timeout=60) == 0.0
    assert code(task("x = f(1)\nx += 1953196", "assert leaked() == 0"), block(LEARNS.format(gives=gives)), seconds=20) == 1.0


SEEN = (
    "class X:\n    seen = 0\n    def __iter__(self):\n"
    "        for i in range(9**9):\n            X.seen = i\n            yield i\n"
)


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (f"{SEEN}def f(): return X()\ndef seen(): return X.seen", ["assert next(v for v in f() if v == 70) > 99",
         "assert seen() == 70"]),
        ("class np: allclose = lambda *a: True\nclass Counter(dict): __eq__ = lambda *a: True\ndef f(): return [9]",
         ["assert Counter(f()) == Counter([3])"]),
        ("def f(a):\n    a.clear()\n    return []", ["a = [2, 1]\nassert f(a) == sorted(a)"]),
        ("def f(): raise NameError", ["x = f()\nassert x == 1"]),
        ("def f(): raise ImportError", ["assert f() == 1"]),
        ("def f(g): return g(type('X', (), {})())", ["assert f(lambda x: x + 1) == 4"]),
    ],
)  # fmt: skip
def test_what_a_program_brings_about_is_a_failed_test(program, tests):
    assert code(task(*tests), block(program), partial=True, seconds=20) == 0.0


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("from fractions import Fraction as F\ndef f(): return F(4), F(1, 3)",
         "a, b = f()\nassert a == 4 and b == Fraction(1, 3)"),
        ("from datetime import *\ndef f(): return date(2024, 1, 2), timedelta(1)",
         "a, b = f()\nassert a + b == datetime.date(2024, 1, 3)"),
        ("from collections import *\ndef f(): return Counter('aab')", "assert f() == {'a': 2, 'b': 1} == Counter('aba')"),
        ("from collections import deque\ndef f(): return deque([1])", "assert f() == deque([1])"),
        ("def f(): return range(3)", "assert f() == range(3) and 2 in f() and f()[1] == 1"),
        ("def f(a): a.sort()", "a = [3, 1]\nf(a)\nassert a == [1, 3]"),
        ("def f(a): a['x'] = [1]", "a = {}\nf(a=a)\nassert a == {'x': [1]}"),
        ("def f(g, x): return g(x)", "assert f(lambda x: x + 1, 3) == 4 and f(str, 3) == '3'"),
        ("def f(g): return h(g)\ndef h(g): return g(2)", "assert f(lambda x: x + f(lambda y: y)) == 4"),
        ("X = 5\ndef f(): return X", "assert X == 5\nassert f() == X"),
        ("class E(ValueError): pass\ndef f(): raise E('no')",
         "x = 0\ntry:\n    f()\nexcept E as e:\n    x = str(e)\nassert x == 'no'"),
        ("def f(): return 0.1 + 0.2", "assert math.isclose(f(), 0.3)"),
        ("class N:\n    def __init__(s, v): s.v, s.next = v, None",
         "a = N(1)\na.next = N(2)\nv = []\nwhile a:\n    v.append(a.v)\n    a = a.next\nassert v == [1, 2]"),
        ("class P:\n    def __str__(self): return 'P'\ndef f(): return P()",
         "assert str(f()) == f'{f()}' == 'P' and isinstance(f(), P) and f() != None"),
        ("def f():\n    i = 0\n    while True:\n        i += 1\n        yield i",
         "g = f()\nassert next(g) == 1 and list(itertools.islice(f(), 300))[-1] == 300"),
    ],
)  # fmt: skip
def test_an_honest_program_passes_its_tests(program, tests):
    assert code(task(tests), block(program), seconds=20) == 1.0


@pytest.mark.parametrize(
    ("tests", "problem"),
    [
        ((["assert f("],), "never closed"), ((["x = 1"],), "no assertion"), (([{"input": "1"}],), "expected"),
        (([{"input": "", "output": ""}, "assert f()"],), "some not"), (([{"call": "f(", "expected": "1"}],), "never closed"),
    ],
)  # fmt: skip
def test_malformed_tests_are_told_with_the_task(tests, problem):
    with pytest.raises(ValueError, match=f"task t7: its tests cannot be used.*{problem}"):
        read_tests(task(*tests[0]))


def test_tests_that_fail_by_themselves_are_told():
    with pytest.raises(ValueError, match=r"cannot be used: NameError.*np"):
        code(task("assert np.allclose(f(1, 2), 3)"), ADD)


def test_names_that_python_or_the_tests_define_are_not_the_programs():
    tests = read_tests(task("from math import isclose as near\nlow = 1\ndef g(x): return h(x)\nassert abs(near(f(g(low)), 2))"))
    assert tests is not None
    assert tests.names == ["f", "h"]
    assert _names(tests.pieces, "near")["names"] == ["f", "h", "near"]
    tests = read_tests(task("try:\n    f(K, re.X)\nexcept (E, ValueError) as e:\n    x = Counter(e.args)\nassert x"))
    assert tests is not None
    assert tests[2:] == (["K", "f"], [], ["Counter", "re"], ["E"])


def test_time_for_an_answer_is_shared_by_its_tests():
    tests = task(*[{"input": "", "output": "1"}] * 50)
    assert code(tests, block("import time\ntime.sleep(60)"), seconds=0.3, timeout=0.6, partial=True) == 0.0


@pytest.mark.parametrize(
    "value",
    [Fraction(1, 3), Decimal("1.50"), range(1, 9, 2), deque([1], 3), date(2024, 1, 2), datetime(2024, 1, 2, 3), timedelta(1, 2),
     Counter("aab"), OrderedDict(a=1), defaultdict(int, a=1), None, True, 3, -(10**400), 0.1, float("inf"), "\ud800\x00",
      b"\xff", 1j, [1, [2]], (1,), {1, 2}, frozenset({(1, "a")}),
     {1: (2,), (3, 4): [5], "list": {"dict": 1}}],
)  # fmt: skip
def test_values_survive_the_pipe(value):
    back = from_json(json.loads(json.dumps(to_json(value, hash))), id)
    assert back == value
    assert type(back) is type(value)


def test_a_value_of_the_programs_own_type_arrives_as_pythons():
    class Liar(int):
        __eq__ = lambda self, other: True  # noqa: E731
        __hash__ = int.__hash__

    assert type(from_json(json.loads(json.dumps(to_json(Liar(3), hash))), id)) is int


@pytest.mark.parametrize(
    ("value", "expected", "tolerance", "right"),
    [(0.3, 0.1 + 0.2, 0, False), (0.3, 0.1 + 0.2, 1e-9, True), ([(1, 0.3)], [(1, 0.1 + 0.2)], 1e-9, True), (1, 1.0, 0, True),
     ([1], (1,), 0, False), ([1, 2], [1], 1, False), (True, 1.0, 0, True), ("1", 1.0, 1, False)],
)  # fmt: skip
def test_same(value, expected, tolerance, right):
    assert same(value, expected, tolerance) is right


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_of_system_calls_is_whole_and_jumps_within_itself(machine):
    code_ = system_call_filter(machine, 7)
    lines = [code_[i : i + 8] for i in range(0, len(code_), 8)]
    assert len(code_) % 8 == 0
    assert len(lines) < 4096  # the kernel's limit
    for at, line in enumerate(lines):
        operation, yes, no = line[0] | line[1] << 8, line[2], line[3]
        assert operation in (0x20, 0x15, 0x35, 0x45, 0x06)
        assert operation == 6 or at + 1 + max(yes, no) < len(lines)
    assert lines[-1] == bytes.fromhex("060000000000ff7f")  # what is not named is allowed


@pytest.mark.parametrize("isolation", ["auto", "bubblewrap", "landlock", "none"])
def test_a_refusal_says_what_to_do(isolation):
    problem = sandbox.refusal(isolation)
    if isolation == "none":
        assert "one of auto, bubblewrap, landlock" in problem
    elif isolation == "auto" or sandbox.problem(isolation) == "":
        assert problem == ""
    else:
        assert "apt install bubblewrap" in problem


class Stub(BaseHTTPRequestHandler):
    """A remote sandbox for two programs that it knows, and with a failure before each answer if asked."""

    seen: list[dict] = []  # noqa: RUF012
    failures = 0

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, **request})
        type(self).failures, failing = max(0, self.failures - 1), self.failures > 0
        if "loop" in request["code"]:
            answer = {"status": "Failed", "run_result": {"status": "TimeLimitExceeded", "stdout": ""}}
        elif "f(" in request["code"]:
            answer = {"status": "Success", "run_result": {"status": "Finished", "stdout": "debug\n3\n"}}
        else:
            answer = {
                "status": "Success",
                "run_result": {"status": "Finished", "stdout": str(sum(map(int, request["stdin"].split())))},
            }
        body = json.dumps(answer).encode()
        self.send_response(503 if failing else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def remote():
    Stub.seen, Stub.failures = [], 0
    server = HTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_remote_sandbox_runs_what_is_compared_here(remote):
    given = task({"input": "1 2", "output": "3"}, {"input": "5", "output": "6"})
    assert code(given, SUM, sandbox=remote, partial=True, seconds=2) == 0.5
    assert [(s["path"], s["stdin"], s["language"]) for s in Stub.seen] == [("/run_code", x, "python") for x in ("1 2", "5")]
    assert all(0 < s["run_timeout"] <= 2 for s in Stub.seen)
    assert "6" not in json.dumps(Stub.seen)  # what is expected stays here


def test_a_remote_sandbox_runs_calls(remote):
    assert code(task({"call": "f(1, 2)", "expected": "3"}), ADD, sandbox=remote) == 1.0
    assert code(task({"call": "f(1, 2)", "expected": "4"}), ADD, sandbox=remote) == 0.0
    assert code(task({"input": "", "output": "1"}), block("loop"), sandbox=remote) == 0.0
    with pytest.raises(ValueError, match="input/output and call/expected"):
        code(task("assert f(1, 2) == 3"), ADD, sandbox=remote)


def test_a_remote_sandbox_that_fails_is_asked_again_and_then_told(remote):
    Stub.failures = 1
    assert code(task({"input": "1 2", "output": "3"}), SUM, sandbox=remote) == 1.0
    Stub.failures = 99
    with pytest.raises(Away, match=r"failed 3 times.*503"):
        code(task({"input": "1 2", "output": "3"}), SUM, sandbox=remote)


def test_a_remote_sandbox_that_nobody_is_at_may_come_back():
    """Which is for the pool to wait for: it asks rewards that raise `ConnectionRefusedError` again."""
    with HTTPServer(("127.0.0.1", 0), Stub) as server:
        port = server.server_port
    with pytest.raises(ConnectionRefusedError, match=r"failed 3 times: ConnectError"):
        code(task({"input": "1 2", "output": "3"}), SUM, sandbox=f"http://127.0.0.1:{port}")
