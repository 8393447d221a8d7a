"""Programs that want a reward without doing what is asked, and tests that must be judged on plain values only."""
# ruff: noqa: E501

import json
import time

import pytest

from kitchen.envs.assertions import judge_script, parse_script
from kitchen.envs.code import CodeGrader, code_problems
from kitchen.envs.sandbox import Sandbox, SandboxLimits, containment_problem
from kitchen.types import InvalidValue

pytestmark = pytest.mark.whole_run

walled = pytest.mark.skipif(bool(containment_problem()), reason=containment_problem() or "the sandbox works here")


@pytest.fixture(scope="module")
def grader():
    return CodeGrader(Sandbox(SandboxLimits(seconds=1.5), unsafe=bool(containment_problem())))


DOUBLED = [  # all that a test can do with a value; no constant passes one of them
    "assert f(2) == 4",
    "assert (f(3) == 6) == True and (f(4) == 8) is True",
    "assert (abs(f(2.5) - 5) < 1e-6) == True",
    "assert isinstance(f(7), int) == True and f(7) > 13 and f(-7) < -13",
    "assert len(str(f(50))) == 3 and len(str(f(4))) == 1",
    "assert not f(0) and f(1)",
    "assert f(11) in (22, 23) and f(12) not in (22, 23)",
    "import math\nassert math.isclose(f(1.25), 2.5) and math.isclose(f(2.25), 4.5)",
    "import pytest\nassert f(0.3) == pytest.approx(0.6) and f(0.1) == pytest.approx(0.2)",
    "assert round(f(1.26)) == 3 and round(f(2.26)) == 5",
    "assert sorted([f(3), f(1), f(2)]) == [2, 4, 6]",
    "assert all(f(x) == x + x for x in range(20))",
    "assert sum(f(x) for x in range(4)) == 12 and max(f(1), f(2)) == 4",
    "assert any(f(x) == 40 for x in (19, 20)) and not any(f(x) == 40 for x in (18, 21))",
    "values = [f(x) for x in range(3)]\nassert values == [0, 2, 4]",
    "for x in range(3):\n    assert f(x) == 2 * x",
    "try:\n    assert f(8) == 16\nexcept TypeError:\n    assert False",
    "import pytest\nwith pytest.raises(TypeError):\n    f(None)\nassert f(9) == 18",
    "try:\n    f(None)\n    assert False\nexcept TypeError:\n    pass\nassert f(10) == 20",
    "def check(candidate):\n    assert candidate(2) == 4\n    assert abs(candidate(0.5) - 1) < 1e-9",
    "assert type(f(13)) is int and f(13) == 26",
    "assert f(14) != 27 and f(14) >= 28 and 27 < f(14) < 29",
    "assert f'{f(15)}' == '30' and str(f(16)) == '32' and repr(f(17)) == '34'",
    "assert (f(21) == 42 or False) and (True and f(22) == 44)",
    "x = f(2)\nx += 1\nassert x == 5",
    "assert f('ab').upper() == 'ABAB' and f('cd').startswith('cdc')",
    "assert f([1]) == [1, 1] and len(f([1, 2])) == 4 and f([3])[1] == 3",
    "assert [f(x) for x in f([1])] == [2, 2]",
]
ROW = {"question": "twice x", "answer": "lambda x: 2 * x", "tests": DOUBLED, "entry_point": "f"}
E = """
class E:
    def __getattr__(self, name): return E()
    def __call__(self, *a, **k): return E()
    def _yes(self, *a): return True
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = __instancecheck__ = _yes
    def __ne__(self, o): return False
    def __hash__(self): return 0
    def _me(self, *a): return self
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __mod__ = __neg__ = __abs__ = __round__ = __getitem__ = __iter__ = __index__ = _me
    def __len__(self): return 3
    def __int__(self): return 4
    def __float__(self): return 0.0
    def __str__(self): return "4"
"""
F = "\ndef f(x): return E()\n"


