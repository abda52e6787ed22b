"""One hazard: what could hurt, what is promised against it, which code keeps the promise, and what shows it."""

from __future__ import annotations

from typing import NamedTuple

CORE, DRIVER, LIVE, IMAGE = "pure core", "driver", "live processes", "image"
SCENE = "scenario"
"""Shown by an injection of this package under the row's id."""
ELSEWHERE, OPEN = "not exercised here: ", "not promised: "
"""With the reason."""


def in_image(part: str) -> str:
    """The reason of a hazard that a part of the image's own tests exercises."""
    return f'{ELSEWHERE}a matter of the image, make test-image PARTS="{part}"; what was observed is in image.md'


class Row(NamedTuple):
    id: str
    hazard: str
    requirement: str
    code: str  # module:function or module:Class.method that keeps the promise
    level: str
    shown: tuple[str, ...]  # SCENE, pytest nodes, or a reason
    ms: float | None  # promised reaction of the scenario, None where it has none

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(shown for shown in self.shown if shown.startswith("tests/"))


def row(name: str, hazard: str, requirement: str, code: str, level: str, *shown: str, ms: float | None = None) -> Row:
    """A row as the tables write it."""
    return Row(name, hazard, requirement, code, level, shown, ms)


def tests(file: str, *names: str) -> tuple[str, ...]:
    """Nodes of one test file."""
    return tuple(f"tests/test_{file}.py::test_{name}" for name in names)
