"""A configuration file as lines of `name = value`, and its schema: older ones are migrated, newer ones refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from .store import sync_directory

AGAIN = "correct the line and send SIGHUP again"
SCHEMA = 1
"""Of the three files: a file says `schema = n`, one that does not is of schema 1."""
Values = dict[str, str]
MIGRATIONS: dict[int, Callable[[str, Values], Values]] = {}
"""Schema -> what makes the next one of a file's name and values. One for every schema below SCHEMA."""


class Lines(NamedTuple):
    """A file as it was read."""

    path: Path
    values: dict[str, str]
    numbers: dict[str, int]  # line of each name
    errors: list[tuple[int, str]]  # line, text


def _lines_of(path: Path) -> Lines:
    lines = Lines(path, {}, {}, [])
    try:
        data = path.read_bytes()
    except OSError as error:
        default = f"firmware/defaults/{path.name}"
        lines.errors.append(
            (0, f"{path}: {error.strerror}; put it in place (default: {default}) and send SIGHUP again")
        )
        return lines
    for number, line in enumerate(data.split(b"\n"), 1):
        if wrong := _take(lines, number, line):
            lines.errors.append((number, f"{path}:{number}: {wrong}; {AGAIN}"))
    return lines


def _take(lines: Lines, number: int, line: bytes) -> str:
    """Adds one line; what is wrong with it, if anything."""
    try:
        text = line.decode().partition("#")[0].strip()
    except UnicodeDecodeError as error:
        return f"byte 0x{line[error.start]:02x} in column {error.start + 1} is not UTF-8"
    name, equals, value = (part.strip() for part in text.partition("="))
    if not text:
        return ""
    if not (name and equals and value):
        return f"{text!r}: allowed is `name = value`"
    if name in lines.numbers:
        return f"{name} = {value}: already given in line {lines.numbers[name]}, allowed once"
    lines.values[name], lines.numbers[name] = value, number
    return ""


def _kept(path: Path, schema: int) -> Path:
    """Where a file of an older schema is kept beside the one that it was made into."""
    return path.with_name(f"{path.name}.schema{schema}")


def _schema(lines: Lines) -> int:
    """The schema that a file says it is of; 0 when it says none that there can be."""
    text = lines.values.get("schema", "1")
    return int(text) if text.isdecimal() else 0


def current(path: Path) -> Lines:
    """The file in this version's schema: one of an older one is migrated, instead of a newer one its own is read."""
    lines = _lines_of(path)
    if _schema(lines) > SCHEMA and _kept(path, SCHEMA).exists():
        lines = _lines_of(_kept(path, SCHEMA))
    schema, values = _schema(lines), dict(lines.values)
    stated = values.pop("schema", "")
    if not 1 <= schema <= SCHEMA:
        number = lines.numbers["schema"]
        wrong = f"allowed 1 to {SCHEMA} in this version; install the version that wrote it, or put a file of schema"
        return lines._replace(
            values={}, errors=[(number, f"{lines.path}:{number}: schema = {stated}: {wrong} {SCHEMA} in place")]
        )
    for older in range(schema, SCHEMA):
        values = MIGRATIONS[older](path.name, values)
    return lines._replace(values=values)


def migrate(directory: Path, names: Iterable[str]) -> list[str]:
    """Writes files of an older schema anew and keeps the old ones beside them; what was done, or why not."""
    told = []
    for file in names:
        path = directory / file
        schema = _schema(_lines_of(path))
        if not 1 <= schema < SCHEMA or current(path).errors:
            continue
        try:
            _rewrite(path, schema)
            told.append(f"{file}: schema {schema} is now {SCHEMA}, the old file is {_kept(path, schema).name}")
        except OSError as error:
            told.append(f"{file}: not rewritten, {error.strerror}; it is migrated at every start")
    return told


def _rewrite(path: Path, schema: int) -> None:
    """Raises OSError. A cut at any moment leaves the old file in its place or beside the new one."""
    values = current(path).values
    text = f"schema = {SCHEMA}\n" + "".join(f"{name} = {value}\n" for name, value in values.items())
    for target, data in ((_kept(path, schema), path.read_bytes()), (path, text.encode())):
        new = target.with_name(target.name + ".new")
        with new.open("wb") as handle:
            os.fchmod(handle.fileno(), path.stat().st_mode & 0o777)
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(new, target)
        sync_directory(path.parent)
