"""The raw probe: a table of checks, each a question in bytes and the only answer that is right."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from drivers.modbus.adu import AduReader, frame
from drivers.modbus.point import UNIMPLEMENTED, Point
from firmware.registers import BASE, END, POINT, POINTS
from statemachine.signals import Why

UNIT = 1
CLOSED = "closed"
_READ = b"\3" + struct.pack(">HH", BASE, 2)
_MARKER = b"\3\4SunS"


class Wire:
    """One raw connection."""

    def __init__(self, port: int) -> None:
        self._peer = socket.create_connection(("127.0.0.1", port), 3)
        self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer.settimeout(3)
        self._reader = AduReader()
        self._adus: list[tuple[int, int, bytes]] = []

    def send(self, data: bytes) -> None:
        self._peer.sendall(data)

    def adu(self) -> tuple[int, int, bytes] | str:
        """Transaction, unit and PDU of the next answer, or CLOSED."""
        while not self._adus:
            try:
                data = self._peer.recv(4096)
            except ConnectionError:
                data = b""
            if not data:
                return CLOSED
            self._adus += self._reader.feed(data)
        return self._adus.pop(0)

    def ask(self, pdu: bytes, unit: int = UNIT) -> bytes | str:
        """The answer's PDU, or CLOSED."""
        self.send(frame(0x0102, unit, pdu))
        answer = self.adu()
        return answer if isinstance(answer, str) else answer[2]

    def close(self) -> None:
        self._peer.close()


class Check(NamedTuple):
    """`run` gives (answer, right answer) as words for the document."""

    id: str
    title: str
    run: Callable[[Wire], tuple[object, object]]


def _hex(answer: bytes | str) -> str:
    return answer if isinstance(answer, str) else answer.hex()


def _asks(number: str, title: str, request: str | bytes, answer: str, unit: int = UNIT) -> Check:
    pdu = bytes.fromhex(request) if isinstance(request, str) else request
    return Check(number, title, lambda wire: (_hex(wire.ask(pdu, unit)), answer.replace(" ", "")))


def _closes(number: str, title: str, header: str) -> Check:
    def run(wire: Wire) -> tuple[object, object]:
        wire.send(frame(1, UNIT, _READ) + bytes.fromhex(header))
        first, second = wire.adu(), wire.adu()
        return (_hex(first[2]) if not isinstance(first, str) else first, second), (_MARKER.hex(), CLOSED)

    return Check(number, title, run)


def _stays(number: str, title: str, run: Callable[[Wire], object], right: object) -> Check:
    return Check(number, title, lambda wire: (run(wire), right))


def _at(name: str) -> int:
    return POINT[name].address


def _write(address: int, *registers: int) -> bytes:
    data = struct.pack(f">{len(registers)}H", *registers)
    return struct.pack(">BHHB", 16, address, len(registers), len(data)) + data


def _split(wire: Wire) -> object:
    adu, seen = frame(9, UNIT, _READ), set()
    for at in range(1, len(adu)):
        wire.send(adu[:at])
        wire.send(adu[at:])
        seen.add(wire.adu())
    return seen == {(9, UNIT, _MARKER)}


def _pipelined(wire: Wire) -> object:
    wire.send(b"".join(frame(n, UNIT, _READ) for n in range(64)))
    return [a[0] for _ in range(64) if not isinstance(a := wire.adu(), str)] == list(range(64))


def _two_in_one(wire: Wire) -> object:
    address = _at("HbTmo")
    wire.send(frame(1, UNIT, struct.pack(">BHH", 6, address, 33)) + frame(2, UNIT, struct.pack(">BHH", 3, address, 1)))
    wire.adu()
    answer = wire.adu()
    return _hex(answer[2]) if not isinstance(answer, str) else answer


def _ids(wire: Wire) -> object:
    found = []
    for transaction in (0, 1, 0x7FFF, 0xFFFF):
        wire.send(frame(transaction, UNIT, _READ))
        answer = wire.adu()
        found.append(answer[:2])
    return found


