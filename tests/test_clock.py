"""The wall clock: which answers of a time server are believed, what a step is, and when the clock is trusted."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_ntp import FakeNtp, Reply, packet, stamp
from waiting import wait_until

from drivers import clock
from drivers.clock import KissOfDeath, Refused, judge, query, wall_ahead_ns
from firmware import clock as module
from firmware import config, image
from firmware.clock import KISS_S, QUERY_S, SHORTEST_S, VALID_NS, Server, Watch, middle
from statemachine.signals import Clock

SHORT_S = 0.1
HOUR_NS = 3_600_000_000_000


def lie(**changes: Any) -> Reply:
    return lambda server, question, unix_s: [packet(question, unix_s, **changes)]


def ask(reply: Reply, ahead_s: float = 0.0) -> clock.Answer:
    with FakeNtp(reply, ahead_s) as server:
        return query("127.0.0.1", server.port, SHORT_S)


def offset_s(answer: clock.Answer) -> float:
    return (answer.ahead_ns - wall_ahead_ns()) / 1e9


@pytest.mark.parametrize("ahead_s", [0.0, 0.25, -0.25, 3600.0, -3600.0])
def test_the_offset_against_a_good_server_is_positive_when_our_clock_is_slow(ahead_s: float) -> None:
    answer = ask(lie(), ahead_s)
    assert offset_s(answer) == pytest.approx(ahead_s, abs=answer.delay_s / 2 + 0.001)
    assert answer.stratum == 2


def test_the_time_that_the_server_worked_is_no_delay_and_the_way_there_is_half_of_the_rest() -> None:
    token, sent_ns = b"question", 5 * 10**9
    answer = packet(bytes(40) + token, 0.0, received=stamp(1_800_000_000.020), transmitted=stamp(1_800_000_000.050))
    found = judge(answer, token, sent_ns, sent_ns + 70_000_000)
    assert found.delay_s == pytest.approx(0.040, abs=1e-5)
    assert found.ahead_ns == pytest.approx(1_800_000_000_035_000_000 - sent_ns - 35_000_000, abs=1_000)


def test_the_offset_is_right_across_the_end_of_the_first_ntp_era_in_2036() -> None:
    until_2040_s = 2_208_988_800 - time.time()
    assert offset_s(ask(lie(), until_2040_s)) == pytest.approx(until_2040_s, abs=SHORT_S)


LIES: dict[str, tuple[Reply, str]] = {
    "not synchronised": (lie(leap=3), "not synchronised itself: stratum 2, leap 3"),
    "stratum 16": (lie(stratum=16), "not synchronised itself: stratum 16, leap 0"),
    "kiss-o'-death": (lie(stratum=0, leap=3, reference=b"RATE"), "kiss-o'-death 'RATE'"),
    "answer of a client": (lie(mode=3), "mode 3 version 4, allowed is mode 4"),
    "broadcast": (lie(mode=5), "mode 5 version 4, allowed is mode 4"),
    "version 1": (lie(version=1), "mode 4 version 1, allowed is mode 4 version 3 or 4"),
    "no transmit time": (lie(transmitted=0), "a time stamp is zero"),
    "no receive time": (lie(received=0), "a time stamp is zero"),
    "sent before it was received": (lie(received=stamp(time.time() + 86_400)), "it worked -"),
    "worked longer than we waited": (
        lie(transmitted=stamp(time.time() + 86_400)),
        "it worked .* on the answer, we waited",
    ),
    "root dispersion": (lie(root_dispersion_s=1.2), "root distance 1.2.. s, allowed up to 1 s"),
    "root delay": (lie(root_delay_s=16.0), "root distance 8.0.. s, allowed up to 1 s"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused(name: str) -> None:
    reply, text = LIES[name]
    with pytest.raises(Refused, match=text):
        ask(reply)


def _elsewhere(server: FakeNtp, question: bytes, unix_s: float) -> list[bytes]:
    server.send_from_elsewhere(packet(question, unix_s, stratum=1))
    return []


STRANGERS: dict[str, Reply] = {
    "another originate time stamp": lie(originate=b"\1\2\3\4\5\6\7\10"),
    "no originate time stamp": lie(originate=bytes(8)),
    "too short": lambda server, question, unix_s: [packet(question, unix_s)[:47]],
    "empty": lambda server, question, unix_s: [b""],
    "our own question": lambda server, question, unix_s: [question],
    "another port": _elsewhere,
    "nothing": lambda server, question, unix_s: [],
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_does_not_answer_our_question_counts_as_silence(name: str) -> None:
    before_s = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0.1 s"):
        ask(STRANGERS[name])
    assert SHORT_S <= time.monotonic() - before_s < 30 * SHORT_S


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_does_not_keep_us_from_the_answer_that_follows(name: str) -> None:
    def both(server: FakeNtp, question: bytes, unix_s: float) -> list[bytes]:
        return [*STRANGERS[name](server, question, unix_s), packet(question, unix_s)]

    assert abs(offset_s(ask(both))) < SHORT_S


def test_two_questions_carry_different_time_stamps_that_tell_nothing_of_our_clock() -> None:
    seen: list[bytes] = []

    def note(server: FakeNtp, question: bytes, unix_s: float) -> list[bytes]:
        seen.append(question)
        return [packet(question, unix_s)]

    ask(note)
    ask(note)
    assert seen[0][:40] == seen[1][:40]
    assert seen[0][40:] != seen[1][40:]
    assert abs(int.from_bytes(seen[0][40:], "big") - stamp(time.time())) > 2**40


def test_a_server_that_nobody_runs_and_a_name_that_nobody_has_are_errors() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        query("127.0.0.1", port, SHORT_S)
    with pytest.raises(OSError):
        query("no..name", port, SHORT_S)


class Libc:
    """adjtimex as the kernel may answer it."""

    def __init__(self, state: int, status: int) -> None:
        self.state, self.status, self.modes = state, status, -1

    def adjtimex(self, pointer: Any) -> int:
        timex = ctypes.cast(pointer, ctypes.POINTER(clock._Timex)).contents
        self.modes, timex.status = timex.modes, self.status
        return self.state


@pytest.mark.parametrize(
    ("state", "status", "synchronised"),
    [(0, 0x2001, True), (1, 0x0011, True), (5, 0x0040, False), (0, 0x0041, False), (5, 0, False), (-1, 0, False)],
)
def test_the_kernel_is_asked_whether_it_is_synchronised_and_changed_in_nothing(
    state: int, status: int, synchronised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc = Libc(state, status)
    monkeypatch.setattr(clock, "_libc", libc)
    assert clock.synchronised() is synchronised
    assert libc.modes == 0


def test_the_machines_own_kernel_answers_and_the_struct_is_long_enough() -> None:
    assert clock.synchronised() in (True, False)
    assert ctypes.sizeof(clock._Timex) >= 208


def test_a_look_at_the_clock_that_is_interrupted_in_its_middle_is_not_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0, 10, 500 * 10**6, 10**9, 10**9 + 20, 10**9 + 30, *[2 * 10**9] * 9])
    monkeypatch.setattr(clock, "clock_gettime_ns", lambda _: next(times))
    assert clock.wall_ahead_ns() == 0


class World:
    """A clock process in one thread, on a kernel and a wall clock of our own."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_ns, self.synchronised, self.now_ns = HOUR_NS, True, 10**12
        monkeypatch.setattr(clock, "wall_ahead_ns", lambda: self.ahead_ns)
        monkeypatch.setattr(clock, "synchronised", lambda: self.synchronised)
        monkeypatch.setattr(clock, "query", self._query)
        monkeypatch.setattr(module, "monotonic_ns", lambda: self.now_ns)
        self.says: dict[str, float | Exception] = {}  # by host: offset in s, or what it raises
        self.servers: list[Server] = []
        self._files = image.writer("clock", directory)
        self._directory, self._events = directory, image.EventReader("clock", directory)

    def _query(self, host: str, port: int, timeout_s: float) -> clock.Answer:
        said = self.says[host]
        if isinstance(said, Exception):
            raise said
        return clock.Answer(self.ahead_ns + round(said * 1e9), 0.001, 2)

    def start(self, **says: float | Exception) -> World:
        self.says |= says
        self.servers = [Server(host) for host in says]
        self._watch = Watch(self.servers, 100.0, self._files)
        return self

    def ask(self) -> World:
        for server in self.servers:
            server.ask()
        return self

    def look(self) -> Clock:
        self.now_ns += 10**9
        self._watch.look()
        found = image.View(image.CLOCK, "clock", "clock", self._directory).refresh()
        assert found is not None
        return found

    def events(self) -> list[str]:
        return [event.text for event in self._events.new()]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    yield World(tmp_path, monkeypatch)


