"""Register profiles: files in, the right bytes out, and clear words for a wrong file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from drivers.profile import MAX_REGISTERS, Profile, ProfileError, cell_bits, load

BMS, PCS = load("bms_2100"), load("pcs_bench")


def readable(profile: Profile) -> list[str]:
    return [name for name, point in profile.points.items() if point.access == "R"]


@pytest.mark.parametrize("profile", [BMS, PCS], ids=["bms", "pcs"])
def test_every_point_of_a_block_comes_back_as_it_was_encoded(profile: Profile) -> None:
    for block in profile.blocks(profile.points):
        data = bytearray(2 * block.count)
        for at, name in enumerate(block.names):
            start = 2 * (profile.points[name].address - block.address)
            encoded = profile.encode(name, at + 1)
            data[start : start + len(encoded)] = encoded
        decoded = profile.decode(block, bytes(data))
        assert decoded == pytest.approx({name: at + 1 for at, name in enumerate(block.names)})


def test_a_charge_current_is_negative_whatever_the_device_counts() -> None:
    assert BMS.encode("string_a", -100.0) == (1000).to_bytes(2)
    assert PCS.encode("dc_a", -100.0) == (-1000).to_bytes(2, signed=True)


def test_words_of_a_32_bit_point_go_in_the_order_the_profile_says() -> None:
    assert PCS.encode("ac_w", 0x12345678).hex() == "56781234"
    assert PCS.encode("ac_hz", 50.0).hex() == "0000c350"


def test_an_offset_is_applied_both_ways() -> None:
    assert BMS.encode("cell_v_max_at", 736) == (737).to_bytes(2)


def test_what_does_not_fit_is_clamped_and_nan_is_the_sentinel() -> None:
    assert PCS.encode("setpoint_a", 1e6).hex() == "7fff"
    assert PCS.encode("setpoint_a", -1e6).hex() == "8001"
    assert PCS.encode("charge_limit_a", -5).hex() == "0000"
    assert PCS.encode("dc_v", float("nan")).hex() == "ffff"


def test_a_sentinel_is_nan_but_a_counter_may_have_any_value() -> None:
    block = PCS.blocks(["dc_v"])[0]
    assert np.isnan(PCS.decode(block, b"\xff\xff")["dc_v"])
    block = PCS.blocks(["heartbeat"])[0]
    assert PCS.decode(block, b"\xff\xff")["heartbeat"] == 0xFFFF


def test_the_summary_is_one_read_and_the_set_points_are_one_write() -> None:
    assert [(b.address, b.count) for b in BMS.blocks(readable(BMS))] == [(0x2100, 0x43)]
    written = [name for name, point in PCS.points.items() if point.access == "RW"]
    assert [(b.address, b.count) for b in PCS.blocks(written, max_gap=0)] == [(0x1100, 5)]


def test_no_read_is_longer_than_the_protocol_allows() -> None:
    for name, array in BMS.arrays.items():
        blocks = array.blocks(300)
        assert sum(count for _, count in blocks) == array.registers(300), name
        assert all(count <= MAX_REGISTERS for _, count in blocks)
    assert len(PCS.blocks(PCS.points, max_gap=1000)) == 3 - 1


def test_arrays_come_back_and_sentinels_are_nan() -> None:
    volts = np.linspace(2.5, 4.3, 300)
    array = BMS.arrays["cell_v"]
    np.testing.assert_allclose(array.decode(array.encode(volts)), volts, atol=0.0005)
    assert np.isnan(array.decode(bytes.fromhex("0000 8000 ffff 0e10"))).tolist() == [True, True, True, False]
    cold = BMS.arrays["cell_c"]
    assert cold.encode(np.array([-12.3, float("nan"), 1e9])).hex() == "ff8580007fff"
    assert np.isnan(cold.decode(bytes.fromhex("ffff 8000"))).tolist() == [False, True]


def test_balancing_bits_are_in_cell_order_16_a_register() -> None:
    data = BMS.arrays["balancing"].encode(cell in (0, 17, 299) for cell in range(300))
    assert len(data) == 2 * 19
    assert data[:4].hex() == "00010002"
    assert cell_bits(data) == 1 << 0 | 1 << 17 | 1 << 299


@pytest.mark.parametrize("sentinel", [-1, 0xFFFF])
def test_a_sentinel_counts_with_its_sign_and_as_a_register(sentinel: int) -> None:
    data = bytes.fromhex("ffff 0001 8000")
    for name, known in (("cell_v", False), ("cell_c", True)):
        array = replace(BMS.arrays[name], sentinels=[sentinel])
        assert np.isnan(array.decode(data)).tolist() == [True, False, known], name


def test_a_string_that_is_too_long_for_the_map_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"1025 cells a string do not fit 0x2800: allowed 1..1024"):
        BMS.arrays["cell_v"].blocks(1025)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('type = "int32"', 'type = "int33"'), ["points.ac_w.type", "int33", "uint16"]),
        (("address = 0x1003", "address = 70000"), ["points.dc_v.address", "70000", "65535"]),
        (("address = 0x1003", "address = 0x1002"), ["fault_bits and dc_v share register 0x1002"]),
        (("dc_v ", "terminal_v "), ["pcs profile also needs dc_v"]),
        (('read = "heartbeat"', 'read = "pulse"'), ["heartbeat 'pulse' is not one of the points"]),
        (('product = "PCS-BENCH"', ""), ["identity", "either vendor and product, or address and value"]),
        (('unit = "Hz"', 'units = "Hz"'), ["points.ac_hz.units", "Hz"]),
        (("scale = 0.001", "scale = 0"), ["points.ac_hz.scale", "0", "> 0"]),
        (
            (
                "[heartbeats]",
                '[arrays]\nx = { address = 1, type = "int16", sentinels = [65536], max_cells = 1 }\n[heartbeats]',
            ),
            ["arrays.x.sentinels", "65536", "<= 65535"],
        ),
        (('kind = "pcs"', "kind = pcs"), ["Invalid value"]),
        (("[heartbeats]", "[line]\ntransactions = 17\n[heartbeats]"), ["line.transactions", "17", "<= 16"]),
        (
            ("[heartbeats]", '[line]\nframing = "rtu"\ntransactions = 2\n[heartbeats]'),
            ["line", "transactions = 2", "leave it out"],
        ),
    ],
)
def test_a_wrong_file_is_refused_with_file_entry_value_and_what_is_allowed(
    tmp_path: Path, change: tuple[str, str], words: list[str]
) -> None:
    text = (Path(__file__).parent.parent / "drivers/profiles/pcs_bench.toml").read_text()
    assert change[0] in text
    path = tmp_path / "other.toml"
    path.write_text(text.replace(*change, 1))
    with pytest.raises(ProfileError) as refused:
        load(path)
    for word in [str(path), *words]:
        assert word in str(refused.value)


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ProfileError, match="bms_2100, pcs_bench"):
        load("bms_9999")
