"""Lines of a real board: python-periphery itself runs, on a fake kernel."""

from __future__ import annotations

import errno
import fcntl
import select
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic_ns
from typing import Any

import gpiozero
import pytest
from fake_appliance import zeros
from fake_kernel import ACTIVE_LOW, FALLING, INPUT, OUTPUT, RISING, SET_VALUES, FakeChip, FakeKernel, FakeLine, kernel
from rig import settings

from drivers import gpiochip
from drivers.board import INPUTS, OUTPUTS, Board, BoardError, do_all, open_board
from drivers.board_file import BoardFile, LineSpec, load
from drivers.pins import LineFactory
from firmware import controller, image
from firmware.guard import Guard
from firmware.settings_codec import settings_to_json
from statemachine.signals import Command

__all__ = ["kernel"]
PULL_UP = 0x100


class Rig:
    """A PiPLC board, lines by name."""

    def __init__(self, machine: FakeKernel) -> None:
        self.kernel, self.file = machine, load("piplc")
        self.chips = {
            "pi": machine.add_chip("pinctrl-bcm2711", 58),
            "io0": machine.add_chip("cp2112_gpio", 8, "IO0"),
            "io1": machine.add_chip("cp2112_gpio", 8, "IO1"),
        }

    def at(self, spec: LineSpec) -> tuple[FakeChip, int]:
        return self.chips[spec.chip], spec.offset

    def line(self, spec: LineSpec) -> FakeLine:
        chip, offset = self.at(spec)
        return chip.lines[offset]

    def output(self, name: str) -> FakeLine:
        return self.line(self.file.outputs[name])

    def input(self, name: str) -> FakeLine:
        return self.line(self.file.inputs[name])


@pytest.fixture
def rig(kernel: FakeKernel) -> Rig:
    return Rig(kernel)


@pytest.fixture
def opened(rig: Rig, tmp_path: Path) -> Callable[[str], Board]:
    return lambda role: open_board(role, tmp_path, board="piplc")  # type: ignore[arg-type]


def test_each_line_is_requested_once_with_its_direction_bias_and_consumer(
    rig: Rig, opened: Callable[[str], Board]
) -> None:
    controller, guard = opened("controller"), opened("guard")
    assert not controller.is_bench and not guard.is_bench
    assert set(controller.inputs) == {line.name for line in INPUTS}
    assert set(guard.inputs) == {"kill_switch", "tamper", "reset_button"}
    for role, table in (("controller", rig.file.inputs), ("guard", rig.file.guard_inputs)):
        for spec in table.values():
            line = rig.line(spec)
            assert (line.consumer, line.requests) == (f"ems-{role}", 1)
            assert line.flags & (INPUT | OUTPUT) == INPUT
            assert bool(line.flags & PULL_UP) == (spec.bias == "pull_up")
    for output in OUTPUTS:
        line = rig.output(output.name)
        assert (line.consumer, line.requests, line.opened_at) == (f"ems-{output.role}", 1, 0)
        assert line.flags & (INPUT | OUTPUT | ACTIVE_LOW) == OUTPUT


def test_an_input_reads_1_when_the_circuit_is_closed_whatever_the_polarity(
    rig: Rig, opened: Callable[[str], Board]
) -> None:
    board = opened("controller")
    for name, spec in rig.file.inputs.items():
        for level in (0, 1):
            rig.input(name).level = level
            assert board.inputs[name].value == level ^ spec.active_low


def _inverted_coils(file: BoardFile) -> str:
    return file.path.read_text().replace(
        'coil_neg    = { chip = "pi", line = 24, safe = "low" }',
        'coil_neg    = { chip = "pi", line = 24, active_low = true, safe = "high" }',
    )


