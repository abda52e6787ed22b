"""Documents made from tables: what they must say, and that a difference is named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware import docgen, label_sheet
from firmware.words import WHY, exception
from statemachine import leds
from statemachine.faults import CLEARS, FAULTS, REACTS
from statemachine.signals import Why
from statemachine.states import State


def rows_of(text: str, first: str) -> list[list[str]]:
    """Cells of the Markdown table whose header begins with the cell `first`."""
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    rows = []
    while at < len(lines) and lines[at].startswith("|"):
        rows.append([cell.strip() for cell in lines[at].strip("|").split("|")])
        at += 1
    return rows


def written(root: Path) -> None:
    for path, make in docgen.DOCUMENTS:
        made = make()
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(made if isinstance(made, bytes) else made.encode())


def test_one_changed_byte_of_the_pdf_is_a_difference(tmp_path: Path) -> None:
    written(tmp_path)
    assert docgen.stale(tmp_path) == []
    pdf = tmp_path / "docs/label-sheet.pdf"
    data = bytearray(pdf.read_bytes())
    data[12] ^= 1  # in the comment that marks the file as binary
    pdf.write_bytes(data)
    assert docgen.stale(tmp_path) == ["docs/label-sheet.pdf"]


def test_a_document_that_is_not_there_is_a_difference(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / label_sheet.SVG_PATHS[1]).unlink()
    assert docgen.stale(tmp_path) == [label_sheet.SVG_PATHS[1]]


def test_the_check_names_the_files_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path)
    (tmp_path / "docs/led-codes.md").write_text("by hand\n")
    monkeypatch.setattr(docgen, "stale", lambda: ["docs/led-codes.md", "docs/label-sheet.pdf"])
    assert docgen.main(["--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "docs/led-codes.md differs from its table; run `make docs` and commit it",
        "docs/label-sheet.pdf differs from its table; run `make docs` and commit it",
    ]


def test_the_fault_list_has_every_column_of_every_fault() -> None:
    rows = rows_of(docgen.faults_markdown(), "bit")
    assert rows == [
        [
            str(f.bit), f"`{f.name}`", f.source, f.severity.name.lower(), str(f.confirm_ms), REACTS[f.severity],
            CLEARS[f.severity], leds.pattern(f.led), f.text,
        ]
        for f in FAULTS
    ]  # fmt: skip


def test_the_led_codes_are_sorted_as_they_are_looked_up() -> None:
    text = docgen.led_codes_markdown()
    codes = [row[0] for row in rows_of(text, "FAULT")]
    assert codes[0] == "fast"
    assert codes[1:] == sorted(codes[1:])
    assert len(codes) == len(FAULTS)
    assert [row[1] for row in rows_of(text, "code")] == [state.name for state in State]


def test_every_led_has_its_patterns_in_the_led_codes() -> None:
    text = docgen.led_codes_markdown()
    for name, colour in zip(leds.NAMES, leds.COLOURS, strict=True):
        _, found, chapter = text.partition(f"\n## {name} ({colour})\n")
        assert found
        shown = [row[0] for row in rows_of(chapter, "pattern")]
        assert [code for code in shown if code != "N-M"] == [leds.pattern(code) for code in leds.MEANINGS[name]]
        assert ("N-M" in shown) == (name == "FAULT")


def test_the_led_codes_say_which_fault_hides_a_ground_fault() -> None:
    ground = next(fault for fault in FAULTS if fault.led == leds.FAST)
    hiding = [f.name for f in FAULTS if leds.fault_code(1 << ground.bit | 1 << f.bit) == f.led != ground.led]
    assert hiding == ["ERR_SUPPLY_24V"]
    assert "`ERR_SUPPLY_24V` and the ground fault first" in docgen.led_codes_markdown()


def test_every_blink_code_can_be_counted() -> None:
    digits = [(fault.led >> 4, fault.led & 15) for fault in FAULTS if fault.led > leds.FAST]
    assert all(1 <= first <= 9 and 1 <= second <= 9 for first, second in digits)


@pytest.mark.parametrize("code", [leds.OFF, leds.ON, leds.SLOW, leds.FAST, 0x11, 0x79])
def test_a_pattern_has_one_name(code: int) -> None:
    assert leds.pattern(code) == {0: "off", 1: "on", 2: "slow", 3: "fast", 0x11: "1-1", 0x79: "7-9"}[code]


@pytest.mark.parametrize("bms_ok", [True, False])
@pytest.mark.parametrize("pcs_ok", [True, False])
def test_comm_tells_the_missing_device(bms_ok: bool, pcs_ok: bool) -> None:
    comm = leds.codes(State.ISOLATED, 0, bms_ok, pcs_ok, True, False)[2]
    said = leds.MEANINGS["COMM"][comm].short
    assert ("no BMS" in said, "no PCS" in said) == (not bms_ok, not pcs_ok)


def test_kill_shows_an_open_chain_before_a_reset_that_is_due() -> None:
    kill = {
        (chain, due): leds.codes(State.ISOLATED, 0, True, True, chain, due)[4]
        for chain in (True, False)
        for due in (True, False)
    }
    assert kill == {
        (True, False): leds.OFF,
        (True, True): leds.SLOW,
        (False, True): leds.ON,
        (False, False): leds.ON,
    }


def test_every_reason_of_a_refusal_is_listed_with_its_exception() -> None:
    rows = rows_of(docgen.modbus_map_markdown(), "AckWhy")
    assert [(row[0], row[1], row[3]) for row in rows] == [(str(w.value), f"`{w.name}`", WHY[w]) for w in Why]
    listed = {row[1].strip("`"): row[2] for row in rows}
    assert (listed["NONE"], listed["READ_ONLY"], listed["OUT_OF_RANGE"]) == ("", "02", "03")
    assert (listed["NOT_IN_AUTHORITY"], listed["TOO_MANY_WRITES"]) == ("04", "06")
    assert [row[0] for row in rows_of(docgen.modbus_map_markdown(), "exception")] == [
        "01",
        "02",
        "03",
        "04",
        "06",
        "0B",
    ]


def refusals(source: str) -> Iterator[tuple[int, Why]]:
    """What `Refused(code, Why.X, ...)` says in a source text, where both are written out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refused":
            match node.args:
                case [ast.Constant(value=code), ast.Attribute(attr=name), *_]:
                    yield int(str(code)), Why[name]


def test_the_server_refuses_with_the_exceptions_that_are_listed() -> None:
    found = [pair for path in (docgen.ROOT / "firmware").glob("*.py") for pair in refusals(path.read_text())]
    assert {why for _, why in found} >= {Why.READ_ONLY, Why.OUT_OF_RANGE, Why.NOT_IN_AUTHORITY, Why.TOO_MANY_WRITES}
    assert [(code, why.name) for code, why in found if exception(why) != code] == []