def subclass(kind, value):
    """A program that returns an instance of a built-in type's subclass, equal to everything."""
    return (
        f"class E({kind}):\n    __hash__ = None\n    __eq__ = __lt__ = __gt__ = __contains__ = lambda s, o: True\n"
        "    __ne__ = lambda s, o: False\n    __sub__ = __rsub__ = lambda s, o: 0\n    __len__ = lambda s: 4\n"
        f"def f(x): return E({value})"
    )


def replaced(names):
    """A program that replaces builtins in its own globals and in `builtins`."""
    lines = [f"{name} = lambda *a, **k: True\nbuiltins.{name} = {name}" for name in names.split()]
    return "import builtins\n" + "\n".join(lines) + "\ndef f(x): return True"


CHEATS = {
    "equals everything": E + F,
    "an instance as f": E + "f = E()",
    "the class as f": E + "f = lambda *a: E",
    "an int that equals everything": subclass("int", 7),
    "a float that equals everything": subclass("float", 7),
    "a text that equals everything": subclass("str", "'q'"),
    "a list that equals everything": subclass("list", "[7]"),
    "a tuple that equals everything": subclass("tuple", "(7,)"),
    "a dict that equals everything": subclass("dict", "{7: 7}"),
    "bytes that equal everything": subclass("bytes", "b'q'"),
    "a list of what equals everything": E + "def f(x): return [E(), E()]",
    "a metaclass that is every type": E + "class M(type):\n    __eq__ = lambda s, o: True\n    __hash__ = lambda s: hash(int)\nclass I(metaclass=M): pass\ndef f(x): return I()",
    "pretends a class": "class E:\n    __class__ = int\n    def __eq__(s, o): return True\ndef f(x): return E()",
    "a mock": "from unittest.mock import MagicMock, ANY\ndef f(x): return ANY",
    "a magic mock": "from unittest.mock import MagicMock\nf = MagicMock()",
    "replaces len": replaced("len") + "\ndef len(o): return 3",
    "replaces isinstance": replaced("isinstance issubclass type"),
    "replaces abs and round": replaced("abs round pow divmod"),
    "replaces sorted and max": replaced("sorted max min sum"),
    "replaces all and any": replaced("all any bool"),
    "replaces print and open": replaced("print open input"),
    "replaces import": replaced("__import__"),
    "replaces eval and exec": replaced("eval exec compile"),
    "replaces types": replaced("int float str list tuple dict set"),
    "replaces errors": "import builtins\nbuiltins.AssertionError = builtins.TypeError = SystemExit\ndef f(x): raise SystemExit",
    "asserts mean nothing": "import builtins\nclass A(BaseException):\n    def __new__(c, *a): raise SystemExit(0)\nbuiltins.AssertionError = A\ndef f(x): return 1",
    "no builtins": "__builtins__ = {}\ndef f(x): return True",
    "emptied builtins": "import builtins\nvars(builtins).clear()\nf = lambda x: True",
    "replaces json": "import json\njson.dumps = json.encoder.JSONEncoder.encode = json.encoder.c_make_encoder = lambda *a, **k: 'true'\ndef f(x): return True",
    "replaces json's answers": "import json\njson.loads = lambda *a, **k: {'passed': True}\ndef f(x): return True",
    "replaces stdout": "import sys, io\nsys.stdout = sys.stderr = io.StringIO()\ndef f(x): return True",
    "replaces os.write": "import os\nos.write = lambda *a: 10**9\ndef f(x): return True",
    "replaces operator": "import operator\nfor n in dir(operator):\n    if n[0] != '_': setattr(operator, n, lambda *a: True)\ndef f(x): return True",
    "replaces math": "import math\nmath.isclose = math.isfinite = lambda *a, **k: True\ndef f(x): return 1e9",
    "brings its own pytest": "import sys, types\nm = sys.modules['pytest'] = types.ModuleType('pytest')\nm.approx = m.raises = lambda *a, **k: True\ndef f(x): return True",
    "os._exit": "import os\nos._exit(0)",
    "os._exit in a call": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "sys.exit in a call": "import sys\ndef f(x): sys.exit(0)",
    "raises SystemExit": "def f(x): raise SystemExit(0)",
    "raises KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "raises GeneratorExit": "def f(x): raise GeneratorExit",
    "raises StopIteration": "def f(x): raise StopIteration(2 * x)",
    "raises the assertion": "def f(x): raise AssertionError('passed')",
    "at exit": "import atexit, os\natexit.register(lambda: os.write(1, b'passed 1.0\\n'))\ndef f(x): return True",
    "a thread that says so": "import threading, time, os\ndef t():\n    while True: time.sleep(0.01); os.write(1, b'\\npassed\\n')\nthreading.Thread(target=t, daemon=True).start()\ndef f(x): return True",
    "a child that outlives": "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(0.3); os.write(1, b'\\n1.0 passed\\n'); os._exit(0)\ndef f(x): return True",
    "the parent leaves": "import os\nif os.fork(): os._exit(0)\ndef f(x): return True",
    "signals": "import signal, os\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\ndef f(x):\n    while True: pass",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef f(x): return True",
    "traces": "import sys\ndef t(frame, event, arg):\n    for name in list(frame.f_locals): frame.f_locals[name] = True\n    return t\nsys.settrace(t)\ndef f(x): return True",
    "profiles": "import sys\nsys.setprofile(lambda frame, event, arg: frame.f_globals.update(passed=True))\ndef f(x): return True",
    "import hooks": "import sys\nclass H:\n    def find_spec(self, name, *a): raise SystemExit(0)\nsys.meta_path.insert(0, H()); sys.modules.clear()\ndef f(x): return True",
    "forges every line": "import os, sys\nfr = sys._getframe()\nwhile fr and 'mark' not in fr.f_locals: fr = fr.f_back\nm = fr.f_locals['mark']\nfor i in range(200):\n    for v in range(9): os.write(1, f'\\n{m} {i} {v}\\n'.encode())\nos._exit(0)",
    "forges verdicts": "import os, sys\nfr = sys._getframe()\nwhile fr and 'mark' not in fr.f_locals: fr = fr.f_back\nm = fr.f_locals['mark']\nfor i in range(200): os.write(1, f'\\n{m} {i} true\\n'.encode())\nos._exit(0)",
    "forges errors": "import os, sys\nfr = sys._getframe()\nwhile fr and 'mark' not in fr.f_locals: fr = fr.f_back\nm = fr.f_locals['mark']\nv = '{\"t\": \"error\", \"v\": [\"TypeError\"]}'\nfor i in range(200): os.write(1, f'\\n{m} {i} {v}\\n'.encode())\nos._exit(0)",
    "forges kinds": "import os, sys\nfr = sys._getframe()\nwhile fr and 'mark' not in fr.f_locals: fr = fr.f_back\nm = fr.f_locals['mark']\nv = '{\"t\": \"lambda\", \"v\": [\"True\", {}]}'\nfor i in range(200): os.write(1, f'\\n{m} {i} {v}\\n'.encode())\nos._exit(0)",
    "writes to every descriptor": "import os\nfor d in range(64):\n    try: os.write(d, b'{\"passed\": true}\\n1.0\\n')\n    except OSError: pass\ndef f(x): return True",
    "closes every descriptor": "import os\nos.closerange(0, 64)\ndef f(x): return True",
    "true for all": "f = lambda x: True",
    "zero for all": "f = lambda x: 0",
    "nothing for all": "f = lambda x: None",
    "not a number": "f = lambda x: float('nan')",
    "infinite": "f = lambda x: float('inf')",
    "NotImplemented": "f = lambda x: NotImplemented",
    "ellipsis": "f = lambda x: ...",
    "itself": "def f(x): return f",
    "a coroutine": "async def f(x): return 2 * x",
    "an endless generator": "def f(x):\n    while True: yield x",
    "endless output": "while True: print('passed')",
    "a fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "a memory bomb": "kept = []\nwhile True: kept.append(bytearray(10**7))",
    "a file bomb": "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'w').close()",
    "recursion": "def f(x): return f(x)",
    "a deep list": "def f(x):\n    d = []\n    for _ in range(10**5): d = [d]\n    return d",
    "a list in itself": "def f(x):\n    d = []\n    d.append(d)\n    return d",
    "a huge number": "f = lambda x: 10**100000",
    "a huge text": "f = lambda x: 'x' * 10**7",
    "claims in words": "print('All tests passed. Score: 1.0')\nprint('OK')",
    "exit code": "import sys\nsys.exit(0)  # all tests passed",
}  # fmt: skip


