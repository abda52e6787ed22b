"""Models 701 to 703, 711, 714, 803 to 805: laid out as SunSpec says, big enough, and what is unknown has no value."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sunspec2.modbus.client as sunspec
from fake_appliance import READY, Client, FakeAppliance, zeros

from drivers.modbus.point import UNIMPLEMENTED
from firmware.config import Site, load
from firmware.models import battery, string_units
from firmware.models.draft import Row
from firmware.registers import AT, BASE, POINT, ROWS, Own, Sources, image, rated_charge_w, rated_discharge_w
from statemachine.faults import BY_NAME, FAULTS, SEVERE_MASK, Fault
from statemachine.signals import Pcs, Why
from statemachine.states import CLOSED, State

FIRST = {701: 40070, 702: 40225, 703: 40277, 711: 40363, 714: 40406, 803: 40648}
REPEATED = {"Prt": 1, "Ctl": 2, "string": Site().strings, "lithium_ion_string_module": 1, "lithium-ion-module-cell": 1}
"""Group -> how often the table has it; of the string units the first module and the first cell stand for all."""
OURS = {"sunssf": "int16", "pad": "int16"}
"""SunSpec's type -> what it is called here."""
MODELS = (701, 702, 703, 711, 714, 803, 804, 805)
NOTHING = Sources(None, None, None, None, None, None, None, Own(0, 0, 0, 0))


class Wanted(NamedTuple):
    """A point as SunSpec's own definition has it."""

    name: str
    address: int
    type: str
    words: int
    scale_factor: str
    tagged: bool  # IEEE 1547-2018
    mandatory: bool


def definition(model: int) -> dict[str, Any]:
    text = (files("sunspec2") / "models" / "json" / f"model_{model}.json").read_text()
    group: dict[str, Any] = json.loads(text)["group"]
    return group


def wanted(model: int) -> Iterator[Wanted]:
    """Points in the order of their addresses."""
    whole = definition(model)
    at = rows_of(model)[0].point.address
    groups = [whole, *(g for g in whole.get("groups", ()) for _ in range(REPEATED[g["name"]]))]
    for group in groups:
        for point in group["points"]:
            tagged = "IEEE 1547-2018" in point.get("standards", ())
            kind = OURS.get(point["type"], point["type"])
            yield Wanted(point["name"], at, kind, point["size"], point.get("sf", ""), tagged, "mandatory" in point)
            at += point["size"]


def rows_of(model: int) -> list[Row]:
    if model in FIRST:
        length = int(ROWS_BY_NAME[f"{model}.L"].fixed)
        return [row for row in ROWS if FIRST[model] <= row.point.address < FIRST[model] + 2 + length]
    rows = string_units.excerpt(Site().modules_per_string, Site().cells_per_module)
    return [row for row in rows if row.point.name.startswith(f"{model}.")]


ROWS_BY_NAME = {row.point.name: row for row in ROWS}


def own_name(row: Row) -> str:
    """The point's name without model and group; 714 has a second ID, of its port, which is no model's."""
    name = row.point.name.rpartition(".")[2]
    return "ID" if name == "PrtID" else name


def works(row: Row) -> bool:
    return not (row.reserve or row.point.doc.endswith("not implemented"))


@pytest.mark.parametrize("model", MODELS)
def test_every_point_is_where_sunspec_has_it(model: int) -> None:
    found = [(own_name(row), row.point.address, row.point.type, row.point.count) for row in rows_of(model)]
    assert found == [(w.name, w.address, w.type, w.words) for w in wanted(model)]


@pytest.mark.parametrize("model", MODELS)
def test_every_mandatory_point_works(model: int) -> None:
    missing = [w.name for row, w in zip(rows_of(model), wanted(model), strict=True) if w.mandatory and not works(row)]
    assert all(name.startswith("Pad") for name in missing)


@pytest.mark.parametrize("model", MODELS)
def test_a_point_that_works_has_a_scale_factor_that_says_its_scale(model: int) -> None:
    rows, scaled = rows_of(model), 0
    factors = {own_name(row): row.fixed for row in rows if own_name(row).endswith("_SF")}
    for row, point in zip(rows, wanted(model), strict=True):
        if works(row) and point.scale_factor:
            assert row.point.scale == pytest.approx(10 ** float(factors[point.scale_factor])), row.point.name
            scaled += 1
    assert scaled


@pytest.mark.parametrize("model", MODELS)
def test_a_scale_factor_of_points_that_do_not_work_is_not_implemented(model: int) -> None:
    used = {point.scale_factor for row, point in zip(rows_of(model), wanted(model), strict=True) if works(row)}
    for row in rows_of(model):
        if own_name(row).endswith("_SF"):
            assert (row.fixed == row.fixed) == (own_name(row) in used), row.point.name


