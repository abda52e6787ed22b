"""`ems-tool --commission`: leads a person through the checks that the appliance watches, and fetches the signed record.

The appliance decides what was seen. This asks for what is missing, enters SERVICE, acknowledges the emergency stop that
kill-switch and tamper cause, and asks for the record when nothing is missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

from statemachine.signals import InterlockBit, Mode
from statemachine.states import State

from . import cli, words
from .commissioning import RECORD_FILE, RecordError, summary, verified
from .models.commissioning import CommCommand
from .points import PointClient, PointError

_POLL_S = 0.2
_CHUNK = 120  # registers an answer of FC20
_LONGEST = 1 << 20
_SAFE = (State.FAULT, State.EMERGENCY_STOP)
_CHAIN = 1 << InterlockBit.KILL_OK | 1 << InterlockBit.TAMPER_OK


def inputs_of(bits: int) -> Iterator[tuple[InterlockBit, str, str, str]]:
    """(bit, name, what 0 is, what 1 is) of every bit that is set."""
    return ((bit, *names) for bit, names in words.INPUT.items() if bits >> bit & 1)


def asked(missing: int, seen: int, interlocks: int) -> Iterator[str]:
    """What a person has to do, a line an input."""
    for bit, name, low, high in inputs_of(missing):
        now = high if interlocks >> bit & 1 else low
        if name.startswith("contactor"):
            yield f"{name}: is {now}; isolate the rack and find out why" if now == high else f"{name}: is looked at"
        elif seen >> bit & 1:
            yield f"{name}: is {now}; put it back as in operation"
        else:
            yield f"{name}: is {now}; move it to {low if now == high else high} and back, a second each"


def news(told: list[str], now: list[str]) -> Iterator[str]:
    """What is asked now and was not, and what is not asked any more."""
    yield from (line for line in now if line not in told)
    left = {line.partition(":")[0] for line in now}
    yield from (f"{name}: ok" for line in told if (name := line.partition(":")[0]) not in left)


def commission(client: PointClient, save: Path) -> int:
    """Until everything was seen and the record is fetched; the record goes to `save`. Raises Failed."""
    state, *_ = _look(client)
    if state not in (State.ISOLATED, State.SERVICE, *_SAFE):
        raise cli.Failed(f"the state is {state.name}, allowed is ISOLATED or SERVICE; command mode off first")
    print("Move every input below to and fro. Kill-switch and tamper lead to an emergency stop: put them back and")
    print("press RESET, the rest is done from here. Ctrl-C ends; what was seen stays until something closes.")
    _await_checks(client)
    cli.write(client, {"CmdComm": CommCommand.RECORD})
    saved = _saved(client, save)
    cli.write(client, {"CmdMode": Mode.OFF})
    for line in summary(saved):
        print(line)
    print(f"Commissioned; SERVICE is left. The signed record is in {save}: keep it.")
    print("It counts until limits.conf, what is connected in site.conf, or the board file changes.")
    return 0


def _await_checks(client: PointClient) -> None:
    """Until nothing is missing in SERVICE."""
    told: list[str] = []
    while True:
        state, interlocks, seen, missing = _look(client)
        _to_service(client, state, interlocks)
        now = list(asked(missing, seen, interlocks))
        for line in news(told, now):
            print(f"  {line}", flush=True)
        if state is State.SERVICE and not missing:
            return
        told = now
        time.sleep(_POLL_S)


def _look(client: PointClient) -> tuple[State, int, int, int]:
    seen = client.read("CmfState", "Interlocks", "CommSeen", "CommMissing")
    if any(map(math.isnan, seen.values())):
        raise cli.Failed("the controller does not answer; check that ems-controller runs")
    return State(int(seen["CmfState"])), int(seen["Interlocks"]), int(seen["CommSeen"]), int(seen["CommMissing"])


def _to_service(client: PointClient, state: State, interlocks: int) -> None:
    """One step towards SERVICE; what is refused now is tried again with the next look."""
    try:
        if state is State.ISOLATED:
            seq = int(client.read("CmdSeq")["CmdSeq"])
            cli.write(client, {"CmdSeq": (seq + 1) % 0xFFFFFFFF, "CmdMode": Mode.SERVICE})
        elif state in _SAFE and interlocks & _CHAIN == _CHAIN:
            cli.write(client, {"AckFaults": 1})
    except cli.Failed as refused:
        if state is State.ISOLATED:
            raise cli.Failed(f"SERVICE is {refused}") from refused


def _saved(client: PointClient, path: Path) -> dict[str, object]:
    """The appliance's record, verified and written to `path`. Raises Failed."""
    try:
        raw = fetched(client)
        record = verified(raw)
        path.write_bytes(raw)
    except RecordError as error:
        raise cli.Failed(f"the record that came does not verify: {error}") from error
    except OSError as error:
        raise cli.Failed(
            f"recorded on the appliance, but {path} cannot be written: {error.strerror}; "
            "fetch it with ems-tool --commission-record --record FILE"
        ) from error
    return record


def fetched(client: PointClient) -> bytes:
    """The record as the appliance keeps it. Raises PointError, Failed."""
    length = int.from_bytes(client.read_file(RECORD_FILE, 0, 2), "big")
    if length > _LONGEST:
        raise cli.Failed(f"the record says it has {length} bytes, allowed {_LONGEST}")
    end = 2 + (length + 1) // 2
    parts = (client.read_file(RECORD_FILE, at, min(_CHUNK, end - at)) for at in range(2, end, _CHUNK))
    return b"".join(parts)[:length]


def fetch_record(client: PointClient, save: Path) -> int:
    """`ems-tool --commission-record`. Raises Failed."""
    try:
        for line in summary(_saved(client, save)):
            print(line)
    except PointError as error:
        raise cli.Failed(f"{error}; commission first: ems-tool --commission") from error
    print(f"the signed record is in {save}")
    return 0


def verify_record(path: Path) -> int:
    """`ems-tool --verify-record`: without the appliance. Raises Failed."""
    try:
        for line in summary(verified(path.read_bytes())):
            print(line)
    except OSError as error:
        raise cli.Failed(f"{path}: {error.strerror}") from error
    except (RecordError, KeyError, TypeError) as error:
        raise cli.Failed(f"{path} does not verify: {error}") from error
    print("signature good: nothing was changed since the unit with this key signed it")
    return 0