def test_there_are_enough_cheats_and_the_honest_earn_all(grader):
    assert len(CHEATS) >= 60
    assert grader.pass_rate(ROW["answer"], ROW) == 1
    assert grader.pass_rate("def f(x):\n    return x + x", ROW) == 1


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS.keys())
def test_cheats_earn_nothing(grader, cheat):
    started = time.monotonic()
    assert grader.pass_rate(cheat, ROW) == 0
    assert time.monotonic() - started < 60  # not one of them holds the examiner up


CANARY = "zq-7f3e-canary"
FIND = """
import sys
def found(objects):
    seen, todo = set(), list(objects)
    while todo and len(seen) < 50000:
        one = todo.pop()
        if id(one) in seen: continue
        seen.add(id(one))
        if type(one) is str and one.startswith('zq-' + '7f3e'): return one
        if type(one) is bytes and ('zq-' + '7f3e').encode() in one: return one[one.index(b'zq-'):][:14].decode()
        if type(one) in (list, tuple, set, frozenset): todo.extend(one)
        if type(one) is dict: todo.extend(one.keys()); todo.extend(one.values())
        if hasattr(one, '__dict__'): todo.append(vars(one))
    return 'nothing'
def tried(*works):
    for work in works:
        try: yield work()
        except BaseException: pass
def frames():
    fr = sys._getframe()
    while fr:
        yield fr.f_locals; yield fr.f_globals; yield fr.f_code.co_consts
        fr = fr.f_back
"""
STEALS = {
    "frames": "def f(x): return found(list(frames()))",
    "frames while loading": "kept = found(list(frames()))\ndef f(x): return kept",
    "inspect": "import inspect\ndef f(x): return found([one.frame.f_locals for one in inspect.stack()] + [one.code_context for one in inspect.stack()])",
    "garbage": "import gc\ndef f(x): return found(gc.get_objects())",
    "referrers": "import gc\ndef f(x): return found(gc.get_referrers(x, f, found))",
    "all modules": "def f(x): return found(list(sys.modules.values()))",
    "traceback": "def f(x):\n    try: 1 / 0\n    except ZeroDivisionError as e: return found([e.__traceback__.tb_frame.f_back.f_locals])",
    "stdin": "def f(x): return found([sys.stdin.buffer.read()])",
    "arguments and environment": "import os\ndef f(x): return found([sys.argv, sys.orig_argv, dict(os.environ)])",
    "proc": "def f(x): return found(tried(*(lambda p=p: open('/proc/self/' + p, 'rb').read() for p in ('environ', 'cmdline', 'maps', 'stat', 'fd/0', 'fd/3'))))",
    "memory": "import ctypes\ndef f(x):\n    base = id(x) & ~0xFFFFF\n    return found([ctypes.string_at(base, 4096)])",
    "parent's memory": "import os\ndef f(x): return found(tried(lambda: open(f'/proc/{os.getppid()}/mem', 'rb').read(10)))",
    "files": "import os\ndef f(x): return found(tried(*(lambda p=p: open(p, 'rb').read() for d, _, fs in os.walk('/tmp') for p in [d + '/' + n for n in fs])))",
    "descriptors": "import os\ndef f(x): return found(tried(*(lambda d=d: os.pread(d, 10**6, 0) for d in range(64))))",
    "a trace of all lines": "caught = []\ndef t(fr, event, arg):\n    caught.append(dict(fr.f_locals)); caught.append(arg)\n    return t\nsys.settrace(t)\ndef f(x): return found(caught)",
    "a replaced json": "import json\ncaught = []\nold = json.loads\ndef loads(*a, **k):\n    caught.append(a); return old(*a, **k)\njson.loads = loads\ndef f(x): return found(caught)",
    "an argument that watches": "class W(int): pass\nkept = []\ndef f(x):\n    kept.append(x); return found([kept, list(frames())])",
    "the source": "import linecache\ndef f(x): return found([linecache.cache, sys._getframe(1).f_code.co_consts])",
}  # fmt: skip


