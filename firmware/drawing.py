"""Drawings to scale from one list of shapes: SVG text and a minimal PDF 1.4.

Millimetres from the upper left corner of an A4 sheet; font sizes in points. The same shapes give the same bytes always:
no dates, no identifiers, no compression. Text is printable ASCII in Helvetica, one of the fonts that every PDF reader
has; its widths are Adobe's (Core 14 AFM files, WinAnsi encoding), so that a layout can be checked without a renderer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH_MM, HEIGHT_MM = 210.0, 297.0
MM_PER_PT = 25.4 / 72.0
ASCENT, DESCENT = 0.718, 0.207  # of the font size, above and below the baseline

_REGULAR = (
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556, 556, 556,
    556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833,
    722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556,
    556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334,
    260, 334, 584,
)  # fmt: skip
_BOLD = (
    278, 333, 474, 556, 556, 889, 722, 238, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556, 556, 556,
    556, 556, 556, 333, 333, 584, 584, 584, 611, 975, 722, 722, 722, 722, 667, 611, 778, 722, 278, 556, 722, 611, 833,
    722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 333, 278, 333, 584, 556, 333, 556, 611, 556, 611,
    556, 333, 611, 611, 278, 278, 556, 278, 889, 611, 611, 611, 611, 389, 556, 333, 611, 556, 778, 556, 556, 500, 389,
    280, 389, 584,
)  # fmt: skip


class Line(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float
    colour: str = "#000000"
    width: float = 0.2


class Box(NamedTuple):
    x: float
    y: float
    w: float
    h: float
    fill: str = ""  # "" = none
    stroke: str = ""
    width: float = 0.2


class Disc(NamedTuple):
    x: float
    y: float
    r: float
    fill: str = ""
    stroke: str = ""
    width: float = 0.2


class Text(NamedTuple):
    x: float
    y: float  # baseline
    room: float  # the width it has, mm
    text: str
    size: float  # pt
    bold: bool = False
    colour: str = "#000000"
    align: float = 0.0  # share of the width left of x: 0 starts there, 0.5 is centred, 1 ends there


Shape = Line | Box | Disc | Text
Page = Sequence[Shape]


def width_mm(text: str, size: float, bold: bool = False) -> float:
    """Printed width. Raises ValueError for a character that is not printable ASCII."""
    if not (text.isascii() and text.isprintable()):
        raise ValueError(f"label text {text!r} has a character that is not printable ASCII; write it in ASCII")
    widths = _BOLD if bold else _REGULAR
    return sum(widths[ord(c) - 32] for c in text) / 1000.0 * size * MM_PER_PT


def wrapped(text: str, room: float, size: float, bold: bool = False) -> list[str]:
    """Lines no wider than `room` mm; a number stays with its unit. Raises ValueError when one word alone is wider."""
    lines: list[str] = []
    for word in re.split(r"(?<!\d)\s+", text.strip()):
        if width_mm(word, size, bold) > room:
            raise ValueError(f"label word {word!r} is wider than {room:g} mm at {size:g} pt; shorten it")
        if lines and width_mm(f"{lines[-1]} {word}", size, bold) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _n(value: float) -> str:
    """Three decimals: a micrometre."""
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def svg(page: Page, title: str) -> str:
    """One sheet as an SVG of A4 size in millimetres."""
    size = f'width="{_n(WIDTH_MM)}mm" height="{_n(HEIGHT_MM)}mm" viewBox="0 0 {_n(WIDTH_MM)} {_n(HEIGHT_MM)}"'
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}',
            "     font-family=\"Helvetica, Arial, 'Liberation Sans', sans-serif\">",
            f"<title>{escape(title)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *(_svg_shape(shape) for shape in page),
            "</svg>\n",
        ]
    )


def _svg_paint(fill: str, stroke: str, width: float) -> str:
    line = f' stroke="{stroke}" stroke-width="{_n(width)}"' if stroke else ""
    return f'fill="{fill or "none"}"{line}'


def _svg_shape(shape: Shape) -> str:
    match shape:
        case Line(x1, y1, x2, y2, colour, width):
            ends = f'x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"'
            return f'<line {ends} stroke="{colour}" stroke-width="{_n(width)}"/>'
        case Box(x, y, w, h, fill, stroke, width):
            at = f'x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}"'
            return f"<rect {at} {_svg_paint(fill, stroke, width)}/>"
        case Disc(x, y, r, fill, stroke, width):
            return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}" {_svg_paint(fill, stroke, width)}/>'
    return _svg_text(shape)


def _svg_text(shape: Text) -> str:
    """`textLength` holds the width of Helvetica also where another font is drawn."""
    wide = width_mm(shape.text, shape.size, shape.bold)
    weight = ' font-weight="bold"' if shape.bold else ""
    return (
        f'<text x="{_n(shape.x - shape.align * wide)}" y="{_n(shape.y)}" font-size="{_n(shape.size * MM_PER_PT)}"'
        f'{weight} fill="{shape.colour}" textLength="{_n(wide)}" lengthAdjust="spacingAndGlyphs">'
        f"{escape(shape.text)}</text>"
    )


def pdf(pages: Sequence[Page], title: str) -> bytes:
    """All sheets as a PDF; it asks the reader's print dialog not to scale."""
    first = 6
    kids = " ".join(f"{first + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold /Encoding /WinAnsiEncoding >>",
        f"<< /Title ({_pdf_string(title)}) >>",
    ]
    media = f"[0 0 {WIDTH_MM / MM_PER_PT:.4f} {HEIGHT_MM / MM_PER_PT:.4f}]"
    for n, page in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox {media} /Resources << /Font << /F1 3 0 R /F2 4 0 R >> >> "
            f"/Contents {first + 2 * n + 1} 0 R >>"
        )
        content = "\n".join([f"{1 / MM_PER_PT:.6f} 0 0 {1 / MM_PER_PT:.6f} 0 0 cm", *map(_pdf_shape, page)])
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    return _pdf_file(objects)


