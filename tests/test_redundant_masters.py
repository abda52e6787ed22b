"""Two masters, one rack: what a frame needs, who is refused for ever, and what a reboot does not forget."""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_appliance import READY, Client, FakeAppliance
from fake_disk import FakeDisk, every_byte, some_bytes
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from waiting import wait_until

from drivers.modbus.session import ModbusError
from firmware.appliance import Appliance
from firmware.fence import Fence, FenceStore
from firmware.image import COMMAND, STATUS, EventReader, View, writer
from firmware.registers import POINT, WSET_GROUP
from firmware.writes import Refused
from statemachine.signals import Command, Mode, Why
from statemachine.states import State

A, B = "10.0.0.1", "10.0.0.2"
BLOCK = (
    "CmdSeq",
    "CmdMode",
    "CmdW",
    "CmdRamp",
    "CmdTgtSoC",
    "CtrlHb",
    "AckFaults",
    "HbTmo",
    "LossPol",
    "Epoch",
    "ValidMs",
)
"""A frame, 14 registers from 40526 on."""
NUMBERS = st.integers(0, 0xFFFFFFFE)


def frame(epoch: int, seq: int, mode: Mode = Mode.GRID, w: float = -50_000, **more: float) -> dict[str, float]:
    rest = {"CmdRamp": 0.5, "CmdTgtSoC": 80, "CtrlHb": seq % 60_000, "AckFaults": 0, "HbTmo": 10, "LossPol": 0}
    return {"CmdSeq": seq, "CmdMode": mode, "CmdW": w, **rest, "Epoch": epoch, "ValidMs": 500, **more}


