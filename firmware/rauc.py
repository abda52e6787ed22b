"""rauc and the bootloader, as commands: what is installed where, and what starts next."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from pathlib import Path
from typing import NamedTuple

from .bundle import Refused
from .update_codes import UpdateResult

INFO_S, INSTALL_S, SHORT_S = 60.0, 3600.0, 30.0
NO_COMMAND, KILLED = 127, 137
TRIES = 3
"""Starts that the bootloader gives a slot until it was marked good."""
_SLICE_S = 0.2
_PROGRESS = re.compile(r"^\s*(\d{1,3})%")
_SLOTS = {"A": 1, "B": 2}


class System(NamedTuple):
    """What /etc/rauc/system.conf says of this unit."""

    path: Path
    compatible: str
    keyring: Path
    grubenv: Path | None


def system() -> System:
    """$EMS_RAUC_CONF, else /etc/rauc/system.conf. Raises ValueError naming what is missing."""
    path = Path(os.environ.get("EMS_RAUC_CONF", "/etc/rauc/system.conf"))
    parser = ConfigParser(interpolation=None, delimiters=("=",))
    try:
        parser.read_string(path.read_text("utf-8"))
        grubenv = parser["system"].get("grubenv")
        return System(
            path, parser["system"]["compatible"], path.parent / parser["keyring"]["path"],
            Path(grubenv) if grubenv else None,
        )  # fmt: skip
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; without it nothing can be installed") from error
    except (ConfigParserError, KeyError) as error:
        raise ValueError(f"{path}: {error} is missing; flash the unit again") from error


def run(
    command: Sequence[str], timeout_s: float, beat: Callable[[], None], line: Callable[[str], None] = lambda text: None
) -> tuple[int, str]:
    """Exit code and what was said; `beat` is called five times a second, `line` with each line.

    127 when there is no such program, 137 after `timeout_s`. What `beat` raises ends the program.
    """
    try:
        popen = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()),
        )  # fmt: skip
    except OSError as error:
        return NO_COMMAND, f"{command[0]}: {error.strerror}"
    assert popen.stdout is not None
    fd, said, end_s = popen.stdout.fileno(), b"", time.monotonic() + timeout_s
    try:
        while time.monotonic() < end_s:
            beat()
            if not select.select([fd], [], [], _SLICE_S)[0]:
                continue
            data = os.read(fd, 65_536)
            if not data:
                code = popen.wait()
                return code if code >= 0 else 128 - code, said.decode(errors="replace")
            for text in (said.rpartition(b"\n")[2] + data).split(b"\n"):
                line(text.decode(errors="replace"))
            said = (said + data)[-65_536:]
        return KILLED, f"{command[0]} took longer than {timeout_s:g} s"
    finally:
        popen.kill()
        popen.wait()
        popen.stdout.close()


def check(path: Path, of: System, beat: Callable[[], None]) -> None:
    """The signature, by the site's CA, and for this board. Raises Refused (SIGNATURE, COMPATIBLE, FORMAT)."""
    command = ("rauc", f"--keyring={of.keyring}", "--output-format=json", "info", str(path))
    code, said = run(command, INFO_S, beat)
    if code:
        errors = [text for text in said.splitlines() if text.strip()]
        raise Refused(UpdateResult.SIGNATURE, errors[-1] if errors else "", code)
    try:
        found = next(json.loads(text) for text in said.splitlines() if text.startswith("{"))["compatible"]
    except (StopIteration, ValueError, KeyError) as error:
        raise Refused(UpdateResult.FORMAT, f"rauc info said {said[-200:]!r}") from error
    if found != of.compatible:
        raise Refused(UpdateResult.COMPATIBLE, f"compatible = {found}, allowed is {of.compatible}")


def install(path: Path, beat: Callable[[], None], tell: Callable[[int], None]) -> tuple[int, str]:
    """Writes the standby slot and makes it the next one to start. `tell` has the percentage."""

    def line(text: str) -> None:
        if found := _PROGRESS.match(text):
            tell(min(100, int(found[1])))

    return run(("rauc", "install", str(path)), INSTALL_S, beat, line)


def busy(beat: Callable[[], None]) -> bool:
    """Whether an installation that somebody began still runs."""
    name = "de.pengutronix.rauc"
    code, said = run(("busctl", "get-property", name, "/", f"{name}.Installer", "Operation"), SHORT_S, beat)
    return code == 0 and "idle" not in said


def mark(word: str, beat: Callable[[], None]) -> int:
    """Marks the booted slot "good" or "bad"; exit code."""
    return run(("rauc", "status", f"mark-{word}", "booted"), SHORT_S, beat)[0]


def restart(beat: Callable[[], None]) -> int:
    return run(("systemctl", "reboot"), SHORT_S, beat)[0]


def firewall(beat: Callable[[], None]) -> bool:
    """Whether our table is loaded and drops what it does not know."""
    code, said = run(("nft", "list", "table", "inet", "ems"), SHORT_S, beat)
    return code == 0 and re.search(r"hook input .*policy drop", said) is not None


def booted(cmdline: str) -> int:
    """The slot in the kernel's command line: 1 A, 2 B; 0 when it names none."""
    names = [word.partition("=")[2] for word in cmdline.split() if word.startswith("rauc.slot=")]
    return _SLOTS.get(names[-1], 0) if names else 0


def _environment(grubenv: Path | None) -> dict[str, str]:
    """The bootloader's variables; none when they cannot be read."""
    try:
        lines = grubenv.read_text("ascii", "replace").splitlines() if grubenv else []
    except OSError:
        return {}
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def tries_left(grubenv: Path | None, slot: int) -> int:
    """Starts left to `slot` after this one; -1 when that cannot be read."""
    name = next((name for name, number in _SLOTS.items() if number == slot), "")
    used = _environment(grubenv).get(f"{name}_TRY", "")
    return max(0, TRIES - int(used)) if used.isdecimal() else -1


def first(grubenv: Path | None) -> int:
    """The slot that the bootloader starts as long as it has tries left; 0 when that cannot be read."""
    found = _environment(grubenv)
    return next((_SLOTS.get(name, 0) for name in found.get("ORDER", "").split() if found.get(f"{name}_OK") == "1"), 0)
