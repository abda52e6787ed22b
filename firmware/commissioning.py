"""Commissioning: nothing closes before a person has moved every safety input to and fro, and that is on record.

The appliance itself watches (`Checks`): from SERVICE on, while nothing is closed, an input counts when it stood in both
positions. To open the kill-switch or the tamper contact is an emergency stop and leaves SERVICE; what was seen stays
until a contactor closes, a lockout comes or the controller starts again.

The record (`commissioned.json` in the state directory) is JSON signed with Ed25519 by a key of this unit. It holds the
checks, and limits.conf, site.conf and board as they were. It is void while one of these differs; a name that a later
version adds counts as recorded with its default, so that an update does not void it. The signature shows that nobody
changed the record; it does not keep out who can read the key.

File 65,100 (FC20) is the record: its length in bytes as uint32, then the JSON, two bytes a register.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from drivers.board import BoardError
from drivers.board_file import load as load_board
from statemachine.signals import InterlockBit, StatusBit, Why
from statemachine.states import State

from . import words
from .config import FILES, Loaded, plain
from .image import Status
from .models.commissioning import CommState
from .store import write_whole

RECORD, KEY = "commissioned.json", "commissioning.key"
RECORD_FILE = 65_100
SCHEMA = 1
STEADY_NS = 250_000_000
"""A position counts when it stood for this long: a glitch is no check."""

_SITE = (
    "cell_profile", "rated_ah", "strings", "modules_per_string", "cells_per_module", "bms_host", "bms_port",
    "bms_profile", "pcs_host", "pcs_port", "pcs_profile", "nominal_frequency", "nominal_voltage",
)  # fmt: skip
"""What is connected. Poll times, clients, time servers and logs may change without a new commissioning."""
_QUIET = frozenset({State.ISOLATED, State.SERVICE, State.FAULT, State.EMERGENCY_STOP})
_CHAIN = 1 << InterlockBit.KILL_OK | 1 << InterlockBit.TAMPER_OK
_RESET = 1 << InterlockBit.RESET_PRESSED
_FEEDBACK = 1 << InterlockBit.FEEDBACK_NEG | 1 << InterlockBit.FEEDBACK_POS | 1 << InterlockBit.FEEDBACK_PRE
_MOVED = 0xFF | _CHAIN | _RESET | 1 << InterlockBit.KEY_LOCAL

Configuration = Mapping[str, Mapping[str, Any]]
"""File -> name -> value, as JSON has it."""


class RecordError(ValueError):
    """A record that does not count; the text says why."""


def configuration(loaded: Loaded, board: str | None = None) -> Configuration:
    """What a record is made for. `board` as for drivers.board.open_board."""
    site = plain(loaded.site)
    return {
        "limits.conf": plain(loaded.limits),
        "site.conf": {name: site[name] for name in _SITE},
        "board": _board(board or os.environ.get("EMS_BOARD") or "bench"),
    }


def _board(name: str) -> dict[str, str]:
    """A board that cannot be read has no sum: what was recorded for it is void."""
    try:
        return {"name": name, "sha256": hashlib.sha256(load_board(name).path.read_bytes()).hexdigest()}
    except (BoardError, OSError):
        return {"name": name, "sha256": "unreadable"}


def canonical(value: object) -> bytes:
    """The bytes that are hashed and signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(of: Configuration) -> str:
    return hashlib.sha256(canonical(of)).hexdigest()


def changes(recorded: Configuration, now: Configuration) -> Iterator[str]:
    """`limits.conf max_soc 90 -> 100`, one a difference that voids a record."""
    for section, values in now.items():
        before = recorded.get(section, {})
        for name, value in values.items():
            was = before.get(name, _default(section, name))
            if was != value:
                yield f"{section} {name} {_said(was)} -> {_said(value)}"


def _default(section: str, name: str) -> Any:
    """As `configuration` would give it; None where there is none."""
    conf = FILES.get(section)
    return plain(conf()).get(name) if conf else None


