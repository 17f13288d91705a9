"""Threads and processes: counts, forks, several Python threads, interrupts, CPU levels, import and exit."""

import os
import statistics
import threading
import time

import numpy as np
import pytest

import fastnn
from helpers import passes, run_python

# ---- number of threads --------------------------------------------------------------------------------


def test_set_num_threads() -> None:
    fastnn.set_num_threads(3)
    assert fastnn.get_num_threads() == 3 and fastnn._C.num_threads_source() == "set_num_threads"
    for bad in (0, -1, 10**6):
        with pytest.raises(ValueError, match=f"set_num_threads.*{bad}"):
            fastnn.set_num_threads(bad)
    for bad in (1.5, "2", None, 2**40):
        with pytest.raises(TypeError):
            fastnn.set_num_threads(bad)
    assert fastnn.get_num_threads() == 3


CALCULATE = "import fastnn; x = fastnn.ones(1000, 1000); print(fastnn.get_num_threads(), (x @ x).sum().item() == 1e9)"


@pytest.mark.parametrize("value", ["0", "-1", "abc", "1000000", "", "1", "2,1", " "])
def test_omp_num_threads(value: str) -> None:
    """A senseless number gets a line on stderr and a sane default, never an abort."""
    done = run_python(CALCULATE, OMP_NUM_THREADS=value)
    assert done.returncode == 0, done.stderr
    threads, right = done.stdout.split()
    assert right == "True" and 1 <= int(threads) <= (os.cpu_count() or 1)
    if value in ("0", "-1", "abc"):
        assert "OMP_NUM_THREADS" in done.stderr and value in done.stderr
    if value == "1":
        assert threads == "1" and not done.stderr


def test_affinity_is_respected() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + CALCULATE
    assert passes(code).split() == ["1", "True"]


def test_few_threads_can_be_started() -> None:
    """Under a low process limit fastnn settles for the threads it gets (the limit does not bind root)."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))"
    assert passes(f"import fastnn; fastnn.set_num_threads(64); {limit}; {CALCULATE}").split()[1] == "True"


# ---- results ------------------------------------------------------------------------------------------


def work(seed: int = 0) -> bytes:
    """A bit of everything: matrix products, a convolution, reductions, backward."""
    rng = np.random.default_rng(seed)
    x = fastnn.from_numpy(rng.standard_normal((8, 3, 32, 32)).astype(np.float32)).requires_grad_()
    w = fastnn.from_numpy(rng.standard_normal((16, 3, 3, 3)).astype(np.float32)).requires_grad_()
    y = fastnn.nn.functional.max_pool2d(fastnn.conv2d(x, w).relu(), 2).flatten(1)
    loss = fastnn.softmax(y @ y.t(), 1).sum() + y.exp().mean()
    loss.backward()
    return loss.detach().numpy().tobytes() + x.grad.numpy().tobytes() + w.grad.numpy().tobytes()


def test_bit_equal_for_any_thread_count() -> None:
    outcomes = []
    for threads in (1, 2, 3, 4, 8):
        fastnn.set_num_threads(threads)
        outcomes.append(work())
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_eight_python_threads() -> None:
    """All at once give what each alone gives, without a deadlock."""
    expected = [work(seed) for seed in range(8)]
    results: list[list[bytes]] = [[] for _ in range(8)]

    def run(seed: int) -> None:
        for _ in range(3):
            results[seed].append(work(seed))

    threads = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [[e] * 3 for e in expected]


def test_one_tensor_read_by_many_threads() -> None:
    x = fastnn.randn(300, 300)
    expected = (x @ x).numpy().tobytes()
    results = []
    threads = [threading.Thread(target=lambda: results.append((x @ x).numpy().tobytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [expected] * 8


def test_other_threads_run_during_a_long_operation() -> None:
    """The Python lock is released: another thread gets on while a matrix product runs."""
    x = fastnn.randn(1500, 1500)
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    for _ in range(3):
        x @ x
    end = time.perf_counter()
    done.set()
    thread.join()
    assert sum(start < t < end for t in ticks) >= 3


def test_exception_inside_a_region() -> None:
    """An exception in a worker comes out as a Python exception, and the next region works."""
    for threads in (1, 2, 4):
        fastnn.set_num_threads(threads)
        with pytest.raises(ValueError, match="chunk 99 of 100 failed"):
            fastnn._C._fail_in_parallel(100)
        assert fastnn.ones(1000, 1000).sum().item() == 1e6


def test_thread_count_changes_between_and_during_operations() -> None:
    expected = work()
    done = threading.Event()

    def change() -> None:
        for i in range(10**9):
            fastnn.set_num_threads(1 + i % 9)
            if done.wait(0.0005):
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert all(work() == expected for _ in range(60))
    finally:
        done.set()
        thread.join()


ONE_CORE = """
import os, fastnn
x = fastnn.rand(384, 384)
expected = (x @ x).numpy().tobytes()
fastnn.set_num_threads(6)
for _ in range(3): x @ x
core = min(os.sched_getaffinity(0))
for task in os.listdir("/proc/self/task"): os.sched_setaffinity(int(task), {core})
print(all((x @ x).numpy().tobytes() == expected for _ in range(500)), len(os.listdir("/proc/self/task")))
"""


def test_late_workers() -> None:
    """Six threads on one core: hardly a worker comes in time, and nothing depends on it."""
    settings = {"OPENBLAS_NUM_THREADS": "1"}
    assert passes(ONE_CORE, timeout=60, **settings) == "True 6"


BUSY = """
import fastnn, os, subprocess, sys, time
fastnn.set_num_threads(2)
x = fastnn.rand(384, 384)
def spent():
    start = time.perf_counter()
    for _ in range(300): x @ x
    return time.perf_counter() - start
