"""Programs that attack: each is scored wrong, the machine is unharmed, and nothing of them is left.

`kind` runs in every sandbox. `strong` leaves out the weak one, which does not hide files, the network or processes: there a
program can read what the user can, connect, write to other folders of the user, and see and signal the user's processes.
`_as_root` cases run in the weak kind only for root, where the program gets a user of its own.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from mixsd.sandbox import Judged, Limits
from tests.sandbox.conftest import CALM, QUICK, Trial, marked

PASSING = "def check(candidate):\n    candidate(1)\n"


def wrong(judged: Judged, *reasons: str) -> None:
    assert not judged.passed
    assert not judged.ours, judged.reason
    assert judged.reason
    if reasons:
        assert any(reason in judged.reason for reason in reasons), judged.reason


def _as_root(kind: str) -> None:
    if kind == "none" and os.getuid() != 0:
        pytest.skip("without isolation a user's program may signal the user's other processes")


ENDS = {
    "endless loop": ("def f(x):\n    while True: pass", ("took longer than", "CPU time")),
    "endless loop while loading": ("while True: pass", ("took longer than", "CPU time")),
    "CPU limit ignored": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        ("took longer than", "SIGKILL"),
    ),
    "sleep": ("import time\ndef f(x): time.sleep(1000)", ("took longer than", "1.5 s")),
    "10 GB at once": ("def f(x): return bytearray(10**10)", ("out of memory",)),
    "10 GB bit by bit": ("def f(x):\n    a = []\n    while True: a.append(bytes(10**6))", ("out of memory",)),
    "os._exit": ("import os\nos._exit(0)", ("ended early (exit status 0)",)),
    "os._exit in the function": ("import os\ndef f(x): os._exit(0)", ("ended early (exit status 0)",)),
    "sys.exit": ("import sys\nsys.exit(0)", ("SystemExit: 0",)),
    "sys.exit in the function": ("import sys\ndef f(x): sys.exit(0)", ("SystemExit: 0",)),
    "exit at exit": (
        "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise KeyboardInterrupt",
        ("KeyboardInterrupt",),
    ),
    "abort": ("import os\ndef f(x): os.abort()", ("SIGABRT",)),
    "kills itself": ("import os\ndef f(x): os.kill(os.getpid(), 9)", ("SIGKILL", "took longer")),
    "recursion": ("def f(x): return f(x)", ("RecursionError",)),
    "recursion without a limit": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)", ()),
    "output": ("def f(x):\n    while True: print('x' * 10**6)", ("took longer than", "CPU time")),
    "syntax": ("def f(x:\n  return", ("SyntaxError",)),
    "null byte": ("def f(x): return 1\0", ("SyntaxError", "ValueError")),
    "not text": ("def f(x): return '\udcff'", ("UnicodeEncodeError", "assertion failed")),
    "no function": ("def g(x): return 'right'", ("does not define the function",)),
    "function is no function": ("f = 'right'", ("does not define the function",)),
    "input": ("def f(x): return input()", ("EOFError",)),
    "asserts": ("def f(x): assert False, 'mine'", ("AssertionError: mine",)),
    "error whose text fails": ("class E(Exception):\n    def __str__(self): raise ValueError\ndef f(x): raise E", ("E",)),
    "stop of iteration": ("def f(x): raise StopIteration", ("StopIteration",)),
    "None": ("def f(x): return None", ("assertion failed",)),
    "large result": ("def f(x): return 'x' * 10**8", ("a result is too large",)),
    "large number": ("def f(x): return 1 << 10**8", ("a result is too large",)),
    "deep result": ("def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a", ("nested too deeply",)),
    "endless result": ("def f(x):\n    a = []\n    a.append(a)\n    return a", ("nested too deeply",)),
    "doubled result": ("def f(x):\n    a = ()\n    for _ in range(60): a = (a, a)\n    return a", ("too large",)),
    "endless iterator": ("import itertools\ndef f(x): return itertools.count()", ("too large",)),
}


@pytest.mark.parametrize("name", ENDS)
def test_ends_badly(kind: str, name: str, trial: Trial) -> None:
    code, reasons = ENDS[name]
    limits = QUICK if not reasons or "took longer than" in reasons else CALM
    wrong(trial(kind, code, limits=limits), *reasons)


FORGERIES = {
    "a result equal to all": "class Same:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n"
    "def f(x): return Same()",
    "a string equal to all": "class Same(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\n"
    "def f(x): return Same('wrong')",
    "builtins": "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\nbuiltins.all = lambda *_: True\n"
    "builtins.isinstance = lambda *_: True\nbuiltins.len = lambda _: 0\ndef f(x): return 'wrong'",
    "an exception": "class AssertionError(Exception): pass\ndef f(x): raise AssertionError('passed')",
    "an exception without a name": "def f(x): raise type('', (Exception,), {})()",
    "a program that cannot be loaded, without a name": "raise type('', (BaseException,), {})()",
    "a patched encoder": "import sys\nworker = sys.modules['mixsd.sandbox.worker']\n"
    "worker.pack = lambda *_: b'[\"passed\",\"\"]'\ndef f(x): return 'wrong'",
    "a patched worker": "import sys\nworker = sys.modules['mixsd.sandbox.worker']\n"
    "worker._Channel.write = lambda self, _: __import__('os').write(self._writer.fileno(), b'[\"passed\",\"\"]\\n' * 100)\n"
    "def f(x): return 'wrong'",
    "all frames": "import sys\nframe = sys._getframe()\nwhile frame:\n    for name, value in list(frame.f_locals.items()):\n"
    "        if isinstance(value, dict): value.update(passed=True, role='tests')\n    frame = frame.f_back\n"
    "def f(x): return 'wrong'",
}
PAYLOADS = """
import os, sys
verdict = b'["passed", ""]\\n'
lines = [b'["t","passed"]', b'["l","returned",0,null]', b'["l","returned",1,"wrong"]', b'["l",0,["l"],["d"]]']
PAYLOAD = [verdict, b"passed", b"true\\n"] + [line + b"\\n" for line in lines]
def flood():
    print("passed"); print("passed", file=sys.stderr)
    for number in range(256):
        for payload in PAYLOAD:
            try:
                os.set_blocking(number, False)
                os.write(number, payload)
            except OSError:
                pass