def _said(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def verified(raw: bytes) -> dict[str, Any]:
    """A record whose signature and sum are right. Raises RecordError."""
    try:
        record = json.loads(raw)
        signature = bytes.fromhex(record.pop("signature"))
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(record["public_key"]))
        key.verify(signature, canonical(record))
        if record["schema"] != SCHEMA:
            raise RecordError(f"schema {record['schema']} is not known here, allowed is {SCHEMA}")
        if digest(record["configuration"]) != record["sha256"]:
            raise RecordError("sha256 is not that of its configuration")
    except InvalidSignature:
        raise RecordError("the signature is wrong: it was changed after it was signed") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise RecordError(f"it is no commissioning record ({error!r})") from None
    except RecordError:
        raise
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it is damaged ({error})") from None
    made: dict[str, Any] = record
    return made


def summary(record: Mapping[str, Any]) -> Iterator[str]:
    """A verified record for a person, a line each."""
    trusted = "" if record["clock_trusted"] else " (clock not trusted)"
    yield f"recorded  {record['recorded']}{trusted} by software {record['software']} on {record['unit']}"
    for check in record["checks"]:
        yield f"check     {check['input']:22} " + ", ".join(f"{at} {check[at]}" for at in check if at != "input")
    for section, values in record["configuration"].items():
        yield from (f"value     {section} {name} = {_said(value)}" for name, value in values.items())
    yield f"sha256    {record['sha256']}"
    yield f"key       {record['public_key']}"


class Seen(NamedTuple):
    """When an input stood in its two positions last, wall clock in seconds; 0 = not yet."""

    low: float = 0.0
    high: float = 0.0


class Checks:
    """What was seen of the inputs. Times are CLOCK_MONOTONIC nanoseconds, but for `wall_s`."""

    def __init__(self) -> None:
        self._open, self._levels = False, 0
        self._since_ns = dict.fromkeys(InterlockBit, 0)
        self.seen: dict[InterlockBit, Seen] = {}

    def look(self, status: Status | None, now_ns: int, wall_s: float) -> None:
        """Once a new status is there, or none any more."""
        if status is None or status.state not in _QUIET or status.coils or status.feedback:
            self._open, self.seen = False, {}
            return
        fresh = not self._open
        self._open = self._open or status.state == State.SERVICE
        if not self._open:
            return
        changed = ~0 if fresh else self._levels ^ status.interlocks
        self._levels = status.interlocks
        for bit in InterlockBit:
            if changed >> bit & 1:
                self._since_ns[bit] = now_ns
            elif now_ns - self._since_ns[bit] >= STEADY_NS:
                level = "high" if status.interlocks >> bit & 1 else "low"
                self.seen[bit] = self.seen.get(bit, Seen())._replace(**{level: wall_s})

    def both(self) -> int:
        """Bits of the inputs that stood in both positions."""
        return sum(1 << bit for bit, at in self.seen.items() if _MOVED >> bit & 1 and at.low and at.high)

    def missing(self, interlocks: int, required: int) -> int:
        """Bits of the inputs that are not checked, or not now as in operation. `required`: bits of the interlocks."""
        must = required & 0xFF | _CHAIN
        wrong = must & ~interlocks | interlocks & (_RESET | _FEEDBACK)
        steady = sum(1 << bit for bit, at in self.seen.items() if at.low or at.high)
        return (must | _RESET) & ~self.both() | wrong | (_FEEDBACK & ~steady)