spent()
hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
time.sleep(0.2)
print(min(spent() for _ in range(3)))
for hog in hogs: hog.kill()
"""


def test_busy_machine() -> None:
    """With a foreign process on every core nobody waits for a worker that cannot run: 0.1 ms a product, not 10 ms."""
    assert float(passes(BUSY)) < 300 * 5e-3


# ---- forks --------------------------------------------------------------------------------------------

FORK = """
import os, sys, threading, fastnn
fastnn.set_num_threads(2)
x = fastnn.ones(600, 600)
expected = (x @ x).sum().item()
stop = threading.Event()
def busy():
    while not stop.is_set(): x @ x
thread = threading.Thread(target=busy)
if {busy}: thread.start()
for _ in range(3):
    child = os.fork()
    if child == 0:
        y = fastnn.ones(600, 600, requires_grad=True)
        z = (y @ y).sum()
        z.backward()
        os._exit(0 if z.item() == expected and y.grad.sum().item() == 2 * expected else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
stop.set()
if {busy}: thread.join()
print("ok")
"""


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "computing"])
def test_fork_after_use(busy: bool) -> None:
    """A forked child computes single-threaded instead of hanging."""
    assert passes(FORK.format(busy=busy), "-W", "ignore", timeout=30) == "ok"


def test_multiprocessing_fork() -> None:
    code = """
import multiprocessing, fastnn
def child(n): return (fastnn.ones(n, n) @ fastnn.ones(n, n)).sum().item()
if __name__ == "__main__":
    child(500)
    with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(child, [300, 400]) == [300.0**3, 400.0**3])
"""
    assert passes(code, "-W", "ignore", timeout=30) == "True"


FORK_INSIDE = """
import fastnn, os, signal, sys
x = fastnn.rand(2000, 2000)
expected = (x @ x).sum().item()
fastnn.set_num_threads({threads})
children = []
def fork(*_):
    children.append(os.fork())
    if children[-1] == 0: signal.alarm(30)
signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    while not children: right = (x @ x).sum().item() == expected
except RuntimeError as error:
    right = "forked" in str(error)
    assert children == [0] and (fastnn.ones(300, 300) @ fastnn.ones(300, 300)).sum().item() == 300**3
if children == [0]: os._exit(0 if right else 1)
assert right and os.waitpid(children[0], 0)[1] == 0
print("ok")
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_fork_inside_an_operation(threads: int) -> None:
    """A signal handler forks in the middle of a product: the child, without the workers, raises or is right."""
    assert passes(FORK_INSIDE.format(threads=threads), "-W", "ignore") == "ok"


# ---- Ctrl-C --------------------------------------------------------------------------------------------

INTERRUPT = """
import fastnn, os, signal, threading, time
x = fastnn.ones({n}, {n})
{make}
fired = []
def interrupt():
    time.sleep(0.3)
    fired.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    deadline = time.perf_counter() + 20
    while time.perf_counter() < deadline: {call}
    print("never")
except KeyboardInterrupt:
    print(time.perf_counter() - fired[0])
assert (fastnn.ones(3, 3) @ fastnn.ones(3, 3)).sum().item() == 27
"""
LONG = {
    "matmul": (5000, "", "x @ x"),
    "exp": (8000, "", "x.exp()"),
    "sort": (3000, "x = fastnn.rand(3000, 3000)", "x.sort()"),
    "conv2d": (10, "a, w = fastnn.ones(64, 64, 64, 64), fastnn.ones(128, 64, 5, 5)", "fastnn.conv2d(a, w)"),
}


@pytest.mark.parametrize("name", LONG)
def test_interrupt(name: str) -> None:
    """Ctrl-C in a long operation raises KeyboardInterrupt soon, and what follows works."""
    n, make, call = LONG[name]
    delays = []
    for _ in range(2):
        delays.append(float(passes(INTERRUPT.format(n=n, make=make, call=call), timeout=60)))
        if delays[-1] < 0.2:
            break
    assert min(delays) < 0.5, delays


