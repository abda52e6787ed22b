"""`python -m tests.fuzz [--adus 5000000] [--seed 1]`: exit 1 at the first answer that is not the one of the oracle.

Nine tenths go to a bank of registers, where the oracle knows every byte; the rest to the appliance itself, where every
answer must be well formed, nothing may raise, and what is refused may not have been applied.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from drivers.modbus.adu import AduReader, FramingError
from drivers.modbus.session import Counters, ModbusError, Session
from firmware import config
from firmware.appliance import Appliance
from firmware.image import writer
from firmware.registers import BASE, END, POINTS
from firmware.server import Configuration

from .grammar import Grammar
from .oracle import Memory, stream

LIMIT, READ_ONLY, UNITS = 400, frozenset({17, 200}), (1, 9)
OBJECTS = {0: b"Maker", 1: b"Thing", 2: b"1.0", 5: b"Five"}
GROWTH_KB = 2048


class Bank:
    """The same registers and files as the oracle's, as a device."""

    def __init__(self) -> None:
        self.data = bytearray(2 * LIMIT)

    def serves(self, unit: int) -> bool:
        return unit in UNITS

    def read(self, unit: int, address: int, count: int) -> bytes:
        if address + count > LIMIT:
            raise ModbusError(2)
        return bytes(self.data[2 * address : 2 * (address + count)])

    def write(self, unit: int, address: int, data: bytes, peer: str) -> None:
        places = range(address, address + len(data) // 2)
        if places.stop > LIMIT or READ_ONLY.intersection(places):
            raise ModbusError(2)
        self.data[2 * address : 2 * address + len(data)] = data

    def identity(self, unit: int) -> Mapping[int, bytes]:
        return OBJECTS

    def read_file(self, unit: int, file: int, record: int, count: int) -> bytes:
        if not 1 <= file <= 5 or record + count > 50:
            raise ModbusError(2)
        return b"".join(bytes((file, n)) for n in range(record, record + count))


class Wrong(Exception):
    """An answer that is not right; the text has the stream in hex."""


def _raise(error: Exception) -> None:
    raise error


def against_the_oracle(adus: int, seed: int) -> int:
    """Every byte of every answer. The number of ADUs. Raises Wrong."""
    bank, memory = Bank(), Memory(LIMIT, READ_ONLY, OBJECTS)
    grammar, done = Grammar(seed, (0, 17, 100, 199, LIMIT - 2, LIMIT - 1), UNITS), 0
    while done < adus:
        data, count = grammar.stream()
        session, said, alive = Session(bank, "fuzz", Counters(), _raise), b"", True
        for part in grammar.cut(data):
            if alive:
                answers, alive = session.receive(part)
                said += answers
        right, lives = stream(memory, UNITS, data)
        if (said, alive) != (right, lives):
            raise Wrong(f"{data.hex()}\nanswered {said.hex()} {alive}\nright is {right.hex()} {lives}")
        done += count
    if bank.data != b"".join(v.to_bytes(2) for v in memory.registers):
        raise Wrong("the registers differ")
    return done


def against_the_appliance(adus: int, seed: int, directory: Path) -> int:
    """Well-formed answers only, nothing raised, nothing of a refused write applied. Raises Wrong."""
    config.prepare(directory / "config", {})
    file = writer("server", directory / "run")
    appliance = Appliance(file, directory / "run", directory / "state")
    Configuration(directory / "config", file, appliance).reload()
    counters, done = Counters(), 0
    grammar = Grammar(seed, (BASE, END - 1, *(p.address for p in POINTS if p.access == "RW")), (1,))
    while done < adus:
        data, count = grammar.stream()
        session = Session(appliance, f"fuzz{done // 1000}:1", counters, _raise)
        for part in grammar.cut(data):
            before = appliance.command()
            answers, alive = session.receive(part)
            refused = _refused(answers)
            if refused and refused == _answered(answers) and appliance.command() != before:
                raise Wrong(f"{part.hex()}\nrefused {answers.hex()}, but applied")
            if not alive:
                break
        done += count
    file.close()
    return done


def _answered(answers: bytes) -> int:
    try:
        return len(list(AduReader().feed(answers)))
    except FramingError as error:
        raise Wrong(f"answered {answers.hex()}: {error}") from error


def _refused(answers: bytes) -> int:
    pdus = [pdu for _, _, pdu in AduReader().feed(answers)]
    for pdu in pdus:
        if pdu[0] & 0x80 and (len(pdu) != 2 or pdu[1] not in (1, 2, 3, 4, 6, 11)):
            raise Wrong(f"answered {pdu.hex()}")
    return sum(pdu[0] >> 7 for pdu in pdus)


def _rss_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def main() -> int:
    """0 when every answer was right and memory stood still."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--adus", type=int, default=5_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began_s, done, first_kb = time.monotonic(), 0, 0
    step, share = max(1000, args.adus // 50), 10
    try:
        while done < args.adus:
            done += against_the_oracle(step * (share - 1) // share, args.seed + done)
            with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
                done += against_the_appliance(step // share, args.seed + done, Path(name))
            gc.collect()
            first_kb = first_kb or _rss_kb()
    except Wrong as wrong:
        print(f"after {done:,} ADUs, seed {args.seed}: {wrong}")
        return 1
    grown_kb, seconds = _rss_kb() - first_kb, time.monotonic() - began_s
    print(f"{done:,} ADUs, seed {args.seed}: every answer right, memory {grown_kb:+,} kB, {seconds:.0f} s")
    return int(grown_kb > GROWTH_KB)


if __name__ == "__main__":
    sys.exit(main())
