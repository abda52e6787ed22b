"""The front panel on paper: the label around the LEDs, the chart of patterns, and all fault codes for the cabinet door.

Made from the tables that drive the LEDs; `make docs` writes it as docs/label-sheet.pdf and one SVG a sheet. Millimetres
from the upper left corner of an A4 sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from statemachine import leds
from statemachine.faults import CLEARS, FAULTS, REACTS, Fault, Severity

from .drawing import HEIGHT_MM, MM_PER_PT, WIDTH_MM, Box, Disc, Line, Page, Shape, Text, pdf, svg, width_mm, wrapped

TITLE = "Front-panel labels of the battery rack controller"
SVG_PATHS = ("docs/label-sheet.svg", "docs/label-sheet-door-1.svg", "docs/label-sheet-door-2.svg")
LABEL_W, LABEL_H = 160.0, 60.0
LED_PITCH, WINDOW_R = 30.0, 2.5
DOOR_SHEETS = len(SVG_PATHS) - 1
LARGEST_PT, SMALLEST_PT = 10.5, 7.0  # of the text on the door, which is read at arm's length

_MARGIN = 10.0
_LEFT, _RIGHT, _BOTTOM = _MARGIN, WIDTH_MM - _MARGIN, HEIGHT_MM - _MARGIN
_COLUMN_W = 92.0
_COLUMNS = (_LEFT, _RIGHT - _COLUMN_W)
_INK, _SOFT, _RULE, _WHITE = "#111827", "#4b5563", "#c3c9d2", "#ffffff"
_LIGHT = {"green": "#16a34a", "blue": "#2563eb", "yellow": "#eab308", "red": "#dc2626"}
_COLOUR = dict(zip(leds.NAMES, leds.COLOURS, strict=True))
_SEVERITY = {
    Severity.WARNING: "#4b5563",
    Severity.DERATE: "#1d4ed8",
    Severity.STOP: "#b45309",
    Severity.TRIP: "#c81e1e",
    Severity.LOCKOUT: "#581c87",
}
_EXAMPLE = 0x23
_EXAMPLE_NAME = leds.pattern(_EXAMPLE)


def timeline(code: int, at: Box, span_ms: int) -> list[Shape]:
    """Light and dark of a pattern over `span_ms`, as the LED shows it."""
    scale = at.w / span_ms
    lit = [leds.level(code, now_ms) for now_ms in range(span_ms)]
    edges = [ms for ms in range(span_ms + 1) if (ms > 0 and lit[ms - 1]) != (ms < span_ms and lit[ms])]
    blinks = zip(edges[::2], edges[1::2], strict=True)
    shapes: list[Shape] = [Line(at.x, at.y + at.h, at.x + at.w, at.y + at.h, _SOFT, 0.15)]
    return shapes + [Box(at.x + on * scale, at.y, (off - on) * scale, at.h, at.fill) for on, off in blinks]


def _legend(name: str) -> list[tuple[str, str, str]]:
    """Patterns of an LED: name, what it says, what to do."""
    rows = [(leds.pattern(code), meaning.short, meaning.text) for code, meaning in leds.MEANINGS[name].items()]
    if name != "FAULT":
        return rows
    return [*rows, ("N-M", "fault code: see door", "One fault at a time: the first of the door's rules.")]


class _Column:
    """Writes downwards: everything lands at `y` and moves it."""

    def __init__(self, x: float, y: float, room: float) -> None:
        self.x, self.y, self.room = x, y, room
        self.shapes: list[Shape] = []

    def heading(self, text: str, light: str = "") -> None:
        if light:
            self.shapes.append(Disc(self.x + 1.6, self.y + 2.3, 1.6, light))
        indent = 5.0 if light else 0.0
        self.shapes.append(Text(self.x + indent, self.y + 3.6, self.room - indent, text, 10, bold=True, colour=_INK))
        self.shapes.append(Line(self.x, self.y + 5.2, self.x + self.room, self.y + 5.2, _RULE))
        self.y += 6.4

    def paragraph(self, text: str, size: float, indent: float = 0.0, bold: bool = False, colour: str = _INK) -> None:
        leading, room = 1.16 * size * MM_PER_PT, self.room - indent
        for line in wrapped(text.replace("`", ""), room, size, bold):
            self.shapes.append(Text(self.x + indent, self.y + 0.79 * leading, room, line, size, bold, colour))
            self.y += leading

    def chip(self, text: str, width: float, size: float, fill: str) -> None:
        """White on a box in colour; takes no height of its own."""
        high = 1.35 * size * MM_PER_PT
        self.shapes.append(Box(self.x, self.y, width, high, fill))
        at = Text(self.x + width / 2, self.y + 0.77 * high, width - 1, text, size, True, _WHITE, align=0.5)
        self.shapes.append(at)

    def word(self, text: str, size: float) -> None:
        """Bold at the left edge, beside what follows; takes no height of its own."""
        self.shapes.append(Text(self.x, self.y + 0.92 * size * MM_PER_PT, 9, text, size, bold=True, colour=_INK))

    def led(self, name: str) -> None:
        """One LED: its patterns and what they mean."""
        self.heading(f"{name} ({_COLOUR[name]})", _LIGHT[_COLOUR[name]])
        for pattern, short, text in _legend(name):
            self.word(pattern, 8)
            self.paragraph(short, 8, 10, bold=True)
            self.paragraph(text, 7.5, 10, colour=_SOFT)
            self.y += 0.8
        self.y += 2.2

    def patterns(self) -> None:
        """How the patterns look, and how to count."""
        span_ms = 6000
        self.heading(f"Patterns, {span_ms // 1000} seconds of each")
        for code in (*leds.PATTERNS, _EXAMPLE):
            self.word(leds.pattern(code), 8)
            self.shapes += timeline(code, Box(self.x + 10, self.y + 0.5, self.room - 10, 2.5, _INK), span_ms)
            self.y += 4.5
        self.paragraph(HOW_TO_COUNT, 7.5, colour=_SOFT)
        self.y += 3.3

    def severities(self) -> None:
        """What a fault does, and how it is left."""
        self.heading("What a fault does, and what clears it")
        for severity in reversed(Severity):
            self.chip(severity.name.lower(), 16, 7.5, _SEVERITY[severity])
            low = self.y + 4.0
            reacts = REACTS[severity][0].upper() + REACTS[severity][1:]
            self.paragraph(f"{reacts}. Cleared: {CLEARS[severity]}.", 7.5, 18, colour=_SOFT)
            self.y = max(self.y, low) + 1.2

    def fault(self, fault: Fault, size: float) -> None:
        """Code, name, severity; below it what happened and what to do."""
        indent, word = 1.45 * size, fault.severity.name.lower()
        began = self.y
        self.chip(leds.pattern(fault.led), indent - 2, size + 1, _SEVERITY[fault.severity])
        baseline = self.y + 0.92 * size * MM_PER_PT
        end, taken = self.x + self.room, width_mm(word, size - 1) + 2
        self.shapes.append(Text(end, baseline, taken, word, size - 1, colour=_SEVERITY[fault.severity], align=1.0))
        room = self.room - indent - taken
        self.shapes.append(Text(self.x + indent, baseline, room, fault.name, size, bold=True, colour=_INK))
        self.y = began + 1.2 * size * MM_PER_PT
        self.paragraph(fault.text, size - 0.5, indent, colour=_INK)
        self.y += 0.16 * size


HOW_TO_COUNT = (
    f"To read {_EXAMPLE_NAME}: wait for the long dark, count {_EXAMPLE >> 4} blinks, a short dark, {_EXAMPLE & 15} "
    "blinks, the long dark. Count once more before you act."
)


def _ruler(x: float, y: float) -> list[Shape]:
    shapes: list[Shape] = [Line(x, y, x + 100, y, _INK)]
    for mm in range(101):
        length = 4.0 if mm % 10 == 0 else 3.0 if mm % 5 == 0 else 2.0
        shapes.append(Line(x + mm, y - length, x + mm, y, _INK, 0.25 if mm % 10 == 0 else 0.1))
    shapes += [Text(x + mm, y + 3.2, 9, str(mm), 7, align=0.5) for mm in range(0, 101, 10)]
    return [*shapes, Text(x + 106, y, 80, "This ruler must measure 100 mm.", 9, bold=True)]


def _cut_marks(x: float, y: float) -> list[Shape]:
    shapes: list[Shape] = []
    for corner_x, out_x in ((x, -1), (x + LABEL_W, 1)):
        for corner_y, out_y in ((y, -1), (y + LABEL_H, 1)):
            shapes.append(Line(corner_x + 1.5 * out_x, corner_y, corner_x + 6 * out_x, corner_y, _INK, 0.15))
            shapes.append(Line(corner_x, corner_y + 1.5 * out_y, corner_x, corner_y + 6 * out_y, _INK, 0.15))
    return shapes


def _window(x: float, y: float, colour: str) -> list[Shape]:
    """The hole, its centre, and a ring in the LED's colour."""
    return [
        Disc(x, y, WINDOW_R + 0.9, stroke=_LIGHT[colour], width=1.2),
        Disc(x, y, WINDOW_R, stroke=_INK, width=0.12),
        Line(x - 1.2, y, x + 1.2, y, _SOFT, 0.1),
        Line(x, y - 1.2, x, y + 1.2, _SOFT, 0.1),
    ]


