"""The vendor model as SunSpec JSON: an independent client that has the file finds every vendor point by its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sunspec2.device
import sunspec2.mdef
import sunspec2.modbus.client as sunspec
from fake_appliance import Client, FakeAppliance

from firmware import docgen, model_json
from firmware.registers import POINT, POINTS, VENDOR_FIRST, VENDOR_LENGTH, VENDOR_MODEL
from statemachine.faults import FAULTS
from statemachine.signals import Mode
from statemachine.states import State

FILE = docgen.ROOT / "docs" / f"model_{VENDOR_MODEL}.json"
END = VENDOR_FIRST + 2 + VENDOR_LENGTH
OURS = [p for p in POINTS if VENDOR_FIRST + 2 <= p.address < END]


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        made.show(state=State.CHARGE_BULK, faults_active=1 << 2 | 1 << 40, setpoint_a=-500.0, dv_v=-0.25)
        yield made


@pytest.fixture
def device(appliance: FakeAppliance, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """pysunspec2 with docs/ in its path of models, after a scan."""
    monkeypatch.setattr(sunspec2.device, "model_defs_cache", {})
    monkeypatch.setattr(sunspec2.device, "model_defs_path", [str(FILE.parent), *sunspec2.device.model_defs_path])
    made = sunspec.SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr="127.0.0.1", ipport=appliance.port)
    made.scan()
    yield made
    made.close()


def definition() -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = json.loads(FILE.read_text())["group"]["points"]
    return points


@pytest.mark.parametrize("number", model_json.GROUPS)
def test_the_definition_is_valid_for_sunspecs_own_reader(number: int) -> None:
    path = FILE.with_name(f"model_{number}.json")
    assert sunspec2.mdef.validate_model_def(sunspec2.mdef.from_json_file(str(path))) == ""


def test_it_has_every_register_of_the_model_once() -> None:
    at, seen = VENDOR_FIRST, dict[str, tuple[int, int]]()
    for point in definition():
        seen[point["name"]] = at, point["size"]
        at += point["size"]
    assert at == END
    assert {p.name: (p.address, p.count) for p in OURS}.items() <= seen.items()
    assert set(seen) - {p.name for p in OURS} - {"ID", "L"} == {p["name"] for p in definition() if p["type"] == "pad"}


def test_a_sunspec_client_reads_every_point_by_name_with_value_and_scale(appliance: FakeAppliance, device: Any) -> None:
    model, site = device.models[VENDOR_MODEL][0], Client(appliance.port)
    assert (model.gname, model.error_info) == (model_json.GROUP, "")
    differ, known = [], 0
    for point in OURS:
        value, seen = site.read(point.name), getattr(model, point.name).cvalue
        known += seen is not None
        if seen is None:
            same = value != value or (point.type == "bitfield32" and value == 0xFFFFFFFF)
        else:
            same = seen == pytest.approx(value, abs=point.scale / 2)
        if not same:
            differ.append((point.name, value, seen))
    assert differ == []
    assert known > 70
    assert (model.RackA.cvalue, model.SetA.cvalue, model.DvMv.cvalue) == (-560, -500, -0.25)
    assert (model.CellVMax.cvalue, model.CellTmpMin.cvalue, model.SoH.cvalue) == (3.7, -4.5, 98)
    site.close()


def test_a_sunspec_client_commands_by_name_in_one_write(appliance: FakeAppliance, device: Any) -> None:
    model = device.models[VENDOR_MODEL][0]
    model.CmdSeq.value, model.CmdMode.value, model.CmdW.value = 7, int(Mode.CHARGE), 0
    model.CmdRamp.cvalue, model.CmdTgtSoC.cvalue = 0.25, 81.5
    model.write()
    command = appliance.command
    assert (command.seq, command.mode, command.c_rate) == (7, Mode.CHARGE, 0.25)
    assert command.target_soc_pct == pytest.approx(81.5)


def test_who_may_write_and_what_is_in_the_definition() -> None:
    points = {p["name"]: p for p in definition()}
    for point in OURS:
        assert points[point.name].get("access", "R") == point.access, point.name
        if point.values is not None:
            named = {s["name"]: s["value"] for s in points[point.name]["symbols"]}
            assert named == {v.name: v.value for v in point.values}, point.name
        elif point.access == "RW":
            assert points[point.name]["detail"] == f"{point.low:.10g} to {point.high:.10g}"


def test_every_fault_is_a_named_bit() -> None:
    points = {p["name"]: p for p in definition()}
    named = {
        symbol["name"]: symbol["value"] + first
        for name, first in (("FaultBits", 0), ("FaultBits2", 32))
        for symbol in points[name]["symbols"]
    }
    assert named == {fault.name: fault.bit for fault in FAULTS}
    assert points["FaultActive"]["symbols"] == points["FaultBits"]["symbols"]


@pytest.mark.parametrize("scale", [0.5, 3.0, 1e11, 1e-11])
def test_a_scale_that_sunspec_cannot_say_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="no power of ten"):
        model_json.exponent(scale)


def test_names_do_not_clash_with_those_of_other_models() -> None:
    """A vendor point is known by its plain name everywhere."""
    assert all(POINT[p.name].address == p.address and "." not in p.name for p in OURS)