def test_an_active_low_output_is_opened_high_and_driven_low(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "inverted.toml"
    path.write_text(_inverted_coils(rig.file))
    board = open_board("controller", tmp_path, board=str(path))
    coil = rig.output("coil_neg")
    assert (coil.opened_at, coil.history, board.outputs["coil_neg"].value) == (1, [], 0)
    board.outputs["coil_neg"].value = 1
    assert (coil.level, board.outputs["coil_neg"].value) == (0, 1)
    board.close()
    assert coil.level == 1


def test_an_output_is_written_when_it_changes_and_never_reopened(rig: Rig, opened: Callable[[str], Board]) -> None:
    board = opened("controller")
    for level in (0, 1, 1, 0, 0, 1):
        board.outputs["coil_pos"].value = level
    assert rig.output("coil_pos").history == [1, 0, 1]
    assert rig.output("coil_pos").requests == 1


def test_a_failed_write_is_repeated_by_the_next_one(
    rig: Rig, opened: Callable[[str], Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    board, real = opened("controller"), rig.kernel.ioctl

    def unplugged(fd: int, request: int, arg: object = 0, mutate: bool = True) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.ioctl", unplugged)
    with pytest.raises(OSError, match="Setting line value"):
        board.outputs["coil_neg"].value = 1
    monkeypatch.setattr("fcntl.ioctl", real)
    board.outputs["coil_neg"].value = 0
    assert rig.output("coil_neg").history == [0]


def test_closing_drives_the_outputs_safe_before_it_gives_them_back(rig: Rig, opened: Callable[[str], Board]) -> None:
    board = opened("controller")
    board.outputs["coil_neg"].value = board.outputs["led_run"].value = 1
    assert not rig.kernel.released(rig.output("coil_neg"))
    board.close()
    for name in ("coil_neg", "led_run"):
        line = rig.output(name)
        assert line.history == [1, 0]
        assert rig.kernel.released(line)


@pytest.mark.parametrize("release", [Board.close, lambda board: do_all(*(o.off for o in board.outputs.values()))])
def test_a_line_that_is_gone_keeps_no_other_one_from_being_driven_safe(
    rig: Rig, opened: Callable[[str], Board], monkeypatch: pytest.MonkeyPatch, release: Callable[[Board], None]
) -> None:
    board = opened("controller")
    for name in ("coil_neg", "coil_pos", "coil_pre"):
        board.outputs[name].value = 1
    gone, real = board.outputs["coil_neg"].pin._gpio.fd, fcntl.ioctl

    def ioctl(fd: int, request: int, *rest: Any) -> Any:
        if fd == gone and request == SET_VALUES:
            raise OSError(errno.ENODEV, "No such device")
        return real(fd, request, *rest)

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    with pytest.raises(OSError, match="No such device"):
        release(board)
    assert [rig.output(name).level for name in ("coil_pos", "coil_pre")] == [0, 0]
    monkeypatch.setattr("fcntl.ioctl", real)
    board.close()


def test_edges_of_several_lines_make_one_descriptor_readable_and_come_in_order(
    rig: Rig, opened: Callable[[str], Board]
) -> None:
    guard, specs = opened("guard"), rig.file.guard_inputs
    for name in ("kill_switch", "tamper"):
        assert rig.line(specs[name]).flags & (RISING | FALLING) == RISING | FALLING
    assert guard.edges() == []
    assert not select.select([guard.edge_fd], [], [], 0)[0]
    chip, kill = rig.at(specs["kill_switch"])
    _, tamper = rig.at(specs["tamper"])
    chip.edge(tamper, 1, 2_000)
    chip.edge(kill, 1, 1_000)
    chip.edge(kill, 0, 3_000)
    assert select.select([guard.edge_fd], [], [], 1)[0]
    assert [tuple(edge) for edge in guard.edges()] == [
        ("kill_switch", 0, 1_000), ("tamper", 0, 2_000), ("kill_switch", 1, 3_000),
    ]  # fmt: skip
    assert guard.edges() == []
    assert not select.select([guard.edge_fd], [], [], 0)[0]


def test_edges_are_stamped_by_the_monotonic_clock_and_the_kill_switch_is_not_debounced(
    rig: Rig, opened: Callable[[str], Board]
) -> None:
    opened("guard")
    realtime_clock = 0x800
    for name, debounce_us in (("kill_switch", 0), ("tamper", 0), ("reset_button", 10_000)):
        line = rig.line(rig.file.guard_inputs[name])
        assert not line.flags & realtime_clock
        assert line.flags & PULL_UP
        assert line.debounce_us == debounce_us


def test_the_controller_listens_to_no_edges_but_its_debounce_is_the_kernels(
    rig: Rig, opened: Callable[[str], Board]
) -> None:
    board = opened("controller")
    assert (board.edge_fd, board.edges()) == (-1, [])
    reset = rig.input("reset_button")
    assert reset.debounce_us == 10_000
    assert not reset.flags & (RISING | FALLING)


def test_more_edges_than_one_read_takes_are_all_delivered(rig: Rig, opened: Callable[[str], Board]) -> None:
    guard = opened("guard")
    chip, kill = rig.at(rig.file.guard_inputs["kill_switch"])
    for at in range(40):
        chip.edge(kill, at % 2, at)
    seen = []
    while edges := guard.edges():
        seen += [edge.stamp_ns for edge in edges]
    assert seen == list(range(40))


def test_a_chip_without_interrupts_is_refused_for_the_guard(rig: Rig, opened: Callable[[str], Board]) -> None:
    rig.chips["pi"].interrupts = False
    with pytest.raises(BoardError, match=r"kill_switch \(chip 'pi' line 17\) gives no edges .* take a chip with"):
        opened("guard")
    assert rig.kernel.released(rig.output("safe_enable"))


def test_gpiozero_devices_work_on_it_without_a_thread(rig: Rig) -> None:
    factory, threads = LineFactory("guard", rig.file), threading.active_count()
    rig.line(rig.file.guard_inputs["tamper"]).level = 1
    tamper = gpiozero.DigitalInputDevice("tamper", pull_up=None, active_state=True, pin_factory=factory)
    seen: list[bool] = []
    tamper.when_activated = lambda: seen.append(True)
    tamper.when_deactivated = lambda: seen.append(False)
    led = gpiozero.LED("alive", pin_factory=factory)
    led.on()
    assert rig.output("alive").level == 1
    chip, offset = rig.at(rig.file.guard_inputs["tamper"])
    for level, ns in ((0, monotonic_ns()), (1, monotonic_ns() + 1)):
        chip.edge(offset, level, ns)
    assert len(factory.edges()) == 2
    assert seen == [True, False]
    assert threading.active_count() == threads
    factory.close()


def test_edges_are_never_added_to_a_debounce_in_force(rig: Rig) -> None:
    """Older kernels then have no queue for the edges; the fake kernel refuses it."""
    factory = LineFactory("controller", rig.file)
    reset = gpiozero.DigitalInputDevice("reset_button", pull_up=None, active_state=True, pin_factory=factory)
    line = rig.input("reset_button")
    assert line.debounce_us == 10_000
    assert line.flags & (RISING | FALLING) == RISING | FALLING
    reset.pin.edges = "none"
    assert line.debounce_us == 10_000
    assert not line.flags & (RISING | FALLING)
    factory.close()


def test_a_process_cannot_drive_the_other_ones_output_nor_an_input(rig: Rig) -> None:
    factory = LineFactory("guard", rig.file)
    with pytest.raises(gpiozero.PinInvalidFunction, match="coil_neg is an output of the controller"):
        gpiozero.OutputDevice("coil_neg", pin_factory=factory)
    with pytest.raises(gpiozero.PinInvalidFunction, match="kill_switch is an input"):
        gpiozero.OutputDevice("kill_switch", pin_factory=factory)
    assert rig.output("coil_neg").requests == 0


def test_an_absent_interlock_reads_open_and_an_absent_led_takes_any_level(rig: Rig, tmp_path: Path) -> None:
    lines = [
        line for line in rig.file.path.read_text().splitlines() if not line.startswith(("interlock_8", "led_comm"))
    ]
    path = tmp_path / "small.toml"
    path.write_text("\n".join(['absent = ["interlock_8", "led_comm"]', *lines]))
    board = open_board("controller", tmp_path, board=str(path))
    assert board.inputs["interlock_8"].value == 0
    board.outputs["led_comm"].value = 1
    assert board.outputs["led_comm"].value == 1
    assert rig.output("led_comm").requests == rig.input("interlock_8").requests == 0


@pytest.mark.parametrize("named", [False, True])
def test_a_board_without_a_key_switch_reads_remote(rig: Rig, tmp_path: Path, named: bool) -> None:
    path = tmp_path / "keyless.toml"
    lines = [line for line in rig.file.path.read_text().splitlines() if not line.startswith("local_remote")]
    path.write_text("\n".join(['absent = ["local_remote"]'] * named + lines))
    assert load(str(path)).absent == {"local_remote"}
    assert open_board("controller", tmp_path, board=str(path)).inputs["local_remote"].value == 1
    assert rig.input("local_remote").requests == 0


def test_a_key_switch_without_voltage_reads_local(rig: Rig, opened: Callable[[str], Board]) -> None:
    board = opened("controller")
    for level in (1, 0):
        rig.input("local_remote").level = level
        assert board.inputs["local_remote"].value == level


def test_a_line_that_another_program_holds_is_named_with_its_holder(
    rig: Rig, opened: Callable[[str], Board], tmp_path: Path
) -> None:
    other = rig.input("interlock_3")
    other.used, other.consumer = True, "heater"
    with pytest.raises(BoardError, match=r"line interlock_3 = .*gpiochip1 line 4: .*busy.*; heater holds it"):
        opened("controller")
    assert rig.kernel.released(rig.output("coil_neg"))


def test_a_missing_adapter_is_named_with_what_is_there(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(BoardError, match=r"chip 'io2': nothing has usb_serial 'IO2'; there are: .*usb_serial 'IO0'"):
        open_board("controller", tmp_path, board="cp2112")


def test_a_label_that_two_chips_have_names_neither(rig: Rig) -> None:
    with pytest.raises(gpiochip.NotFound, match=r"gpiochip1 and .*gpiochip2 have label 'cp2112_gpio'"):
        gpiochip.find("gpio", gpiochip.Device("label", "cp2112_gpio"))


def test_the_board_is_chosen_by_the_environment(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMS_BOARD", "piplc")
    assert not open_board("guard", tmp_path).is_bench
    with pytest.raises(BoardError, match=r"board .*nosuch\.toml does not exist.*bench, cp2112, piplc"):
        open_board("guard", tmp_path, board="nosuch")


def test_loops_of_a_board_without_a_running_sampler_are_nan_and_infinitely_old(opened: Callable[[str], Board]) -> None:
    loops_ma, stamp_ns = opened("controller").loops()
    assert len(loops_ma) == 8
    assert all(ma != ma for ma in loops_ma)
    assert stamp_ns == 0


@pytest.mark.skipif(not list(Path("/dev").glob("gpiochip*")), reason="this machine has no gpiochip")
def test_a_real_gpiochip_tells_its_label_and_lines() -> None:
    for path in Path("/dev").glob("gpiochip*"):
        info = gpiochip.chip_info(path)
        assert info.name == path.name
        assert info.lines > 0


def _heartbeat(scan: int) -> bytes:
    return image.CONTROL.pack(*image.Control(scan, 0.0, False, False, 0.0, 0.0, 10, False))


def test_the_guard_drops_safe_enable_on_a_kernel_edge_however_short(
    rig: Rig, opened: Callable[[str], Board], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMS_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("EMS_STATE_DIR", str(tmp_path))
    control = image.writer("controller")["control"]
    control.publish(_heartbeat(1))
    rig.line(rig.file.guard_inputs["reset_button"]).level = 1
    guard = Guard(opened("guard"))
    guard.tick()
    control.publish(_heartbeat(2))
    guard.tick()
    enable, (chip, kill) = rig.output("safe_enable"), rig.at(rig.file.guard_inputs["kill_switch"])
    assert enable.level == 1
    assert rig.output("alive").history == [1, 0]
    chip.edge(kill, 1, monotonic_ns())
    chip.edge(kill, 0, monotonic_ns())
    guard.edges()
    assert enable.level == 0


def test_the_controller_scans_a_real_board_and_does_not_call_it_a_bench(
    rig: Rig, opened: Callable[[str], Board], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMS_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(controller, "CONFIGURATION_WAIT_NS", 0)
    for name, spec in rig.file.inputs.items():
        if name in ("kill_switch", "tamper", "insulation", "interlock_2", "interlock_8"):
            rig.input(name).level = int(not spec.active_low)
    scanning = controller.Controller(opened("controller"))
    scanning.scan(1)
    assert not scanning.fixed_status_bits
    status = image.View(image.STATUS, "controller", "status").refresh()
    assert status is not None
    assert status.interlocks & 0xFF == 0b1000_0010
    assert [rig.output(name).level for name in ("coil_neg", "coil_pos", "coil_pre")] == [0, 0, 0]


def test_a_server_that_starts_after_the_controller_still_says_how_often_it_scans(
    opened: Callable[[str], Board], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMS_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(controller, "CONFIGURATION_WAIT_NS", 0)
    config, status = image.writer("server")["config"], image.View(image.STATUS, "controller", "status")
    scanning = controller.Controller(opened("controller"))
    seen = []
    for payload in (None, settings(scan_period_ms=50, revision=1), settings(scan_period_ms=20, revision=2)):
        if payload is not None:
            config.publish(settings_to_json(payload))
        scanning.scan(1)
        found = status.refresh()
        assert found is not None
        seen.append((found.settings_revision, found.period_us, scanning.period_ns))
    assert seen == [(0, 10_000, 10_000_000), (1, 50_000, 50_000_000), (2, 50_000, 50_000_000)]


def test_a_command_that_arrives_while_the_scan_reads_its_lines_is_answered_in_this_scan(
    opened: Callable[[str], Board], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMS_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(controller, "CONFIGURATION_WAIT_NS", 0)
    command, board = image.writer("server")["command"], opened("controller")
    status = image.View(image.STATUS, "controller", "status")

    def written_meanwhile() -> tuple[tuple[float, ...], int]:
        command.publish(image.COMMAND.pack(*zeros(Command, seq=7)))
        return board.loops()

    controller.Controller(replace(board, loops=written_meanwhile)).scan(1)
    seen = status.refresh()
    assert seen is not None
    assert seen.ack_seq == 7
