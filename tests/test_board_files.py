"""Board files: what is shipped is complete, what is wrong is named, and a file can be held against a machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_ads1115 import FakeAds1115
from fake_kernel import FakeChip, FakeKernel, kernel

from drivers.board import INPUTS, OUTPUTS, BoardError
from drivers.board_file import MUST_SEE_MA, load, shipped
from firmware.ems_tool import main

__all__ = ["kernel"]
BOARDS = sorted((Path(__file__).parents[1] / "drivers" / "boards").glob("*.toml"))
PIPLC = load("piplc").path.read_text()


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_shipped_board_has_every_line_of_the_table_and_eight_loops_that_show_21_ma(path: Path) -> None:
    board = load(path.stem)
    assert board.is_bench == (path.stem == "bench")
    if board.is_bench:
        return
    assert set(board.inputs) == {line.name for line in INPUTS}
    assert set(board.guard_inputs) == {line.name for line in INPUTS if line.edges}
    assert set(board.outputs) == {line.name for line in OUTPUTS}
    assert set(board.loops) == set(range(1, 9))
    for loop in board.loops.values():
        assert board.adcs[loop.adc].full_scale_v / loop.shunt_ohm * 1000 >= MUST_SEE_MA


@pytest.mark.parametrize("path", [p for p in BOARDS if p.stem != "bench"], ids=lambda path: path.stem)
def test_a_shipped_board_debounces_neither_kill_switch_nor_tamper_and_names_its_sources(path: Path) -> None:
    board = load(path.stem)
    for table in (board.inputs, board.guard_inputs):
        assert table["kill_switch"].debounce_us == table["tamper"].debounce_us == 0
    assert re.search(r"^sources = \[\n    \"", path.read_text(), re.MULTILINE)


MISTAKES = {
    "no such chip": (
        'chip = "pi", line = 24',
        'chip = "pie", line = 24',
        "outputs.coil_neg.chip = 'pie': allowed is one of 'pi'",
    ),
    "line number": ("line = 24", "line = -1", r"outputs.coil_neg.line = -1: allowed is a whole number from 0 to 1023"),
    "line as text": ("line = 24", 'line = "24"', "outputs.coil_neg.line = '24': allowed is a whole number"),
    "yes for true": (
        "active_low = true } # I1",
        "active_low = 1 } # I1",
        "guard_inputs.kill_switch.active_low = 1: allowed is one of False, True",
    ),
    "bias": ('bias = "pull_up"', 'bias = "up"', "kill_switch.bias = 'up': allowed is one of 'default', 'pull_up'"),
    "debounce": (
        "debounce_us = 10000",
        "debounce_us = 60000",
        "debounce_us = 60000: allowed is a whole number from 0 to 50000",
    ),
    "unknown entry": (
        'safe = "low" } # Q1',
        'safe = "low", safety = 3 } # Q1',
        "outputs.coil_neg.safety = 3: allowed is nothing of that name; known are chip",
    ),
    "unknown line": ("fb_neg ", "fb_minus ", "inputs.fb_neg = None: allowed is a line"),
    "extra line": (
        "[inputs]",
        "[inputs]\nspare = { chip = 'pi', line = 2 }",
        "inputs.spare = .* known are kill_switch",
    ),
    "energised when safe": (
        'line = 24, safe = "low"',
        'line = 24, safe = "high"',
        "coil_neg.safe = 'high': allowed is 'low': .*energised",
    ),
    "polarity slip": (
        'line = 24, safe = "low"',
        'line = 24, active_low = true, safe = "low"',
        "coil_neg.safe = 'low': allowed is 'high'",
    ),
    "no safe level": (
        ', safe = "low" } # Q1',
        " } # Q1",
        "outputs.coil_neg.safe = None: allowed is one of 'low', 'high'",
    ),
    "line twice": ("line = 25", "line = 24", "outputs.coil_pos = chip 'pi' line 24: outputs.coil_neg has that line"),
    "shared with guard": (
        '"pi", line = 10',
        '"pi", line = 17',
        "guard_inputs.kill_switch = chip 'pi' line 17: inputs.kill_switch has",
    ),
    "chip without name": (
        'label = "pinctrl-bcm2711"',
        "",
        r"chips.pi. = \[\]: allowed is exactly one of path, label, usb_serial",
    ),
    "range": ("range_v = 4.096", "range_v = 4.0", "adcs.a.range_v = 4.0: allowed is one of 6.144, 4.096"),
    "address": ("address = 0x48", "address = 0x4C", "adcs.a.address = 76: allowed is a whole number from 72 to 75"),
    "converter": ('"ads1115"', '"ads1015"', "adcs.a.kind = 'ads1015': allowed is one of 'ads1115', 'mcp3208'"),
    "channel": ("channel = 3", "channel = 4", "loops.4.channel = 4: allowed is a whole number from 0 to 3"),
    "channel twice": (
        "channel = 1",
        "channel = 0",
        "loops.2.channel = 0: allowed is a channel of its own; loop 1 has this one",
    ),
    "guard tick": (
        "[chips.pi]",
        "guard_tick_ms = 30\n[chips.pi]",
        "guard_tick_ms = 30: allowed is a number from 2.5 to 25",
    ),
    "loops' period": (
        "[chips.pi]",
        "loops_ms = 501\n[chips.pi]",
        "loops_ms = 501: allowed is a whole number from 20 to 500",
    ),
    "ninth loop": ("8 = {", "9 = {", "loops.9 = .* known are the loops 1 to 8"),
    "shunt": (
        "shunt_ohm = 150.0",
        "shunt_ohm = 250.0",
        r"loops.1.shunt_ohm = 250.0: allowed is at most 191.2 ohm; .* 16.38 mA",
    ),
    "kind": ('kind = "gpiochip"', 'kind = "sysfs"', "kind = 'sysfs': allowed is one of 'gpiochip', 'bench'"),
    "toml": ("[chips.pi]", "[chips.pi", "Expected"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_file_entry_value_and_what_is_allowed(tmp_path: Path, mistake: str) -> None:
    right, wrong, message = MISTAKES[mistake]
    assert right in PIPLC
    path = tmp_path / "mine.toml"
    path.write_text(PIPLC.replace(right, wrong, 1))
    with pytest.raises(BoardError, match=f"^board {path}: .*{message}"):
        load(str(path))


@pytest.mark.parametrize(
    "name", ["kill_switch", "tamper", "coil_neg", "fb_pre", "safe_enable", "interlock_9", "led_blue"]
)
def test_a_line_that_safety_rests_on_cannot_be_absent(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'absent = ["{name}"]\n{PIPLC}')
    with pytest.raises(BoardError, match=f"absent = '{name}': allowed is interlock_1 to interlock_8, local_remote and"):
        load(str(path))


def _mcp3208(reference_v: float, shunt_ohm: float) -> str:
    head = PIPLC[: PIPLC.index("[adcs.a]")]
    adc = f'[adcs.a]\nkind = "mcp3208"\npath = "/dev/spidev0.0"\nreference_v = {reference_v}\nspeed_hz = 1000000\n'
    return f"{head}{adc}[loops]\n1 = {{ adc = 'a', channel = 7, shunt_ohm = {shunt_ohm} }}\n"


@pytest.mark.parametrize(
    ("reference_v", "shunt_ohm", "largest"),
    [(5.0, 240.0, "233.4 ohm"), (3.3, 165.0, "154.0 ohm"), (5.0, 230.0, ""), (3.3, 150.0, "")],
)
def test_a_shunt_at_which_21_ma_cannot_be_seen_is_refused_with_the_largest_that_can(
    tmp_path: Path, reference_v: float, shunt_ohm: float, largest: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(_mcp3208(reference_v, shunt_ohm))
    if not largest:
        assert load(str(path)).loops[1].shunt_ohm == shunt_ohm
        return
    with pytest.raises(BoardError, match=f"shunt_ohm = {shunt_ohm}: allowed is at most {largest}.*21 mA"):
        load(str(path))


def test_the_supply_of_an_ads1115_bounds_what_its_largest_range_can_show(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = PIPLC.replace("4.096", "6.144").replace("shunt_ohm = 150.0", "shunt_ohm = 240.0")
    path.write_text(text)
    with pytest.raises(BoardError, match=r"no more than 20.83 mA"):
        load(str(path))
    path.write_text(text.replace("supply_v = 5.0", "supply_v = 5.5"))
    assert load(str(path)).adcs["a"].full_scale_v == 5.5


@pytest.mark.parametrize(
    ("said", "tick_ms", "loops_ms"),
    [
        ("", 2.5, 20),
        ("guard_tick_ms = 2.5\nloops_ms = 20\n", 2.5, 20),
        ("guard_tick_ms = 25\n", 25.0, 20),
        ("loops_ms = 500\n", 2.5, 500),
    ],
)
def test_the_guard_ticks_every_2_5_ms_and_the_loops_are_sampled_every_20_unless_the_board_says_otherwise(
    tmp_path: Path, said: str, tick_ms: float, loops_ms: int
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PIPLC.replace("[chips.pi]", f"{said}[chips.pi]", 1))
    board = load(str(path))
    assert (board.guard_tick_ms, board.loops_ms) == (tick_ms, loops_ms)


def test_an_unknown_board_is_answered_with_those_that_exist() -> None:
    assert shipped() == "bench, cp2112, piplc"
    with pytest.raises(BoardError, match=f"does not exist; give a path ending in .toml or one of: {shipped()}"):
        load("raspberry")


class Machine:
    """Everything that piplc.toml names."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.pi: FakeChip = kernel.add_chip("pinctrl-bcm2711", 58)
        self.adc = FakeAds1115()
        kernel.add_i2c("i2c-1", self.adc)

    def add_adapters(self) -> None:
        self.kernel.add_chip("cp2112_gpio", 8, "IO0")
        self.kernel.add_chip("cp2112_gpio", 8, "IO1")


