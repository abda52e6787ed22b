"""The emulated USB adapters of the image tests, without a virtual machine: what a guest sees, what the plant does."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic_ns

import pytest
from fake_ads1115 import FakeAds1115
from fake_kernel import I2cDevice
from image.bench_board import BenchBoard
from image.cp2112 import Cp2112
from image.usbredir import Peer
from test_bench_system import BenchProcess
from waiting import wait_until

from drivers.adc import ads1115_config
from drivers.board_file import LineSpec, LoopSpec, load

GUEST_HAS = 0b11111110  # QEMU's capabilities, but for bulk streams
OK, STALL = 0, 4
BOARD = load("cp2112")


class Guest:
    """QEMU's end, as far as a Linux guest with hid-cp2112 makes use of it. `pump` lets the other end work."""

    def __init__(self, sock: socket.socket, pump: Callable[[], object] = lambda: None, has: int = GUEST_HAS) -> None:
        sock.settimeout(2.0)
        self.sock, self._pump, self._number = sock, pump, 0
        kind, length, _ = struct.unpack("<III", self._exactly(12))
        assert (kind, length) == (0, 68), "the other end says hello at once"
        self.capabilities = struct.unpack_from("<I", self._exactly(length), 64)[0]
        sock.sendall(struct.pack("<III", 0, 68, 0) + b"test".ljust(64, b"\0") + struct.pack("<I", has))
        pump()

    def _exactly(self, size: int) -> bytes:
        return self.sock.recv(size, socket.MSG_WAITALL)

    def packet(self) -> tuple[int, int, bytes]:
        """Kind, id and body of the next packet."""
        kind, length, number = struct.unpack("<IIQ", self._exactly(16))
        return kind, number, self._exactly(length)

    def ask(self, kind: int, body: bytes, answered_by: int) -> bytes:
        """Body of the answer, which must be of that kind and have the id of the question."""
        self._number += 1
        packet = struct.pack("<IIQ", kind, len(body), self._number) + body
        for part in (packet[:7], packet[7:-1], packet[-1:]):  # a stream has no packets
            self.sock.sendall(part)
            self._pump()
        answer, number, data = self.packet()
        assert (answer, number) == (answered_by, self._number)
        return data

    def control(self, kind: int, request: int, value: int, data: bytes = b"", length: int = 0) -> tuple[int, bytes]:
        """Status and data of a control transfer."""
        length = length or len(data)
        head = struct.pack("<BBBBHHH", kind & 0x80, request, kind, 0, value, 0, length)
        answer = self.ask(100, head + data, 100)
        *echo, status, value_again, _, done = struct.unpack_from("<BBBBHHH", answer)
        assert (*echo, value_again) == (kind & 0x80, request, kind, value)
        assert done == (0 if status else len(answer) - 10 if kind & 0x80 else length)
        return status, answer[10:]

    def descriptor(self, value: int, length: int = 255) -> bytes:
        status, data = self.control(0x81 if value == 0x2200 else 0x80, 6, value, length=length)
        assert status == OK
        return data

    def get(self, report: int, length: int) -> bytes:
        status, data = self.control(0xA1, 1, 0x300 | report, length=length)
        assert (status, len(data), data[0]) == (OK, length, report), "the driver takes no other length"
        return data[1:]

    def set(self, *data: int) -> None:
        assert self.control(0x21, 9, 0x300 | data[0], bytes(data))[0] == OK

    def make_output(self, line: int, level: int) -> None:
        """As hid-cp2112 does it: first the direction, then the level."""
        directions, _, special, divider = self.get(0x02, 5)
        self.set(0x02, directions | 1 << line, 0xFF, special, divider)
        self.set(0x04, 0xFF * level, 1 << line)

    def start_reading(self) -> None:
        assert self.ask(15, b"\x81", 17) == bytes((OK, 0x81))

    def write(self, *data: int) -> None:
        body = struct.pack("<BBH", 0x01, 0, len(data)) + bytes(data)
        assert self.ask(103, body, 103) == struct.pack("<BBH", 0x01, OK, len(data))

    def input_report(self) -> bytes:
        kind, _, body = self.packet()
        assert (kind, *struct.unpack_from("<BBH", body)) == (103, 0x81, OK, 64)
        assert len(body) == 4 + 64
        return body[4:]

    def transfer_status(self) -> tuple[int, int, int]:
        """Two status bytes and the count of bytes read."""
        self.write(0x15, 1)
        report, first, second, _, count = struct.unpack_from(">BBBHH", self.input_report())
        assert report == 0x16
        return first, second, count

    def read_i2c(self, address: int, register: int, count: int) -> bytes:
        """Write-read with a repeated start."""
        self.write(0x11, address << 1, 0, count, 1, register)
        assert self.transfer_status() == (2, 5, count)
        self.write(0x12, 0, count)
        report, _, length, *data = self.input_report()
        assert (report, length) == (0x13, count)
        return bytes(data[:length])

    def adc_volts(self, address: int, channel: int) -> float:
        """One conversion in the range of 4.096 V."""
        self.write(0x14, address << 1, 3, 1, *ads1115_config(channel, 4.096).to_bytes(2, "big"))
        assert self.transfer_status() == (2, 5, 0)
        assert self.read_i2c(address, 1, 2) == ads1115_config(channel, 4.096).to_bytes(2, "big"), "idle again"
        return int.from_bytes(self.read_i2c(address, 0, 2), "big", signed=True) * 4.096 / 32768


