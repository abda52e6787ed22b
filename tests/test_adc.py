"""4-20 mA loops: what crosses the bus, what a reading means, and what happens when the bus does not answer."""

from __future__ import annotations

import math
from pathlib import Path
from time import monotonic_ns
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_ads1115 import FakeAds1115
from fake_kernel import FakeKernel, kernel

from drivers import adc
from drivers.adc import AdcError, Ads1115, LoopSampler, Mcp3208, ads1115_config
from drivers.board import open_board
from drivers.board_file import AdcSpec, BoardFile, load
from drivers.gpiochip import Device
from drivers.loops import SECTION, LoopsReader, Samples, pack, unpack
from drivers.section import SectionFile
from firmware import image, sampler

__all__ = ["kernel"]
MCP = AdcSpec("mcp3208", Device("path", ""), 3.3, 3.3, speed_hz=1_000_000)


@pytest.fixture
def chip(kernel: FakeKernel) -> FakeAds1115:
    made = FakeAds1115()
    kernel.add_i2c("i2c-7", made, "IO0")
    return made


@pytest.fixture
def spec(kernel: FakeKernel) -> AdcSpec:
    return AdcSpec("ads1115", Device("usb_serial", "IO0"), 4.096, 4.096, address=0x48)


@pytest.mark.parametrize(
    ("channel", "range_v", "config"),
    [(0, 6.144, 0xC1E3), (0, 4.096, 0xC3E3), (1, 4.096, 0xD3E3), (2, 2.048, 0xE5E3), (3, 0.256, 0xFBE3)],
)
def test_the_configuration_register_is_the_data_sheets(channel: int, range_v: float, config: int) -> None:
    """OS 1, MUX 1xx, PGA, MODE 1 (single shot), DR 111 (860 SPS), COMP_QUE 11 (off)."""
    assert ads1115_config(channel, range_v) == config


def test_a_sample_starts_waits_reads_the_configuration_back_and_then_the_result(
    chip: FakeAds1115, spec: AdcSpec
) -> None:
    chip.volts[2], chip.busy_reads = 2.0, 1
    assert Ads1115(spec).volts(2) == pytest.approx(2.0, abs=4.096 / 32768)
    assert list(chip.traffic) == [
        (0x48, "write", bytes([1, 0xE3, 0xE3])),
        (0x48, "write", bytes([1])), (0x48, "read", bytes([0x63, 0xE3])),
        (0x48, "write", bytes([1])), (0x48, "read", bytes([0xE3, 0xE3])),
        (0x48, "write", bytes([0])), (0x48, "read", (16000).to_bytes(2, "big")),
    ]  # fmt: skip


def test_a_voltage_below_ground_is_negative_and_one_above_the_range_is_its_end(
    chip: FakeAds1115, spec: AdcSpec
) -> None:
    chip.volts[0:2] = [-0.01, 4.9]
    converter = Ads1115(spec)
    assert converter.volts(0) == pytest.approx(-0.01, abs=1e-3)
    assert converter.volts(1) == pytest.approx(4.096 * 32767 / 32768)


def test_a_conversion_that_never_ends_is_an_error_within_the_time_out(chip: FakeAds1115, spec: AdcSpec) -> None:
    chip.busy_reads = 1_000_000
    start = monotonic_ns()
    with pytest.raises(AdcError, match="ads1115 at 0x48 of usb_serial 'IO0': conversion still runs after 50 ms"):
        Ads1115(spec).volts(0)
    assert monotonic_ns() - start >= 50_000_000


def test_a_converter_that_was_reset_is_not_believed(chip: FakeAds1115, spec: AdcSpec) -> None:
    chip.resets = True
    with pytest.raises(AdcError, match="configuration 0x8583, expected 0xc3e3: was it reset"):
        Ads1115(spec).volts(0)


def test_an_address_that_does_not_answer_is_named(chip: FakeAds1115, spec: AdcSpec) -> None:
    with pytest.raises(AdcError, match=r"ads1115 at 0x4b of .*I2C transfer"):
        Ads1115(spec._replace(address=0x4B)).probe()


