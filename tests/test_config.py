"""The configuration files: read whole or refused whole, with an error that can be acted on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path

import pytest

from firmware import conf_file
from firmware.config import (
    FILES,
    ConfigError,
    configuration_markdown,
    factory_text,
    load,
    load_cell_profile,
    prepare,
)
from firmware.settings_codec import settings_from_json, settings_to_json
from statemachine.settings import narrowed, same
from statemachine.signals import LossPolicy

_AGAIN = "correct the line and send SIGHUP again"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    prepare(tmp_path, {})
    return tmp_path


def _refusal(directory: Path) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(directory)
    return str(refused.value).splitlines()


def _change(path: Path, name: str, value: str) -> int:
    """Sets `name` in a file; its line number."""
    lines = path.read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.startswith(f"{name} ="))
    lines[number - 1] = f"{name} = {value}"
    path.write_text("\n".join(lines) + "\n")
    return number


def test_the_default_files_describe_the_default_rack(etc: Path) -> None:
    settings, site, _ = load(etc, revision=7)
    assert (settings.revision, settings.strings, settings.cells_in_series, settings.rated_ah) == (7, 4, 300, 1120.0)
    assert (settings.max_charge_voltage, settings.min_discharge_voltage) == (1260.0, 900.0)
    assert settings.cell_balancing_threshold == 0.010
    assert (settings.interlocks_required, settings.loops_used) == (0xFF, 0xFF)
    assert (settings.cell.name, settings.loss_policy) == ("nmc_energy", LossPolicy.STANDBY)
    assert (site.bms_host, site.bms_port, site.log_directory) == ("192.168.10.50", 502, "/var/log/ems")


@pytest.mark.parametrize("file", FILES)
def test_the_committed_default_files_are_those_of_the_models(file: str) -> None:
    assert (files("firmware") / "defaults" / file).read_text("utf-8") == factory_text(file)


def test_what_is_delivered_is_narrower_than_the_defaults_and_not_commissioned(etc: Path) -> None:
    default = load(etc).settings
    for file in FILES:
        (etc / file).write_text(factory_text(file))
    delivered = load(etc).settings
    assert same(narrowed(default, delivered), delivered)
    assert not delivered.commissioned
    assert (delivered.max_charge_rate, delivered.max_soc, delivered.min_soc) == (0.1, 80.0, 20.0)


def test_a_name_left_out_has_its_default(etc: Path) -> None:
    prepared = load(etc).settings
    for file in FILES:
        (etc / file).write_text("# nothing\n")
    assert load(etc).settings == prepared


def test_the_settings_travel_through_json_without_change(etc: Path) -> None:
    settings = replace(load(etc).settings, ramp_up_rate=1 / 3, revision=2**40)
    assert settings_from_json(settings_to_json(settings)) == settings


def test_json_with_a_missing_or_unknown_field_is_refused(etc: Path) -> None:
    data = settings_to_json(load(etc).settings)
    with pytest.raises(ValueError, match="missing max_soc"):
        settings_from_json(data.replace(b'"max_soc"', b'"max_sock"'))
    with pytest.raises(ValueError, match="unknown extra"):
        settings_from_json(data.replace(b"{", b'{"extra":1,', 1))


def test_the_scan_process_does_not_import_msgspec_for_the_settings() -> None:
    code = "import sys, firmware.settings_codec; sys.exit('msgspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("file", "name", "value", "allowed"),
    [
        ("limits.conf", "max_charge_voltage", "99999", "100 to 1500 V"),
        ("limits.conf", "min_soc", "low", "0 to 50 %"),
        ("limits.conf", "break_current", "nan", "1 to 200 A"),
        ("limits.conf", "max_charge_rate", "inf", "0.01 to 5 C"),
        ("limits.conf", "interlocks_required", "1,9", "numbers 1 to 8 separated by commas, or none"),
        ("balance.conf", "cell_balancing_threshold", "0.5", "0.001 to 0.1 V"),
        ("site.conf", "strings", "2.5", "1 to 16"),
        ("site.conf", "loss_policy", "explode", "standby, hold or isolate"),
        ("site.conf", "require_heartbeat", "maybe", "yes or no"),
        ("site.conf", "log_directory", "logs", "an absolute path"),
        ("site.conf", "bms_host", "a b", "a host name, an address or a serial line"),
    ],
)
def test_a_bad_value_is_named_with_file_line_value_and_range(
    etc: Path, file: str, name: str, value: str, allowed: str
) -> None:
    number = _change(etc / file, name, value)
    assert _refusal(etc) == [f"{etc / file}:{number}: {name} = {value}: allowed {allowed}; {_AGAIN}"]


@pytest.mark.parametrize(
    ("file", "name", "value", "taken"),
    [
        ("site.conf", "strings", "04", 4), ("site.conf", "strings", "+4", 4), ("site.conf", "strings", "4.0", 4),
        ("limits.conf", "max_soc", "9e1", 90.0), ("limits.conf", "max_soc", "+90.", 90.0),
        ("site.conf", "modbus_plain", "No", False), ("site.conf", "modbus_plain", "on", True),
    ],
)  # fmt: skip
def test_a_value_may_be_spelled_in_more_ways_than_one(
    etc: Path, file: str, name: str, value: str, taken: object
) -> None:
    _change(etc / file, name, value)
    _, site, limits = load(etc)
    found = getattr(site if file == "site.conf" else limits, name)
    assert (found, type(found)) == (taken, type(taken))


def test_all_errors_of_all_files_are_told_in_the_order_of_their_lines(etc: Path) -> None:
    (etc / "limits.conf").write_bytes(
        b"min_soc = 99\nfoo = 1\nbar\n\xff = 1\nmax_soc = 90\nmax_soc = 91\nbms_port = 3\n"
    )
    (etc / "balance.conf").unlink()
    (etc / "site.conf").write_text("strings = 0\n")
    limits, balance, site = (etc / name for name in FILES)
    assert _refusal(etc) == [
        f"{limits}:1: min_soc = 99: allowed 0 to 50 %; {_AGAIN}",
        f"{limits}:2: foo = 1: unknown name; allowed names are in docs/configuration.md; {_AGAIN}",
        f"{limits}:3: 'bar': allowed is `name = value`; {_AGAIN}",
        f"{limits}:4: byte 0xff in column 1 is not UTF-8; {_AGAIN}",
        f"{limits}:6: max_soc = 91: already given in line 5, allowed once; {_AGAIN}",
        f"{limits}:7: bms_port = 3: unknown name; it belongs into site.conf; {_AGAIN}",
        f"{balance}: No such file or directory; put it in place (default: firmware/defaults/balance.conf) "
        "and send SIGHUP again",
        f"{site}:1: strings = 0: allowed 1 to 16; {_AGAIN}",
    ]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("min_soc", "50", "allowed below max_soc = 50"),
        ("trip_cell_temperature", "40", "max_cell_temperature = 50: allowed below trip_cell_temperature = 40"),
        ("precharge_max_time", "0.5", "precharge_min_time = 0.5: allowed below precharge_max_time = 0.5"),
        ("max_charge_voltage", "1300", "allowed up to 1260 V, 300 cells in series of profile nmc_energy x 4.2 V"),
        ("min_discharge_voltage", "800", "allowed from 840 V, 300 cells in series of profile nmc_energy x 2.8 V"),
        ("ramp_down_rate", "0.05", "allowed from 20 s, the time ramp_down_rate = 0.05 C/s needs from the highest rate"),
        ("bms_timeout", "0.1", "allowed from 0.2 s, twice bms_poll_ms in site.conf"),
    ],
)
def test_values_that_contradict_each_other_are_refused_and_both_named(
    etc: Path, name: str, value: str, told: str
) -> None:
    _change(etc / "limits.conf", "max_soc", "50" if name == "min_soc" else "100")
    _change(etc / "limits.conf", "precharge_min_time", "0.5")
    _change(etc / "limits.conf", name, value)
    (error,) = _refusal(etc)
    assert told in error
    assert error.startswith(f"{etc / 'limits.conf'}:")


def test_more_cells_than_the_process_image_holds_are_refused(etc: Path) -> None:
    prepare(etc, {"strings": 16, "modules_per_string": 40, "cells_per_module": 20})
    assert any("strings = 16: 12800 cells, allowed up to" in error for error in _refusal(etc))


def test_an_unknown_cell_profile_is_refused(etc: Path) -> None:
    _change(etc / "site.conf", "cell_profile", "unobtainium")
    (error,) = _refusal(etc)
    assert "cell_profile = unobtainium" in error
    assert "No such file" in error


def test_a_comment_and_a_list_may_share_a_line(etc: Path) -> None:
    (etc / "limits.conf").write_text("loops_used = 1, 3  # two loops\ninterlocks_required = none\n")
    settings = load(etc).settings
    assert (settings.loops_used, settings.interlocks_required) == (0b101, 0)


def test_both_chemistries_load_with_rising_tables() -> None:
    for name in ("nmc_energy", "lfp_energy"):
        cell = load_cell_profile(name)
        assert cell.name == name
        assert cell.v_min_v < cell.v_limit_v < cell.v_stop_v < cell.v_trip_v


def test_a_bench_configuration_is_the_default_with_some_values_replaced(tmp_path: Path) -> None:
    prepare(tmp_path / "etc", {"bms_host": "127.0.0.1", "bms_port": 5502, "require_heartbeat": True})
    settings, site, _ = load(tmp_path / "etc")
    assert (site.bms_host, site.bms_port, site.require_heartbeat) == ("127.0.0.1", 5502, True)
    prepare(tmp_path / "default", {})
    assert same(settings, load(tmp_path / "default").settings)
    with pytest.raises(ConfigError, match="no such configuration name: bms_prot"):
        prepare(tmp_path / "etc", {"bms_prot": 1})


def test_every_name_is_in_the_document() -> None:
    text = configuration_markdown()
    for conf in FILES.values():
        assert all(f"| `{name}` |" in text for name in (entry.name for entry in fields(conf)))


# the schema


def _renamed(file: str, values: dict[str, str]) -> dict[str, str]:
    """What a later version may do: a name of limits.conf is another one there, and in kilovolts."""
    if "max_rack_kv" in values:
        values["max_charge_voltage"] = f"{float(values.pop('max_rack_kv')) * 1000:g}"
    return values


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version after this one."""
    monkeypatch.setattr(conf_file, "SCHEMA", 2)
    monkeypatch.setattr(conf_file, "MIGRATIONS", {1: _renamed})