"""
FORGERIES |= {
    "every descriptor, then exit": PAYLOADS + "flood()\nos._exit(0)",
    "every descriptor": PAYLOADS + "flood()\ndef f(x):\n    flood()\n    return 'wrong'",
    "every descriptor in the function, then exit": PAYLOADS + "def f(x):\n    flood()\n    os._exit(0)",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_success(kind: str, name: str, trial: Trial) -> None:
    wrong(trial(kind, FORGERIES[name]))


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "raise SystemExit(0)"])
def test_a_function_that_never_returns_never_passes(kind: str, end: str, trial: Trial) -> None:
    # Even where the tests ask for nothing, or catch all.
    wrong(trial(kind, f"import os\ndef f(x): {end}", test=PASSING))
    if end.startswith("os."):
        catching = "def check(candidate):\n    try: candidate(1)\n    except: pass\n"
        wrong(trial(kind, f"import os\ndef f(x): {end}", test=catching))


def test_forged_success_through_the_process_table(kind: str, trial: Trial, marker: str) -> None:
    _as_root(kind)
    code = f"""
import os
def attack():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if {marker!r}.encode() not in open(f"/proc/{{pid}}/cmdline", "rb").read():
                continue
            for number in os.listdir(f"/proc/{{pid}}/fd"):
                if int(pid) != os.getpid():
                    os.write(os.open(f"/proc/{{pid}}/fd/{{number}}", os.O_WRONLY | os.O_NONBLOCK), b'["passed", ""]\\n')
        except OSError:
            pass
try: attack()
except OSError: pass
def f(x):
    try: attack()
    except OSError: pass
    return "wrong"
"""
    wrong(trial(kind, code), "assertion failed")


@pytest.mark.parametrize(
    "attack",
    [
        "os.kill(os.getppid(), 9)",
        "os.kill(-1, 9)",
        "os.kill(os.getppid(), 19)",
        "[kill(pid) for pid in range(1, 100000) if pid != os.getpid()]",
    ],
)
def test_killing_the_parent(kind: str, attack: str, trial: Trial) -> None:
    _as_root(kind)
    code = f"""