def _every_code(wire: Wire) -> object:
    served = {3, 4, 6, 16, 20, 23, 43}
    return [c for c in range(256) if c not in served and wire.ask(bytes((c, 0, 0, 0, 1))) != bytes((c | 0x80, 1))]


def _single_registers(wire: Wire) -> object:
    return [a for a in range(BASE, END) if len(wire.ask(struct.pack(">BHH", 3, a, 1))) != 4]


def _read_only(wire: Wire) -> object:
    taken = []
    for point in POINTS:
        if point.access == "R":
            answer = wire.ask(_write(point.address, *[0] * point.count))
            if answer != b"\x90\2":
                taken.append(point.name)
    return taken


WRITABLE: tuple[Point, ...] = tuple(point for point in POINTS if point.access == "RW")
"""What MOD-3 and EXC-1 walk over: a point that comes into the map is judged without a line here."""


def _legal(point: Point) -> list[int]:
    """Raw: every value of an enumeration, else the ends of the range and three between."""
    if point.values is not None:
        return [int(value) for value in point.values]
    low, high = _ends(point)
    return sorted({low + (high - low) * quarter // 4 for quarter in range(5)})


def _illegal(point: Point) -> list[int]:
    """Raw: "not implemented", and the neighbours of the range as far as the type has them."""
    signed, bits = point.type in ("int16", "int32"), 16 * point.count
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    low, high = _ends(point)
    inside = set() if point.values is None else set(range(low, high + 1)) - {int(v) for v in point.values}
    outside = {raw for raw in (low - 1, high + 1, least, most) if least <= raw <= most and not low <= raw <= high}
    return sorted({UNIMPLEMENTED[point.type]} | inside | outside)


def _ends(point: Point) -> tuple[int, int]:
    assert point.low is not None and point.high is not None
    return round(point.low / point.scale), round(point.high / point.scale)


def _bytes(point: Point, raw: int) -> bytes:
    return (raw & (1 << 16 * point.count) - 1).to_bytes(2 * point.count)


def _put(wire: Wire, point: Point, raw: int) -> bytes | str:
    data = _bytes(point, raw)
    return wire.ask(struct.pack(">BHHB", 16, point.address, point.count, len(data)) + data)


def _got(wire: Wire, point: Point) -> bytes | str:
    return wire.ask(struct.pack(">BHH", 3, point.address, point.count))[2:]


def _why(wire: Wire) -> tuple[int, int]:
    """AckWhy and RefAddr."""
    answer = wire.ask(struct.pack(">BHH", 3, _at("AckWhy"), 2))
    assert isinstance(answer, bytes)
    why, address = struct.unpack(">HH", answer[2:])
    return why, address


def _read_back(wire: Wire) -> object:
    """What is taken reads back; what is not is a command that the state forbids, and at most one value of a point."""
    wrong = []
    for point in WRITABLE:
        if point.name in ("Epoch", "ValidMs"):  # only in a whole frame
            continue
        forbidden = 0
        for raw in _legal(point):
            before = _got(wire, point)
            answer = _put(wire, point, raw)
            right = _bytes(point, 0 if "reads 0" in point.doc else raw)
            if answer == b"\x90\4" and _why(wire)[0]:
                right, forbidden = bytes(before) if isinstance(before, bytes) else b"", forbidden + 1
            if _got(wire, point) != right or forbidden > 1:
                wrong.append((point.name, raw, _hex(answer)))
    return wrong


def _bad_values(wire: Wire) -> object:
    wrong = []
    for point in WRITABLE:
        before = _got(wire, point)
        for raw in _illegal(point):
            refused = _put(wire, point, raw) == b"\x90\3" and _got(wire, point) == before
            why, address = _why(wire)
            if not refused or why not in (Why.OUT_OF_RANGE, Why.UNDEFINED_VALUE) or address != point.address:
                wrong.append((point.name, raw))
    return wrong


def _half(wire: Wire) -> object:
    return [p.name for p in POINTS if p.access == "RW" and p.count == 2 and wire.ask(_write(p.address, 0)) != b"\x90\2"]


def _both_functions(wire: Wire) -> object:
    address = _at("CmdTgtSoC")
    return [_hex(wire.ask(struct.pack(">BHH", 6, address, 600))), _hex(wire.ask(_write(address, 700)))]


def _who(wire: Wire) -> object:
    answer = wire.ask(bytes((43, 14, 1, 0)))
    assert isinstance(answer, bytes) and answer[:7] == bytes((43, 14, 1, 0x82, 0, 0, 3)), answer
    at, found = 7, list[int]()
    for _ in range(3):
        found.append(answer[at])
        at += 2 + answer[at + 1]
    return found if at == len(answer) else answer


def _models(wire: Wire) -> object:
    """Walks the chain of models as a SunSpec client does."""
    at, found = BASE + 2, list[int]()
    while True:
        answer = wire.ask(struct.pack(">BHH", 3, at, 2))
        assert isinstance(answer, bytes) and len(answer) == 6, answer
        number, length = struct.unpack(">HH", answer[2:])
        if number == 0xFFFF:
            return length == 0 and {1, 704, 713, 715, 802, 64990, 64991} <= set(found) and at + 2 == END
        found.append(number)
        at += 2 + length


def _block_is_whole(wire: Wire) -> object:
    """One bad register in a block of eleven: nothing of it is applied."""
    first = _at("WSetEna")
    before = wire.ask(struct.pack(">BHH", 3, first, 11))
    answer = wire.ask(_write(first, 1, 1, 0, 1000, 0, 0, 0, 0, 9, 0, 30))
    return _hex(answer), wire.ask(struct.pack(">BHH", 3, first, 11)) == before


def _unchanged(request: bytes) -> Callable[[Wire], object]:
    """The answer to a write that touches a writable register, and whether that kept its value."""

    def run(wire: Wire) -> object:
        before = _got(wire, POINT["LossPol"])
        return _hex(wire.ask(request)), _got(wire, POINT["LossPol"]) == before

    return run


def _reasons(wire: Wire) -> object:
    found = []
    for request in (_write(_at("802.SoC"), 1), _write(0, 1), _write(_at("WSet"), 0), _write(_at("LossPol"), 9),
                    _write(_at("HbTmo"), 1)):  # fmt: skip
        wire.ask(request)
        found.append(_why(wire))
    wire.ask(_write(_at("HbTmo"), 10))
    return [*found, _why(wire)]


_REASONS = [
    (Why.READ_ONLY, _at("802.SoC")), (Why.NO_SUCH_REGISTER, 0), (Why.HALF_POINT, _at("WSet")),
    (Why.UNDEFINED_VALUE, _at("LossPol")), (Why.OUT_OF_RANGE, _at("HbTmo")), (Why.NONE, 0),
]  # fmt: skip


def _lives_on(wire: Wire) -> object:
    for request in ("03 9c40 0000", "41", "06 0000 0001", "10 9c40"):
        wire.ask(bytes.fromhex(request))
    return _hex(wire.ask(_READ))


_E = END
CHECKS: tuple[Check, ...] = (
    _stays("FRM-1", "transaction and unit are echoed", _ids, [(t, UNIT) for t in (0, 1, 0x7FFF, 0xFFFF)]),
    _stays("FRM-2", "64 requests in one segment: 64 answers in order", _pipelined, True),
    _stays("FRM-3", "a write and a read in one segment, in this order", _two_in_one, "03020021"),
    _closes("FRM-4", "protocol id 1 ends the connection, after the answers before it", "0001 0001 0006 01 03"),
    _closes("FRM-5", "protocol id 65535", "0001 ffff 0006 01 03"),
    _closes("FRM-6", "MBAP length 0", "0001 0000 0000"),
    _closes("FRM-7", "MBAP length 1", "0001 0000 0001 01"),
    _closes("FRM-8", "MBAP length 255 of a read", "0001 0000 00ff 01 03"),
    _closes("FRM-9", "MBAP length 65535", "0001 0000 ffff 01 10"),
    _stays("FRM-10", "refusals end nothing", _lives_on, _MARKER.hex()),
    _asks("CNT-1", "FC03, 0 registers", "03 9c40 0000", "83 03"),
    _asks("CNT-2", "FC03, 126 registers", "03 9c40 007e", "83 03"),
    _asks("CNT-3", "FC03, 65535 registers", "03 9c40 ffff", "83 03"),
    _asks("CNT-4", "FC04, 0 registers", "04 9c40 0000", "84 03"),
    _asks("CNT-5", "FC04, 126 registers", "04 9c40 007e", "84 03"),
    _asks("CNT-6", "FC16, 0 registers", "10 9cc4 0000 00", "90 03"),
    _asks("CNT-7", "FC16, 124 registers in a frame of their length",
          struct.pack(">BHHB", 16, BASE, 124, 248) + bytes(248), "90 03"),
    _asks("CNT-8", "FC16, byte count one less", "10 9cc4 0002 03 000100", "90 03"),
    _asks("CNT-9", "FC16, byte count one more than came", "10 9cc4 0001 03 0001", "90 03"),
    _asks("CNT-10", "FC16, more data than the byte count", "10 9cc4 0001 02 000100", "90 03"),
    _asks("CNT-11", "FC16, count and byte count disagree", "10 9cc4 0001 04 00010002", "90 03"),
    _asks("CNT-12", "FC16, no data at all", "10 9cc4", "90 03"),
    _asks("CNT-13", "FC06, no value", "06 9cc4", "86 03"),
    _asks("CNT-14", "FC06, a byte too many", "06 9cc4 0001 00", "86 03"),
    _asks("CNT-15", "FC03, no count", "03 9c40", "83 03"),
    _asks("CNT-16", "FC03, a byte too many", "03 9c40 0001 00", "83 03"),
    _asks("CNT-17", "FC03, function code only", "03", "83 03"),
    _asks("CNT-18", "FC23, read 0", "17 9c40 0000 9cc4 0001 02 0001", "97 03"),
    _asks("CNT-19", "FC23, read 126", "17 9c40 007e 9cc4 0001 02 0001", "97 03"),
    _asks("CNT-20", "FC23, write 0", "17 9c40 0001 9cc4 0000 00", "97 03"),
    _asks("CNT-21", "FC23, write 122 in a frame of their length",
          struct.pack(">BHHHHB", 23, BASE, 1, BASE, 122, 244) + bytes(244), "97 03"),
    _asks("CNT-22", "FC23, byte count disagrees", "17 9c40 0001 9cc4 0001 04 0001", "97 03"),
    _stays("CNT-23", "FC03, 125 registers fit", lambda wire: len(wire.ask(struct.pack(">BHH", 3, BASE, 125))), 252),
    _stays("FC-1", "every function code that is not served: its own code with the top bit, exception 01",
           _every_code, []),
    *(_asks(f"FC-{2 + n}", f"FC{code:02}, {name}", bytes((code, 0, 0, 0, 1)), f"{code | 0x80:02x}01")
      for n, (code, name) in enumerate({
          1: "read coils", 2: "read discrete inputs", 5: "write single coil", 7: "read exception status",
          8: "diagnostics", 11: "get comm event counter", 15: "write multiple coils", 17: "report server id",
          21: "write file record", 22: "mask write register", 24: "read FIFO queue", 100: "user-defined",
      }.items())),
    _asks("ADR-1", "the register before the map", struct.pack(">BHH", 3, BASE - 1, 1), "83 02"),
    _asks("ADR-2", "a read that begins before the map", struct.pack(">BHH", 3, BASE - 1, 2), "83 02"),
    _asks("ADR-3", "the register after the map", struct.pack(">BHH", 3, _E, 1), "83 02"),
    _asks("ADR-4", "a read over the end of the map", struct.pack(">BHH", 3, _E - 1, 2), "83 02"),
    _asks("ADR-5", "the last registers of the map", struct.pack(">BHH", 3, _E - 2, 2), "03 04 ffff 0000"),
    _asks("ADR-6", "register 0", "03 0000 0001", "83 02"),
    _asks("ADR-7", "over register 65535", "03 ffff 0002", "83 02"),
    _asks("ADR-8", "FC04 reads the same map", struct.pack(">BHH", 4, BASE, 2), "04 04 53756e53"),
    _asks("ADR-9", "a write outside the map", "10 0000 0001 02 0001", "90 02"),
    _asks("ADR-10", "a write over register 65535", "10 ffff 0002 04 00010002", "90 02"),
    _asks("ADR-11", "FC23 with a read outside writes nothing", "17 0000 0001 9cc4 0001 02 0001", "97 02"),
    _stays("ADR-12", "half of any 32-bit point", _half, []),
    _asks("UNT-1", "unit 0", _READ, "83 0b", unit=0),
    _asks("UNT-2", "unit 2", _READ, "83 0b", unit=2),
    _asks("UNT-3", "unit 255", _READ, "83 0b", unit=255),
    _asks("UNT-4", "a write to a unit that is not there", "06 9cc4 0001", "86 0b", unit=99),
    _stays("ID-1", "FC43/14 basic: vendor, product, revision", _who, [0, 1, 2]),
    _asks("ID-6", "FC43 with another MEI type", "2b 0d 01 00", "ab 01"),
    _asks("ID-2", "FC43/14, code 0", "2b 0e 00 00", "ab 03"),
    _asks("ID-3", "FC43/14, code 5", "2b 0e 05 00", "ab 03"),
    _asks("ID-4", "FC43/14, an object that is not there", "2b 0e 04 63", "ab 02"),
    _asks("ID-5", "FC43/14, one object", "2b 0e 04 01", "2b 0e 04 82 00 00 01 01 05 454d532d31"),
    _asks("FIL-1", "FC20, byte count 0", "14 00", "94 03"),
    _asks("FIL-2", "FC20, byte count no multiple of 7", "14 08 06 0001 0000 0001 00", "94 03"),
    _asks("FIL-3", "FC20, record length 0", "14 07 06 0001 0000 0000", "94 03"),
    _asks("FIL-4", "FC20, answer too long", "14 07 06 0001 0000 007a", "94 03"),
    _asks("FIL-5", "FC20, reference type 5", "14 07 05 0001 0000 0001", "94 02"),
    _asks("FIL-6", "FC20, file 0", "14 07 06 0000 0000 0001", "94 02"),
    _asks("FIL-7", "FC20, a file that is not there", "14 07 06 ffff 0000 0001", "94 02"),
    _stays("WRT-1", "a block with one bad register is refused whole", _block_is_whole, ("9003", True)),
    _stays("WRT-2", "reason and register of a refusal are in AckWhy and RefAddr until a write is taken", _reasons,
           _REASONS),
    _stays("WRT-3", "a block that runs from a writable register into a read-only one is refused whole",
           _unchanged(_write(_at("LossPol"), 1, *[0] * (_at("AckSeq") + 2 - _at("LossPol") - 1))), ("9002", True)),
    _stays("WRT-4", "a block that ends with half of a 32-bit point is refused whole",
           _unchanged(_write(_at("WSetMod"), 1, 0)), ("9002", True)),
    _stays("WRT-5", "a block that begins with half of a 32-bit point is refused whole",
           _unchanged(_write(_at("WSetRvrt") + 1, 0, 0)), ("9002", True)),
    _stays("WRT-6", "FC23 with a value that is not allowed writes nothing",
           _unchanged(struct.pack(">BHHHHBHH", 23, BASE, 1, _at("HbTmo"), 2, 4, 1, 1)), ("9703", True)),
    _stays("WRT-7", "FC06 with a value that is not allowed",
           _unchanged(struct.pack(">BHH", 6, _at("LossPol"), 9)), ("8603", True)),
    _asks("WRT-8", "FC06 to half of a 32-bit point", struct.pack(">BHH", 6, _at("WSet"), 1), "86 02"),
    _asks("WRT-9", "a write to a string unit", "10 9cc4 0001 02 0001", "90 02", unit=101),
    _asks("WRT-10", "FC23 writes before it reads",
          struct.pack(">BHHHHBH", 23, _at("HbTmo"), 1, _at("HbTmo"), 1, 2, 44), "17 02 002c"),
    _stays("SS-1", "the chain of models ends with FFFF, 0 at the end of the map", _models, True),
    _stays("MOD-3", "every writable point takes its least, greatest and middle values and reads back at once",
           _read_back, []),
    _stays("EXC-1", "a sentinel, an undefined value and the neighbours of the range are refused with 03, the old value "
           "stays, AckWhy and RefAddr say so: at every writable point", _bad_values, []),
    _stays("EXC-2", "every read-only point refuses a write with 02", _read_only, []),
    _asks("EXC-3", "an illegal function: exception 01", "41 0000 0001", "c1 01"),
    _stays("MB-1", "FC06 and FC16 write the same register", _both_functions,
           [struct.pack(">BHH", 6, _at("CmdTgtSoC"), 600).hex(), struct.pack(">BHH", 16, _at("CmdTgtSoC"), 1).hex()]),
    _stays("MB-2", "every register of the map can be read alone", _single_registers, []),
    _stays("TCP-3", "a request split over two segments at any byte", _split, True),
)  # fmt: skip


class Elsewhere(NamedTuple):
    """Shown by a test of `test_<file>.py`: procedures that take more than a question and an answer."""

    id: str
    title: str
    file: str
    name: str


ELSEWHERE: tuple[Elsewhere, ...] = tuple(Elsewhere(*row) for row in (
    ("REV-1", "every reversion timer of the map counts down and acts, on the running appliance",
     "reversion", "a_timer_counts_down_and_reverts"),
    ("REV-2", "rewriting extends it", "reversion", "rewriting_a_timer_extends_it"),
    ("REV-3", "0 cancels it", "reversion", "zero_cancels_a_timer"),
    ("REV-1", "to the millisecond of the scan",
     "boundaries_commands", "a_set_point_reverts_when_its_time_is_over"),
    ("REV-1", "the registers show the reversion", "server", "a_reversion_shows_in_the_registers_once"),
    ("REV-2", "each write of the group starts it again",
     "boundaries_commands", "a_new_set_point_starts_its_time_and_acts"),
    ("REV-3", "time 0: the set-point stays",
     "boundaries_commands", "without_a_time_a_set_point_stays_and_nothing_reverts"),
    ("REV-1", "704 limit: the timer runs out after its time",
     "core_grid", "a_limit_reverts_after_its_time_and_tells_it"),
    ("REV-1", "704 limit: the registers show it", "grid_registers", "a_limit_reverts_in_the_registers_once"),
    ("REV-1", "711: the set that was named for it is adopted",
     "grid_registers", "a_reversion_adopts_the_set_that_was_named_for_it"),
    ("REV-2", "704 limit and 711: each write of the group starts it again",
     "grid_registers", "a_write_to_a_group_makes_a_new_version_of_it_and_of_no_other"),
    ("REV-2", "a new version starts the timer anew", "grid_functions", "a_new_version_starts_the_timer_anew"),
    ("REV-3", "704 limit and 711: time 0 is no timer",
     "grid_functions", "without_a_timer_nothing_runs_out_and_version_zero_was_never_written"),
    ("CRV", "711: set 1 is live and read-only", "grid_registers", "set_1_is_in_force_and_cannot_be_written"),
    ("CRV", "711: set 2 counts when it is adopted", "grid_registers", "a_set_counts_when_it_is_adopted"),
    ("CRV", "711: it is checked then, and not before",
     "grid_registers", "a_set_is_checked_when_it_is_adopted_and_not_before"),
    ("CRV", "711: a bad index is FAILED, set 1 as before",
     "grid_registers", "a_set_that_does_not_exist_is_not_adopted"),
    ("TCP-2", "half a request is ended after a second, other connections live",
     "modbus_server", "half_an_adu_and_an_idle_connection_are_closed_in_time_but_a_talking_one_is_not"),
    ("TCP-2", "a dribbling peer cannot stretch that",
     "modbus_server", "a_dribbling_peer_cannot_stretch_the_deadline"),
    ("SS-2", "an independent SunSpec client scans unit 1", "registers", "a_sunspec_client_scans_the_map"),
    ("SS-3", "and finds every cell on the string units",
     "string_units", "an_independent_client_finds_all_1200_cells_as_they_were_published"),
    ("SS-4", "and reads and writes the vendor points by name",
     "model_json", "a_sunspec_client_reads_every_point_by_name_with_value_and_scale"),
    ("TLS", "roles and certificates of SunSpec's own test PKI",
     "tls", "each_role_reads_and_only_those_that_command_write"),
    ("TLS", "who has none does not get in", "tls", "who_has_no_certificate_of_ours_does_not_get_in"),
    ("WRT-11", "a reader never sees half of a block that a writer hammers",
     "server", "a_hammering_writer_is_never_seen_half_done"),
))  # fmt: skip


class Refusal(NamedTuple):
    """One case of the refusal table; `shown` are ids of CHECKS or `<file>::<name>` of tests."""

    case: str
    answer: str
    shown: tuple[str, ...]


REFUSALS: tuple[Refusal, ...] = (
    Refusal("function code that is not served", "01", ("FC-1", "EXC-3")),
    Refusal("role that may not, inside TLS", "01",
            ("tls::each_role_reads_and_only_those_that_command_write",
             "tls::without_a_role_everything_is_refused_with_01")),
    Refusal("outside the map", "02", ("ADR-1", "ADR-3", "ADR-9")),
    Refusal("read-only register", "02", ("EXC-2", "WRT-9")),
    Refusal("a block with a gap, or over a read-only register", "02", ("WRT-3",)),
    Refusal("half of a 32-bit point", "02", ("ADR-12", "WRT-4", "WRT-5", "WRT-8")),
    Refusal("sentinel, undefined value, out of range", "03", ("EXC-1", "WRT-1", "WRT-6", "WRT-7")),
    Refusal("a count or length that is not allowed", "03", ("CNT-1", "CNT-6", "CNT-9", "CNT-18")),
    Refusal("a command that the state forbids", "04",
            ("server::a_command_that_the_state_forbids_is_refused_with_the_reason",
             "server::op_ctl_start_is_refused_with_a_latched_fault")),
    Refusal("a command without a living controller", "04",
            ("server::without_a_controller_nothing_but_off_is_taken_and_nothing_old_is_shown",)),
    Refusal("a new command under a lost heartbeat", "04",
            ("server::a_new_command_without_a_heartbeat_is_refused_until_it_beats_again",)),
    Refusal("a command number that was void", "04",
            ("server::a_command_that_is_not_followed_any_more_is_not_taken_again",)),
    Refusal("a second site controller", "04",
            ("authority::the_first_valid_writer_commands_and_a_second_one_is_refused_with_the_reason",)),
    Refusal("too many writes of one address", "06",
            ("authority::too_many_writes_a_second_are_refused_as_busy_and_reads_go_on",)),
    Refusal("unit that is not served", "0B", ("UNT-1", "UNT-2", "UNT-4")),
    Refusal("a set-point that is allowed and cannot be met: it is taken, `WEff` says what is done", "none",
            ("reversion::a_set_point_that_cannot_be_met_is_taken_and_what_is_done_is_shown_beside_it",)),
)  # fmt: skip


def judged(port: int, check: Check) -> tuple[object, object]:
    """(answer, right answer) on a connection of its own."""
    with contextlib.closing(Wire(port)) as wire:
        return check.run(wire)
