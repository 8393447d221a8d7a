"""What a program that a model wrote can not do, and how programs are worth what they pass."""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from waiting import until

from kitchen.envs.assertions import plain_equal
from kitchen.envs.base import question_messages
from kitchen.envs.code import CodeGrader, _parse_test, code_problems, code_rows
from kitchen.envs.rewards import check_gold_answers
from kitchen.envs.sandbox import Sandbox, SandboxLimits, _find_containment, containment_problem
from kitchen.train.rollouts import play_groups
from kitchen.types import Completion, InvalidValue, Message, MissingCapability

ROOT = Path(__file__).resolve().parents[2]
walled = pytest.mark.skipif(bool(containment_problem()), reason=containment_problem() or "the sandbox works here")
MARK = 100_000_000 + os.getpid()  # a limit by which this test's own sandboxes can be told from others
SHORT = SandboxLimits(seconds=2.0, output_bytes=4096)
ATTEMPT = """
def attempt(work):
    try:
        print("done", work())
    except BaseException as error:
        print("refused", type(error).__name__)
"""


@pytest.fixture
def box():
    return Sandbox(SHORT)


def attempts(box, *works):
    """What each expression came to: 'done …' or 'refused …'."""
    program = "import ctypes, os, signal, socket\n" + ATTEMPT
    outcome = box.run(program + "\n".join(f"attempt(lambda: {work})" for work in works))
    assert outcome.ok, outcome
    return outcome.stdout.splitlines()


def all_refused(box, *works):
    said = attempts(box, *works)
    assert len(said) == len(works)
    assert all(line.startswith("refused") for line in said), list(zip(works, said, strict=True))


def children():
    """Processes that this one began."""
    return [one.name for one in Path("/proc").iterdir() if one.name.isdecimal() and parent_of(one) == os.getpid()]


def parent_of(folder):
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return -1


def command_of(folder):
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""


# what a run may use


@walled
def test_a_program_reads_its_input_and_says_what_it_has_to_say(box):
    program = "import sys\nprint(sys.stdin.read().upper(), end='')\nsys.stderr.write('é')\nsys.exit(3)"
    outcome = box.run(program, "straße\n" * 40000)
    assert (outcome.exit_code, outcome.stop_reason, outcome.stderr, outcome.ok) == (None, "output", "", False)
    outcome = box.run(program, "straße\n")
    assert (outcome.stdout, outcome.stderr, outcome.exit_code, outcome.stop_reason) == ("STRASSE\n", "é", 3, "")
    assert box.run("import os; os.write(1, b'\\xff')").stdout == "\ufffd"
    assert box.run("print(1)", "never read" * 100000).stdout == "1\n"
    assert not box.run("print('\x00')").ok
    assert "SyntaxError" in box.run("def").stderr
    assert box.run("print(__name__, __import__('sys').argv)").stdout == "__main__ ['program.py']\n"
    large = "value = 1\n" * 100000 + "print(value)"
    assert Sandbox(replace(SHORT, memory_bytes=1 << 30, seconds=20.0)).run(large).stdout == "1\n"


@walled
def test_what_a_program_says_is_no_part_of_any_command(box, tmp_path):
    said = "'; touch " + str(tmp_path / "pwned") + '; $(touch x) `id` " --ro-bind / / \n'
    assert box.run("import sys; sys.stdout.write(sys.stdin.read())", said).stdout == said
    assert box.run(f"print({said!r}, end='')").stdout == said
    assert not list(tmp_path.iterdir())


@walled
@pytest.mark.parametrize(
    "program", ["while True: pass", "import time; time.sleep(99)", "import signal\nsignal.pause()"]
)
def test_an_endless_program_is_stopped(program):
    outcome = Sandbox(replace(SHORT, seconds=0.5)).run(program)
    assert (outcome.stop_reason, outcome.exit_code) == ("time", None) and 0.5 <= outcome.seconds < 20