import os
def kill(pid):
    try: os.kill(pid, 9)
    except OSError: pass
try: {attack}
except OSError: pass
def f(x):
    try: {attack}
    except OSError: pass
    return "wrong"
"""
    wrong(trial(kind, code))


def _watch(marker: str, done: threading.Event, counts: list[int]) -> None:
    while not done.wait(0.05):
        counts.append(len(marked(marker)))


def test_fork_bomb(kind: str, trial: Trial, marker: str) -> None:
    _as_root(kind)
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    counts: list[int] = []
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(marker, done, counts))
    watch.start()
    try:
        wrong(trial(kind, code, limits=QUICK))
    finally:
        done.set()
        watch.join()
    # Beside those of the program: its keepers, and the tests' process with its own.
    assert 2 < max(counts) <= QUICK.processes + 8


def test_large_file(kind: str, trial: Trial) -> None:
    code = """
def f(x):
    size = 0
    try:
        with open("large", "wb", buffering=0) as file:
            while size < 10**10: size += file.write(bytes(2**20))
    except OSError: pass
    return "right" if size > 17 * 2**20 else size
"""
    wrong(trial(kind, code), "assertion failed")
    assert trial(kind, code, test=f"def check(candidate):\n    assert candidate(1) == {CALM.file_mb << 20}").passed


def test_many_files(strong: str, trial: Trial) -> None:
    code = """
def f(x):
    size = 0
    try:
        for number in range(1000):
            with open(f"file{number}", "wb", buffering=0) as file: size += file.write(bytes(15 * 2**20))
    except OSError: pass
    return "right" if size > 65 * 2**20 else size
"""
    wrong(trial(strong, code), "assertion failed")


def test_secrets_in_files(strong: str, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    name = f".mixsd-secret-{os.getpid()}"
    places = [home / name, Path(os.path.expanduser("~")) / name, Path("/root") / name, Path(__file__).parent / name]
    places += [Path.cwd() / name, Path("/tmp") / name, Path("/var/tmp") / name, tmp_path / name]
    places = [place for place in dict.fromkeys(places) if os.access(place.parent, os.W_OK)]
    monkeypatch.setenv("HOME", str(home))
    try:
        for place in places:
            place.write_text("right")
            place.chmod(0o644)
        code = f"""
import glob, os
def f(x):
    for place in {[str(place) for place in places]!r} + glob.glob("/proc/*/root" + {str(places[0])!r}):
        try: return open(place).read()
        except OSError: pass
    return "nothing"
"""
        wrong(trial(strong, code), "assertion failed")
        nothing = 'def check(candidate):\n    assert candidate(1) == "nothing"\n'
        assert trial(strong, code, test=nothing).passed
        # The same code reads them where nothing hides them: the test above is not passed by a mistake in it.
        if os.getuid() == 0:
            assert trial("none", code).passed
    finally:
        for place in places:
            place.unlink(missing_ok=True)


def test_secrets_in_the_environment(kind: str, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXSD_SECRET", "right")
    reading = "import glob, os\ndef f(x): return os.environ.get('MIXSD_SECRET')"
    wrong(trial(kind, reading), "assertion failed")
    everywhere = """
import glob
def f(x):
    for path in glob.glob("/proc/*/environ"):
        try:
            if b"MIXSD_SECRET" in open(path, "rb").read(): return "right"
        except OSError: pass
"""
    _as_root(kind)
    wrong(trial(kind, everywhere), "assertion failed")
    names = "import os\ndef f(x): return 'right' if set(os.environ) <= {'PATH', 'LC_ALL', 'PYTHONHASHSEED', 'HOME', 'TMPDIR', 'PWD'} else 0"
    assert trial(kind, names).passed


def test_network(strong: str, trial: Trial, tmp_path: Path) -> None:
    unix = str(tmp_path / "socket")
    abstract = f"\0mixsd-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as hidden,
    ):
        named.bind(unix)
        hidden.bind(abstract)
        for listener in (server, named, hidden):
            listener.listen()
            listener.setblocking(False)
        places = [(socket.AF_INET, server.getsockname()), (socket.AF_UNIX, unix), (socket.AF_UNIX, abstract)]
        code = f"""