def test_without_servers_the_kernels_account_decides(world: World) -> None:
    world.start()
    found = world.look()
    assert found.trusted and found.synchronised and found.servers_ok == 0
    assert math.isnan(found.offset_ms)
    world.synchronised = False
    assert not world.look().trusted


def test_a_clock_that_agrees_with_its_server_is_trusted_only_if_the_kernel_is_synchronised(world: World) -> None:
    world.start(a=0.040).ask()
    found = world.look()
    assert found == Clock(True, True, 40.0, 1, 0)
    world.synchronised = False
    assert world.look() == Clock(False, False, 40.0, 1, 0)


@pytest.mark.parametrize(("away_s", "trusted"), [(0.100, True), (0.101, False), (-0.100, True), (-0.101, False)])
def test_the_largest_offset_is_allowed_and_a_larger_one_is_not(world: World, away_s: float, trusted: bool) -> None:
    assert world.start(a=away_s).ask().look().trusted is trusted


def test_configured_servers_that_do_not_answer_leave_the_clock_untrusted(world: World) -> None:
    assert not world.start(a=TimeoutError("no answer within 1 s")).look().trusted
    found = world.ask().look()
    assert not found.trusted
    assert math.isnan(found.offset_ms)


def test_a_false_server_among_three_neither_makes_nor_spoils_trust(world: World) -> None:
    found = world.start(a=0.01, b=3600.0, c=-0.02).ask().look()
    assert (found.trusted, found.offset_ms, found.servers_ok) == (True, -20.0, 3)
    world.says |= {"a": 3600.0, "c": 0.0}
    assert not world.ask().look().trusted