@walled
def test_a_program_that_hides_is_stopped():
    deaf = "import os, signal\nfor one in range(1, 65):\n  try: signal.signal(one, signal.SIG_IGN)\n"
    deaf += "  except (OSError, ValueError): pass\n"
    deaf += "os.close(0); os.close(1); os.close(2)\nos.fork()\nwhile True: pass"
    outcome = Sandbox(replace(SHORT, seconds=0.5)).run(deaf)
    assert outcome.stop_reason == "time" and outcome.seconds < 20


@walled
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_is_cut(box, stream):
    outcome = box.run(f"import sys\nwhile True: sys.{stream}.write('x' * 5000)")
    assert outcome.stop_reason == "output" and getattr(outcome, stream) == "x" * 4096 and outcome.seconds < 20
    assert box.run(f"import sys\nsys.{stream}.write('x' * 4096)").stop_reason == ""


@walled
def test_memory_is_limited(box):
    assert box.run("kept = []\nwhile True: kept.append('x' * 10_000_000 + str(len(kept)))").stop_reason == "memory"
    assert box.run("import mmap; mmap.mmap(-1, 1 << 30)").exit_code == 1
    assert box.run("print(len(bytearray(100 << 20)))").ok


@walled
def test_memory_that_no_process_limit_counts_can_not_be_had(box):
    libc = "ctypes.CDLL(None, use_errno=True)"
    works = [f"{libc}.shmget(0, 1 << 20, 0o1666)", "os.memfd_create('x')", f"{libc}.unshare(0x10000000)"]
    works += [f"{libc}.mount(b'x', b'/tmp', b'tmpfs', 0, None)", f"{libc}.ptrace(0, 0, 0, 0)"]
    works += [f"{libc}.syscall(ctypes.c_long({number}), 0x10000011, 0, 0, 0, 0)" for number in clones()]
    works.append(f"{libc}.prctl(1, 0)")  # to be told nothing when we die
    for work, line in zip(works, attempts(box, *works), strict=True):
        assert line in ("done -1", "refused PermissionError"), (work, line)


def clones():
    """The numbers of clone, here and in the second table of x86_64, and of clone3."""
    return {"x86_64": (56, 0x40000000 + 56, 435), "aarch64": (220, 435)}[os.uname().machine]


@walled
def test_a_fork_bomb_stays_small(box):
    bomb = "import os, time\nmade = 0\ntry:\n  while made < 300:\n"
    bomb += "    if os.fork() == 0: time.sleep(30); os._exit(0)\n    made += 1\n"
    outcome = box.run(bomb + "except OSError: pass\nprint(made, flush=True)\nos._exit(0)")
    assert outcome.ok and 1 <= int(outcome.stdout) < SHORT.processes
    started = time.monotonic()
    outcome = box.run("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass")
    assert outcome.stop_reason == "time" and time.monotonic() - started < 60
    threads = "import threading, time\nmade = 0\ntry:\n  while made < 300: "
    threads += "threading.Thread(target=time.sleep, args=(30,), daemon=True).start(); made += 1"
    outcome = box.run(threads + "\nexcept RuntimeError: pass\nprint(made, flush=True)\nimport os; os._exit(0)")
    assert outcome.ok and int(outcome.stdout) < SHORT.processes


@walled
def test_processes_of_different_runs_are_counted_apart():
    box = Sandbox(replace(SHORT, seconds=10.0))
    forking = "import os, time\nfor _ in range(5):\n  if os.fork() == 0: time.sleep(0.5); os._exit(0)\n"
    forking += "print('forked'); time.sleep(0.5)"
    with ThreadPoolExecutor(4) as pool:
        assert [one.stdout for one in pool.map(box.run, [forking] * 4)] == ["forked\n"] * 4