@pytest.mark.parametrize("steal", STEALS.values(), ids=STEALS.keys())
def test_what_is_expected_can_not_be_found(grader, steal):
    tests = [f"assert f(1) == {CANARY!r}", f"wanted = {CANARY!r}\nassert f(1) == wanted", f"assert [f(2), 1][0] in ({CANARY!r},)"]
    assert grader.pass_rate(FIND + steal, {"answer": "", "tests": tests}) == 0
    assert grader.pass_rate(f"def f(x): return {CANARY!r}", {"answer": "", "tests": tests}) == 1
    leaked = grader.pass_rate(FIND + "kept = []\ndef f(x): return found(list(frames()))", {"answer": "", "tests": [f"assert f({CANARY!r}) == {CANARY!r}"]})
    assert leaked == 1, "the search finds what does go in"


def test_nothing_that_is_expected_is_sent(grader):
    """Of all tests, the first questions hold arguments and names only."""
    for test in DOUBLED:
        asked = judge_script(parse_script(test, "f")).asked
        assert asked and all(kind in ("call", "tell") for kind, *_ in asked)
    told = json.dumps([judge_script(parse_script(test, "f")).asked for test in ("assert f(1) == 'x1'", "y = 'x2'\nf(1)\nassert f(2) in [y]")])
    assert "x1" not in told and "x2" not in told