import socket
def f(x):
    for family, place in {[(int(family), place) for family, place in places]!r}:
        try:
            with socket.socket(family) as one: one.settimeout(1); one.connect(place)
            return "right"
        except OSError: pass
    return "nothing"
"""
        wrong(trial(strong, code), "assertion failed")
        for listener in (server, named, hidden):
            with pytest.raises(BlockingIOError):
                listener.accept()
        # Without a sandbox the same code connects.
        assert trial("none", code).passed


def test_writing_outside(strong: str, trial: Trial, tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir(mode=0o777)
    public.chmod(0o777)
    code = f"""
import os, sys
FOLDERS = ["/", "/usr", "/usr/lib", "/etc", "/dev", "/dev/shm", "/root", "/home", "/var/tmp", "/run", {str(public)!r}, sys.prefix,
    os.path.dirname(os.__file__), os.path.dirname(sys.executable)]
def f(x):
    for folder in FOLDERS:
        try:
            open(os.path.join(folder, "mixsd-written"), "w").close()
            return folder
        except OSError: pass
        try:
            os.mkdir(os.path.join(folder, "mixsd-folder"))
            return folder
        except OSError: pass
        try:
            os.chmod(folder, 0o777)
            return folder
        except OSError: pass
    open("inside", "w").write("here")
    return "right" if os.getcwd() == "/tmp" and os.listdir() == ["inside"] else os.listdir()
"""
    assert trial(strong, code) == Judged(True, None, False)
    assert list(public.iterdir()) == []


def test_mounts_and_privileges(strong: str, trial: Trial) -> None:
    code = """
import ctypes, os
CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)
def f(x):
    got = []
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0: got.append("mount")
    if libc.unshare(0x10000000) == 0: got.append("user namespace")
    if libc.unshare(0x20000) == 0: got.append("mount namespace")
    child = libc.syscall(CLONE, ctypes.c_long(0x10000000 | 17), 0, 0, 0, 0)
    if child == 0: os._exit(0)
    if child > 0: got.append("clone")
    if libc.mount(None, b"/usr/lib", None, 0x20 | 0x1000, None) == 0: got.append("remount")
    if libc.prctl(39, 0, 0, 0, 0) != 1: got.append("privileges")
    if any(libc.prctl(23, number, 0, 0, 0) == 1 for number in range(40)): got.append("bounding")
    try: os.setuid(0); got.append("root")
    except OSError: pass
    try: os.chroot("/tmp"); got.append("chroot")
    except OSError: pass
    return got or "right"
"""
    assert trial(strong, code) == Judged(True, None, False)


REACHING_AROUND = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    return libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the calls are those of x86-64")
def test_a_secret_in_the_keyring(kind: str, trial: Trial) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    name = f"mixsd-{os.getpid()}".encode()
    key = libc.syscall(248, b"user", name, b"right", 5, -3)
    if key == -1:
        pytest.skip("no keyring here")
    code = f"""{REACHING_AROUND}
def f(x):
    room = ctypes.create_string_buffer(64)
    found = libc.syscall(250, 10, -3, b"user", {name!r}, 0)
    libc.syscall(250, 11, found if found != -1 else {key}, room, 64)
    return room.value.decode() or "nothing"
"""
    try:
        wrong(trial(kind, code), "assertion failed")
        assert trial(kind, code, test='def check(candidate):\n    assert candidate(1) == "nothing"\n').passed
    finally:
        libc.syscall(250, 3, key)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the calls are those of x86-64")
def test_ways_around_the_limits(kind: str, trial: Trial) -> None:
    code = f"""{REACHING_AROUND}
def f(x):
    got = []
    segment = libc.shmget(0, 256 << 20, 0o1600)
    if segment != -1: libc.shmctl(segment, 0, None); got.append("shared memory")
    if libc.memfd_create(b"x", 0) != -1: got.append("memory file")
    if call(64, 0, 1, 0o1600) != -1: got.append("semaphore")
    if call(68, 0, 0o1600) != -1: got.append("queue")
    if call(425, 8, ctypes.addressof(ctypes.create_string_buffer(256))) != -1: got.append("io_uring")
    if call(323, 1) != -1: got.append("userfaultfd")
    for leave in (os.setsid, lambda: os.setpgid(0, 0)):
        try: leave(); got.append("left the process group")
        except OSError: pass
    for family in (40, 38, 17, 31):
        try: socket.socket(family, socket.SOCK_STREAM if family == 40 else 5); got.append(family)
        except OSError: pass
    return got or "right"