@walled
def test_the_work_folder_is_limited_and_empty_for_everybody():
    box = Sandbox(replace(SHORT, file_bytes=1 << 20))
    fill = "import os\nprint(os.getcwd(), os.listdir())\nopen('kept', 'w').write('x')\nwritten = 0\ntry:\n"
    fill += "  for n in range(99):\n    with open(str(n), 'wb', buffering=0) as file: written += file.write(bytes(1 << 18))\n"
    for _ in range(2):
        outcome = box.run(fill + "except OSError as error: print(error.errno, written <= 1 << 20)")
        assert outcome.stdout == "/tmp []\n28 True\n", outcome
    assert box.run("open('one', 'wb').write(bytes(2 << 20))").exit_code == 1


# what is outside


@walled
def test_no_file_outside_can_be_read(box, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    os.chmod(secret, 0o644)
    paths = [
        "/etc/shadow",
        "/etc/passwd",
        "/etc/hostname",
        str(secret),
        str(Path(__file__)),
        str(ROOT / "kitchen" / "types.py"),
    ]
    paths += [
        f"/proc/{os.getpid()}/environ",
        "/proc/self/environ",
        "/proc/1/environ",
        "/sys/kernel/vmcoreinfo",
        "/dev/mem",
    ]
    all_refused(box, *(f"open({path!r}, 'rb').read()" for path in paths))
    all_refused(
        box, *(f"os.listdir({str(path)!r})" for path in (tmp_path, ROOT, "/proc", "/sys", "/var", "/run", "/home"))
    )
    assert attempts(box, "len(os.listdir('/usr/bin'))") in (["done 1"], ["refused FileNotFoundError"])
    top = set(eval(attempts(box, "os.listdir('/')")[0].removeprefix("done ")))
    assert top.isdisjoint({"proc", "sys", "home", "var", "run", "mnt", "opt", "boot", "srv"}), top
    assert "kitchen" not in attempts(box, "__import__('kitchen')")[0]


@walled
def test_the_home_folder_holds_nothing_but_perhaps_the_way_to_the_interpreter(box):
    home = str(Path.home())
    said = attempts(box, f"[file for _, _, files in os.walk({home!r}) for file in files][:3]")[0]
    assert said == "done []" or _find_containment()[1].startswith(home)


@walled
def test_nothing_outside_can_be_written(box, tmp_path):
    os.chmod(tmp_path, 0o777)
    places = [
        "/x",
        "/usr/x",
        "/usr/lib/x",
        "/etc/x",
        "/dev/x",
        "/dev/shm/x",
        str(tmp_path / "x"),
        str(ROOT / "x"),
        "/var/tmp/x",
    ]
    all_refused(box, *(f"open({place!r}, 'w')" for place in places))
    all_refused(
        box, "os.remove('/usr/lib/os-release')", "os.mkdir('/x')", "os.chmod('/', 0o777)", "os.symlink('/', '/y')"
    )
    all_refused(box, "os.chroot('/tmp')", "os.remove('/usr/lib')")
    all_refused(
        box,
        "os.mknod('/tmp/disk', 0o60600, 0x800)",
        "os.setuid(0)",
        "os.setgid(0)",
        "os.setgroups([0])",
        "os.nice(-5)",
    )
    assert not list(tmp_path.iterdir()) and not (ROOT / "x").exists()


@walled
def test_there_is_no_network(box):
    hidden, udp = socket.socket(socket.AF_UNIX), socket.socket(type=socket.SOCK_DGRAM)
    with socket.create_server(("127.0.0.1", 0)) as server, hidden, udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.2)
        name = f"kitchen-{os.getpid()}"
        hidden.bind("\0" + name)
        hidden.listen()
        port, datagrams = server.getsockname()[1], udp.getsockname()[1]
        program = ATTEMPT + "import socket\n"
        program += f"attempt(lambda: socket.create_connection(('127.0.0.1', {port}), 1))\n"
        program += "attempt(lambda: socket.create_connection(('192.0.2.1', 80), 1))\n"
        program += "attempt(lambda: socket.getaddrinfo('example.org', 80))\n"
        program += f"attempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0{name}'))\n"
        program += (
            f"attempt(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {datagrams})))\n"
        )
        program += "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))\n"
        said = box.run(program).stdout.splitlines()
        assert len(said) == 6 and all(line.startswith("refused") for line in said[:4] + said[5:]), said
        with pytest.raises(TimeoutError):
            udp.recv(10)  # it may have been sent, but not to us
        assert [name for _, name in eval(attempts(box, "socket.if_nameindex()")[0].removeprefix("done "))] == ["lo"]