def _private_key(directory: Path) -> Ed25519PrivateKey:
    """This unit's key, made on first use; a damaged one is replaced. Raises OSError."""
    path = directory / KEY
    try:
        key = load_pem_private_key(path.read_bytes(), None)
        if isinstance(key, Ed25519PrivateKey):
            return key
    except (FileNotFoundError, ValueError):
        pass
    made = Ed25519PrivateKey.generate()
    write_whole(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    return made


def _utc(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Commissioning:
    """The record of this unit, what it is worth with the configuration in force, and the checks for the next one."""

    def __init__(self, directory: Path, tell: Callable[[str], None]) -> None:
        """`directory` of what survives a boot; `tell` makes an event."""
        self._directory, self._tell = directory, tell
        self._checks = Checks()
        self._now: Configuration | None = None
        self._raw = b""
        self._record: dict[str, Any] | None = None
        self._told = ""
        try:
            self._load()
        except FileNotFoundError:
            pass
        except (OSError, RecordError) as error:
            tell(f"COMMISSIONING record refused: {error}")

    def _load(self) -> None:
        raw = (self._directory / RECORD).read_bytes()
        record = verified(raw)
        if record["public_key"] != self._public_key():
            raise RecordError("another unit signed it, or the key is lost")
        self._raw, self._record = raw, record

    def _public_key(self) -> str:
        """Empty when there is none."""
        if not (self._directory / KEY).exists():
            return ""
        return _private_key(self._directory).public_key().public_bytes_raw().hex()

    @property
    def state(self) -> CommState:
        if self._record is None:
            return CommState.NOT_COMMISSIONED
        if self._now is None or any(changes(self._record["configuration"], self._now)):
            return CommState.VOID
        return CommState.COMMISSIONED

    def judge(self, now: Configuration) -> bool:
        """Whether the record counts with this configuration, which is in force from here on."""
        self._now = now
        why = next(changes(self._record["configuration"], now), "") if self._record else ""
        if why and why != self._told:
            self._tell(f"COMMISSIONING void: {why}")
        self._told = why
        return self.state is CommState.COMMISSIONED

    def look(self, status: Status | None, now_ns: int) -> None:
        self._checks.look(status, now_ns, time.time())

    def both(self) -> int:
        """CommSeen."""
        return self._checks.both()

    def missing(self, status: Status, required: int) -> int:
        """CommMissing."""
        return self._checks.missing(status.interlocks, required)

    def read(self, first: int, count: int) -> bytes:
        """`count` registers of the Modbus file. Raises LookupError when they are not there."""
        if not self._raw:
            raise LookupError("there is no commissioning record")
        data = len(self._raw).to_bytes(4, "big") + self._raw + b" " * (len(self._raw) % 2)
        if 2 * (first + count) > len(data):
            raise LookupError(f"file {RECORD_FILE} has {len(data) // 2} registers")
        return data[2 * first : 2 * (first + count)]

    def take(self, status: Status | None, required: int | None) -> Why:
        """Records the commissioning; NONE when it is on the disk. `required` None: there is no valid configuration."""
        if status is None:
            return Why.NO_DATA
        if self._now is None or required is None:
            return Why.NO_CONFIGURATION
        if status.state != State.SERVICE:
            return Why.NOT_IN_SERVICE
        if self.missing(status, required):
            return Why.CHECKS_MISSING
        try:
            self._save(self._now, status, required)
        except OSError as error:
            self._tell(f"COMMISSIONING refused, not saved: {error.strerror}")
            return Why.RECORD_NOT_SAVED
        self._tell(f"COMMISSIONING recorded, sha256 {digest(self._now)[:16]}")
        return Why.NONE

    def _save(self, now: Configuration, status: Status, required: int) -> None:
        key = _private_key(self._directory)
        record: dict[str, Any] = {
            "record": "ems-edge commissioning",
            "schema": SCHEMA,
            "unit": platform.node(),
            "software": version("ems-edge"),
            "recorded": _utc(time.time()),
            "clock_trusted": bool(status.status_bits >> StatusBit.CLOCK_TRUSTED & 1),
            "checks": list(self._checked(required)),
            "configuration": now,
            "sha256": digest(now),
            "public_key": key.public_key().public_bytes_raw().hex(),
        }
        signed = {**record, "signature": key.sign(canonical(record)).hex()}
        raw = json.dumps(signed, indent=1).encode() + b"\n"
        write_whole(self._directory / RECORD, raw)
        self._raw, self._record, self._told = raw, json.loads(canonical(record)), ""

    def _checked(self, required: int) -> Iterator[dict[str, str]]:
        """Every check that counted, and those beyond what is required."""
        must = self._checks.both() | required & 0xFF | _FEEDBACK
        for bit, (name, low, high) in words.INPUT.items():
            if not must >> bit & 1:
                continue
            at = self._checks.seen[bit]
            times = {low: at.low} if _FEEDBACK >> bit & 1 else {low: at.low, high: at.high}
            yield {"input": name, **{position: _utc(wall_s) for position, wall_s in times.items()}}
