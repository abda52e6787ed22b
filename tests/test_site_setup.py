"""What the appliance does with the site's files before anything listens."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from firmware import site_setup
from firmware.config import FILES, load_site
from firmware.site_setup import SeedError, keep_environment, site_of, take_seed, write_run


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc"


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    (tmp_path / "ems-seed").mkdir()
    return tmp_path / "ems-seed"


def test_the_first_boot_gets_the_factory_configuration(etc: Path) -> None:
    assert site_setup._factory(etc) == list(FILES)
    assert load_site(etc).bms_host == "192.168.10.50"
    assert site_setup._factory(etc) == []


def test_a_seed_is_taken_whole_and_removed(etc: Path, seed: Path) -> None:
    (seed / "site.conf").write_text("bms_host = 10.9.8.7\n")
    (seed / "tls").mkdir()
    (seed / "tls" / "server.key").write_text("key")
    (seed / "network").mkdir()
    (seed / "network" / "10-eth.network").write_text("[Match]\n")
    taken = take_seed(seed, etc)
    assert {str(path) for path in taken} == {"site.conf", "tls/server.key", "network/10-eth.network"}
    assert load_site(etc).bms_host == "10.9.8.7"
    assert (etc / "tls" / "server.key").read_text() == "key"
    assert (etc / "tls" / "server.key").stat().st_mode & 0o777 == 0o640
    assert not seed.exists()
    assert not list(etc.glob(".*"))


def test_without_a_seed_nothing_happens(etc: Path, tmp_path: Path) -> None:
    assert take_seed(tmp_path / "none", etc) == []
    assert not list(etc.iterdir())


def test_a_bad_seed_is_refused_with_its_line_and_nothing_of_it_is_taken(etc: Path, seed: Path) -> None:
    site_setup._factory(etc)
    before = {path.name: path.read_bytes() for path in etc.iterdir()}
    (seed / "limits.conf").write_text("max_cell_temperature = 48\n")
    (seed / "site.conf").write_text("strings = 99\n")
    with pytest.raises(SeedError, match=r"ems-seed/site\.conf:1: strings = 99"):
        take_seed(seed, etc)
    assert (seed / "site.conf").exists()
    assert {path.name: path.read_bytes() for path in etc.iterdir()} == before


def test_a_seed_that_contradicts_what_is_there_is_refused(etc: Path, seed: Path) -> None:
    (etc / "limits.conf").write_text("max_cell_temperature = 59\ntrip_cell_temperature = 60\n")
    (seed / "limits.conf").write_text("max_cell_temperature = 61\ntrip_cell_temperature = 60\n")
    with pytest.raises(SeedError, match="max_cell_temperature"):
        take_seed(seed, etc)


def test_a_file_that_nobody_reads_is_a_misspelt_one(etc: Path, seed: Path) -> None:
    (seed / "sites.conf").write_text("")
    with pytest.raises(SeedError, match=r"sites\.conf: allowed are limits\.conf, balance\.conf, site\.conf and the"):
        take_seed(seed, etc)


def test_run_gets_the_firewall_the_time_servers_and_the_network(etc: Path, tmp_path: Path) -> None:
    site_setup._factory(etc)
    (etc / "site.conf").write_text("ntp_servers = 10.0.0.1, 10.0.0.2\nallowed_clients = 10.0.0.9\n")
    (etc / "network").mkdir()
    (etc / "network" / "10-eth.network").write_text("[Match]\nName=eth0\n")
    network = tmp_path / "network"
    network.mkdir()
    (network / "left-over.network").write_text("")
    write_run(site_of(etc), etc, tmp_path / "run", network)
    assert (tmp_path / "run/chrony/site.sources").read_text() == "server 10.0.0.1 iburst\nserver 10.0.0.2 iburst\n"
    assert "10.0.0.9/32" in (tmp_path / "run/site.nft").read_text()
    assert [path.name for path in network.iterdir()] == ["10-eth.network"]


def test_the_management_interface_is_set_up_from_site_conf(etc: Path, tmp_path: Path) -> None:
    (etc / "site.conf").write_text("management_interface = eth1\nmanagement_address = 10.0.0.5/24\n")
    write_run(site_of(etc), etc, tmp_path / "run", tmp_path / "network")
    assert "Address=10.0.0.5/24" in (tmp_path / "network/50-management.network").read_text()
    assert 'iifname != "eth1"' in (tmp_path / "run/site.nft").read_text()


def test_of_a_refused_site_file_the_management_interface_stays_as_it_is(etc: Path, tmp_path: Path) -> None:
    (etc / "site.conf").write_text("strings = many\nmanagement_interface = eth1\nmanagement_address = 10.0.0.5/24\n")
    write_run(site_of(etc), etc, tmp_path / "run", tmp_path / "network")
    assert "Address=10.0.0.5/24" in (tmp_path / "network/50-management.network").read_text()
    assert 'iifname != "eth1"' in (tmp_path / "run/site.nft").read_text()


def test_a_refused_site_file_closes_the_way_out_and_not_the_way_in(
    etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (etc / "site.conf").write_text("allowed_clients = 10.0.0.9\nstrings = none\n")
    write_run(site_of(etc), etc, tmp_path / "run", tmp_path / "network")
    text = (tmp_path / "run/site.nft").read_text()
    assert "10.0.0.9/32" in text
    assert "add rule inet ems peers" not in text
    assert "site.conf refused" in capsys.readouterr().err


def environment(grubenv: Path) -> dict[str, str]:
    said = subprocess.run(["grub-editenv", grubenv, "list"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in said.splitlines())


@pytest.mark.skipif(not shutil.which("grub-editenv"), reason="no grub-editenv here")
def test_the_machine_id_of_the_first_boot_is_kept_and_not_changed_later(tmp_path: Path) -> None:
    grubenv, machine_id = tmp_path / "grubenv", tmp_path / "machine-id"
    subprocess.run(["grub-editenv", grubenv, "create"], check=True)
    subprocess.run(["grub-editenv", grubenv, "set", "ORDER=B A", "A_OK=0", "B_TRY=1"], check=True)
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    keep_environment(grubenv, "B", machine_id)
    as_found = {"ORDER": "B A", "A_OK": "0", "B_TRY": "1", "machine_id": "0123456789abcdef0123456789abcdef"}
    assert environment(grubenv) == as_found
    machine_id.write_text("another\n")
    keep_environment(grubenv, "B", machine_id)
    assert environment(grubenv) == as_found


def test_without_an_efi_partition_nothing_is_kept(tmp_path: Path) -> None:
    keep_environment(tmp_path / "none" / "grubenv", "A", tmp_path / "none")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("grub-editenv"), reason="no grub-editenv here")
@pytest.mark.parametrize(("booted", "order"), [("A", "A B"), ("B", "B A")])
@pytest.mark.parametrize("left", [None, b"", bytes(1024), b"# GRUB Environment Block\n" + b"#" * 999])
def test_an_environment_that_was_lost_is_made_anew_with_what_runs_first(
    tmp_path: Path, left: bytes | None, booted: str, order: str, capsys: pytest.CaptureFixture[str]
) -> None:
    grubenv, machine_id = tmp_path / "grubenv", tmp_path / "machine-id"
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    if left is not None:
        grubenv.write_bytes(left)
    keep_environment(grubenv, booted, machine_id)
    tries = {"A_OK": "1", "B_OK": "1", "A_TRY": "0", "B_TRY": "0"}
    assert environment(grubenv) == {"ORDER": order, **tries, "machine_id": machine_id.read_text().strip()}
    assert "environment was lost" in capsys.readouterr().err