def _old(directory: Path) -> bytes:
    prepare(directory, {})
    path = directory / "limits.conf"
    text = path.read_text().replace("max_charge_voltage = 1260", "max_rack_kv = 1.2  # ours")
    path.write_text(text)
    return path.read_bytes()


def test_every_schema_below_this_versions_has_its_migration() -> None:
    assert sorted(conf_file.MIGRATIONS) == list(range(1, conf_file.SCHEMA))


@pytest.mark.usefixtures("later")
def test_an_older_file_is_understood_before_anything_is_written(tmp_path: Path) -> None:
    before = _old(tmp_path)
    assert load(tmp_path).settings.max_charge_voltage == 1200.0
    assert (tmp_path / "limits.conf").read_bytes() == before


@pytest.mark.usefixtures("later")
def test_an_older_file_is_made_new_and_kept_and_nothing_is_done_twice(tmp_path: Path) -> None:
    before = _old(tmp_path)
    told = conf_file.migrate(tmp_path, FILES)
    assert told[0] == "limits.conf: schema 1 is now 2, the old file is limits.conf.schema1"
    assert len(told) == 3
    assert (tmp_path / "limits.conf.schema1").read_bytes() == before
    assert (tmp_path / "limits.conf").read_text().startswith("schema = 2\n")
    assert load(tmp_path).settings.max_charge_voltage == 1200.0
    assert conf_file.migrate(tmp_path, FILES) == []