# ---- CPU levels ------------------------------------------------------------------------------------------

LEVEL = """
import fastnn
from cases import CASES
from cases.case import to_tensor
from helpers import check_values
def check(case, dtype, args, kwargs):
    check_values(case, case.run(fastnn, *[to_tensor(fastnn, a, dtype) for a in args], **kwargs), dtype, args, kwargs)
assert fastnn._C.cpu_level() == "{level}"
for case in CASES:
    for sample in case.samples[:3]:
        for dtype in case.dtypes: check(case, dtype, sample.args, sample.kwargs)
    if case.large is not None and case.family in ("matmul", "conv", "reduce", "softmax", "pool"):
        check(case, "float32", case.large(), {{}})
print("ok")
"""


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_cpu_level(level: str) -> None:
    """Every level that the machine has passes the table; one that it lacks is a clear error of the import."""
    if level in fastnn._C.cpu_levels():
        assert passes(LEVEL.format(level=level), timeout=120, FASTNN_CPU=level) == "ok"
        return
    done = run_python("import fastnn", FASTNN_CPU=level)
    assert done.returncode == 1 and "ValueError" in done.stderr and f"FASTNN_CPU={level}" in done.stderr


def test_unknown_cpu_level() -> None:
    done = run_python("import fastnn", FASTNN_CPU="mmx")
    assert done.returncode == 1 and "FASTNN_CPU=mmx" in done.stderr and "baseline" in done.stderr


# ---- import and exit --------------------------------------------------------------------------------------

COST = """
import os, resource, time
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
import numpy
before, start = resident(), time.process_time()
import fastnn
spent = time.process_time() - start
print(spent * 1e3, (resident() - before) / 1e6, len(os.listdir("/proc/self/task")))
"""


def test_import_is_cheap() -> None:
    """At most 30 ms of CPU time and 10 MB over numpy; the best of the runs counts, as others may use the machine."""
    settings = {"OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}  # the first run compiles
    plain = run_python("import numpy, os; print(len(os.listdir('/proc/self/task')))", **settings)
    rows = [list(map(float, passes(COST, **settings).split())) for _ in range(7)]
    times, sizes, threads = zip(*rows, strict=True)
    assert min(times) <= 30 and statistics.median(times) <= 60, times
    assert statistics.median(sizes) <= 10, sizes
    assert set(threads) == {float(plain.stdout)}, "the import starts no thread"


def test_import_keeps_the_float_mode() -> None:
    code = "import fastnn; x = fastnn.ones(64, 64); (x @ x).sum(); print(2.0**-1074 != 0, 2.0**-1074 * 1.0 != 0)"
    assert passes(code) == "True True"


@pytest.mark.parametrize("flags", [("-W", "error"), ("-O",), ("-OO",), ("-X", "dev"), ("-I",)], ids=str)
def test_interpreter_flags(flags: tuple[str, ...]) -> None:
    code = CALCULATE
    if "-I" in flags:
        code = f"import sys; sys.path.insert(0, {os.path.dirname(os.path.dirname(fastnn.__file__))!r}); " + code
    done = run_python(code, *flags)
    assert done.returncode == 0 and done.stdout.split()[1] == "True" and done.stderr == ""


@pytest.mark.parametrize("environment", [{"PYTHONHASHSEED": "1"}, {"LC_ALL": "C"}, {"LC_ALL": "de_DE.UTF-8"}], ids=str)
def test_environment(environment: dict[str, str]) -> None:
    assert passes(CALCULATE, **environment).split()[1] == "True"


@pytest.mark.parametrize(
    "how",
    [
        "",
        "raise SystemExit(0)",
        "x.exp().sum(); import sys; sys.exit()",
        "y = x.requires_grad_() * 2",
        "import time; time.sleep(0.1)",
        "import threading; threading.Thread(target=lambda: [x.exp() for _ in range(10**6)], daemon=True).start()",
    ],
)
def test_clean_exit(how: str) -> None:
    """Workers awake, asleep or at work, live tensors and live graphs do not disturb the end of the interpreter."""
    done = run_python(f"import fastnn; x = fastnn.ones(2000, 2000); (x @ x).sum(); {how}")
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.torch
@pytest.mark.parametrize("order", ["torch, fastnn", "fastnn, torch"])
def test_beside_torch(order: str) -> None:
    """Either import order: right results on both sides, and the float mode untouched."""
    code = f"""
import {order}
x, y = fastnn.rand(300, 300), torch.rand(300, 300)
z = (fastnn.from_numpy(y.numpy()) @ x).numpy()
print(abs(z - (y @ torch.from_numpy(x.numpy())).numpy()).max() < 1e-3, 2.0**-1074 != 0)
"""
    assert passes(code, timeout=120) == "True True"