@pytest.mark.parametrize(
    ("offsets", "is_middle"),
    [([3.0], 3.0), ([3600.0, 1.0], 1.0), ([-5.0, 1.0, 3.0], 3.0), ([9e9, -1.0, 2.0, 8e9], 2.0)],
)
def test_half_or_more_of_the_servers_are_within_the_offset(offsets: list[float], is_middle: float) -> None:
    assert middle(offsets) == is_middle


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS, 150_000_000, -101_000_000])
def test_a_step_is_counted_and_told_once(world: World, step_ns: int) -> None:
    world.start()
    assert world.look().steps == 0
    world.ahead_ns += step_ns
    assert world.look().steps == 1
    assert world.look().steps == 1
    assert world.events() == [f"CLOCK_STEP of {step_ns / 1e9:+.1f} s"]


def test_an_hour_forward_reads_as_the_contract_says(world: World) -> None:
    world.start()
    world.ahead_ns += HOUR_NS
    world.look()
    assert world.events() == ["CLOCK_STEP of +3600.0 s"]


def test_small_corrections_are_no_steps_however_many(world: World) -> None:
    world.start()
    for _ in range(100):
        world.ahead_ns += 99_000_000
        assert world.look().steps == 0
    assert world.events() == []


def test_after_a_step_the_offset_is_right_at_once_without_a_new_answer(world: World) -> None:
    world.start(a=0.0).ask()
    assert world.look().trusted
    world.ahead_ns += HOUR_NS
    found = world.look()
    assert not found.trusted
    assert found.offset_ms == -3_600_000.0