@pytest.mark.parametrize(
    ("model", "working"),
    [
        (701, "St ConnSt Alrm W LLV Hz"),
        (702, "WMaxRtg WChaRteMaxRtg VNomRtg CtrlModes"),
        (703, "ES ESVHi ESVLo ESHzHi ESHzLo ESDlyTms ESRmpTms V_SF Hz_SF"),
        (711, "Ena AdptCtlReq AdptCtlRslt NCtl Db_SF K_SF RspTms_SF DbOf DbUf KOf KUf RspTms ReadOnly"),
    ],
)
def test_a_point_of_ieee_1547_works_or_is_not_implemented(model: int, working: str) -> None:
    registers = image()
    tagged = [row for row, w in zip(rows_of(model), wanted(model), strict=True) if w.tagged and row.point.count < 32]
    assert {own_name(row) for row in tagged if works(row)} - {"ID", "L"} == set(working.split())
    for row in tagged:
        if not works(row):
            at = 2 * (row.point.address - BASE)
            raw = row.point.raw(registers[at : at + 2 * row.point.count])
            assert (raw, row.value) == (UNIMPLEMENTED[row.point.type], None), row.point.name


def test_the_documents_are_written_for_the_default_number_of_strings() -> None:
    assert Site().strings == battery.STRINGS


def test_a_name_that_several_models_have_carries_its_model() -> None:
    models = (1, 701, 702, 703, 704, 711, 713, 714, 715, 802, 803)
    names = {model: {point["name"] for point in definition(model)["points"]} - {"Pad"} for model in models}
    several = {name for name, count in Counter(n for model in models for n in names[model]).items() if count > 1}
    plain = {(model, name) for model in models for name in names[model] & several if f"{model}.{name}" not in POINT}
    assert plain == {(802, "WChaRteMax"), (802, "WDisChaRteMax")}, "the two that were published first"


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (5e6, "701.W DCW Prt.DCW WMaxRtg WChaRteMaxRtg WDisChaRteMaxRtg WMax 702.WChaRteMax 702.WDisChaRteMax"),
        (-5e6, "701.W DCW Prt.DCW"),
        (5e6 / 900, "DCA Prt.DCA StrAMax StrAMin StrAAvg string1.StrA"),
        (-5e6 / 900, "DCA Prt.DCA StrAMax StrAMin StrAAvg string1.StrA"),
        (1500, "Prt.DCV StrVMax StrVMin StrVAvg"),
        (100, "string1.StrSoC string1.StrSoH"),
        (-40, "ModTmpMin string1.StrModTmpMin"),
        (65, "Hz ESHzHi"),
        (1, "Ctl1.KOf"),
        (5000, "LLV VNomRtg"),
    ],
)
def test_scales_fit_a_rack_of_5_mw_and_1500_v(value: float, names: str) -> None:
    for name in names.split():
        point = POINT[name]
        assert point.decode(point.encode(value)) == pytest.approx(value, abs=point.scale / 2), name


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (5e6 / 900, "804.A"),
        (-5e6 / 900, "804.A"),
        (1500, "804.V"),
        (100, "804.SoC 804.DoD 804.SoH"),
        (64 * 5.0, "805.V"),
        (5.0, "804.CellVMax 804.ModCellVMax 805.CellVMax 805.CellV"),
        (-40, "804.ModTmpMin 804.ModCellTmpMin 805.CellTmpMin 805.CellTmp"),
    ],
)
def test_scales_of_the_string_units_fit_as_well(value: float, names: str) -> None:
    points = {row.point.name: row.point for row in string_units.excerpt(1, 1)}
    for name in names.split():
        assert points[name].decode(points[name].encode(value)) == pytest.approx(value, abs=points[name].scale / 2), name


class Scan:
    """What an independent SunSpec client finds on unit 1."""

    def __init__(self, appliance: FakeAppliance) -> None:
        self._device = sunspec.SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr="127.0.0.1", ipport=appliance.port)
        self._device.scan()
        self._device.close()

    def __getitem__(self, model: int) -> Any:
        return self._device.models[model][0]

    def value(self, model: int, name: str) -> Any:
        return getattr(self[model], name).cvalue


def symbols(model: int, point: str) -> dict[str, int]:
    """Of an enumeration or bit field, as SunSpec defines it."""
    group = definition(model)
    points = [*group["points"], *(p for g in group.get("groups", ()) for p in g["points"])]
    return {s["name"]: s["value"] for p in points if p["name"] == point for s in p["symbols"]}


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        yield made


