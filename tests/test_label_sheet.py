"""The printed front panel: to scale, nothing clipped or overlapping, all codes there, the same bytes always."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from firmware import drawing, label_sheet
from firmware.drawing import Box, Disc, Line, Page, Shape, Text
from statemachine import leds
from statemachine.faults import FAULTS, Fault, Severity

SHEETS = label_sheet.sheets()
SVG = "{http://www.w3.org/2000/svg}"
Rect = tuple[float, float, float, float]  # left, top, right, bottom


def words(page: Page) -> list[Text]:
    return [shape for shape in page if isinstance(shape, Text)]


def around(text: Text) -> Rect:
    """The ink of a text, by the widths of Helvetica."""
    high, wide = text.size * drawing.MM_PER_PT, drawing.width_mm(text.text, text.size, text.bold)
    left = text.x - text.align * wide
    return left, text.y - drawing.ASCENT * high, left + wide, text.y + drawing.DESCENT * high


def overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(inner: Rect, outer: Rect) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def extent(shape: Shape) -> Rect:
    match shape:
        case Text():
            return around(shape)
        case Box(x, y, w, h):
            return x, y, x + w, y + h
        case Disc(x, y, r):
            return x - r, y - r, x + r, y + r
    return min(shape.x1, shape.x2), min(shape.y1, shape.y2), max(shape.x1, shape.x2), max(shape.y1, shape.y2)


def faults_in(pages: list[Page]) -> list[str]:
    return [text.text for page in pages for text in words(page) if text.text.startswith("ERR_")]


def a_long_catalogue(count: int) -> list[Fault]:
    """As many faults as there are codes, each with a text of the longest kind."""
    text = "A condition that takes a hundred and more characters to say. " * 2 + "Mend it, press reset, acknowledge."
    name = "ERR_CELL_DEEP_DISCHARGE_X"
    return [Fault(n, name, "bms", Severity.LOCKOUT, 0, (1 + n // 9) << 4 | 1 + n % 9, text) for n in range(count)]


@pytest.mark.parametrize(("name", "bold"), [("Helvetica", False), ("Helvetica-Bold", True)])
def test_the_widths_are_those_of_adobe(name: str, bold: bool) -> None:
    afm = Path(matplotlib.get_data_path()) / "fonts" / "pdfcorefonts" / f"{name}.afm"
    rows = re.findall(r"^C (-?\d+) ; WX (\d+) ; N (\w+)", afm.read_text(), re.MULTILINE)
    widths = {chr(int(code)): int(wide) for code, wide, _ in rows if 32 <= int(code) < 127}
    named = {glyph: int(wide) for _, wide, glyph in rows}
    widths |= {
        "'": named["quotesingle"],
        "`": named["grave"],
    }  # WinAnsi
    one_em_pt = 1.0 / drawing.MM_PER_PT
    measured = {chr(code): round(1000 * drawing.width_mm(chr(code), one_em_pt, bold)) for code in range(32, 127)}
    assert measured == widths


@pytest.mark.parametrize("page", SHEETS)
def test_every_text_fits_its_room(page: Page) -> None:
    for text in words(page):
        assert drawing.width_mm(text.text, text.size, text.bold) <= text.room + 1e-6, text


@pytest.mark.parametrize("page", SHEETS)
def test_no_two_texts_overlap(page: Page) -> None:
    touching = [(a.text, b.text) for a, b in combinations(words(page), 2) if overlap(around(a), around(b))]
    assert touching == []


@pytest.mark.parametrize("page", SHEETS)
def test_no_line_or_edge_of_a_box_crosses_a_text(page: Page) -> None:
    lines = [shape for shape in page if isinstance(shape, Line)]
    boxes = [shape for shape in page if isinstance(shape, Box | Disc)]
    for text in words(page):
        ink = around(text)
        assert not [line for line in lines if overlap(ink, extent(line))], text
        crossing = [box for box in boxes if overlap(ink, extent(box)) and not inside(ink, extent(box))]
        assert crossing == [], text


@pytest.mark.parametrize("page", SHEETS)
def test_everything_stands_inside_what_a_printer_can_print(page: Page) -> None:
    sheet = 6.0, 6.0, drawing.WIDTH_MM - 6.0, drawing.HEIGHT_MM - 6.0
    assert [shape for shape in page if not inside(extent(shape), sheet)] == []


def test_a_text_too_wide_for_its_room_would_be_seen() -> None:
    assert drawing.width_mm("Helvetica", 10.0) == pytest.approx(41.12 * drawing.MM_PER_PT, abs=0.01)
    assert drawing.width_mm("Helvetica", 10.0, bold=True) > drawing.width_mm("Helvetica", 10.0)
    with pytest.raises(ValueError, match=r"label text '°C' has a character that is not printable ASCII"):
        drawing.width_mm("°C", 10.0)
    with pytest.raises(ValueError, match=r"label word 'acknowledge.' is wider than 10 mm at 9 pt"):
        drawing.wrapped("press reset, acknowledge.", 10.0, 9.0)


def test_a_number_stays_with_its_unit() -> None:
    assert drawing.wrapped("hold RESET for 10 s, acknowledge", 28.0, 9.0) == ["hold RESET for", "10 s, acknowledge"]


def test_the_ruler_is_100_mm_and_the_label_160_by_60() -> None:
    long = [shape for shape in SHEETS[0] if isinstance(shape, Line) and shape.x2 - shape.x1 == 100.0]
    assert [line.y1 == line.y2 for line in long] == [True]
    assert any(isinstance(s, Box) and (s.w, s.h) == (160.0, 60.0) for s in SHEETS[0])


def test_each_led_has_a_window_in_its_colour_30_mm_from_the_next() -> None:
    windows = [s for s in SHEETS[0] if isinstance(s, Disc) and s.r == label_sheet.WINDOW_R]
    rings = [s.stroke for s in SHEETS[0] if isinstance(s, Disc) and s.width > 1.0]
    assert [b.x - a.x for a, b in pairwise(windows)] == [label_sheet.LED_PITCH] * 4
    assert len(rings) == 5
    assert rings[3] == rings[4] != rings[0]
    names = [text for text in words(SHEETS[0]) if text.text in leds.NAMES and text.size == 11]
    assert [text.text for text in names] == list(leds.NAMES)
    assert [text.x for text in names] == [window.x for window in windows]


def test_every_pattern_of_an_led_is_on_the_panel() -> None:
    shown = [text.text for text in words(SHEETS[0])]
    for name in leds.NAMES:
        for code, meaning in leds.MEANINGS[name].items():
            assert shown.count(meaning.short) >= 2, "on the label and in the chart"
            assert leds.pattern(code) in shown


def test_every_fault_is_on_the_door_in_the_order_of_its_code() -> None:
    door = list(SHEETS[1:])
    assert faults_in(door) == [fault.name for fault in sorted(FAULTS, key=lambda fault: fault.led)]
    codes = [text.text for page in door for text in words(page) if text.align == 0.5]
    assert codes == [leds.pattern(fault.led) for fault in sorted(FAULTS, key=lambda fault: fault.led)]


def test_the_door_takes_a_full_catalogue_of_long_texts_in_readable_type() -> None:
    pages = label_sheet.door_sheets(a_long_catalogue(62))
    assert len(faults_in(pages)) == 62
    for page in pages:
        test_every_text_fits_its_room(page)
        test_no_two_texts_overlap(page)
        test_everything_stands_inside_what_a_printer_can_print(page)
        assert min(text.size for text in words(page)) >= 6.0


def test_a_catalogue_that_no_longer_fits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"200 faults do not fit 2 door sheets at 7 pt: add a sheet"):
        label_sheet.door_sheets(a_long_catalogue(200))


def test_a_drawn_pattern_is_lit_when_the_led_is() -> None:
    drawn = label_sheet.timeline(0x23, Box(10.0, 0.0, 100.0, 2.0, "#000000"), 1000 * 6)
    blinks = [(shape.x, shape.w) for shape in drawn if isinstance(shape, Box)]
    for ms in range(0, 6000, 50):
        at = 10.0 + (ms + 1) * 100.0 / 6000
        assert any(x <= at < x + w for x, w in blinks) == leds.level(0x23, ms), ms


@pytest.mark.parametrize("number", range(len(SHEETS)))
def test_an_svg_sheet_is_a4_in_millimetres_with_all_texts(number: int) -> None:
    root = ElementTree.fromstring(label_sheet.svg_sheet(number))
    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("210mm", "297mm", "0 0 210 297")
    drawn = {(node.text, node.get("x"), node.get("textLength")) for node in root.iter(f"{SVG}text")}
    assert len(list(root.iter(f"{SVG}text"))) == len(words(SHEETS[number]))
    for text in words(SHEETS[number]):
        left, _, right, _ = around(text)
        assert any(
            said == text.text and float(x or 0) == pytest.approx(left, abs=0.001)
            and float(wide or 0) == pytest.approx(right - left, abs=0.001) for said, x, wide in drawn
        ), text  # fmt: skip


def objects(data: bytes) -> list[bytes]:
    """Bodies of the PDF's objects, found through its cross-reference table as a reader finds them."""
    start = int(re.findall(rb"startxref\n(\d+)\n%%EOF\n$", data)[0])
    head = re.match(rb"xref\n0 (\d+)\n", data[start:])
    assert head
    count, at = int(head[1]), start + head.end()
    rows = [data[at + 20 * n : at + 20 * n + 20] for n in range(count)]
    assert rows[0] == b"0000000000 65535 f \n"
    assert data[at + 20 * count :].startswith(b"trailer\n<< /Size %d /Root 1 0 R" % count)
    found = []
    for number, row in enumerate(rows[1:], start=1):
        match = re.fullmatch(rb"(\d{10}) 00000 n \n", row)
        assert match
        body = data[int(match[1]) :]
        assert body.startswith(b"%d 0 obj\n" % number)
        found.append(body[: body.index(b"\nendobj\n")])
    return found


