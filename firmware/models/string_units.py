"""Models 804 and 805: one string a unit id, every module and every cell. Values are made by firmware.string_units."""

from __future__ import annotations

from math import nan

from .common import COMMON
from .draft import BASE, Draft, Row, end, header, marker, not_implemented, placed, reserve, sf, text

FIRST_UNIT = 101
"""Unit id of the first string; the others follow."""
STRING_FIRST = BASE + 2 + 68
"""Address of model 804, behind marker and model 1."""

_INDEX = "its number, from 1"
STRING = [
    Draft("Idx", "uint16", "number of the string, from 1"),
    Draft("NMod", "uint16", "modules"),
    Draft("St", "bitfield32", "0 its BMS allows charge or discharge, 1 the rack's contactors are closed"),
    *not_implemented("enum16", "ConFail"),
    Draft("NCellBal", "uint16", "cells that are being balanced"),
    Draft("SoC", "uint16", "state of charge", unit="%", scale=0.1),
    Draft("DoD", "uint16", "depth of discharge", unit="%", scale=0.1),
    *not_implemented("uint32", "NCyc"),
    Draft("SoH", "uint16", "state of health", unit="%", scale=0.1),
    Draft("A", "int16", "string current, + is discharge", unit="A"),
    Draft("V", "uint16", "string voltage", unit="V", scale=0.1),
    Draft("CellVMax", "uint16", "highest cell", unit="V", scale=0.001),
    Draft("CellVMaxMod", "uint16", "module: " + _INDEX),
    Draft("CellVMin", "uint16", "lowest cell", unit="V", scale=0.001),
    Draft("CellVMinMod", "uint16", "module: " + _INDEX),
    Draft("CellVAvg", "uint16", "mean of its cells", unit="V", scale=0.001),
    Draft("ModTmpMax", "int16", "hottest cell", unit="degC", scale=0.1),
    Draft("ModTmpMaxMod", "uint16", "module: " + _INDEX),
    Draft("ModTmpMin", "int16", "coldest cell", unit="degC", scale=0.1),
    Draft("ModTmpMinMod", "uint16", "module: " + _INDEX),
    Draft("ModTmpAvg", "int16", "mean of its cells", unit="degC", scale=0.1),
    reserve("Pad1", 1),
    *not_implemented("bitfield32", "ConSt"),
    Draft("Evt1", "bitfield32", "25 its BMS has a stop or trip alarm, 26 a pre-alarm"),
    *not_implemented("bitfield32", "Evt2"),
    Draft("EvtVnd1", "bitfield32", "stop alarms of its BMS in bits 0-15, trip alarms in 16-30"),
    Draft("EvtVnd2", "bitfield32", "pre-alarms of its BMS"),
    *not_implemented("enum16", "SetEna SetCon"),
    sf("SoC_SF", -1),
    sf("SoH_SF", -1),
    sf("DoD_SF", -1),
    sf("A_SF", 0),
    sf("V_SF", -1),
    sf("CellV_SF", -3),
    sf("ModTmp_SF", -1),
    reserve("Pad2", 1),
    reserve("Pad3", 1),
    reserve("Pad4", 1),
]  # fmt: skip
STRING_MODULE = [
    Draft("ModNCell", "uint16", "cells in the module"),
    *not_implemented("uint16", "ModSoC ModSoH"),
    Draft("ModCellVMax", "uint16", "highest cell", unit="V", scale=0.001),
    Draft("ModCellVMaxCell", "uint16", "cell: " + _INDEX),
    Draft("ModCellVMin", "uint16", "lowest cell", unit="V", scale=0.001),
    Draft("ModCellVMinCell", "uint16", "cell: " + _INDEX),
    Draft("ModCellVAvg", "uint16", "mean of its cells", unit="V", scale=0.001),
    Draft("ModCellTmpMax", "int16", "hottest cell", unit="degC", scale=0.1),
    Draft("ModCellTmpMaxCell", "uint16", "cell: " + _INDEX),
    Draft("ModCellTmpMin", "int16", "coldest cell", unit="degC", scale=0.1),
    Draft("ModCellTmpMinCell", "uint16", "cell: " + _INDEX),
    Draft("ModCellTmpAvg", "int16", "mean of its cells", unit="degC", scale=0.1),
    reserve("Pad5", 1),
    reserve("Pad6", 1),
    reserve("Pad7", 1),
]  # fmt: skip
"""One module of model 804."""
MODULE = [
    Draft("StrIdx", "uint16", "number of the string, from 1"),
    Draft("ModIdx", "uint16", "number of the module in the string, from 1"),
    Draft("NCell", "uint16", "cells"),
    *not_implemented("uint16", "SoC DoD SoH"),
    *not_implemented("uint32", "NCyc"),
    Draft("V", "uint16", "sum of its cells", unit="V", scale=0.01),
    Draft("CellVMax", "uint16", "highest cell", unit="V", scale=0.001),
    Draft("CellVMaxCell", "uint16", "cell: " + _INDEX),
    Draft("CellVMin", "uint16", "lowest cell", unit="V", scale=0.001),
    Draft("CellVMinCell", "uint16", "cell: " + _INDEX),
    Draft("CellVAvg", "uint16", "mean of its cells", unit="V", scale=0.001),
    Draft("CellTmpMax", "int16", "hottest cell", unit="degC", scale=0.1),
    Draft("CellTmpMaxCell", "uint16", "cell: " + _INDEX),
    Draft("CellTmpMin", "int16", "coldest cell", unit="degC", scale=0.1),
    Draft("CellTmpMinCell", "uint16", "cell: " + _INDEX),
    Draft("CellTmpAvg", "int16", "mean of its cells", unit="degC", scale=0.1),
    Draft("NCellBal", "uint16", "cells that are being balanced"),
    text("SN", 16, "serial number, not implemented"),
    sf("SoC_SF", nan),
    sf("SoH_SF", nan),
    sf("DoD_SF", nan),
    sf("V_SF", -2),
    sf("CellV_SF", -3),
    sf("Tmp_SF", -1),
]  # fmt: skip
CELL = [
    Draft("CellV", "uint16", "cell voltage", unit="V", scale=0.001),
    Draft("CellTmp", "int16", "cell temperature", unit="degC", scale=0.1),
    Draft("CellSt", "bitfield32", "bit 0 = is being balanced"),
]
"""One cell of model 805."""


def string_length(modules: int) -> int:
    """L of model 804."""
    return 46 + 16 * modules


def module_length(cells: int) -> int:
    """L of each model 805."""
    return 42 + 4 * cells


def module_first(modules: int, cells: int, module: int = 0) -> int:
    """Address of the model 805 of a module, 0 based; of the end marker for `module` = `modules`."""
    return STRING_FIRST + 2 + string_length(modules) + module * (2 + module_length(cells))


def excerpt(modules: int, cells: int) -> list[Row]:
    """What the first string's unit has, with one module and one cell in place of all."""
    string = [*header(804, string_length(modules)), *STRING, *STRING_MODULE]
    module = [*header(805, module_length(cells)), *MODULE, *CELL]
    return [
        marker(BASE, FIRST_UNIT),
        *placed([*header(1, 66), *COMMON], "1", BASE + 2, FIRST_UNIT),
        *placed(string, "804", STRING_FIRST, FIRST_UNIT),
        *placed(module, "805", module_first(modules, cells), FIRST_UNIT),
        *end(module_first(modules, cells, modules), FIRST_UNIT),
    ]