@walled
def test_no_other_process_can_be_seen_or_signalled(box):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) as bystander:
        all_refused(
            box, f"os.kill({bystander.pid}, 9)", *(f"os.{name}({os.getpid()})" for name in ("getpgid", "pidfd_open"))
        )
        all_refused(box, f"os.kill({os.getpid()}, 0)")
        box.run("import os\ntry: os.kill(-1, 9)\nexcept OSError: pass\nos.kill(os.getppid(), 15); os.killpg(0, 9)")
        alive = bystander.poll() is None
        bystander.kill()
    assert alive and attempts(box, "os.getpid()", "os.getppid()") == ["done 1", "done 0"]


@walled
def test_our_environment_and_privileges_stay_outside(box, monkeypatch):
    monkeypatch.setenv("API_SECRET", "hunter2")
    works = (
        "dict(os.environ)",
        "os.getresuid()",
        "os.getresgid()",
        "os.uname().nodename",
        "os.fstat(3)",
        "os.fstat(4)",
    )
    said = attempts(box, *works)
    assert "hunter2" not in said[0] and "API_SECRET" not in said[0]
    assert said[1:4] == ["done (65534, 65534, 65534)", "done (65534, 65534, 65534)", "done sandbox"]
    assert all(line.startswith("refused") for line in said[4:]), "no descriptor of ours is left open"


@walled
def test_limits_can_not_be_raised(box):
    names = ("NPROC", "AS", "FSIZE", "NOFILE", "CPU", "CORE")
    program = (
        ATTEMPT
        + "import resource\n"
        + "\n".join(
            f"attempt(lambda: resource.setrlimit(resource.RLIMIT_{name}, (1 << 40, 1 << 40)))" for name in names
        )
    )
    assert [line.split()[0] for line in box.run(program).stdout.splitlines()] == ["refused"] * len(names)


# afterwards


@walled
def test_children_do_not_outlive_the_run():
    before, box = children(), Sandbox(replace(SHORT, file_bytes=MARK))
    linger = (
        "import os, signal, time\nif os.fork() == 0:\n  os.setsid(); signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    )
    linger += "  if os.fork() == 0:\n    print('up', flush=True); time.sleep(30)\n  os._exit(0)\n"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(box.run, linger + "time.sleep(1); print('over')")
        until(lambda: len(inside_now()) >= 2 or running.done())
        assert not running.done()
        outcome = running.result()
    assert "over" in outcome.stdout and outcome.seconds < 20, "it does not wait for what it left, which sleeps for 30"
    assert sandboxed() == [] and children() == before
    Sandbox(replace(SHORT, seconds=0.5, file_bytes=MARK)).run(linger + "time.sleep(30)")
    assert sandboxed() == [] and children() == before


def inside_now():
    """Processes of sandboxes that bear our mark."""
    return [one for one in Path("/proc").iterdir() if one.name.isdecimal() and str(MARK).encode() in command_of(one)]


def sandboxed():
    """Those that are left; they are waited for."""
    until(lambda: not inside_now())
    return inside_now()


@walled
def test_many_runs_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    box = Sandbox(replace(SHORT, seconds=0.3))
    box.run("pass")
    files, threads, processes = len(os.listdir("/proc/self/fd")), set(threading.enumerate()), children()
    programs = ["print(1)", "while True: pass", "while True: print(1)", "import os; os.abort()"] * 6
    stopped = [outcome.stop_reason for outcome in box.run_all(programs)]
    assert stopped[1::4] == ["time"] * 6 and set(stopped) == {"", "time", "output", "killed"}
    assert (
        len(os.listdir("/proc/self/fd")) <= files
        and set(threading.enumerate()) <= threads
        and children() == processes
    )
    assert not list(tmp_path.iterdir())


@walled
def test_a_run_dies_with_us():
    parent = "from kitchen.envs.sandbox import Sandbox\nSandbox().run('import time; time.sleep(60)', 'x')"
    with subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT) as process:
        for _ in range(10_000):  # 200 s: a busy machine takes its time to begin
            time.sleep(0.02)
            below = [
                folder
                for folder in Path("/proc").iterdir()
                if folder.name.isdecimal() and parent_of(folder) == process.pid
            ]
            inner = [
                folder for one in below for folder in Path("/proc").iterdir() if parent_of(folder) == int(one.name)
            ]
            if (
                inner
                and b"sleep(60)" not in b"".join(command_of(folder) for folder in inner)
                and b"-I" in command_of(inner[0])
            ):
                break
        process.kill()
    assert inner
    until(lambda: not any(folder.exists() for folder in [*below, *inner]))