def plugged(guest: Guest) -> Guest:
    """Has heard of a device: endpoints, interfaces, connection."""
    assert [guest.packet()[0] for _ in range(3)] == [5, 4, 1]
    return guest


class Rig:
    """A chip with levels on its pins that the test sets, an ADS1115 at 0x48, a memory at 0x50, and a guest."""

    def __init__(self) -> None:
        self.pins, self.driven = 0x00, [(0, 0)]
        self.adc = FakeAds1115(lambda channel: 0.5 * (channel + 1))
        bus: dict[int, I2cDevice] = {0x48: self.adc, 0x50: lambda messages: [bytes(range(100))]}
        self.chip = Cp2112("IO2", lambda: self.pins, lambda *seen: self.driven.append(seen), bus)
        ours, theirs = socket.socketpair()
        theirs.settimeout(2.0)
        self.peer = Peer(theirs, self.chip)
        self.guest = Guest(ours, self.peer.step)

    def close(self) -> None:
        self.guest.sock.close()
        self.peer.sock.close()


@pytest.fixture
def plain() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def rig(plain: Rig) -> Rig:
    plugged(plain.guest)
    return plain


def test_the_hello_has_the_capabilities_that_xhci_asks_for(plain: Rig) -> None:
    """QEMU hw/usb/redirect.c: ep_info_max_packet_size, 64bits_ids, 32bits_bulk_length, else it rejects the device."""
    assert plain.guest.capabilities & 0b1110000 == 0b1110000


def test_the_device_is_announced_endpoints_first(plain: Rig) -> None:
    kind, _, endpoints = plain.guest.packet()
    assert (kind, len(endpoints)) == (5, 160)
    assert {at: k for at, k in enumerate(endpoints[:32]) if k != 255} == {0: 0, 1: 3, 16: 0, 17: 3}
    assert endpoints[32 + 17] >= 1, "an interval of 0 ms is none"
    assert struct.unpack_from("<32H", endpoints, 96)[17] == 64
    kind, _, interfaces = plain.guest.packet()
    assert (kind, len(interfaces), interfaces[0], interfaces[4 + 32]) == (4, 132, 1, 3)
    assert plain.guest.packet()[::2] == (1, struct.pack("<BBBBHHH", 2, 0, 0, 0, 0x10C4, 0xEA90, 0x0100)), "high speed"


def test_a_guest_without_64_bit_ids_is_refused_with_what_is_missing() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match="capabilities 0xde: allowed are those with 0x32"):
        Guest(ours, Peer(theirs, Cp2112("IO0")).step, has=GUEST_HAS & ~0x20)


def test_its_descriptors_are_those_of_a_cp2112_with_its_serial_number(rig: Rig) -> None:
    device = rig.guest.descriptor(0x0100, 18)
    assert struct.unpack_from("<BBHBBBBHH", device) == (18, 1, 0x0200, 0, 0, 0, 64, 0x10C4, 0xEA90)
    assert rig.guest.descriptor(0x0300)[2:] == b"\x09\x04"
    assert rig.guest.descriptor(0x0300 | device[16])[2:].decode("utf-16-le") == "IO2"
    assert rig.guest.descriptor(0x0100, 8) == device[:8], "no more than was asked for"
    assert rig.guest.control(0x80, 6, 0x0600, length=10) == (STALL, b""), "no qualifier: it knows one speed"


