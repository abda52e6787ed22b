"""Clients that others wrote, and an independent dissector, against the real server. What is missing is skipped."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.probe import CHECKS, judged
from fake_appliance import FakeAppliance
from waiting import wait_until

from firmware.registers import BASE, POINT

CLIENTS = Path(__file__).parent / "clients"
NODE = Path(os.environ.get("EMS_NODE_MODULES", "build/node/node_modules")).resolve()
MODEL_1 = ["21365", "28243", "1", "66"]
WRITABLE = POINT["HbTmo"].address


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        yield made


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [p for p in programs if shutil.which(p) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def said(*command: str, **environ: str) -> list[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environ}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs("gcc")
@pytest.mark.skipif(not Path("/usr/include/modbus/modbus.h").exists(), reason="libmodbus-dev is not installed")
def test_a_libmodbus_client_reads_writes_and_understands_the_refusals(appliance: FakeAppliance, tmp_path: Path) -> None:
    program, flags = tmp_path / "client", ("-I/usr/include/modbus", "-lmodbus")
    subprocess.run(["gcc", "-o", str(program), str(CLIENTS / "read_write.c"), *flags], check=True)
    rows = said(str(program), str(appliance.port), str(BASE), "4", str(WRITABLE))
    assert rows == [
        f"fc3 4 {' '.join(MODEL_1)}", f"fc4 4 {' '.join(MODEL_1)}", "fc16 1 41", "fc23 1 42",
        "read-only -1 Illegal data address", "coils -1 Illegal function",
    ]  # fmt: skip


@needs("node")
@pytest.mark.skipif(not (NODE / "modbus-serial").exists(), reason="modbus-serial (npm) is not installed")
def test_the_client_of_node_red_gets_every_one_of_eight_answers_at_once(appliance: FakeAppliance) -> None:
    rows = said(
        "node", str(CLIENTS / "read_write.js"), str(appliance.port), str(BASE), "4", str(WRITABLE), NODE_PATH=str(NODE)
    )
    assert rows[0].startswith(f"at once {' '.join(MODEL_1)}")
    assert len(rows[0].split()) == 2 + 8
    assert rows[1:] == [f"fc3 {' '.join(MODEL_1)}", "fc16 43", "fc6 44", "read-only 2"]


@needs("mbpoll")
def test_mbpoll_reads_and_writes(appliance: FakeAppliance) -> None:
    common = ("mbpoll", "-m", "tcp", "-a", "1", "-0", "-1", "-q", "-p", str(appliance.port))
    said(*common, "-t", "4", "-r", str(WRITABLE), "127.0.0.1", "45")
    assert any(line.split()[-1:] == ["45"] for line in said(*common, "-t", "4", "-r", str(WRITABLE), "127.0.0.1"))


@contextlib.contextmanager
def captured(port: int, capture: Path) -> Iterator[None]:
    """What goes over `port` meanwhile, as a file for tshark."""
    with subprocess.Popen(
        ["tshark", "-q", "-i", "lo", "-f", f"tcp port {port}", "-w", str(capture)], stderr=subprocess.PIPE, text=True
    ) as sniffer:
        assert sniffer.stderr is not None
        errors = sniffer.stderr
        try:
            wait_until(lambda: "File:" in errors.readline(), 15, "the capture has begun")
            yield
        finally:
            sniffer.terminate()


def until_it_grows(port: int, capture: Path) -> None:
    """What was sent so far is in the file when something that was sent later is."""
    size = capture.stat().st_size

    def grown() -> bool:
        said("mbpoll", "-m", "tcp", "-a", "1", "-0", "-1", "-q", "-p", str(port), "-t", "4", "-r", str(BASE), "-c",
             "120", "127.0.0.1")  # fmt: skip
        return capture.stat().st_size > size + 2000

    wait_until(grown, 20, "packets in the capture", pause_s=0.2)


def dissected(capture: Path, port: int, wanted: str, *fields: str) -> list[str]:
    shown = ("-T", "fields", *(word for field in fields for word in ("-e", field))) if fields else ()
    return said("tshark", "-r", str(capture), "-o", f"mbtcp.tcp.port:{port}", "-Y", wanted, *shown)


MALFORMED = "(_ws.malformed || (_ws.expert.severity >= 0x600000 && mbtcp))"
CAPTURES = pytest.mark.skipif(os.geteuid() != 0, reason="a capture needs root")


@needs("tshark", "mbpoll")
@CAPTURES
def test_an_independent_dissector_finds_nothing_malformed(appliance: FakeAppliance, tmp_path: Path) -> None:
    capture, port = tmp_path / "capture.pcap", appliance.port
    with captured(port, capture):
        until_it_grows(port, capture)
        poll = ("mbpoll", "-m", "tcp", "-a", "1", "-0", "-1", "-q", "-p", str(port), "-t", "4")
        said(*poll, "-r", str(WRITABLE), "127.0.0.1", "46")
        subprocess.run([*poll, "-r", "1", "127.0.0.1"], capture_output=True, check=False)  # exception 02
    assert dissected(capture, port, MALFORMED) == []
    assert len(dissected(capture, port, "mbtcp")) > 4


@needs("tshark", "mbpoll")
@CAPTURES
def test_not_one_answer_to_the_raw_probe_is_malformed(appliance: FakeAppliance, tmp_path: Path) -> None:
    """Its questions are, often: only what the server says is judged."""
    capture, port = tmp_path / "capture.pcap", appliance.port
    with captured(port, capture):
        for check in CHECKS:
            answer, right = judged(port, check)
            assert answer == right, check.title
        until_it_grows(port, capture)
    answers = f"tcp.srcport == {port}"
    assert dissected(capture, port, f"{answers} && {MALFORMED}") == []
    seen = ",".join(dissected(capture, port, f"{answers} && !modbus.exception_code", "modbus.func_code")).split(",")
    assert {3, 4, 6, 16, 23, 43} <= {int(code) for code in seen if code}