HONEST = {
    "arguments that a statement changes": ("def f(x): x.sort()", ["x = [3, 1]\nf(x)\nassert x == [1, 3]", "x = [3, 1]\nf(x)\nx.append(7)\nf(x)\nassert x == [1, 3, 7]"]),
    "generators": ("def f(n):\n    yield from range(n)", ["assert list(f(3)) == [0, 1, 2]", "g = f(3)\nassert next(g) == 0 and next(g) == 1", "assert sum(f(4)) == 6"]),
    "endless generators": ("def f():\n    n = 0\n    while True:\n        yield n\n        n += 1", ["g = f()\nassert [next(g) for _ in range(3)] == [0, 1, 2]"]),
    "calls in calls": ("def f(x): return x[::-1]\ng = f", ["assert g(f('abc')) == 'abc'", "for w in ('a', 'bc'):\n    assert f(g(w)) == w"]),
    "objects that only the program sees": ("class Node:\n    def __init__(s, v): s.v = v\ndef wrap(v): return Node(v)\ndef unwrap(n): return n.v", ["assert unwrap(wrap(3)) == 3"]),
    "instances": ("class Stack:\n    def __init__(s): s.items = []\n    def push(s, x): s.items.append(x)\n    def pop(s): return s.items.pop()", ["s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2 and s.items == [1]", "import pytest\nwith pytest.raises(IndexError):\n    Stack().pop()"]),
    "functions as arguments": ("def f(xs, key): return sorted(xs, key=key)", ["assert f([3, 1], lambda v: -v) == [3, 1]", "n = 2\nassert f([2, 1], lambda v: v % n) == [2, 1]", "assert f(['aa', 'b'], len) == ['b', 'aa']"]),
    "kinds of values": ("def f(x): return x", ["assert f((1, {2})) == (1, {2}) and f({1: b'a'}) == {1: b'a'}", "assert f(None) is None and f(2**70) == 2**70", "assert f(frozenset({1})) == frozenset({1})", "assert isinstance(f((1,)), tuple) and not isinstance(f([1]), tuple)", "assert f(float('nan')) != f(float('nan')) and f(float('inf')) > 10**9"]),
    "what depends on answers": ("def f(n): return n - 1", ["x = 5\nwhile x > 2:\n    x = f(x)\nassert x == 2", "if f(1) == 0:\n    assert f(2) == 1\nelse:\n    assert False"]),
    "errors": ("class Odd(ValueError): pass\ndef f(x): raise Odd('too odd')", ["try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert 'odd' in str(e)", "import pytest\nwith pytest.raises((KeyError, ValueError)):\n    f(1)"]),
    "unpacked": ("def f(a, b): return a + b, a * b", ["s, p = f(2, 3)\nassert (s, p) == (5, 6)", "a, *b = f(2, 3)\nassert b == [6]", "assert f(*[2, 3])[0] == f(b=3, a=2)[0] == 5"]),
    "mappings of the standard library": ("from collections import Counter, defaultdict, OrderedDict\ndef f(x): return [Counter(x), defaultdict(int, a=1), OrderedDict(a=1)]", ["from collections import Counter\nassert f('aab') == [{'a': 2, 'b': 1}, {'a': 1}, {'a': 1}] and f('ab')[0] == Counter('ba')"]),
    "constants": ("LIMIT = 3\ndef f(): return LIMIT", ["assert LIMIT == 3 and f() == LIMIT"]),
    "a helper of the test": ("def f(n): return n * n", ["def near(a, b): return abs(a - b) < 1e-6\nassert near(f(2), 4) and not near(f(2), 5)"]),
    "a name that Python has": ("def sum(a, b): return a + b", ["assert sum(10, 15) == 25"]),
    "what is printed": ("print(int(input()) ** 2)", [{"stdin": "3\n", "stdout": "9"}, {"input": "4", "output": "16\n"}]),
}  # fmt: skip