def test_its_configuration_holds_together(rig: Rig) -> None:
    whole = rig.guest.descriptor(0x0200)
    assert struct.unpack_from("<H", whole, 2)[0] == len(whole)
    parts, at = {}, 0
    while at < len(whole):
        parts[whole[at + 1], whole[at + 2] if whole[at + 1] == 5 else 0] = whole[at : at + whole[at]]
        at += whole[at]
    assert at == len(whole)
    assert parts.keys() == {(2, 0), (4, 0), (0x21, 0), (5, 0x81), (5, 0x01)}
    assert parts[4, 0][4:6] == b"\x02\x03"
    assert parts[5, 0x81][3] == parts[5, 0x01][3] == 3, "interrupt endpoints"
    assert struct.unpack_from("<H", parts[0x21, 0], 7)[0] == len(rig.guest.descriptor(0x2200, 1024))


def test_its_report_descriptor_has_both_input_reports_as_long_as_they_come(rig: Rig) -> None:
    """Linux drops an input report that is not declared."""
    data, sizes, report, at = rig.guest.descriptor(0x2200, 1024), {}, 0, 0
    count = 0
    while at < len(data):
        tag, length = data[at] & 0xFC, (0, 1, 2, 4)[data[at] & 3]
        value = int.from_bytes(data[at + 1 : at + 1 + length], "little")
        report, count = (value if tag == 0x84 else report), (value if tag == 0x94 else count)
        if tag in (0x80, 0x90, 0xB0):
            sizes[tag, report] = count
        at += 1 + length
    assert {key[1]: size for key, size in sizes.items() if key[0] == 0x80} == {0x13: 63, 0x16: 63}
    assert {key[1] for key in sizes if key[0] == 0x90} == {0x10, 0x11, 0x12, 0x14, 0x15, 0x17}
    assert sizes[0xB0, 0x06] == 13
    assert data[-1] == 0xC0


def test_the_drivers_probe_gets_every_report_in_the_length_that_it_insists_on(rig: Rig) -> None:
    version = rig.guest.get(0x05, 3)
    assert version[1] > 1, "the first revision has no repeated start"
    config = rig.guest.get(0x06, 14)
    assert struct.unpack_from(">I", config)[0] == 100_000
    rig.guest.set(0x06, *config[:-2], 0, 1)
    assert rig.guest.get(0x06, 14) == config[:-2] + b"\0\1"
    assert rig.guest.get(0x20, 2) == b"\0", "all fields of the PROM are programmed"
    assert struct.unpack_from("<HH", rig.guest.get(0x21, 10)) == (0x10C4, 0xEA90)
    assert rig.guest.get(0x24, 63)[2:8].decode("utf-16-le") == "IO2"


@pytest.mark.parametrize("report", [0x04, 0x07, 0x50])
def test_a_report_that_cannot_be_read_stalls(rig: Rig, report: int) -> None:
    assert rig.guest.control(0xA1, 1, 0x300 | report, length=8) == (STALL, b"")


def test_a_report_too_short_stalls_and_changes_nothing(rig: Rig) -> None:
    assert rig.guest.control(0x21, 9, 0x302, b"\x02\xff")[0] == STALL
    assert rig.guest.get(0x02, 5) == bytes(4)


def test_a_configuration_is_acknowledged(rig: Rig) -> None:
    assert rig.guest.ask(6, b"\x01", 8) == b"\0\1"
    assert rig.guest.ask(7, b"", 8) == b"\0\1"
    assert rig.guest.ask(9, b"\0\0", 11) == b"\0\0\0"


def test_lines_are_inputs_and_follow_what_is_on_the_pins(rig: Rig) -> None:
    assert rig.guest.get(0x02, 5)[0] == 0
    for level in (0x00, 0xA5, 0xFF):
        rig.pins = level
        assert rig.guest.get(0x03, 2) == bytes((level,))


def test_an_output_drives_its_line_only_and_reads_back_what_it_drives(rig: Rig) -> None:
    rig.pins = 0xFF
    rig.guest.make_output(3, 1)
    assert rig.driven[-1] == (0x08, 0x08)
    rig.guest.make_output(4, 0)
    assert rig.driven[-1] == (0x18, 0x08)
    assert rig.guest.get(0x03, 2) == b"\xef"
    rig.guest.set(0x04, 0x00, 0x08)
    assert rig.driven[-1] == (0x18, 0x00)


def test_an_open_drain_output_does_not_drive_high(rig: Rig) -> None:
    rig.guest.set(0x02, 0x01, 0x00, 0, 0)
    assert rig.driven[-1] == (0x01, 0x00)
    rig.guest.set(0x04, 0xFF, 0x01)
    assert rig.driven[-1] == (0x00, 0x00)