class Rack:
    """The device behind the socket, called as the socket calls it, in front of a controller that is always fresh."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = {name: writer(name, directory / "run") for name in ("controller", "server")}
        self.device = Appliance(self.files["server"], directory / "run", directory / "state")
        self.events = EventReader("server", directory / "run")

    def show(self, **changes: Any) -> None:
        self.files["controller"]["status"].publish(STATUS.pack(*READY._replace(**changes)))

    def write(self, host: str, values: Mapping[str, float], **status: Any) -> int:
        """Exception code of one FC16, 0 = taken."""
        self.show(**status)
        wanted = sorted((POINT[name] for name in values), key=lambda point: point.address)
        data = b"".join(point.encode(values[point.name]) for point in wanted)
        assert wanted[-1].end - wanted[0].address == len(data) // 2, "a block has no gaps"
        try:
            self.device.write(1, wanted[0].address, data, f"{host}:5020")
        except ModbusError as error:
            return error.code
        return 0

    def get(self, name: str) -> float:
        point = POINT[name]
        value = point.decode(self.device.read(1, point.address, point.count))
        assert not isinstance(value, str)
        return value

    def refused(self, host: str, values: Mapping[str, float], code: int, why: Why, **status: Any) -> None:
        """Refused with code and reason, and nothing of it applied."""
        before = self.command(), self.device.read(1, 40526, 14)
        assert self.write(host, values, **status) == code
        assert self.get("AckWhy") == why
        assert (self.command(), self.device.read(1, 40526, 14)) == before

    def command(self) -> Command:
        return View(COMMAND, "server", "command", self.directory / "run").refresh() or self.device.command()

    def said(self) -> list[str]:
        return [event.text for event in self.events.new() if event.text.startswith("FENCE")]

    def close(self) -> None:
        while self.files:
            self.files.popitem()[1].close()

    def restarted(self, rebooted: bool) -> Rack:
        """After kill -9 of the server, or a reboot: then the process image is gone."""
        self.close()
        if rebooted:
            for path in (self.directory / "run").iterdir():
                path.unlink()
        return Rack(self.directory)


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    made = Rack(tmp_path)
    yield made
    made.close()


def test_a_frame_is_one_write_that_reads_back_and_reaches_the_controller(rack: Rack) -> None:
    sent = frame(7, 1)
    assert tuple(sent) == BLOCK
    assert rack.write(A, sent) == 0
    assert {name: rack.get(name) for name in BLOCK} == pytest.approx(sent)
    command = rack.command()
    assert (command.epoch, command.seq, command.mode, command.w, command.valid_ms) == (7, 1, Mode.GRID, -50_000, 500)
    assert rack.said() == ["FENCE epoch 7 by 10.0.0.1"]


def test_the_measured_example_of_two_masters(rack: Rack) -> None:
    assert rack.write(A, frame(7, 1)) == 0
    rack.refused(A, frame(7, 1), 4, Why.STALE_EPOCH)
    assert rack.write(B, frame(9, 1)) == 0
    rack.refused(A, frame(7, 99), 4, Why.STALE_EPOCH)
    rack.refused(B, {"CmdSeq": 2, "CmdMode": Mode.GRID}, 4, Why.EPOCH_REQUIRED)
    assert rack.write(B, frame(9, 2)) == 0
    assert rack.said() == ["FENCE epoch 7 by 10.0.0.1", "FENCE epoch 9 by 10.0.0.2"], "a new number is no event"


@pytest.mark.parametrize("last", ["CmdSeq", "LossPol", "Epoch"])
@pytest.mark.parametrize("first", ["CmdSeq", "CmdMode", "Epoch", "ValidMs"])
def test_a_part_of_a_frame_is_refused_whole(rack: Rack, first: str, last: str) -> None:
    part = BLOCK[BLOCK.index(first) : BLOCK.index("ValidMs" if first != "CmdSeq" else last) + 1]
    if set(part) & {"Epoch", "ValidMs"}:
        rack.refused(A, {name: frame(7, 1)[name] for name in part}, 3, Why.INCOMPLETE_FRAME)
        assert rack.get("RefAddr") == POINT[first].address


def test_a_validity_without_an_epoch_means_nothing(rack: Rack) -> None:
    rack.refused(A, frame(0, 1, ValidMs=1), 3, Why.OUT_OF_RANGE)
    assert rack.get("RefAddr") == POINT["ValidMs"].address
    assert rack.write(A, frame(0, 1, ValidMs=0)) == 0
    assert (rack.command().epoch, rack.command().number) == (0, 1)
    assert rack.write(B, {"CmdMode": Mode.READY}) == 4, "without an Epoch the lease alone counts"
    assert rack.write(A, {"CmdMode": Mode.READY}) == 0


PLAIN: dict[str, dict[str, float]] = {
    "block": {"CmdSeq": 50, "CmdMode": Mode.CHARGE, "CmdW": 0, "CmdRamp": 0.5, "CmdTgtSoC": 80},
    "CmdSeq": {"CmdSeq": 50},
    "CmdMode": {"CmdMode": Mode.READY},
    "service": {"CmdMode": Mode.SERVICE},
    "OpCtl": {"OpCtl": 1},
    "SetOp": {"SetOp": 1},
    "off and more": {"CmdMode": Mode.OFF, **{n: frame(0, 9)[n] for n in BLOCK[2:9]}},
    **{name: {name: 1} for name in ("CmdW", "CmdRamp", "CmdTgtSoC", *sorted(WSET_GROUP))},
}


@pytest.mark.parametrize("what", PLAIN)
def test_once_an_epoch_is_in_force_no_command_goes_without(rack: Rack, what: str) -> None:
    assert rack.write(A, frame(7, 1)) == 0
    for host in (A, B):
        rack.refused(host, PLAIN[what], 4, Why.EPOCH_REQUIRED)


@pytest.mark.parametrize(
    "stop",
    [{"CmdMode": Mode.OFF}, {"OpCtl": 0}, {"SetOp": 2}, {"CmdSeq": 2, "CmdMode": Mode.OFF, "CmdW": 5}],
    ids=str,
)
def test_mode_off_needs_no_epoch_and_costs_the_master_no_frame(rack: Rack, stop: dict[str, float]) -> None:
    assert rack.write(A, frame(7, 1)) == 0
    for host in (A, B):
        assert rack.write(host, stop) == 0
        command = rack.command()
        assert (command.mode, command.epoch, command.valid_ms) == (Mode.OFF, 0, 0)
        assert rack.get("Epoch") == 7
    before = rack.command().number
    rack.refused(A, frame(7, 1), 4, Why.STALE_EPOCH)
    assert rack.write(A, frame(7, 2)) == 0
    assert rack.command().number == 7 * 2**32 + 2 != before


def test_a_heartbeat_an_acknowledge_and_the_loss_policy_need_no_epoch(rack: Rack) -> None:
    assert rack.write(A, frame(7, 1)) == 0
    for values in ({"ControllerHb": 5}, {"AckFaults": 1}, {"HbTmo": 20}, {"LossPol": 2}):
        assert rack.write(A, values) == 0
    assert rack.command().ack_count == 1


@pytest.mark.parametrize("state", State)
def test_the_fenced_operation_ends_in_service_only(rack: Rack, state: State) -> None:
    assert rack.write(A, frame(7, 5, Mode.OFF)) == 0
    rack.said()
    end = frame(0, 6, Mode.OFF, ValidMs=0)
    if state is not State.SERVICE:
        rack.refused(A, end, 4, Why.EPOCH_REQUIRED, state=state)
        return
    assert rack.write(A, end, state=state) == 0
    assert rack.said() == ["FENCE ended by 10.0.0.1"]
    assert rack.write(A, {"CmdMode": Mode.READY}) == 0
    assert rack.get("Epoch") == 0
    rack.refused(A, frame(7, 5), 4, Why.STALE_EPOCH)
    assert rack.write(A, frame(7, 6)) == 0
    rack.refused(A, {"CmdMode": Mode.READY}, 4, Why.EPOCH_REQUIRED)


def test_a_higher_epoch_takes_the_lease_and_nothing_else_does(rack: Rack) -> None:
    assert rack.write(A, frame(7, 1)) == 0
    rack.refused(B, frame(7, 2), 4, Why.NOT_IN_AUTHORITY)
    assert rack.device.commands(A)
    assert rack.write(B, frame(9, 1)) == 0
    assert rack.device.commands(B)
    rack.refused(A, {"AckFaults": 1}, 4, Why.NOT_IN_AUTHORITY)
    for seq in (2, 2**32 - 2):
        rack.refused(A, frame(7, seq), 4, Why.STALE_EPOCH)
        rack.refused(A, frame(8, seq, Mode.OFF), 4, Why.STALE_EPOCH)
    assert rack.device.commands(B)


def test_a_refused_takeover_takes_nothing(rack: Rack) -> None:
    assert rack.write(A, frame(7, 1)) == 0
    rack.refused(B, frame(9, 1), 4, Why.LOCKOUT, state=State.LOCKOUT)
    assert rack.device.commands(A)
    assert rack.write(A, frame(7, 2)) == 0


def test_the_master_gets_its_lease_back_from_who_acknowledged_while_it_was_silent(rack: Rack) -> None:
    assert rack.write(A, frame(7, 1, HbTmo=2)) == 0
    wait_until(lambda: rack.write(B, {"AckFaults": 1}) == 0, 5, "the lease of the silent master ends", pause_s=0.05)
    assert rack.device.commands(B)
    assert rack.write(A, frame(7, 2)) == 0
    assert rack.device.commands(A)


def test_a_frame_takes_the_set_point_of_704_out_of_force_and_says_so(rack: Rack) -> None:
    on = {"WSetEna": 1, "WSetMod": 1, "WSet": 9000, "WSetRvrt": 100, "WSetPct": 0, "WSetPctRvrt": 0, "WSetEnaRvrt": 1,
          "WSetRvrtTms": 60}  # fmt: skip
    assert rack.write(A, on) == 0
    version = rack.command().wset_version
    assert rack.write(A, frame(7, 1)) == 0
    command = rack.command()
    assert (command.wset_enabled, command.wset_revert_enabled, command.wset_revert_s) == (False, False, 0)
    assert command.wset_version == version + 1
    assert rack.get("WSetEna") == rack.get("WSetEnaRvrt") == rack.get("WSetRvrtTms") == 0
    assert rack.write(A, frame(7, 2)) == 0
    assert rack.command().wset_version == version + 1


def test_sixteen_thousand_replayed_frames_are_all_refused(rack: Rack) -> None:
    for seq in range(1, 101):
        assert rack.write(A, frame(7, seq)) == 0
    assert rack.write(B, frame(9, 50)) == 0
    before = rack.command()
    old = [frame(epoch, seq) for epoch, seq in itertools.product((7, 8, 9), range(51))]
    data = [b"".join(POINT[name].encode(value) for name, value in values.items()) for values in old]
    for n, replayed in enumerate(itertools.islice(itertools.cycle(data), 16_000)):
        with pytest.raises(Refused) as told:
            rack.device.write(1, POINT["CmdSeq"].address, replayed, f"10.1.0.{n // 1000}:5020")
        assert (told.value.code, told.value.why) == (4, Why.STALE_EPOCH)
    assert rack.command() == before


ARRIVALS = st.lists(
    st.tuples(st.sampled_from([A, B]), st.integers(0, 4), st.integers(0, 4), st.sampled_from([Mode.OFF, Mode.GRID])),
    max_size=25,
)
"""Frames in whatever order a network, a frozen process or an old master brings them: host, epoch, sequence, mode."""


@given(arrivals=ARRIVALS, restarts=st.sets(st.integers(0, 24), max_size=3), reboots=st.booleans())
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_never_is_a_frame_applied_that_is_older_than_one_that_was(
    tmp_path_factory: pytest.TempPathFactory,
    arrivals: list[tuple[str, int, int, Mode]],
    restarts: set[int],
    reboots: bool,
) -> None:
    rack = Rack(tmp_path_factory.mktemp("rack"))
    highest, fenced = (0, -1), False
    for at, (host, epoch, seq, mode) in enumerate(arrivals):
        if at in restarts:
            rack = rack.restarted(reboots)
            highest = (highest[0], -1) if reboots else highest
        taken = rack.write(host, frame(epoch, seq, mode, ValidMs=500 * bool(epoch))) == 0
        if taken and epoch:
            assert (epoch, seq) > highest
            highest, fenced = (epoch, seq), True
            assert (rack.command().epoch, rack.command().seq) == highest
        elif taken:
            assert not fenced
        assert not taken or rack.device.commands(host)
    assert rack.get("Epoch") == (highest[0] if fenced else 0)
    rack.close()


@given(epoch=NUMBERS, seq=NUMBERS, later=st.tuples(NUMBERS, NUMBERS))
def test_what_is_newer_is_lexicographic(epoch: int, seq: int, later: tuple[int, int]) -> None:
    fence = Fence().after(epoch, seq) if epoch else Fence()
    assert fence == (Fence(epoch, seq, True) if epoch else Fence())
    newer = later[0] > epoch or (later[0] == epoch and later[1] > seq)
    if later[0]:
        assert (fence.refusal(*later, State.READY) is Why.NONE) == (newer or not epoch)


# what a reboot does not forget


def test_a_restart_of_the_server_forgets_neither_epoch_nor_sequence(rack: Rack) -> None:
    for seq in range(1, 6):
        assert rack.write(A, frame(7, seq)) == 0
    assert rack.write(B, {"CmdSeq": 3, "CmdMode": Mode.OFF}) == 0
    again = rack.restarted(rebooted=False)
    assert (again.get("Epoch"), again.get("ValidMs")) == (7, 0)
    for seq in (3, 4, 5):
        again.refused(A, frame(7, seq), 4, Why.STALE_EPOCH)
    assert again.write(A, frame(7, 6)) == 0
    third = again.restarted(rebooted=False)
    assert third.command().number == 7 * 2**32 + 6
    assert third.command().valid_ms == 500
    third.close()


def test_after_a_reboot_the_epoch_stands_and_goes_on_with_any_sequence(rack: Rack) -> None:
    assert rack.write(A, frame(7, 1000)) == 0
    again = rack.restarted(rebooted=True)
    again.device.publish()
    assert (again.get("Epoch"), again.command().mode, again.command().epoch) == (7, Mode.OFF, 0)
    again.refused(A, {"CmdMode": Mode.READY}, 4, Why.EPOCH_REQUIRED)
    again.refused(B, frame(6, 5000), 4, Why.STALE_EPOCH)
    assert again.write(A, frame(7, 0)) == 0
    again.close()


def test_after_a_reboot_an_ended_fence_is_ended_and_its_epoch_is_still_the_highest(rack: Rack) -> None:
    assert rack.write(A, frame(7, 1, Mode.OFF)) == 0
    assert rack.write(A, frame(0, 1, Mode.OFF, ValidMs=0), state=State.SERVICE) == 0
    again = rack.restarted(rebooted=True)
    assert again.write(A, {"CmdMode": Mode.READY}) == 0
    again.refused(A, frame(6, 1), 4, Why.STALE_EPOCH)
    again.close()


def test_the_newer_of_disk_and_process_image_counts(rack: Rack) -> None:
    """The server was killed after the disk had the epoch and before the image had it."""
    assert rack.write(A, frame(7, 5)) == 0
    FenceStore(rack.directory / "state").save(Fence(9, 1, True))
    again = rack.restarted(rebooted=False)
    again.refused(A, frame(7, 6), 4, Why.STALE_EPOCH)
    assert again.write(B, frame(9, 0)) == 0
    again.close()


def test_the_epoch_is_on_the_disk_before_the_answer_and_a_sequence_costs_no_write(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = 0
    real = os.fdatasync

    def counted(fd: int) -> None:
        nonlocal synced
        synced += 1
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    assert rack.write(A, frame(7, 1)) == 0
    assert FenceStore(rack.directory / "state").load() == (Fence(7, -1, True), False)
    first = synced
    assert first > 0
    for seq in range(2, 100):
        assert rack.write(A, frame(7, seq)) == 0
    assert synced == first
    assert rack.write(B, frame(8, 1)) == 0
    assert synced > first


def test_an_epoch_that_the_disk_does_not_take_is_refused_and_the_one_before_goes_on(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rack.write(A, frame(7, 1)) == 0
    rack.said()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _failing)
        for seq in (1, 2, 3):
            rack.refused(B, frame(9, seq), 4, Why.EPOCH_NOT_SAVED)
        assert rack.said() == ["FENCE epoch 9 refused, not saved: Input/output error"], "it is said once"
        assert rack.device.commands(A)
        assert rack.write(A, frame(7, 2)) == 0
        assert rack.write(B, {"CmdMode": Mode.OFF}) == 0
    assert rack.write(B, frame(9, 4)) == 0
    rack.refused(A, frame(7, 3), 4, Why.STALE_EPOCH)


def _failing(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_when_both_slots_are_damaged_commands_need_an_epoch_and_the_first_one_counts(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for name in ("fence.a", "fence.b"):
        (tmp_path / "state" / name).write_bytes(b"\xff" * 512)
    rack = Rack(tmp_path)
    assert rack.said() == ["FENCE saved Epoch is damaged: commands need one, the first one seen counts"]
    rack.refused(A, {"CmdMode": Mode.READY}, 4, Why.EPOCH_REQUIRED)
    rack.refused(A, frame(0, 1, ValidMs=0), 4, Why.EPOCH_REQUIRED)
    assert rack.write(A, {"CmdMode": Mode.OFF}) == 0
    assert rack.write(A, frame(7, 1)) == 0
    again = rack.restarted(rebooted=True)
    assert again.said() == []
    again.refused(B, frame(6, 1), 4, Why.STALE_EPOCH)
    again.close()


def test_a_cut_at_any_byte_leaves_the_acknowledged_fence_or_the_one_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    fences = [Fence(7, -1, True), Fence(9, -1, True), Fence(9, -1, False), Fence(12, -1, True)]
    with monkeypatch.context() as patch:
        disk, store = FakeDisk(state, patch), FenceStore(state)
        for fence in fences:
            store.save(fence._replace(seq=5))
            disk.mark(str(fence.epoch))
    possible, images = [Fence(), *fences], 0
    for image in disk.images(every_byte):
        found, damaged = FenceStore(image.lay_out(tmp_path / "cut")).load()
        assert not damaged
        assert found in possible[len(image.passed) : len(image.passed) + 2]
        images += 1
    assert images > 500


def test_a_cut_between_two_epochs_of_the_server_never_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    with monkeypatch.context() as patch:
        disk = FakeDisk(tmp_path / "state", patch)
        rack = Rack(tmp_path)
        for epoch, host in ((7, A), (8, B), (9, A)):
            assert rack.write(host, frame(epoch, 1)) == 0
            disk.mark(str(epoch))
        rack.close()
    for image in disk.images(some_bytes):
        found, _ = FenceStore(image.lay_out(tmp_path / "cut")).load()
        answered = int(image.passed[-1]) if image.passed else 0
        assert found.epoch >= answered


# over the wire


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        made.show(demand_w=-48_000.0)
        yield made


def test_one_round_trip_writes_a_frame_and_reads_what_is_done(served: FakeAppliance) -> None:
    site = Client(served.port)

    def exchanged(seq: int) -> tuple[int, ...]:
        data = b"".join(POINT[name].encode(value) for name, value in frame(7, seq).items())
        answer = site.raw.readwrite_registers(
            read_address=POINT["CmdSeq"].address, read_count=POINT["WEff"].end - POINT["CmdSeq"].address,
            write_address=POINT["CmdSeq"].address, values=list(struct.unpack(">14H", data)), device_id=1,
        )  # fmt: skip
        assert not answer.isError()
        raw = struct.pack(f">{len(answer.registers)}H", *answer.registers)
        assert raw[:28] == data

        def at(name: str) -> int:
            first = 2 * (POINT[name].address - POINT["CmdSeq"].address)
            return POINT[name].raw(raw[first : first + 2 * POINT[name].count])

        return at("AckSeq"), at("AckWhy"), at("WEff")

    assert exchanged(1)[1:] == (Why.NONE, -48_000)
    wait_until(lambda: site.read("AckSeq") == 1, 2, "the controller answers")
    assert exchanged(2) == (1, Why.NONE, -48_000), "the answer is the one to the frame before"
    site.close()