def charging(appliance: FakeAppliance, sign: float = -1.0) -> None:
    appliance.pcs = zeros(Pcs, dc_v=1101.0, dc_a=sign * 560.0, ac_w=sign * 623_000.0, ac_hz=50.02, ac_v=402.5)
    appliance.show(state=State.CHARGE_BULK, pcs_run=True)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_ac_and_dc_side_are_what_the_pcs_measures_and_discharge_is_positive(
    appliance: FakeAppliance, sign: float
) -> None:
    charging(appliance, sign)
    scan = Scan(appliance)
    assert scan.value(701, "W") == pytest.approx(sign * 623_000, abs=500)
    assert scan.value(701, "Hz") == pytest.approx(50.02)
    assert scan.value(701, "LLV") == pytest.approx(402.5)
    assert scan.value(714, "DCA") == sign * 560
    assert scan.value(714, "DCW") == pytest.approx(sign * 1101 * 560, abs=500)
    port = scan[714].Prt[0]
    assert (port.PrtTyp.value, scan.value(714, "NPrt")) == (symbols(714, "PrtTyp")["ESS"], 1)
    assert (port.DCA.cvalue, port.DCV.cvalue) == (sign * 560, 1101)
    assert port.DCW.cvalue == scan.value(714, "DCW")


def test_what_the_pcs_does_not_measure_is_none_for_a_sunspec_client(appliance: FakeAppliance) -> None:
    charging(appliance)
    scan = Scan(appliance)
    for model, names in {
        701: "VA Var PF A LNV VL1L2 VL3 TotWhInj TotVarhAbsL3 TmpCab ThrotPct DERMode PF_SF",
        702: "VAMaxRtg VarMaxInjRtg AMaxRtg NorOpCatRtg IntIslandCatRtg VAMax VNom S_SF",
        714: "DCWhInj DCWhAbs Tmp_SF",
    }.items():
        assert {name: getattr(scan[model], name).value for name in names.split()} == dict.fromkeys(names.split())


@pytest.mark.parametrize("name", ["701.W", "Hz", "LLV", "DCA", "DCW", "Prt.DCA", "Prt.DCV", "Prt.DCW"])
def test_without_the_pcs_there_is_no_old_value(name: str) -> None:
    assert value_of(name, pcs=zeros(Pcs, dc_v=1101.0, dc_a=1.0, ac_w=1.0, ac_hz=50.0, ac_v=400.0)) >= 1
    lost = value_of(name)
    assert lost != lost, "nan"


def test_ratings_and_settings_are_those_of_the_configuration(appliance: FakeAppliance) -> None:
    settings, scan = load(appliance.config_dir).settings, Scan(appliance)
    for name in ("WMaxRtg", "WDisChaRteMaxRtg", "WMax", "WDisChaRteMax"):
        assert scan.value(702, name) == pytest.approx(rated_discharge_w(settings), abs=50), name
    for name in ("WChaRteMaxRtg", "WChaRteMax"):
        assert scan.value(702, name) == pytest.approx(rated_charge_w(settings), abs=50), name
    assert scan.value(702, "VNomRtg") == settings.nominal_voltage == 400.0


def test_the_control_modes_that_are_advertised_are_those_that_work(appliance: FakeAppliance) -> None:
    known = symbols(702, "CtrlModes")
    wanted = 1 << known["MAX_W"] | 1 << known["FIXED_W"] | 1 << known["FREQ_WATT"]
    assert Scan(appliance).value(702, "CtrlModes") == wanted


def test_a_pcs_that_measures_no_voltage_shows_none(appliance: FakeAppliance) -> None:
    appliance.pcs = zeros(Pcs, ac_v=float("nan"))
    appliance.show(state=State.READY)
    assert Scan(appliance)[701].LLV.value is None


@pytest.mark.parametrize("name", ["WMax", "702.WChaRteMax", "VNom", "701.W"])
def test_settings_cannot_be_written(appliance: FakeAppliance, name: str) -> None:
    site = Client(appliance.port)
    assert site.write_raw(POINT[name].address, [1]) == 2
    assert (site.read("AckWhy"), site.read("RefAddr")) == (Why.READ_ONLY, POINT[name].address)
    site.close()