def test_a_level_that_does_not_change_is_not_told(rig: Rig) -> None:
    rig.guest.make_output(0, 1)
    told = len(rig.driven)
    rig.guest.make_output(0, 1)
    assert len(rig.driven) == told


def test_a_converter_is_sampled_over_i2c(rig: Rig) -> None:
    rig.guest.start_reading()
    for channel in range(4):
        assert rig.guest.adc_volts(0x48, channel) == pytest.approx(0.5 * (channel + 1), abs=1e-4)
    assert rig.adc.conversions == 4


def test_a_long_read_comes_in_parts(rig: Rig) -> None:
    rig.guest.start_reading()
    rig.guest.write(0x10, 0x50 << 1, 0, 100)
    assert rig.guest.transfer_status() == (2, 5, 100)
    read = b""
    for _ in range(2):
        rig.guest.write(0x12, 0, 100 - len(read))
        _, _, length, *data = rig.guest.input_report()
        assert length == min(61, 100 - len(read))
        read += bytes(data[:length])
    assert read == bytes(range(100))


@pytest.mark.parametrize("request_", [(0x14, 0x4B << 1, 1, 0), (0x11, 0x4B << 1, 0, 2, 1, 0), (0x10, 0x4B << 1, 0, 2)])
def test_an_address_without_a_device_is_not_acknowledged(rig: Rig, request_: tuple[int, ...]) -> None:
    rig.guest.start_reading()
    rig.guest.write(*request_)
    assert rig.guest.transfer_status()[:2] == (3, 0)
    rig.guest.write(0x17, 1)
    assert rig.guest.transfer_status()[0] == 0, "idle after a cancel"


def test_a_device_that_stops_answering_is_not_acknowledged_either(rig: Rig) -> None:
    rig.guest.start_reading()
    rig.guest.adc_volts(0x48, 0)
    rig.adc.fails = True
    rig.guest.write(0x11, 0x48 << 1, 0, 2, 1, 0)
    assert rig.guest.transfer_status() == (3, 0, 0)
    rig.guest.write(0x12, 0, 2)
    assert rig.guest.input_report()[2] == 0, "nothing of the reading before"


def test_requests_that_come_together_are_answered_one_by_one(rig: Rig) -> None:
    ask = struct.pack("<IIQ", 7, 0, 1)
    rig.guest.sock.sendall(ask + ask + ask[:3])
    rig.peer.step()
    assert [rig.guest.packet()[0] for _ in range(2)] == [8, 8]


def test_it_can_be_pulled_once_and_put_back(rig: Rig) -> None:
    rig.peer.unplug()
    rig.peer.unplug()
    assert rig.guest.packet()[0] == 2
    rig.peer.plug()
    plugged(rig.guest)


def test_a_guest_that_connects_while_it_is_pulled_finds_nothing() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer(theirs, Cp2112("IO0"), plugged=False)
        guest = Guest(ours, peer.step)
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        ours.settimeout(2.0)
        peer.plug()
        assert guest.packet()[0] == 5


def test_a_guest_that_is_gone_is_noticed(rig: Rig) -> None:
    rig.guest.sock.close()
    assert not rig.peer.step()


