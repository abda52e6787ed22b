"""Runs tests against mutants: one process each, forked from one that has already imported and collected everything.

A mutant inside a function is switched in by exchanging its code. Tables, constants and defaults are read at import and
copied into other modules, so a mutant of those gets a process that imports everything anew with the changed file.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol

from . import swap
from .mutants import MODULE, Mutant

PRELOADED = (
    "hypothesis", "numpy", "pymodbus.client", "pymodbus.pdu", "pymodbus.server", "transitions", "msgspec", "gpiozero",
    "periphery", "ntplib", "asyncio",
)  # fmt: skip
OPTIONS = ("-q", "-s", "-p", "no:cacheprovider", "-p", "no:randomly", "--no-header", "--tb=no")
SLOWER = 10.0  # a test that takes so many times its usual time hangs
SPARE_S = 3.0
QUICK_S = 0.02  # of what a module's own lines may change all such tests are tried first, wherever they are
TOO_SLOW_S, GIVEN_UP_S = 5.0, 6.0  # a test that takes longer, with its statements counted, kills nothing here
HINTS_S, BUDGET_S, SECOND_BUDGET_S = 0.0, 12.0, 120.0
"""Usual time of the tests that are tried on one mutant, then on a survivor: a loaded machine measures long times. With
HINTS_S only what has killed nearby: to import and collect the rest costs more than to run it."""
MOST_OF_FILE = 60  # in a sample, of the tests that have killed elsewhere in the file

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

TIMED_OUT, CRASHED = "time-out", "import or crash"


class Test(NamedTuple):
    seconds: float
    lines: frozenset[tuple[str, int]]  # (path, line) of the statements it runs


class Verdict(NamedTuple):
    mutant: Mutant
    by: str  # node id of the killing test, TIMED_OUT, CRASHED, or nothing for a survivor
    tried: int


class Order:
    """Which tests are tried on a mutant, and in which order: those that killed its neighbours first.

    Without measured lines (a sample) only those that have killed something in the same place, then in the same file.
    """

    def __init__(self, tests: dict[str, Test], killers: dict[str, list[str]], root: Path) -> None:
        self.tests, self.budget_s = tests, BUDGET_S
        self.killers = {where: [n for n in nodes if n in tests] for where, nodes in killers.items()}
        self._texts = {path: (root / path).read_text() for path in {p for t in tests.values() for p, _ in t.lines}}
        self._quickest = sorted(tests, key=lambda node: tests[node].seconds)
        self._by_line: dict[tuple[str, int], list[str]] = {}
        self._files: dict[str, set[str]] = {}  # path -> test files of which one test runs something of it
        for node in self._quickest:
            for path, line in tests[node].lines:
                self._by_line.setdefault((path, line), []).append(node)
                self._files.setdefault(path, set()).add(_file(node))

    def runs(self, mutant: Mutant) -> bool:
        """Whether any test runs the mutated statement; True when nothing is known."""
        return not self._texts or bool(self._covering(mutant))

    def _covering(self, mutant: Mutant) -> list[str]:
        text = self._texts.get(mutant.path, "")
        return self._by_line.get((mutant.path, swap.statement(text, mutant.line)), [])

    def of(self, mutant: Mutant) -> list[str]:
        """Node ids, as many as fit into `budget_s`."""
        if not self._texts:
            known = [*self.killers.get(_place(mutant), ()), *self.killers.get(mutant.path, ())[:MOST_OF_FILE]]
            return list(dict.fromkeys(known or self._quickest))
        fitting = self._covering(mutant) if mutant.where != MODULE else []
        files = self._files.get(mutant.path, set())
        fitting = fitting or sorted(
            self._quickest, key=lambda n: (self.tests[n].seconds > QUICK_S, _file(n) not in files)
        )
        wanted = set(fitting)
        known = [*self.killers.get(_place(mutant), ())[:8], *self.killers.get(mutant.path, ())[:8]]
        hints = [node for node in dict.fromkeys(known) if node in wanted]
        if self.budget_s == HINTS_S:
            return hints
        left_s, chosen = self.budget_s, []
        for node in dict.fromkeys([*hints, *fitting]):
            if self.tests[node].seconds <= left_s:  # a slow one that does not fit keeps no quick one out
                left_s -= self.tests[node].seconds
                chosen.append(node)
        return chosen

    def killed(self, mutant: Mutant, by: str) -> None:
        """Remembers a success."""
        if by in self.tests:
            for where in (_place(mutant), mutant.path):
                nodes = self.killers.get(where, [])
                if by not in nodes[:3]:
                    self.killers[where] = [by, *(n for n in nodes if n != by)]


def _place(mutant: Mutant) -> str:
    return f"{mutant.path} {mutant.where}"


def _file(node: str) -> str:
    return node.partition("::")[0]


def preload() -> None:
    """Third-party packages once, in the process that everything is forked from."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _quiet() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _forked(work: Callable[[int], int]) -> tuple[int, int]:
    """(pid, readable end) of a child that does `work(writable end)` and exits with its answer."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    os.close(read)
    code = 3
    try:
        os.setpgid(0, 0)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        code = work(write)
    finally:
        os._exit(code)


class _Loop:
    """A pytest plugin that does something else with the collected tests than running them."""

    def __init__(self, work: Callable[[dict[str, pytest.Item]], None]) -> None:
        self._work = work

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        _deterministic()
        self._work({item.nodeid: item for item in session.items})
        return True


def _deterministic() -> None:
    """Property tests try the same examples each time and do not search for smaller ones."""
    from hypothesis import Phase, settings

    settings.register_profile(
        "mutation", derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate)
    )
    settings.load_profile("mutation")


def _own_directory(item: pytest.Item) -> None:
    item.config._tmp_path_factory._basetemp = Path(tempfile.mkdtemp(prefix="mutant-"))  # type: ignore[attr-defined]


def _passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    return not any(report.failed for report in runtestprotocol(item, nextitem=following, log=False))


class _TooSlow(BaseException):
    """Ends a test from within."""


def _too_slow(*_: object) -> None:
    raise _TooSlow


def collect(files: list[str], root: Path) -> dict[str, Test]:
    """Every test by name, without running any: its time is a guess, its lines are unknown."""

    def work(write: int) -> int:
        def all_tests(items: dict[str, pytest.Item]) -> None:
            with open(write, "w") as out:
                json.dump(list(items), out)

        os.chdir(root)
        _quiet()
        return int(pytest.main([*OPTIONS, *files], plugins=[_Loop(all_tests)]))

    pid, read = _forked(work)
    with open(read) as answer:
        nodes = answer.read()
    if os.waitpid(pid, 0)[1] or not nodes:
        raise RuntimeError("the tests could not be collected: run them with pytest first")
    return {node: Test(1.0, frozenset()) for node in json.loads(nodes)}


def measure(files: list[str], root: Path, paths: list[str]) -> dict[str, Test]:
    """Every test once: its time and what it runs; slow ones are left out.

    Raises RuntimeError naming the tests that fail without any mutant.
    """

    def work(write: int) -> int:
        def all_tests(items: dict[str, pytest.Item]) -> None:
            hits: set[tuple[str, int]] = set()
            live = swap.functions({str(root / path) for path in paths})
            for path in paths:
                swap.mark(path, live[str(root / path)], hits, str(root))
            every = list(items.values())
            _own_directory(every[0])
            with open(write, "w") as out:
                signal.signal(signal.SIGALRM, _too_slow)
                for item, following in zip(every, [*every[1:], None], strict=True):
                    hits.clear()
                    began_s = time.monotonic()
                    signal.setitimer(signal.ITIMER_REAL, GIVEN_UP_S)
                    ok = _passes(item, following)
                    signal.setitimer(signal.ITIMER_REAL, 0.0)
                    print(json.dumps([item.nodeid, time.monotonic() - began_s, sorted(hits), ok]), file=out, flush=True)

        os.chdir(root)
        _quiet()
        return int(pytest.main([*OPTIONS, *files], plugins=[_Loop(all_tests)]))

    pid, read = _forked(work)
    with open(read) as lines:
        rows = [json.loads(line) for line in lines]
    if os.waitpid(pid, 0)[1] or not rows:
        raise RuntimeError("the tests could not be collected: run them with pytest first")
    rows = [row for row in rows if row[1] < TOO_SLOW_S]
    if wrong := [node for node, _, _, ok in rows if not ok]:
        raise RuntimeError(f"{len(wrong)} tests fail without any mutant, e.g. {wrong[0]}: mend them first")
    return {node: Test(s, frozenset((path, line) for path, line in hit)) for node, s, hit, _ in rows}


class _Job(NamedTuple):
    mutant: Mutant
    nodes: list[str]
    read: int
    until_s: float


class Pool:
    """Children under way, at most `jobs`."""

    def __init__(self, jobs: int, order: Order) -> None:
        self._jobs, self._order = jobs, order
        self._running: dict[int, _Job] = {}

    def start(self, mutant: Mutant, nodes: list[str], work: Callable[[int], int]) -> Iterator[Verdict]:
        """Starts one, after waiting for a place; gives what has ended meanwhile."""
        while len(self._running) >= self._jobs:
            yield self._one()
        usual_s = sum(self._order.tests[n].seconds for n in nodes)
        pid, read = _forked(work)
        self._running[pid] = _Job(mutant, nodes, read, time.monotonic() + SLOWER * usual_s + 10.0)

    def rest(self) -> Iterator[Verdict]:
        """Waits for all."""
        while self._running:
            yield self._one()

    def _one(self) -> Verdict:
        while True:
            for pid, job in self._running.items():
                done, status = os.waitpid(pid, os.WNOHANG)
                if done or time.monotonic() > job.until_s:
                    if not done:
                        _end(pid)
                    del self._running[pid]
                    return self._verdict(job, status if done else signal.SIGKILL)
            time.sleep(0.002)

    def _verdict(self, job: _Job, status: int) -> Verdict:
        with open(job.read) as answer:
            said = answer.read().strip()
        by = said if os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, 1) else TIMED_OUT
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 3:
            by = CRASHED
        self._order.killed(job.mutant, by)
        return Verdict(job.mutant, by, len(job.nodes))


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _try(items: list[pytest.Item], order: Order, write: int) -> int:
    """0 when all pass; else 1, and the name of the first that fails goes through the pipe."""
    _own_directory(items[0])
    base = items[0].config._tmp_path_factory._basetemp  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for item, following in zip(items, [*items[1:], None], strict=True):
        signal.setitimer(signal.ITIMER_REAL, SPARE_S + SLOWER * order.tests[item.nodeid].seconds)
        if not _passes(item, following):
            os.write(write, item.nodeid.encode())
            shutil.rmtree(base, ignore_errors=True)
            return 1
    shutil.rmtree(base, ignore_errors=True)
    return 0


class Fast(NamedTuple):
    """A mutant inside functions, and both codes of its file."""

    mutant: Mutant
    old: CodeType
    new: CodeType


def switched(files: list[str], root: Path, mutants: list[Fast], order: Order, jobs: int) -> Iterator[Verdict]:
    """Verdicts on mutants inside functions."""
    by_key = {fast.mutant.key: fast.mutant for fast in mutants}
    wanted = {node.partition("::")[0] for fast in mutants for node in order.of(fast.mutant)}

    def work(write: int) -> int:
        def serve(items: dict[str, pytest.Item]) -> None:
            with open(write, "w") as out:
                for verdict in _served(items, mutants, order, jobs):
                    print(json.dumps([verdict.mutant.key, verdict.by, verdict.tried]), file=out, flush=True)

        os.chdir(root)
        _quiet()
        return int(pytest.main([*OPTIONS, *(f for f in files if f in wanted)], plugins=[_Loop(serve)]))

    pid, read = _forked(work)
    with open(read) as lines:
        for line in lines:
            key, by, tried = json.loads(line)
            verdict = Verdict(by_key.pop(key), by, tried)
            order.killed(verdict.mutant, by)
            yield verdict
    os.waitpid(pid, 0)
    if by_key:
        raise RuntimeError(f"{len(by_key)} mutants got no verdict, e.g. {next(iter(by_key))}")


def _served(items: dict[str, pytest.Item], mutants: list[Fast], order: Order, jobs: int) -> Iterator[Verdict]:
    live = swap.functions({fast.old.co_filename for fast in mutants})
    gc.collect()
    gc.freeze()
    pool = Pool(jobs, order)
    for fast in mutants:
        nodes = order.of(fast.mutant)

        def work(write: int, fast: Fast = fast, nodes: list[str] = nodes) -> int:
            swap.exchange(live[fast.old.co_filename], fast.old, fast.new)
            return _try([items[node] for node in nodes], order, write)

        yield from pool.start(fast.mutant, nodes, work)
    yield from pool.rest()


class _Killer:
    """Tells the first failure through a pipe."""

    def __init__(self, write: int, order: Order) -> None:
        self._write, self._order = write, order

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        signal.setitimer(signal.ITIMER_REAL, SPARE_S + SLOWER * self._order.tests[item.nodeid].seconds)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self._write, report.nodeid.encode())


def _import_as(path: Path, text: str) -> None:
    """The file will be imported with this text."""
    usual = SourceFileLoader.get_code

    def get_code(self: Any, fullname: str) -> CodeType | None:
        return compile(text, str(path), "exec") if Path(self.path) == path else usual(self, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def imported(root: Path, mutants: Iterable[Mutant], order: Order, jobs: int) -> Iterator[Verdict]:
    """Verdicts on mutants that need everything imported anew. Nothing of ours may be imported in this process yet."""
    pool = Pool(jobs, order)
    os.chdir(root)
    for mutant in mutants:
        nodes = order.of(mutant)
        if not nodes:
            yield Verdict(mutant, "", 0)
            continue

        def work(write: int, mutant: Mutant = mutant, nodes: list[str] = nodes) -> int:
            _quiet()
            _deterministic()
            _import_as(root / mutant.path, mutant.text)
            base = tempfile.mkdtemp(prefix="mutant-")
            code = pytest.main([*OPTIONS, "-x", f"--basetemp={base}", *nodes], plugins=[_Killer(write, order)])
            shutil.rmtree(base, ignore_errors=True)
            return {pytest.ExitCode.OK: 0, pytest.ExitCode.TESTS_FAILED: 1}.get(pytest.ExitCode(code), 3)

        yield from pool.start(mutant, nodes, work)
    yield from pool.rest()