def _led_field(x: float, y: float, name: str) -> list[Shape]:
    """The part of the label around the LED at `x`; `y` is the label's upper edge."""
    colour, room = _COLOUR[name], LED_PITCH - 2
    shapes: list[Shape] = [
        *_window(x, y + 17.5, colour),
        Text(x, y + 27.0, room, name, 11, bold=True, colour=_INK, align=0.5),
        Text(x, y + 30.6, room, colour, 7, colour=_SOFT, align=0.5),
    ]
    left, line = x - LED_PITCH / 2 + 1.4, y + 36.6
    for pattern, short, _ in _legend(name):
        ink = _LIGHT["red"] if short.isupper() else _INK
        shapes.append(Text(left, line, 6.4, pattern, 6.5, bold=True, colour=ink))
        shapes.append(Text(left + 6.6, line, LED_PITCH - 8.6, short, 6.5, bold=short.isupper(), colour=ink))
        line += 2.75
    if name == "FAULT":
        shapes.append(Text(left, line + 2.0, 6.4, _EXAMPLE_NAME, 6.5, bold=True, colour=_INK))
        shapes += timeline(_EXAMPLE, Box(left + 6.6, line + 0.3, 20.5, 1.7, _LIGHT["red"]), 3600)
    return shapes


def _label(x: float, y: float) -> list[Shape]:
    shapes: list[Shape] = [
        Box(x, y, LABEL_W, 9, _INK),
        Text(x + 5, y + 6.0, 90, "BATTERY RACK CONTROLLER", 12, bold=True, colour=_WHITE),
        Text(x + LABEL_W - 5, y + 5.8, 55, "Fault codes: inside the door", 8, colour=_WHITE, align=1.0),
        Line(x + 5, y + 32.4, x + LABEL_W - 5, y + 32.4, _RULE),
    ]
    for n, name in enumerate(leds.NAMES):
        centre = x + LABEL_W / 2 + LED_PITCH * (n - 2)
        shapes += _led_field(centre, y, name)
        if n:
            shapes.append(Line(centre - LED_PITCH / 2, y + 12, centre - LED_PITCH / 2, y + LABEL_H - 3, _RULE))
    return [*shapes, Box(x, y, LABEL_W, LABEL_H, stroke=_INK, width=0.25), *_cut_marks(x, y)]