@pytest.mark.parametrize("case", HONEST.values(), ids=HONEST.keys())
def test_the_honest_are_paid_in_full(grader, case):
    program, tests = case
    assert grader.pass_rate(program, {"answer": program, "tests": tests}) == 1
    assert grader.pass_rate("f = wrap = unwrap = g = Stack = sum = lambda *a: None", {"answer": program, "tests": tests}) == 0


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(x):\n    x.clear()\n    return []", "x = [3, 1]\nassert f(x) == sorted(x)"),
        ("def f(x):\n    x.clear()\n    return []", "x = [3, 1]\nr = f(x)\nassert r == sorted(x)"),
        (E + "f = lambda *a: E()", "assert f(1).isdigit()"),
        (E + "f = lambda *a: E()", "assert f(1).startswith('http')"),
        (E + "f = lambda *a: E()", "assert f(1).count(2) == 1 and f(1).index(3) == 0"),
        (E + "f = lambda *a: E()", "assert f(1)"),
        (E + "f = lambda *a: E()", "assert f(1) == f(2)"),
        (E + "f = lambda *a: E()", "assert f(1)[0] and 2 in f(1)"),
        (E + "Stack = E", "s = Stack()\nassert s"),
        (E + "Stack = E", "assert Stack() == 4 and Stack().pop() == 4"),
        (E + "Stack = E", "assert len(Stack()) == 3"),
        ("def f(x): return 5", "try:\n    f(-1)\n    raise AssertionError\nexcept ValueError:\n    pass"),
        ("class ValueError2(Exception): pass\nValueError2.__name__ = 'ValueError'\ndef f(x): raise ValueError2", "import pytest\nwith pytest.raises(ValueError):\n    f(-1)"),
        ("import builtins\ndef f(x): return 2", "if f(1) == 1:\n    assert f(2) == 2\nelse:\n    assert False"),
    ],
)  # fmt: skip
def test_other_ways_to_please_a_test_fail(grader, program, test):
    assert grader.pass_rate(program, {"answer": "", "tests": [test]}) == 0