def test_the_pdf_is_well_formed() -> None:
    data = label_sheet.pdf_sheets()
    assert data.startswith(b"%PDF-1.4\n")
    found = objects(data)
    pages = [body for body in found if b"/Type /Page " in body]
    assert len(pages) == len(SHEETS) and b"/Count %d" % len(SHEETS) in found[1]
    assert all(b"/MediaBox [0 0 595.2756 841.8898]" in body for body in pages)
    for body in found:
        if b"stream\n" in body:
            length = int(re.findall(rb"/Length (\d+)", body)[0])
            assert len(body.partition(b"stream\n")[2].removesuffix(b"\nendstream")) == length


def test_the_pdf_shows_the_same_texts_in_the_same_places_as_the_svg() -> None:
    streams = [body.decode() for body in objects(label_sheet.pdf_sheets()) if b"stream\n" in body]
    for page, stream in zip(SHEETS, streams, strict=True):
        drawn = re.findall(r"^BT /F(\d) (\S+) Tf .* (\S+) (\S+) Td \((.*)\) Tj ET$", stream, re.MULTILINE)
        said = [
            (font, float(size), float(x), 297 - float(y), re.sub(r"\\(.)", r"\1", t)) for font, size, x, y, t in drawn
        ]
        for got, text in zip(said, words(page), strict=True):
            size = text.size * drawing.MM_PER_PT
            assert got[1:4] == pytest.approx((size, around(text)[0], text.y), abs=0.001)
            assert (got[0], got[4]) == ("2" if text.bold else "1", text.text)


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no independent PDF reader on this machine")
def test_an_independent_reader_finds_the_pages_and_the_codes(tmp_path: Path) -> None:
    path = tmp_path / "label-sheet.pdf"
    path.write_bytes(label_sheet.pdf_sheets())
    run = subprocess.run(["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert run.stdout.count("\f") == len(SHEETS)
    for fault in FAULTS:
        row = rf"{leds.pattern(fault.led)} +{fault.name} +{fault.severity.name.lower()}\b"
        assert re.search(row, run.stdout), fault.name


def test_the_same_tables_give_the_same_bytes() -> None:
    before = label_sheet.pdf_sheets(), label_sheet.svg_sheet(0)
    label_sheet.sheets.cache_clear()
    assert (label_sheet.pdf_sheets(), label_sheet.svg_sheet(0)) == before
    assert not re.search(rb"/(ID|CreationDate|ModDate|Producer)\b", before[0])