def _panel_sheet() -> Page:
    """The label, the ruler, and the chart of everything but the fault codes."""
    head = _Column(_LEFT, _MARGIN, _RIGHT - _LEFT)
    head.paragraph("Front panel", 16, bold=True)
    head.paragraph(
        f"Print at 100 %, not fitted to the page. Label {LABEL_W:g} x {LABEL_H:g} mm: cut along the outer line, punch "
        f"five windows of {2 * WINDOW_R:g} mm, {LED_PITCH:g} mm apart. The chart below it goes beside the fault codes.",
        9,
        colour=_SOFT,
    )
    left, right = (_Column(x, 128.0, _COLUMN_W) for x in _COLUMNS)
    left.patterns()
    for name in ("RUN", "CHARGE"):
        left.led(name)
    for name in ("COMM", "FAULT", "KILL"):
        right.led(name)
    right.severities()
    at_x = (WIDTH_MM - LABEL_W) / 2
    return [*head.shapes, *_label(at_x, 38), *_ruler(at_x, 112), *left.shapes, *right.shapes]


def _door_head(number: int, codes: str) -> _Column:
    head = _Column(_LEFT, _MARGIN, _RIGHT - _LEFT)
    head.shapes.append(Text(_RIGHT, head.y + 5.0, 40, f"sheet {number} of {DOOR_SHEETS}", 9, colour=_SOFT, align=1.0))
    head.paragraph(f"FAULT LED: codes {codes}", 16, bold=True)
    head.y += 1.0
    read = _Column(_LEFT, head.y, 135)
    read.paragraph(HOW_TO_COUNT, 9)
    read.paragraph("Fast, 4 flashes a second: GROUND FAULT. Do not touch the rack.", 9, bold=True, colour=_LIGHT["red"])
    head.shapes += [*read.shapes, *timeline(_EXAMPLE, Box(_RIGHT - 46, head.y + 2, 46, 4, _LIGHT["red"]), 3600)]
    head.shapes.append(Line(_LEFT, read.y + 2.0, _RIGHT, read.y + 2.0, _INK, 0.3))
    head.y = read.y + 4.5
    return head