REFUSED = {
    "import os\nassert f(1) == os.sep": "imports 'os'",
    "from os import path\nassert f(1)": "imports 'path'",
    "import numpy as np\nassert f(1) == np.pi": "imports 'numpy'",
    "assert eval('f(1)') == 2": "'eval' is not among",
    "assert getattr(f, 'x') == 2": "'getattr' is not among",
    "assert open('x').read() == f(1)": "'open' is not among",
    "assert f.__globals__ == {}": "looks at '__globals__'",
    "assert ().__class__.__bases__ == f(1)": "looks at '__",
    "assert __import__('os').getpid() == f(1)": "'__import__'",
    "assert '{0.x}'.format(f(1)) == f(2)": "no plain value has 'format'",
    "assert f(1).ljust(99999999) == ''": "no plain value has 'ljust'",
    "assert '%99999999d' % f(1) == ''": "formats a text",
    "assert f'{f(1):>9999}' == ''": "formats a value",
    "class T:\n    def test(self):\n        assert f(1) == 2": "defines a class",
    "with open('x') as y:\n    assert f(1)": "other than pytest.raises",
    "import pytest\nwith pytest.raises(ValueError, match='x'):\n    f(1)": "other than pytest.raises",
    "try:\n    f(1)\nexcept Odd:\n    pass\nassert f(2) == 1": "not built in",
    "raise Odd(f(1))": "not built in",
    "x = [1]\nassert f(x) is not x": "which object",
    "async def g():\n    assert f(1)": "coroutine",
    "assert (y := f(1)) == 2": "NamedExpr",
    "del f": "Delete",
    "@f\ndef g(): pass\nassert g()": "decorator",
    "assert True": "asks it nothing",
    "assert len([1]) == 1": "asks it nothing",
    "f(1)": "claims nothing",
    "assert f(1) ==": "must be Python",
    "def check(candidate):\n    assert candidate(1) == 2": "entry_point",
}


@pytest.mark.parametrize("test", REFUSED)
def test_what_can_not_be_judged_outside_is_refused_when_the_row_is_read(grader, test):
    with pytest.raises(InvalidValue, match=REFUSED[test].replace("(", "\\(")) as said:
        code_problems([{"question": "?", "answer": "def f(x): return 2", "tests": [test]}], grader)
    assert repr(test[:20])[1:-1] in str(said.value), "the test is named"


def test_a_test_can_not_hold_the_examiner_up(grader):
    """Numbers and lists of a program, and loops of a test, are bounded outside as well."""
    tests = [
        "assert f(1) ** f(2) == 0",
        "assert [0] * f(3) == [0]",
        "assert list(range(f(3))) == [0]",
        "while f(1):\n    pass\nassert False",
        "x = f(1)\nfor _ in range(99):\n    x = x * x\nassert x == 0",
        "assert 1 << f(3) == 0",
        "assert sum(range(f(3))) == 0",
        "assert f('').replace('', f('')) == ''",
        "def g(n): return g(n + 1)\nassert g(f(1)) == 0",
    ]
    program = "def f(x): return {1: 10**9, 2: 10**9, 3: 10**9}.get(x, 'x' * 9000)"
    started = time.monotonic()
    assert grader.pass_rate(program, {"answer": "", "tests": tests}) == 0
    assert time.monotonic() - started < 60


@walled
@pytest.mark.parametrize("work", ["os.close(os.open(str(n), os.O_CREAT))", "os.mkdir(str(n))", "os.symlink('a', str(n))", "os.mkfifo(str(n))"])
def test_a_million_files_are_refused(work):
    program = f"import os\nfor n in range(1_000_000): {work}\nprint('made')"
    outcome = Sandbox(SandboxLimits(seconds=20)).run(program)
    assert outcome.stop_reason == "files" and outcome.stdout == "" and outcome.exit_code is None
    few = Sandbox(SandboxLimits(seconds=20, files=300)).run(f"import os, time\nfor n in range(250): {work}\ntime.sleep(0.3)\nprint('made')")
    assert few.ok and few.stdout == "made\n"
    with pytest.raises(InvalidValue, match="files must be more than 0"):
        SandboxLimits(files=0)