def _pdf_file(objects: list[str]) -> bytes:
    """Header, objects 1.., cross-reference table (20 bytes a line) and trailer."""
    body = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
    table = "0000000000 65535 f \n"
    for number, text in enumerate(objects, start=1):
        table += f"{len(body):010d} 00000 n \n"
        body += f"{number} 0 obj\n{text}\nendobj\n".encode("ascii")
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /Info 5 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return body + f"xref\n0 {len(objects) + 1}\n{table}{trailer}".encode("ascii")


def _pdf_string(text: str) -> str:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def _pdf_colour(colour: str, operator: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) / 255.0 for at in (1, 3, 5))
    return f"{_n(red)} {_n(green)} {_n(blue)} {operator}"


def _pdf_painted(path: str, fill: str, stroke: str, width: float) -> str:
    parts = [_pdf_colour(fill, "rg")] if fill else []
    parts += [_pdf_colour(stroke, "RG"), f"{_n(width)} w"] if stroke else []
    return " ".join([*parts, path, "B" if fill and stroke else "f" if fill else "S"])


def _pdf_shape(shape: Shape) -> str:
    """The same drawing operators in PDF, whose y grows upwards."""
    match shape:
        case Line(x1, y1, x2, y2, colour, width):
            path = f"{_n(x1)} {_n(HEIGHT_MM - y1)} m {_n(x2)} {_n(HEIGHT_MM - y2)} l"
            return _pdf_painted(path, "", colour, width)
        case Box(x, y, w, h, fill, stroke, width):
            return _pdf_painted(f"{_n(x)} {_n(HEIGHT_MM - y - h)} {_n(w)} {_n(h)} re", fill, stroke, width)
        case Disc(x, y, r, fill, stroke, width):
            return _pdf_painted(_pdf_circle(x, HEIGHT_MM - y, r), fill, stroke, width)
    x = shape.x - shape.align * width_mm(shape.text, shape.size, shape.bold)
    font = f"/F{2 if shape.bold else 1} {_n(shape.size * MM_PER_PT)} Tf"
    place = f"{_n(x)} {_n(HEIGHT_MM - shape.y)} Td"
    return f"BT {font} {_pdf_colour(shape.colour, 'rg')} {place} ({_pdf_string(shape.text)}) Tj ET"


def _pdf_circle(x: float, y: float, r: float) -> str:
    """Four Bezier curves, true to 0.03 % of the radius."""
    k = 0.5523 * r
    corners = (
        (x + r, y + k, x + k, y + r, x, y + r),
        (x - k, y + r, x - r, y + k, x - r, y),
        (x - r, y - k, x - k, y - r, x, y - r),
        (x + k, y - r, x + r, y - k, x + r, y),
    )
    curves = " ".join(" ".join(map(_n, corner)) + " c" for corner in corners)
    return f"{_n(x + r)} {_n(y)} m {curves} h"