def test_a_server_that_falls_silent_is_believed_for_a_while_and_one_that_is_refused_is_not(world: World) -> None:
    world.start(a=0.0, b=0.0).ask()
    world.says |= {"a": TimeoutError("no answer within 1 s"), "b": Refused("stratum 16")}
    assert world.ask().look().servers_ok == 1
    world.now_ns += VALID_NS
    assert world.look().servers_ok == 0
    assert world.events() == ["time server b: stratum 16", "time server a: no answer within 1 s"]
    world.says |= {"a": 0.0}
    assert world.ask().look().servers_ok == 1
    assert world.events() == ["time server a: answers again"]


def test_a_server_that_was_never_asked_is_not_told_as_silent(world: World) -> None:
    world.start(a=0.0)
    world.look()
    assert world.events() == []


@pytest.mark.parametrize("failure", [TimeoutError("no answer"), Refused("a lie"), OSError(113, "No route to host")])
def test_after_a_failure_it_is_asked_sooner_at_first_and_never_more_often_than_that(
    world: World, failure: Exception
) -> None:
    server = world.start(a=0.0).servers[0]
    assert server.ask() == QUERY_S == 64.0
    world.says["a"] = failure
    assert [server.ask() for _ in range(7)] == [SHORTEST_S, 8.0, 16.0, 32.0, QUERY_S, QUERY_S, QUERY_S]
    world.says["a"] = 0.0
    assert server.ask() == QUERY_S
    world.says["a"] = failure
    assert server.ask() == SHORTEST_S


def test_a_server_that_wants_to_be_left_alone_is_left_alone(world: World) -> None:
    server = world.start(a=KissOfDeath("kiss-o'-death 'RATE'")).servers[0]
    assert server.ask() == KISS_S
    assert world.look().servers_ok == 0


class Process:
    """A clock process of its own."""

    def __init__(self, directory: Path, servers: str, port: int) -> None:
        config.prepare(directory, {"ntp_servers": servers})
        environment = {"EMS_RUN_DIR": str(directory), "EMS_CONFIG_DIR": str(directory), "EMS_NTP_PORT": str(port)}
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "firmware.clock"],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._popen.stderr is not None
        self.first_line = self._popen.stderr.readline()
        self._view = image.View(image.CLOCK, "clock", "clock", directory)
        self._reader = image.reader("clock", "clock", directory)

    @property
    def clock(self) -> Clock | None:
        return self._view.refresh()

    @property
    def looks(self) -> int:
        return self._reader.sequence

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Exit code; not a word was said since the first line."""
        self._popen.send_signal(number)
        code = self._popen.wait(10)
        assert self._popen.stderr is not None
        assert self._popen.stderr.read() == ""
        return code


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[str, int], Process]]:
    made: list[Process] = []

    def start(servers: str, port: int) -> Process:
        made.append(Process(tmp_path, servers, port))
        return made[-1]

    yield start
    for process in made:
        process.kill()


def test_the_process_looks_once_a_second_while_a_server_is_silent_and_ends_at_sigterm(
    started: Callable[[str, int], Process],
) -> None:
    with FakeNtp() as good, FakeNtp(STRANGERS["nothing"], host="127.0.0.2", port=good.port) as silent:
        process = started("127.0.0.1,127.0.0.2", good.port)
        assert process.first_line == "clock: checked by 127.0.0.1, 127.0.0.2\n"
        wait_until(lambda: (c := process.clock) is not None and c.servers_ok == 1, 5, "the good server is believed")
        looks, began_s = process.looks, time.monotonic()
        wait_until(lambda: process.looks >= looks + 2, 5, "two more looks")
        assert 0.9 < time.monotonic() - began_s < 4.0
        assert process.clock is not None
        assert abs(process.clock.offset_ms) < 100.0
        assert process.clock.steps == 0
        assert (good.asked, silent.asked >= 1) == (1, True)
    assert process.end() == 0


def test_the_process_without_servers_says_so_and_publishes(started: Callable[[str, int], Process]) -> None:
    process = started("none", 1)
    assert process.first_line == "clock: checked by no time server\n"
    wait_until(lambda: process.clock is not None, 5, "a look is published")
    assert process.end(signal.SIGINT) == 0
