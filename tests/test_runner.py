"""The runner: nothing starts on a used port, what dies is started again, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from firmware.runner import Policy, Ports, Process, RunError, Supervisor, ports_of, refuse_used

_BEAT = """
import os, pathlib, signal, sys, time
name, note = sys.argv[1], pathlib.Path(sys.argv[2])
def end(*_):
    with note.open("a") as file: file.write(f"{name} ended\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGHUP, lambda *_: note.open("a").write(f"{name} hup\\n"))
with note.open("a") as file: file.write(f"{name} {os.getpid()}\\n")
while True: time.sleep(0.01)
"""


class Table:
    """A supervisor over small processes that note their life in one file."""

    def __init__(self, directory: Path) -> None:
        self.note = directory / "note"
        self.note.touch()
        self.said: list[str] = []
        self.supervisor = Supervisor(directory, os.environ, self.said.append)

    def beat(self, name: str, policy: Policy = Policy.RESTART) -> None:
        lives = len(self.pids(name))
        self.supervisor.start(Process(name, ("-c", _BEAT, name, str(self.note)), policy))
        wait_until(lambda: len(self.pids(name)) > lives, 10, f"{name} runs")

    def pids(self, name: str) -> list[int]:
        rows = [line.split() for line in self.note.read_text().splitlines()]
        return [int(row[1]) for row in rows if row[0] == name and row[1].isdecimal()]

    def end_of_the_run(self) -> str:
        reasons = [""]

        def given_up() -> str:
            reasons.append(self.supervisor.check())
            return reasons[-1]

        wait_until(given_up, 20, "the supervisor gives up")
        return reasons[-1]

    def ends(self) -> list[str]:
        return [line for line in self.note.read_text().splitlines() if line.endswith("ended")]


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    made = Table(tmp_path)
    yield made
    made.supervisor.stop()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_processes_end_in_the_reverse_order_of_their_start(table: Table) -> None:
    for name in ("bench", "historian", "controller"):
        table.beat(name)
    table.supervisor.stop()
    assert table.ends() == ["controller ended", "historian ended", "bench ended"]
    assert not any(_alive(pid) for name in ("bench", "historian", "controller") for pid in table.pids(name))


def test_a_process_that_is_killed_is_started_again_with_a_line_saying_so(table: Table) -> None:
    table.beat("controller")
    os.kill(table.pids("controller")[0], signal.SIGKILL)
    wait_until(lambda: table.supervisor.check() or table.said, 5, "the death is noticed")
    wait_until(lambda: len(table.pids("controller")) == 2, 10, "the controller runs again")
    assert "controller ended by signal SIGKILL" in table.said[0]
    assert table.said[0].endswith("controller is started again")


def test_a_process_that_keeps_dying_ends_the_run_and_its_last_words_are_shown(table: Table) -> None:
    table.supervisor.start(Process("server", ("-c", "import sys; sys.exit('no such file: x')")))
    why = table.end_of_the_run()
    assert "server died 6 times within 60 s: giving up" in why
    assert "no such file: x" in why
    assert len(table.said) == 5


def test_the_end_of_the_bench_ends_the_run(table: Table) -> None:
    table.supervisor.start(Process("bench", ("-c", "import sys; sys.exit(3)"), Policy.END))
    assert "bench ended with exit code 3" in table.end_of_the_run()


def test_a_process_that_may_end_is_not_started_again(table: Table) -> None:
    table.supervisor.start(Process("site_script", ("-c", ""), Policy.LEAVE))
    wait_until(lambda: table.supervisor.check() or table.said, 10, "the end is noticed")
    assert table.said == ["site_script ended"]
    assert table.supervisor.check() == ""


def test_a_process_that_ignores_sigterm_is_killed(table: Table) -> None:
    note = table.note
    code = "import signal, sys, time; signal.signal(15, 1); open(sys.argv[1], 'a').write('deaf 1\\n'); time.sleep(60)"
    table.supervisor.start(Process("deaf", ("-c", code, str(note)), stop_s=0.2))
    wait_until(lambda: "deaf" in note.read_text(), 10, "it runs")
    table.supervisor.stop()
    assert table.said == ["deaf did not end within 0.2 s of SIGTERM: killed"]


def test_a_signal_reaches_the_process_it_is_for(table: Table) -> None:
    table.beat("server")
    table.beat("guard")
    table.supervisor.signal("server", signal.SIGHUP)
    wait_until(lambda: "server hup" in table.note.read_text(), 5, "SIGHUP arrives")
    assert "guard hup" not in table.note.read_text()


def test_the_children_end_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from firmware.runner import Process, Supervisor
supervisor = Supervisor(Path({str(tmp_path)!r}), {{}}, print)
supervisor.start(Process("child", ("-c", {_BEAT!r}, "child", {str(tmp_path / "note")!r})))
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    note = tmp_path / "note"
    wait_until(lambda: note.exists() and note.read_text().endswith("\n"), 10, "the child runs")
    child = int(note.read_text().split()[1])
    assert _alive(child)
    parent.kill()
    parent.wait()
    wait_until(lambda: not _alive(child), 5, "the child ends")


def _free_ports() -> dict[str, str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in Ports._fields]
    free = {name: str(s.getsockname()[1]) for name, s in zip(Ports._fields, sockets, strict=True)}
    for s in sockets:
        s.close()
    return free


def test_a_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as user:
        port = user.getsockname()[1]
        environ = {**os.environ, **_free_ports(), "EMS_PCS_PORT": str(port)}
        command = [sys.executable, "-m", "firmware.runner", "--headless", "--directory", str(tmp_path)]
        ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == (
        f"run: port 127.0.0.1:{port} (EMS_PCS_PORT) cannot be used: Address already in use; end the program that "
        f"serves it or choose another: EMS_PCS_PORT={port + 100} make run\n"
    )


def test_two_variables_cannot_name_the_same_port() -> None:
    free = int(_free_ports()["EMS_BMS_PORT"])
    ports = ports_of({"EMS_BENCH_PORT": str(free), "EMS_MODBUS_PORT": str(free)})
    with pytest.raises(RunError, match=f"{free} \\(EMS_BENCH_PORT\\) cannot be used"):
        refuse_used(ports)


def test_the_ports_are_those_of_the_manual_unless_the_environment_says_otherwise() -> None:
    assert ports_of({}) == (5020, 5021, 5502, 5503)
    assert ports_of({"EMS_BMS_PORT": "6000"}).EMS_BMS_PORT == 6000
    with pytest.raises(RunError, match="EMS_BMS_PORT=many: allowed 1 to 65535"):
        ports_of({"EMS_BMS_PORT": "many"})