class Plant(BenchProcess):
    """A bench, the adapters' process beside it, and a guest on each adapter."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, EMS_BENCH_SIZE="1x1x10")
        self.adapters = BenchBoard(directory)
        self.guests = {name: self._guest(directory / f"{name}.sock") for name in BOARD.chips}

    @staticmethod
    def _guest(path: Path) -> Guest:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        return plugged(Guest(sock))

    def levels_are(self, lines: Iterable[LineSpec], level: int) -> bool:
        """Whether a guest reads that level on all of these inputs."""
        return all(self.guests[spec.chip].get(0x03, 2)[0] >> spec.offset & 1 == level for spec in lines)

    def conversion_status(self) -> tuple[int, int, int]:
        """How the first converter takes the start of a conversion."""
        self.guests["io0"].write(0x14, 0x48 << 1, 3, 1, *ads1115_config(0, 4.096).to_bytes(2, "big"))
        return self.guests["io0"].transfer_status()

    def drive(self, name: str, level: int) -> None:
        spec = BOARD.outputs[name]
        self.guests[spec.chip].make_output(spec.offset, level)

    def close(self) -> int:
        for guest in self.guests.values():
            guest.sock.close()
        self.adapters.close()
        return super().close()


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    made = Plant(tmp_path_factory.mktemp("io"))
    yield made
    assert made.close() == 0


CONTACTS = {  # what opens the contact
    "kill_switch": ("kill_switch", 1), "tamper": ("tamper", 1), "local_remote": ("key_local", 1),
    "insulation": ("ground_fault", 1), **{f"interlock_{n}": (f"interlock_{n}", 0) for n in range(1, 9)},
}  # fmt: skip


@pytest.mark.system
@pytest.mark.parametrize("name", CONTACTS)
def test_a_contact_of_the_plant_is_read_on_its_lines(plant: Plant, name: str) -> None:
    point, opens = CONTACTS[name]
    lines = [table[name] for table in (BOARD.inputs, BOARD.guard_inputs) if name in table]
    for level in (1, 0, 1):
        plant.set(point, opens if level == 0 else 1 - opens)
        wait_until(partial(plant.levels_are, lines, level), 1.0, f"{name} {level}")


@pytest.mark.system
def test_the_contactors_close_by_the_guests_lines_while_the_alive_line_toggles(plant: Plant) -> None:
    plant.drive("safe_enable", 1)
    feedback = [BOARD.inputs[f"fb_{name}"] for name in ("neg", "pos")]
    assert plant.levels_are(feedback, 0)
    for name in ("neg", "pos"):
        plant.drive(f"coil_{name}", 1)
    toggled, level = monotonic_ns(), 0

    def closed() -> bool:
        nonlocal level
        level = 1 - level
        plant.drive("alive", level)
        return plant.levels_are(feedback, 1)

    wait_until(closed, 1.0, "both contactors")
    assert plant.get("true_alive_relay") == plant.get("true_safe_enable") == 1
    wait_until(partial(plant.levels_are, feedback, 0), 1.0, "the relay falls out by itself")
    lines = [(edge.line, edge.level) for edge in plant.adapters.edges() if edge.stamp_ns >= toggled - 10**9]
    assert {("safe_enable", 1), ("coil_neg", 1), ("coil_pos", 1), ("alive", 1), ("alive", 0)} <= set(lines)
    assert ("coil_neg", 0) not in lines


@pytest.mark.system
def test_every_output_is_recorded_once_a_change_with_the_time_of_the_change(plant: Plant) -> None:
    for name in BOARD.outputs:
        plant.drive(name, 0)
    for name in BOARD.outputs:
        already = len(plant.adapters.edges())
        before = monotonic_ns()
        for level in (1, 1, 0):
            plant.drive(name, level)
        new = plant.adapters.edges()[already:]
        assert [(edge.line, edge.level) for edge in new] == [(name, 1), (name, 0)]
        assert before < new[0].stamp_ns < new[1].stamp_ns < monotonic_ns()


@pytest.mark.system
def test_a_pulled_adapter_drives_nothing_and_comes_back_with_inputs(plant: Plant) -> None:
    plant.drive("coil_neg", 1)
    assert plant.get("true_coils") == 1
    guest = plant.guests["io3"]
    plant.adapters.unplug("io3")
    assert plant.adapters.edges()[-1][:2] == ("coil_neg", 0), "recorded when unplug returns"
    assert guest.packet()[0] == 2
    wait_until(lambda: plant.get("true_coils") == 0, 1.0, "the coil falls")
    plant.adapters.plug("io3")
    assert plugged(guest).get(0x02, 5)[0] == 0
    with pytest.raises(AssertionError, match="allowed is plug or unplug, then one of io0, io1, io2, io3"):
        plant.adapters.unplug("io9")


@pytest.mark.system
def test_the_loops_are_the_voltages_over_their_shunts(plant: Plant) -> None:
    guest = plant.guests["io0"]
    guest.start_reading()
    for number, loop in BOARD.loops.items():
        plant.set(f"loop_ma_{number}", 4.0 + number)

        def shows(ma: float, loop: LoopSpec = loop) -> bool:
            volts = guest.adc_volts(BOARD.adcs[loop.adc].address, loop.channel)
            return abs(volts / loop.shunt_ohm * 1000.0 - ma) < 0.01

        wait_until(partial(shows, 4.0 + number), 1.0, f"loop {number}")


@pytest.mark.system
def test_converters_do_not_answer_while_the_bench_does_not_sample(plant: Plant) -> None:
    def answers(status: tuple[int, int, int]) -> bool:
        return plant.conversion_status() == status

    for silent, status in ((1, (3, 0, 0)), (0, (2, 5, 0))):
        plant.set("loops_silent", silent)
        wait_until(partial(answers, status), 2.0, f"silent {silent}")