def _door_columns(faults: Sequence[Fault], size: float, top: float) -> list[list[Fault]]:
    """Columns filled one after the other, as many as it takes."""
    columns: list[list[Fault]] = []
    y = _BOTTOM
    for fault in faults:
        tried = _Column(0.0, 0.0, _COLUMN_W)
        tried.fault(fault, size)
        if y + tried.y > _BOTTOM:
            columns.append([])
            y = top
        columns[-1].append(fault)
        y += tried.y
    return columns


def _door_sheet(number: int, columns: Sequence[Sequence[Fault]], size: float) -> Page:
    shown = [leds.pattern(fault.led) for column in columns for fault in column]
    head = _door_head(number, f"{shown[0]} to {shown[-1]}" if shown else "none")
    shapes = head.shapes
    for x, faults in zip(_COLUMNS, columns, strict=False):
        column = _Column(x, head.y, _COLUMN_W)
        for fault in faults:
            column.fault(fault, size)
        shapes += column.shapes
    return shapes


def door_sheets(faults: Sequence[Fault] = FAULTS) -> list[Page]:
    """All fault codes in the order in which they are looked up, in the largest type that takes DOOR_SHEETS sheets.

    Raises ValueError when even the smallest type needs more.
    """
    ordered, top = sorted(faults, key=lambda fault: fault.led), _door_head(1, "").y
    for tenths in range(round(LARGEST_PT * 10), round(SMALLEST_PT * 10) - 1, -1):
        columns = _door_columns(ordered, tenths / 10, top)
        if len(columns) <= 2 * DOOR_SHEETS:
            return [_door_sheet(n + 1, columns[2 * n : 2 * n + 2], tenths / 10) for n in range(DOOR_SHEETS)]
    raise ValueError(
        f"{len(faults)} faults do not fit {DOOR_SHEETS} door sheets at {SMALLEST_PT:g} pt: add a sheet to SVG_PATHS or "
        "shorten their texts"
    )


@cache
def sheets() -> tuple[Page, ...]:
    """The front-panel sheet and the door sheets."""
    return (_panel_sheet(), *door_sheets())


def svg_sheet(number: int) -> str:
    """Sheet `number`, from 0."""
    return svg(sheets()[number], f"{TITLE}, sheet {number + 1} of {len(sheets())}")


def pdf_sheets() -> bytes:
    return pdf(sheets(), TITLE)