@pytest.fixture
def board_path(kernel: FakeKernel, tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(PIPLC.replace("/dev/", f"{kernel.dev}/"))
    return path


def test_board_check_finds_everything_on_the_right_machine(
    kernel: FakeKernel, board_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(kernel)
    machine.add_adapters()
    dog = kernel.add_watchdog()
    line = machine.pi.lines[24]
    line.used, line.consumer = True, "ems-controller"
    assert main(["--board-check", "--board", str(board_path)]) == 0
    text = capsys.readouterr().out
    assert "board mine: nothing missing of 35" in text
    assert "gpiochip0 line 24, held by ems-controller" in text
    assert re.search(r"chip pi +ok +.*gpiochip0, label 'pinctrl-bcm2711', 58 lines", text)
    assert machine.pi.lines[17].requests == 0
    assert machine.adc.conversions == 0
    assert re.search(r"watchdog +ok +.*watchdog0", text)
    assert dog.written() == b""


def test_board_check_lists_what_is_missing_and_exits_1(
    kernel: FakeKernel, board_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(kernel)
    machine.adc.addresses = {0x48}
    machine.pi.lines[10].used, machine.pi.lines[10].consumer = True, "spi0 MOSI"
    del machine.pi.lines[26:]
    assert main(["--board-check", "--board", str(board_path)]) == 1
    text = capsys.readouterr().out
    assert re.search(r"chip io0 +MISSING usb_serial 'IO0': nothing has .* there are: .*pinctrl-bcm2711", text)
    assert re.search(r"input kill_switch +MISSING .*gpiochip0 line 10 is held by spi0 MOSI", text)
    assert re.search(r"input fb_pos +MISSING .*has the lines 0 to 25, not 26", text)
    assert re.search(r"converter a +ok", text)
    assert re.search(r"converter b +MISSING ads1115 at 0x49 .*", text)
    assert re.search(r"watchdog +MISSING .*watchdog0 does not exist; load its kernel driver", text)
    assert "board mine: 7 missing of 19" in text


def test_board_check_of_a_wrong_file_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--board-check", "--board", "nosuch"]) == 2
    assert capsys.readouterr().err.startswith("ems-tool: board ")


def test_board_check_of_the_bench_has_nothing_to_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--board-check", "--board", "bench"]) == 0
    assert "simulated" in capsys.readouterr().out