@pytest.mark.parametrize(
    ("state", "running", "operation", "inverter", "connection"),
    [
        (State.INIT, False, "OFF", "OFF", "DISCONNECTED"),
        (State.ISOLATED, False, "OFF", "OFF", "DISCONNECTED"),
        (State.PRECHARGE, False, "OFF", "STARTING", "DISCONNECTED"),
        (State.READY, True, "ON", "STANDBY", "CONNECTED"),
        (State.CHARGE_ABSORB, True, "ON", "RUNNING", "CONNECTED"),
        (State.GRID_SUPPORT, True, "ON", "RUNNING", "CONNECTED"),
        (State.STOPPING, False, "ON", "SHUTTING_DOWN", "DISCONNECTED"),
        (State.FAULT, False, "OFF", "FAULT", "DISCONNECTED"),
        (State.LOCKOUT, False, "OFF", "FAULT", "DISCONNECTED"),
    ],
)
def test_states_in_sunspecs_words(
    appliance: FakeAppliance, state: State, running: bool, operation: str, inverter: str, connection: str
) -> None:
    appliance.show(state=state, pcs_run=running)
    scan = Scan(appliance)
    assert scan.value(701, "St") == symbols(701, "St")[operation]
    assert scan.value(701, "InvSt") == symbols(701, "InvSt")[inverter]
    assert scan.value(701, "ConnSt") == symbols(701, "ConnSt")[connection]


@pytest.mark.parametrize("state", State)
def test_the_inverter_runs_or_stands_by_only_with_closed_contactors(appliance: FakeAppliance, state: State) -> None:
    appliance.show(state=state)
    site = Client(appliance.port)
    closed = {symbols(701, "InvSt")[name] for name in ("RUNNING", "STANDBY", "SHUTTING_DOWN")}
    assert (site.read("InvSt") in closed) == (state in CLOSED)
    site.close()


ALARMS = {
    "ERR_KILL_SWITCH": "MANUAL_SHUTDOWN", "ERR_TAMPER": "CABINET_OPEN", "ERR_GROUND_FAULT": "GROUND_FAULT",
    "ERR_MAX_V_EXCEEDED": "DC_OVER_VOLT", "ERR_CELL_OVERVOLTAGE": "DC_OVER_VOLT", "ERR_DC_OVERVOLTAGE": "DC_OVER_VOLT",
    "ERR_OVER_TEMPERATURE": "OVER_TEMP", "ERR_THERMAL_TRIP": "OVER_TEMP", "ERR_CONTACTOR_DROPPED": "DC_DISCONNECT",
}  # fmt: skip
PORT_ALARMS = {
    "DC_OVER_VOLT": "INPUT_OVER_VOLTAGE", "ERR_MIN_V_EXCEEDED": "INPUT_UNDER_VOLTAGE",
    "ERR_OVERCURRENT": "INPUT_OVER_CURRENT",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_severe_fault_is_an_alarm_and_no_warning_is(fault: Fault) -> None:
    status = READY._replace(faults_latched=1 << fault.bit)
    severe = bool(SEVERE_MASK >> fault.bit & 1)
    name = ALARMS.get(fault.name, "MANUFACTURER_ALRM" if severe else "")
    assert value_of("Alrm", status=status) == (1 << symbols(701, "Alrm")[name] if name else 0)
    port = PORT_ALARMS.get(ALARMS.get(fault.name, fault.name), ALARMS.get(fault.name, ""))
    assert value_of("Prt.DCAlrm", status=status) == (1 << symbols(714, "DCAlrm")[port] if port else 0)
    assert value_of("PrtAlrms", status=status) == bool(port)
    assert value_of("Prt.DCSta", status=status) == symbols(714, "DCSta")["ERROR" if severe else "WARNING"]


def value_of(name: str, **known: Any) -> float:
    """What a point shows when nothing but `known` is there."""
    row = AT[POINT[name].address - BASE]
    assert row.value is not None
    value = row.value(NOTHING._replace(**known))
    assert not isinstance(value, str)
    return value


def test_two_faults_of_one_alarm_are_one_bit() -> None:
    status = READY._replace(faults_active=1 << 4 | 1 << 5, faults_latched=1 << BY_NAME["ERR_DC_OVERVOLTAGE"].bit)
    assert value_of("Alrm", status=status) == 1 << symbols(701, "Alrm")["DC_OVER_VOLT"]
    assert value_of("Prt.DCAlrm", status=status) == 1 << symbols(714, "DCAlrm")["INPUT_OVER_VOLTAGE"]


@pytest.mark.parametrize(("state", "seen"), [(State.ISOLATED, "OFF"), (State.READY, "ON")])
def test_the_dc_port_is_on_while_the_contactors_are_closed(state: State, seen: str) -> None:
    assert value_of("Prt.DCSta", status=READY._replace(state=state)) == symbols(714, "DCSta")[seen]