def _spi(kernel: FakeKernel, answer: list[int]) -> tuple[Mcp3208, list[bytes]]:
    frames: list[bytes] = []

    def device(sent: bytes) -> bytes:
        frames.append(sent)
        return bytes(answer)

    path = kernel.add_spi("spidev0.0", device)
    return Mcp3208(MCP._replace(device=Device("path", str(path)))), frames


def test_the_mcp3208_frame_is_the_data_sheets(kernel: FakeKernel) -> None:
    """Start bit, single-ended, three channel bits; then the null bit and twelve bits of result."""
    converter, frames = _spi(kernel, [0xFF, 0xE8, 0x00])
    assert converter.volts(0) == 0x800 * 3.3 / 4096
    for channel in range(1, 8):
        converter.volts(channel)
    assert frames == [
        b"\x06\x00\x00", b"\x06\x40\x00", b"\x06\x80\x00", b"\x06\xc0\x00",
        b"\x07\x00\x00", b"\x07\x40\x00", b"\x07\x80\x00", b"\x07\xc0\x00",
    ]  # fmt: skip


def test_an_mcp3208_that_is_not_there_is_an_error_and_not_full_scale(kernel: FakeKernel) -> None:
    converter, _ = _spi(kernel, [0xFF, 0xFF, 0xFF])
    with pytest.raises(AdcError, match="null bit is 1: nothing drives MISO"):
        converter.volts(0)