# without walls


def test_without_bubblewrap_nothing_runs_unless_one_says_so(monkeypatch, tmp_path):
    kept = Sandbox(SHORT, unsafe=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install bubblewrap" in containment_problem()
    with pytest.raises(MissingCapability, match="apt-get install bubblewrap; or say Sandbox\\(unsafe=True\\)"):
        Sandbox()
    monkeypatch.setenv("API_SECRET", "hunter2")
    outcome = kept.run("import os; print(input(), 'API_SECRET' in os.environ)", "open")
    assert outcome.ok and outcome.stdout == "open False\n" and not outcome.contained
    assert kept.run("while True: print(1)").stop_reason == "output" and kept.run("'x' * (1 << 30)").stop_reason == "memory"
    assert Sandbox(replace(SHORT, seconds=0.3), unsafe=True).run("while True: pass").stop_reason == "time"
    assert [one.stdout for one in kept.run_all(["print(1)", "print(2)"])] == ["1\n", "2\n"]


@walled
def test_with_bubblewrap_even_the_unsafe_are_contained():
    assert Sandbox(SHORT, unsafe=True).run("print(1)").contained


def test_a_bubblewrap_that_does_not_work_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    os.chmod(broken, 0o755)
    os.chmod(tmp_path, 0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "needs user namespaces" in containment_problem()
    with pytest.raises(MissingCapability, match="user namespaces"):
        Sandbox()


# the environment of programs

DOUBLED = {
    "question": "f(x): twice x",
    "answer": "lambda x: 2*x",
    "tests": [
        "assert f(1) == 2",
        "assert f(-3) == -6",
        "assert f(0) == 0",
        {"call": "f(10**6)", "expected": 2000000},
    ],
}


@pytest.fixture(scope="module")
def examiner():
    return CodeGrader(Sandbox(SandboxLimits(seconds=1.5), unsafe=bool(containment_problem())))


CHEATS = {
    "says so": "print('all passed')\nprint('OK')",
    "leaves at once": "import sys\nsys.exit(0)",
    "leaves harder": "import os\nos._exit(0)",
    "raises": "raise SystemExit(0)",
    "never ends": "while True: pass",
    "equal to everything": "class E(int):\n  def __eq__(self, other): return True\n  __hash__ = int.__hash__\nf = lambda x: E(7)",
    "a text that is equal": "class S(str):\n  def __eq__(self, one): return True\n  __hash__ = str.__hash__\nf = lambda x: S(2)",
    "replaces builtins": "import builtins\nbuiltins.eval = lambda *a: 7\nbuiltins.print = builtins.len = None",
    "replaces json": "import json\njson.dumps = json.encoder.JSONEncoder.encode = lambda *a: 'true'\ndef f(x): return True",
    "text for number": "f = lambda x: str(2*x)",
    "list for number": "f = lambda x: [2*x]",
    "not a number": "f = lambda x: float('nan')",
    "infinite": "f = lambda x: float('inf')",
    "huge": "f = lambda x: 10**100000",
    "huge, forged": "import os\ndef f(x): return 10**4000",
    "deep": "def f(x):\n  deep = []\n  for _ in range(10**5): deep = [deep]\n  return deep",
    "nothing": "",
    "no program": "the answer is 2*x, of course",
    "noise": "import sys\ndef f(x):\n  sys.stdout.write('x' * 10**6)\n  return 2*x",
    "reads the frames": "import sys\nf = lambda x: sys._getframe(1).f_globals.get('expected', None)",
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS.keys())
def test_cheats_earn_nothing(examiner, cheat):
    assert examiner.pass_rate(cheat, DOUBLED) == 0


def test_one_guess_for_a_call_and_no_more(examiner):
    """A program that finds the mark can forge results, but gets one guess a call, as an honest constant does."""
    finds = "import sys, os\nframe = sys._getframe()\nwhile 'mark' not in frame.f_locals: frame = frame.f_back\n"
    finds += "mark = frame.f_locals['mark']\n"
    many = (
        finds
        + "for i in range(4):\n  for v in (2, -6, 0, 2000000): os.write(1, f'\\n{mark} {i} {v}\\n'.encode())\nos._exit(0)"
    )
    assert examiner.pass_rate(many, DOUBLED) == 0
    one = finds + "os.write(1, b''.join(f'\\n{mark} {i} 2\\n'.encode() for i in range(4)))\nos._exit(0)"
    assert examiner.pass_rate(one, DOUBLED) == examiner.pass_rate("lambda x: 2", DOUBLED) == 0.25
    assert (
        examiner.pass_rate(finds + "os.write(1, f'\\n{mark} 0 {\"9\" * 5000}\\n{mark} 1 ' + '[' * 9000)\n", DOUBLED) == 0
    )


@walled
def test_what_is_expected_never_enters_the_sandbox(examiner):
    """All that goes in is the runner, the program and the calls."""
    seen = []

    def run(program, stdin):
        seen.append(program + stdin)
        return examiner.sandbox.run(program, stdin)

    spied = CodeGrader(SimpleNamespace(run=run))  # pyright: ignore[reportArgumentType]
    assert spied.pass_rate("lambda x: 2*x", {**DOUBLED, "tests": ["assert f(61728) == 123456"]}) == 1
    assert "123456" not in seen[0] and "61728" in seen[0]


@pytest.mark.parametrize(
    ("program", "share"),
    [
        ("lambda x: 2*x", 1),
        ("def f(x):\n    return x + x", 1),
        ("I double it.\n```python\ndef f(x):\n    print('working', x)\n    return x * 2\n```\nThat is all.", 1),
        ("lambda x: 2.0*x", 1),
        ("lambda x: x*x", 0.25),
        ("lambda x: 2*x if x > 0 else 1/0", 0.5),
        ("import os\ndef f(x):\n    if x == 0: os._exit(0)\n    return 2*x", 0.5),
        ("def f(x):\n    while x == 0: pass\n    return 2*x", 0.5),
        ("def f(x):\n    if x < 0: raise SystemExit\n    return 2*x", 0.75),
    ],
)
def test_the_share_of_tests_is_right(examiner, program, share):
    assert examiner.pass_rate(program, DOUBLED) == share


def test_values_are_compared_by_kind(examiner):
    values = ("True", "1", "(1, 'a', None)", "{'a': [1.5]}")
    row = {"answer": "", "tests": [f"assert f({number}) == {value}" for number, value in enumerate(values)]}
    assert examiner.pass_rate("lambda i: [True, 1, (1, 'a', None), {'a': (1.5,)}][i]", row) == 1
    assert examiner.pass_rate("lambda i: [1, True, (1, 'a'), {'b': (1.5,)}][i]", row) == 0
    assert not plain_equal({"a": 1}, {"a": True}) and plain_equal([], []) and not plain_equal([], {})
    with pytest.raises(InvalidValue):
        _parse_test("assert f(1) == 2, f(2)  == 3 or import os")


def test_a_program_is_run_once_and_the_memory_is_bounded():
    runs = []
    sandbox = Sandbox(SHORT, unsafe=bool(containment_problem()))
    counted = SimpleNamespace(run=lambda program, stdin: runs.append(1) or sandbox.run(program, stdin))
    examiner = CodeGrader(counted, cache_size=2)  # pyright: ignore[reportArgumentType]
    for program in (
        "lambda x: 1",
        "lambda x: 1",
        "```\nlambda x: 1\n```",
        "lambda x: 2",
        "lambda x: 3",
        "lambda x: 1",
    ):
        examiner.pass_rate(program, DOUBLED)
    assert len(runs) == 4 and len(examiner._cache) == 2


def test_a_sandbox_that_fails_is_an_error_and_is_tried_again():
    answers = iter([OSError("no memory"), SimpleNamespace(stdout="")])

    def run(program, stdin):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    examiner = CodeGrader(SimpleNamespace(run=run))  # pyright: ignore[reportArgumentType]
    with pytest.raises(OSError, match="no memory"):
        examiner.pass_rate("lambda x: 1", DOUBLED)
    assert examiner.pass_rate("lambda x: 1", DOUBLED) == 0


def test_rows_say_what_their_gold_programs_do(examiner):
    """Expected values come from the meaning of the words, gold programs from their Python: both must agree."""
    rows = code_rows(60, seed=5)
    for row in rows:
        world = {"f": eval(row["answer"])}  # our own text, made by rule
        assert all(eval(test.removeprefix("assert "), world) for test in row["tests"]), row
    check_gold_answers([examiner.as_reward()], rows[:10])
    assert all(question_messages(row)[0].content.isascii() and len(row["tests"]) == 8 for row in rows)
    prompts = {question_messages(row)[0].content for row in code_rows(6000, seed=0)}
    assert len(prompts) > 4000 and max(map(len, prompts)) < 80
    assert prompts.isdisjoint(question_messages(row)[0].content for row in code_rows(500, seed=1, split="test"))


def test_a_group_of_programs_is_played_side_by_side(examiner):
    """Real rollouts, by a policy that says one of a few programs."""
    programs = ("lambda x: 2*x", "lambda x: x*x", "while True: pass", "lambda x: x+x")
    chance = random.Random(0)

    def sample(prompt, count, params):
        chosen = [(number % 4,) for number in range(count)]
        made = tuple(Completion(tokens, (-chance.random(),), "stop") for tokens in chosen)
        return SimpleNamespace(result=lambda: SimpleNamespace(completions=made))

    renderer = SimpleNamespace(
        generation_prompt=lambda messages: [1, 2, 3],
        parse_response=lambda tokens: (Message("assistant", programs[tokens[0]]), True),
    )
    from kitchen.train.rollouts import Policy
    from kitchen.types import SamplingParams

    policy = Policy(SimpleNamespace(sample=sample), renderer, SamplingParams(max_tokens=4))  # pyright: ignore
    groups = play_groups(policy, code_problems([DOUBLED, {**DOUBLED, "question": "f(x): double x"}], examiner), 4, seed=0)
    assert [[one.total_reward for one in group.trajectories] for group in groups] == [[1, 0.25, 0, 1]] * 2
    assert groups[0].trajectories[1].metadata["parts"] == {"passes_tests": 0.25}
    assert json.dumps(groups[0].trajectories[0].metadata)
