"""The register map is complete, final, and big enough for a rack of 5 MW and 1,500 V."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import sunspec2.modbus.client as sunspec
from fake_appliance import FakeAppliance
from hypothesis import example, given
from hypothesis import strategies as st

from drivers.modbus.point import UNIMPLEMENTED, width
from firmware import docgen
from firmware.config import Site
from firmware.registers import AT, BASE, BESIDE, END, POINT, POINTS, ROWS, UPDATE_LENGTH, get, image, put

MODELS = {
    1: (40002, 66),
    704: (40296, 65),
    713: (40397, 7),
    715: (40451, 7),
    802: (40460, 62),
    64990: (40524, 122),
    64991: (40804, 23),
}
FINAL = {
    "SunS": 40000, "Mn": 40004, "SN": 40052, "WSetEna": 40318, "WSetMod": 40319, "WSet": 40320, "WSetRvrt": 40322,
    "WSetPct": 40324, "WSetPctRvrt": 40325, "WSetEnaRvrt": 40326, "WSetRvrtTms": 40327, "WSetRvrtRem": 40329,
    "PFWAbsRvrt.Ext": 40362, "713.SoC": 40401, "Sta": 40403, "DERHb": 40454, "ControllerHb": 40456,
    "AlarmReset": 40458, "OpCtl": 40459, "802.SoC": 40471, "Hb": 40478, "802.CtrlHb": 40479, "AlmRst": 40480,
    "Evt1": 40486, "802.V": 40494, "802.A": 40504, "802.W": 40507, "SetOp": 40510, "802.W_SF": 40523,
    "CmdSeq": 40526, "CmdMode": 40528, "CmdW": 40529, "CmdRamp": 40531, "CmdTgtSoC": 40532, "CtrlHb": 40533,
    "AckFaults": 40534, "HbTmo": 40535, "LossPol": 40536, "AckSeq": 40540, "AckResult": 40542, "AckWhy": 40543,
    "RefAddr": 40544, "CmfState": 40545, "ChaLimA": 40546, "DisLimA": 40547, "LimReason": 40548, "Soc": 40558,
    "RackV": 40560, "RackA": 40562, "CellVMax": 40565, "FaultBits": 40573, "FaultActive": 40581, "LedRun": 40585,
    "LedKill": 40589, "Interlocks": 40590, "GuardArmed": 40594, "ScanOverruns": 40597, "ScanWakeP99us": 40605,
    "StatusBits": 40612, "CfgRev": 40634, "ES": 40279, "ESVHi": 40280, "ESVLo": 40281, "ESHzHi": 40282,
    "ESHzLo": 40284, "ESDlyTms": 40286, "ESRmpTms": 40290, "ESDlyRemTms": 40292, "WMaxLimPctEna": 40310,
    "WMaxLimPct": 40311, "WMaxLimPctRvrtTms": 40314, "WMaxLimPctRvrtRem": 40316, "711.Ena": 40365, "AdptCtlReq": 40366,
    "AdptCtlRslt": 40367, "711.RvrtTms": 40369, "711.RvrtCtl": 40373, "Ctl1.DbOf": 40377, "Ctl1.ReadOnly": 40386,
    "Ctl2.DbOf": 40387, "Ctl2.PMin": 40395, "UpdState": 40580, "UpdProgress": 40806, "UpdResult": 40807,
    "UpdSlot": 40809, "UpdRunning": 40813, "UpdOffered": 40821,
}  # fmt: skip


def test_every_register_belongs_to_one_point_without_gap() -> None:
    at = BASE
    for row in ROWS:
        assert row.point.address == at, row.point.name
        at = row.point.end
    assert at == END == 40648 + 28 + 32 * Site().strings + (2 + UPDATE_LENGTH) + 2
    assert len(AT) == len(image()) // 2 == END - BASE


def test_names_are_unique() -> None:
    assert len(POINT) == len(POINTS) + len(BESIDE)


def test_addresses_are_the_published_ones() -> None:
    assert {name: POINT[name].address for name in FINAL} == FINAL


@pytest.mark.parametrize("model", MODELS)
def test_model_headers(model: int) -> None:
    first, length = MODELS[model]
    assert POINT[f"{model}.ID"].address == first
    assert (get(image(), f"{model}.ID"), get(image(), f"{model}.L")) == (model, length)


@pytest.mark.parametrize("model", [1, 704, 713, 715, 802])
def test_models_have_sunspecs_own_points_at_their_offsets(model: int) -> None:
    text = (files("sunspec2") / "models" / "json" / f"model_{model}.json").read_text()
    at = MODELS[model][0]
    for wanted in json.loads(text)["group"]["points"]:
        if wanted["name"] not in ("ID", "L", "Pad"):
            point = POINT.get(f"{model}.{wanted['name']}") or POINT[wanted["name"]]
            assert (point.address, point.count) == (at, wanted["size"]), point.name
            kind = {"sunssf": "int16"}.get(wanted["type"], wanted["type"])
            assert point.type == kind, point.name
        at += wanted["size"]


def test_mandatory_points_of_802_have_a_value() -> None:
    text = (files("sunspec2") / "models" / "json" / "model_802.json").read_text()
    for wanted in json.loads(text)["group"]["points"]:
        if wanted.get("mandatory") == "M":
            name = wanted["name"]
            row = AT[(POINT.get(f"802.{name}") or POINT[name]).address - BASE]
            assert row.value is not None or row.fixed == row.fixed, name


def test_widths_agree_with_types() -> None:
    assert all(p.count == width(p.type) for p in POINTS if p.type != "string")


def test_writable_points_say_what_they_take() -> None:
    for point in POINTS:
        if point.access == "RW":
            assert point.low is not None and point.high is not None and point.low <= point.high, point.name
            assert point.decode(point.encode(point.low)) == pytest.approx(point.low), point.name
            assert point.decode(point.encode(point.high)) == pytest.approx(point.high), point.name


def test_command_part_is_one_writable_block() -> None:
    block = [row.point for row in AT[POINT["CmdSeq"].address - BASE : POINT["ValidMs"].end - BASE]]
    assert {point.access for point in block} == {"RW"}
    assert (POINT["CmdSeq"].address, len(block)) == (40526, 14), "a frame of redundant masters is one FC16"


def test_set_point_group_is_one_writable_block() -> None:
    assert {AT[address - BASE].point.access for address in range(40318, 40329)} == {"RW"}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (5e6, "WSet CmdW WEff WAvailCha WAvailDis 802.W ReqW WChaRteMax WDisChaRteMax WSetAct"),
        (-5e6, "WSet CmdW WEff 802.W ReqW WSetAct"),
        (5e6 / 900, "802.A AChaMax ADisChaMax ChaLimA DisLimA SetA RackA"),
        (-5e6 / 900, "802.A SetA RackA"),
        (1500, "802.V RackV PcsV 802.VMax"),
        (20e6, "713.WHRtg 802.WHRtg"),
        (100, "713.SoC 802.SoC Soc SoH"),
    ],
)
def test_scales_fit_a_rack_of_5_mw_and_1500_v(value: float, names: str) -> None:
    for name in names.split():
        point = POINT[name]
        assert point.decode(point.encode(value)) == pytest.approx(value, abs=point.scale), name


def test_scale_factors_are_those_the_points_use() -> None:
    for model, pairs in {
        704: "WSet:WSet_SF WSetPct:WSetPct_SF", 713: "WHRtg:WH_SF SoC:Pct_SF SoH:Pct_SF",
        802: "AHRtg:AHRtg_SF WHRtg:WHRtg_SF WChaRteMax:WChaDisChaMax_SF SoC:SoC_SF DoD:DoD_SF SoH:SoH_SF V:V_SF "
        "CellVMax:CellV_SF A:A_SF AChaMax:AMax_SF W:W_SF ReqW:W_SF",
    }.items():  # fmt: skip
        for pair in pairs.split():
            point, factor = (f"{model}.{n}" if f"{model}.{n}" in POINT else n for n in pair.split(":"))
            assert POINT[point].scale == pytest.approx(10 ** get(image(), factor)), point


def test_discharge_is_positive_on_the_wire() -> None:
    registers = image()
    put(registers, "RackA", -560.0)
    at = 2 * (POINT["RackA"].address - BASE)
    assert int.from_bytes(registers[at : at + 4], "big", signed=True) == -5600


@given(st.binary(min_size=2, max_size=8))
@example(b"\xff\xff")
@example(b"\x80\0")
@example(b"\x80\0\0\0")
def test_get_says_what_the_point_decodes(pattern: bytes) -> None:
    registers = bytearray((pattern * (END - BASE))[: 2 * (END - BASE)])
    for point in POINTS:
        if point.type != "string":
            at = 2 * (point.address - BASE)
            expected = point.decode(registers[at : at + 2 * point.count])
            assert repr(get(registers, point.name)) == repr(expected), point.name


def test_reserve_reads_as_pad_and_missing_values_as_not_implemented() -> None:
    registers = image()
    reserved = [row.point for row in ROWS if row.reserve]
    assert "Pad2" in [point.name for point in reserved]
    for point in reserved:
        assert registers[2 * (point.address - BASE) : 2 * (point.end - BASE)] == b"\x80\x00" * point.count
    assert POINT["CmfState"].raw(registers[2 * (40545 - BASE) : 2 * (40546 - BASE)]) == UNIMPLEMENTED["enum16"]


def test_a_sunspec_client_scans_the_map(tmp_path: Path) -> None:
    with FakeAppliance(tmp_path) as appliance:
        device = sunspec.SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr="127.0.0.1", ipport=appliance.port)
        device.scan()
        assert [model.model_id for model in device.model_list] == [1, 701, 702, 703, 704, 711, 713, 714, 715, 802, 803]
        common, storage, battery = device.models[1][0], device.models[713][0], device.models[802][0]
        controls, control = device.models[704][0], device.models[715][0]
        assert common.Md.value == "EMS-1"
        assert storage.SoC.cvalue == pytest.approx(42.5)
        assert battery.W.cvalue == pytest.approx(-616_000)
        assert battery.CellVMax.cvalue == pytest.approx(3.7)
        assert control.LocRemCtl.value == 0
        controls.WSetEna.value, controls.WSet.cvalue, controls.WSetRvrtTms.value = 1, -250_000, 30
        controls.write()
        assert (appliance.command.wset_enabled, appliance.command.wset_w) == (True, -250_000)
        device.close()


def test_generated_documents_are_current() -> None:
    assert docgen.stale() == []