class Bank:
    """Two converters, four loops each, as the shipped boards have them."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.a, self.b = FakeAds1115(), FakeAds1115()
        kernel.add_i2c("i2c-7", self._bus, "IO0")
        self.told: list[str] = []
        self.file: BoardFile = load("cp2112")
        self.sampler = LoopSampler(self.file, self.told.append)

    def _bus(self, messages: list[tuple[int, bool, bytes]]) -> list[bytes]:
        return (self.a if messages[0][0] == 0x48 else self.b)(messages)


@pytest.fixture
def bank(kernel: FakeKernel) -> Bank:
    return Bank(kernel)


def test_a_loop_is_the_current_through_its_shunt(bank: Bank) -> None:
    bank.a.volts = [0.150 * ma for ma in (4.0, 12.0, 20.0, 21.0)]
    bank.b.volts = [0.150 * ma for ma in (0.0, 3.6, 8.0, 21.4)]
    before = monotonic_ns()
    seen = bank.sampler.round()
    assert seen.ma == pytest.approx((4.0, 12.0, 20.0, 21.0, 0.0, 3.6, 8.0, 21.4), abs=0.001)
    assert all(before <= good <= monotonic_ns() for good in seen.good_ns)
    assert seen.errors == (0,) * 8


def test_a_converter_that_fails_makes_its_loops_nan_at_once_and_their_age_grow_while_the_others_go_on(
    bank: Bank,
) -> None:
    first = bank.sampler.round()
    bank.b.fails = True
    for rounds in (1, 2, 3):
        seen = bank.sampler.round()
        assert all(math.isnan(ma) for ma in seen.ma[4:])
        assert seen.good_ns[4:] == first.good_ns[4:]
        assert seen.errors == (0, 0, 0, 0, *[rounds] * 4)
        assert not any(math.isnan(ma) for ma in seen.ma[:4])
        assert all(later > sooner for later, sooner in zip(seen.good_ns[:4], first.good_ns[:4], strict=True))
    assert len(bank.told) == 1
    assert bank.told[0].startswith("converter b: ads1115 at 0x49 of usb_serial 'IO0': ")


def test_a_converter_that_comes_back_is_opened_again(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    bank.b.fails = True
    bank.sampler.round()
    bank.b.fails = False
    assert math.isnan(bank.sampler.round().ma[4])
    monkeypatch.setattr(adc, "monotonic_ns", lambda: monotonic_ns() + adc.RETRY_NS)
    assert bank.sampler.round().ma[4] == 0.0
    assert bank.told[1:] == ["converter b: answers again"]


def test_a_bus_that_is_not_there_is_an_error_of_its_loops_and_no_crash(kernel: FakeKernel) -> None:
    told: list[str] = []
    seen = LoopSampler(load("cp2112"), told.append).round()
    assert all(math.isnan(ma) for ma in seen.ma)
    assert seen.errors == (1,) * 8
    assert told[0] == "converter a: nothing has usb_serial 'IO0'; there are: none"


def test_the_section_carries_currents_stamps_and_errors() -> None:
    sent = Samples(tuple(map(float, range(8))), tuple(range(10, 18)), tuple(range(20, 28)))
    assert unpack(pack(sent)) == sent


def test_a_board_reads_the_loops_that_the_sampler_published(
    kernel: FakeKernel, bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for serial in ("IO0", "IO1", "IO2", "IO3"):
        kernel.add_chip("cp2112_gpio", 8, serial)
    bank.a.volts = bank.b.volts = [0.150 * 12.0] * 4
    board = open_board("controller", tmp_path, board="cp2112")
    stops = iter([False, False, True])
    monkeypatch.setattr(sampler, "pending_stop", lambda: next(stops))
    section: SectionFile = image.writer("sampler", tmp_path)
    before = monotonic_ns()
    sampler.run(bank.sampler, section[SECTION], 20_000_000)
    loops_ma, stamp_ns = board.loops()
    assert loops_ma == pytest.approx((12.0,) * 8, abs=0.001)
    assert before <= stamp_ns <= monotonic_ns() - 8 * 1_400_000
    assert LoopsReader(tmp_path).samples()[0].errors == (0,) * 8


def test_the_stamp_stays_when_the_sampler_hangs_so_that_the_loops_age(tmp_path: Path) -> None:
    section = image.writer("sampler", tmp_path)[SECTION]
    section.publish(pack(Samples((12.0,) * 8, (5,) * 8, (0,) * 8)), 5)
    reader = LoopsReader(tmp_path)
    assert reader.loops() == reader.loops() == ((12.0,) * 8, 5)


@pytest.mark.parametrize(
    ("period_ms", "round_ms", "worked_ms", "starts_ms"),
    [
        (20, 4, 4, [0, 20, 40, 60]),
        (20, 13, 13, [0, 20, 40, 60]),
        (20, 100, 100, [0, 150, 300, 450]),
        (20, 100, 40, [0, 120, 240, 360]),
        (400, 100, 100, [0, 400, 800, 1200]),
        (20, 19, 4, [0, 21, 42, 63]),
    ],
)
def test_a_round_comes_every_period_and_a_slow_processor_has_a_third_of_it_left(
    monkeypatch: pytest.MonkeyPatch, period_ms: int, round_ms: int, worked_ms: int, starts_ms: list[int]
) -> None:
    """Waiting for a slow bus is no work: others run meanwhile."""
    now_ns, cpu_ns, starts = 10**12, 0, list[int]()

    def sample() -> list[Any]:
        nonlocal now_ns, cpu_ns
        now_ns += round_ms * 10**6
        cpu_ns += worked_ms * 10**6
        return []

    def sleep_until(deadline_ns: int) -> None:
        nonlocal now_ns
        now_ns = max(now_ns, deadline_ns)

    monkeypatch.setattr(sampler, "monotonic_ns", lambda: now_ns)
    monkeypatch.setattr(sampler, "thread_time_ns", lambda: cpu_ns)
    monkeypatch.setattr(sampler, "sleep_until", sleep_until)
    monkeypatch.setattr(sampler, "pending_stop", lambda: len(starts) == len(starts_ms))
    monkeypatch.setattr(sampler, "pack", lambda samples: b"")
    section = SimpleNamespace(publish=lambda payload, stamp_ns: starts.append((stamp_ns - 10**12) // 10**6))
    sampler.run(cast(Any, SimpleNamespace(round=sample)), cast(Any, section), period_ms * 10**6)
    assert starts == starts_ms


@pytest.mark.parametrize(("board", "code", "text"), [("bench", 0, "nothing to do"), ("nosuch", 2, "does not exist")])
def test_the_process_ends_at_once_on_the_bench_and_refuses_an_unknown_board(
    board: str, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMS_BOARD", board)
    assert sampler.main() == code
    assert text in capsys.readouterr().err