def test_a_rollback_finds_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, {"max_charge_voltage": 1200})
    with monkeypatch.context() as later:
        later.setattr(conf_file, "SCHEMA", 2)
        later.setattr(conf_file, "MIGRATIONS", {1: lambda file, values: {"of_a_later_version": "1"}})
        for name in FILES:
            conf_file._rewrite(tmp_path / name, 1)
    assert (tmp_path / "site.conf").read_text() == "schema = 2\nof_a_later_version = 1\n"
    assert load(tmp_path).settings.max_charge_voltage == 1200.0


@pytest.mark.parametrize("schema", ["2", "0", "-1", "x"])
def test_a_file_of_a_schema_that_is_not_known_is_refused_with_the_next_step(tmp_path: Path, schema: str) -> None:
    prepare(tmp_path, {})
    path = tmp_path / "limits.conf"
    path.write_text(f"# made elsewhere\nschema = {schema}\nof_a_later_version = 1\n")
    with pytest.raises(ConfigError) as refused:
        load(tmp_path)
    assert str(refused.value) == (
        f"{path}:2: schema = {schema}: allowed 1 to 1 in this version; "
        "install the version that wrote it, or put a file of schema 1 in place"
    )


@pytest.mark.usefixtures("later")
def test_a_disk_that_cannot_be_written_is_told_and_the_file_is_understood_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _old(tmp_path)

    def read_only(new: Path, to: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", read_only)
    assert conf_file.migrate(tmp_path, FILES)[0] == (
        "limits.conf: not rewritten, Read-only file system; it is migrated at every start"
    )
    assert load(tmp_path).settings.max_charge_voltage == 1200.0


@pytest.mark.usefixtures("later")
def test_a_file_with_an_error_is_not_rewritten(tmp_path: Path) -> None:
    _old(tmp_path)
    (tmp_path / "limits.conf").write_text("max_rack_kv = 1.2\nnot a line\n")
    assert "limits.conf" not in "".join(conf_file.migrate(tmp_path, FILES))
    assert not (tmp_path / "limits.conf.schema1").exists()