"""
    judged = trial(kind, code)
    assert judged == Judged(True, None, False), trial(
        kind, code, test="def check(candidate):\n    raise ValueError(candidate(1))\n"
    )


def test_the_filter_leaves_ordinary_calls(kind: str, trial: Trial) -> None:
    code = """
import os, socket, subprocess, sys, threading
def f(x):
    thread = threading.Thread(target=os.getpid); thread.start(); thread.join()
    one, other = socket.socketpair(); one.send(b"1"); other.recv(1)
    socket.socket(socket.AF_INET).close(); socket.if_nameindex()
    child = os.fork()
    if child == 0: os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    return subprocess.run([sys.executable, "-S", "-c", "print('right')"], capture_output=True, text=True).stdout.strip()
"""
    assert trial(kind, code) == Judged(True, None, False)


def test_process_table(strong: str, trial: Trial) -> None:
    code = """
import os
def f(x):
    try: return "right" if any(open(f"/proc/{pid}/cmdline", "rb").read() for pid in os.listdir("/proc") if pid.isdigit()) else 0
    except OSError: return "nothing"
"""
    wrong(trial(strong, code), "assertion failed")
    few = "import os\ndef f(x): return 'right' if os.getpid() <= 3 else os.getpid()"
    assert trial(strong, few).passed


def test_threads_left_running(kind: str, trial: Trial) -> None:
    code = """
import threading, time
for _ in range(3): threading.Thread(target=time.sleep, args=(1000,)).start()
def f(x): return "right"
"""
    begun = time.monotonic()
    assert trial(kind, code, limits=Limits(wall_seconds=20)) == Judged(True, None, False)
    assert time.monotonic() - begun < 15
    wrong(trial(kind, code.replace('"right"', '"wrong"')), "assertion failed")


DAEMON = """
import os, signal, time
def daemon():
    if os.fork() == 0:
        for leave in (os.setsid, lambda: os.setpgid(0, 0)):
            try: leave()
            except OSError: pass
        if os.fork() == 0:
            for number in range(1, 32):
                try: signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError): pass
            time.sleep(1000)
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("answer", ["right", "wrong"])
def test_daemon(kind: str, answer: str, trial: Trial) -> None:
    judged = trial(kind, DAEMON + f"daemon()\ndef f(x):\n    daemon()\n    return '{answer}'")
    assert judged == (Judged(True, None, False) if answer == "right" else Judged(False, "assertion failed", False))


def test_daemon_of_a_program_that_has_ended(kind: str, trial: Trial) -> None:
    wrong(trial(kind, DAEMON + "daemon()\nos._exit(0)"), "ended early")


def test_a_fork_that_returns(kind: str, trial: Trial) -> None:
    wrong(trial(kind, "import os\ndef f(x): return 'wrong' if os.fork() else 'right'"), "assertion failed")


def test_folder_made_hard_to_remove(kind: str, trial: Trial) -> None:
    code = """
import os
for _ in range(300):
    os.mkdir("deep"); os.chdir("deep")
os.chdir("/tmp" if os.getcwd().startswith("/tmp/deep") else os.environ["HOME"])
os.mkdir("closed"); open("closed/file", "w").close(); os.chmod("closed", 0); os.chmod(".", 0)
def f(x): return "wrong"
"""
    wrong(trial(kind, code), "assertion failed", "PermissionError")


def test_the_tests_are_not_at_hand(kind: str, trial: Trial) -> None:
    # What the process was sent is where its own function's caller keeps it: the job, in the frames above.
    code = """
import sys
def f(x):
    frame, found = sys._getframe(1), []
    while frame:
        found += [text for value in list(frame.f_locals.values()) if isinstance(value, dict) for text in map(str, value)]
        frame = frame.f_back
    return "right" if "code" in found and not {"test", "prompt"} & set(found) else found[:20]
"""
    assert trial(kind, code) == Judged(True, None, False)
