"""The recipe of the image, as far as it can be judged without building it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from image.vm import MACHINES

import build
from disk import CMDLINE, PARTITIONS
from job import AMD64, ARCHES, ARM64, Arch, BuildError, Job, Paths, arch_of, emulated, require_tools

ROOT = Path(__file__).parents[1] / "image" / "root"
UNITS = ROOT / "usr/lib/systemd/system"
GRUB = (ROOT.parent / "grub.cfg").read_text()
PROCESSES = ("guard", "controller", "sampler", "aggregator", "server", "historian", "clock")
MOST_EXPOSED = 2.0


@pytest.mark.parametrize("path", sorted(UNITS.glob("*.service")), ids=lambda path: path.name)
def test_every_program_of_a_unit_is_there(path: Path) -> None:
    for command in re.findall(r"^Exec\w+=\+?(.*)$", path.read_text(), re.M):
        if found := re.search(r"-m (firmware\.\w+)", command):
            assert importlib.util.find_spec(found[1]), command
        elif command.startswith("/usr/lib/ems/"):
            assert os.access(ROOT / command.lstrip("/"), os.X_OK), command


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_has_a_unit_a_user_a_profile_and_its_own_file_only(name: str) -> None:
    assert (UNITS / f"ems-{name}.service").exists()
    assert re.search(rf"^u ems-{name}\s+\d+:800 ", (ROOT / "usr/lib/sysusers.d/ems.conf").read_text(), re.M)
    profile = (ROOT / f"etc/apparmor.d/ems-{name}").read_text()
    assert f"profile ems-{name} flags=(attach_disconnected) {{" in profile
    assert re.findall(r"/run/ems/(\S+\.img) rwk,", profile) == [f"{name}.img"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
@pytest.mark.parametrize("name", PROCESSES)
def test_no_unit_is_more_exposed_than_promised(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--root={ROOT}", f"ems-{name}.service", "--no-pager"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", told)
    assert found, told
    assert float(found[1]) <= MOST_EXPOSED


def test_nothing_may_ask_for_a_login() -> None:
    masked = {path.name for path in (ROOT / "etc/systemd/system").iterdir() if path.is_symlink()}
    assert {"getty.target", "getty@.service", "serial-getty@.service", "debug-shell.service"} <= masked
    assert not any("ssh" in package for package in build.packages(AMD64))


def test_a_repair_shell_is_a_reboot() -> None:
    for name in ("emergency", "rescue"):
        text = (ROOT / f"etc/systemd/system/{name}.service.d/ems.conf").read_text()
        assert "SuccessAction=reboot-force" in text


def test_the_partitions_that_the_boot_loader_counts_on_are_where_it_looks() -> None:
    names = [part.name for part in PARTITIONS]
    assert (names.index("boot-a") + 1, names.index("boot-b") + 1) == (2, 3)
    assert "set part=gpt2; set rauc=A" in GRUB
    assert "set part=gpt3; set rauc=B" in GRUB


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An amd64 machine with sh alone; the folder stands for binfmt_misc."""
    monkeypatch.setattr("job.TOOLS", {"no-such-program": "its-package", "sh": "dash"})
    monkeypatch.setattr("job.EMULATED_TOOLS", {"no-tester": "arch-test"})
    monkeypatch.setattr("job.GRUB", Path("/no/such/folder"))
    monkeypatch.setattr("job.BINFMT", tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", "/bin")
    return tmp_path


def refusal(arch: Arch) -> list[str]:
    with pytest.raises(BuildError) as caught:
        require_tools(arch)
    return [line.strip() for line in str(caught.value).splitlines()]


@pytest.mark.usefixtures("bare")
def test_missing_tools_are_all_named_with_their_packages() -> None:
    assert refusal(AMD64) == [
        "missing on this machine: no-such-program, /no/such/folder/x86_64-efi",
        "apt-get install --no-install-recommends grub-efi-amd64-bin:amd64 its-package",
    ]


def test_another_architecture_wants_an_emulator_and_how_it_gets_there_is_said(bare: Path) -> None:
    handler = bare / "qemu-aarch64"
    assert refusal(ARM64) == [
        f"missing on this machine: no-such-program, no-tester, /no/such/folder/arm64-efi, {handler} with flag F",
        f"mount -t binfmt_misc binfmt_misc {bare}",
        "dpkg --add-architecture arm64 && apt-get update",
        "apt-get install --no-install-recommends arch-test binfmt-support qemu-user-static grub-efi-arm64-bin:arm64 "
        "its-package",
        "update-binfmts --enable qemu-aarch64",
    ]


@pytest.mark.usefixtures("bare")
def test_on_a_machine_of_its_own_kind_no_emulator_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert refusal(ARM64)[1:] == ["apt-get install --no-install-recommends grub-efi-arm64-bin:arm64 its-package"]


@pytest.mark.parametrize(
    ("state", "flags", "serves"),
    [("enabled", "PF", True), ("enabled", "", False), ("disabled", "F", False)],
)
def test_an_emulator_must_be_enabled_and_work_in_a_tree_without_it(
    bare: Path, state: str, flags: str, serves: bool
) -> None:
    (bare / "qemu-aarch64").write_text(f"{state}\ninterpreter /usr/bin/F\nflags: {flags}\noffset 0\n")
    assert emulated(ARM64) == serves


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(BuildError, match=r"ARCH = armhf: .*allowed are amd64, arm64: name one"):
        arch_of("armhf")


def test_every_architecture_has_a_machine_to_boot_in() -> None:
    assert MACHINES.keys() == {arch.efi for arch in ARCHES.values()}


def test_an_authority_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_text("")
    monkeypatch.setenv("EMS_CA_DIR", str(tmp_path))
    job = Job(AMD64, "cp2112", "1", 0, Paths(tmp_path, tmp_path, tmp_path))
    with pytest.raises(BuildError, match=r"there is no signing\.pem, signing\.key"):
        build.authority(job)


@pytest.mark.skipif(not shutil.which("grub-script-check"), reason="no grub-script-check here")
def test_grub_reads_its_configuration() -> None:
    subprocess.run(["grub-script-check", ROOT.parent / "grub.cfg"], check=True)


def test_a_site_may_name_its_network_files_as_it_likes() -> None:
    """systemd-networkd takes the first file of all folders whose [Match] fits, by name; ours matches every wire."""
    (ours,) = (ROOT / "etc/systemd/network").iterdir()
    assert "Type=ether" in ours.read_text()
    assert ours.name > "wan.network" > "lan.network" > "50-static.network"


def boot(**environment: object) -> tuple[str, dict[str, str]]:
    """The slot that grub.cfg chooses (empty: it reboots) and the environment it leaves; its words are those of sh."""
    chosen = GRUB[GRUB.index("set slot=") : GRUB.index('if [ "$slot" = "a" ]')]
    script = re.sub(r"\bset (?=\w+=)", "", chosen)
    names = ("ORDER", "A_OK", "A_TRY", "B_OK", "B_TRY")
    stubs = "load_env() { :; }; save_env() { :; }; sleep() { :; }\n"
    tell = "echo " + " ".join(f"{name}=\\'${name}\\'" for name in ("slot", *names))
    script = f"{stubs}reboot() {{ {tell}; exit; }}\n{script}\n{tell}\n"
    given = {name: str(value) for name, value in environment.items()}
    told = subprocess.run(["sh", "-c", script], env=given, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(\w+)='([^']*)'", told))
    return found.pop("slot"), found


FRESH: dict[str, object] = {"ORDER": "A B", "A_OK": 1, "A_TRY": 0, "B_OK": 0, "B_TRY": 0}


def test_the_shipped_environment_boots_the_first_slot_and_counts() -> None:
    slot, left = boot(**FRESH)
    assert (slot, left["A_TRY"], left["B_TRY"]) == ("a", "1", "0")


def test_a_slot_gets_three_tries_and_then_the_other_one_is_next() -> None:
    environment: dict[str, object] = {"ORDER": "B A", "A_OK": 1, "A_TRY": 0, "B_OK": 1, "B_TRY": 0}
    slots = []
    for _ in range(7):
        slot, left = boot(**environment)
        slots.append(slot)
        environment = {**left}
    assert slots == ["b", "b", "b", "a", "a", "a", ""]
    assert boot(**environment)[0] == "b"  # and again from the start


def test_a_slot_that_is_marked_bad_is_not_tried() -> None:
    assert boot(**{**FRESH, "ORDER": "B A"})[0] == "a"


def test_a_lost_environment_which_cannot_be_written_either_starts_the_first_slot_that_can_be_read() -> None:
    assert boot()[0] == "b"  # there is no file of that name here
    assert 'if [ -f "($disk,gpt2)/slot.cfg" ]; then set slot=a; else set slot=b; fi' in GRUB


@pytest.mark.parametrize("damaged", [{"A_OK": 0}, {"A_TRY": ""}])
def test_no_damaged_environment_ends_in_a_halt(damaged: dict[str, object]) -> None:
    environment: dict[str, object] = {**FRESH, **damaged}
    for _ in range(3):
        slot, left = boot(**environment)
        if slot:
            return
        environment = {**left}
    raise AssertionError(environment)


def stick(*names: str) -> tuple[list[str], bool]:
    """What grub.cfg does with these files on the ESP, and whether it goes on to the slots."""
    chosen = GRUB[GRUB.index("if [ -f $prefix/install ]") : GRUB.index("load_env")]
    script = re.sub(r"\bset (?=\w+=)", "", chosen).replace("($disk,gpt2)", "slot")
    script = re.sub(r"-f \$prefix/([\w.]+)", r'"${FILES#* \1 }" != "$FILES"', script)
    stubs = "".join(f'{name}() {{ echo {name} "$@"; }}\n' for name in ("linux", "initrd", "sleep", "source"))
    stubs += "boot() { echo boot; exit; }\nhalt() { echo halt; exit; }\n"
    given = {"FILES": f" {'  '.join(names)} "}
    command = ["sh", "-c", f"{stubs}{script}\necho slots"]
    told = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.splitlines()
    return told, told[-1] == "slots"


def test_an_installation_stick_starts_the_installation_only_and_one_that_is_done_nothing() -> None:
    assert stick() == (["slots"], True)
    for names in (("install",), ("install", "install.done")):
        told, further = stick(*names)
        assert told[-1] == "boot"
        assert "systemd.unit=site-install.target" in next(line for line in told if line.startswith("linux"))
        assert not further
    told, further = stick("install.done")
    assert "Pull it" in told[0]
    assert told[-1] == "halt"
    assert not further


def test_no_other_boot_starts_the_installation() -> None:
    for name in ("site-install.service", "site-install.target"):
        assert "[Install]" not in (UNITS / name).read_text()
    service = (UNITS / "site-install.service").read_text()
    assert "ConditionKernelCommandLine=systemd.unit=site-install.target" in service
    assert (ROOT.parent / "install.py").exists()
    assert "/usr/lib/ems/install.py" in service
    assert "site-install" not in CMDLINE
    users = [path for path in UNITS.rglob("*") if path.is_file() and "site-install" in path.read_text()]
    assert {path.name for path in users} == {"site-install.service", "site-install.target"}


def test_the_initrd_takes_the_root_of_the_stick_beside_a_disk_with_the_same_labels(tmp_path: Path) -> None:
    script = (ROOT / "etc/initramfs-tools/scripts/local-top/ems-verity").read_text()
    found = script[script.index("usb_root()") : script.index("installs=")].replace("/sys/class/block", str(tmp_path))
    for name, bus, label in (
        ("nvme0n1p4", "pci0000:00", "root-a"), ("sda", "pci0/usb2/2-1", ""), ("sda3", "pci0/usb2/2-1", "boot-b"),
        ("sda4", "pci0/usb2/2-1", "root-a"), ("vda4", "virtio0", "root-a"),
    ):  # fmt: skip
        folder = tmp_path / "devices" / bus / name
        folder.mkdir(parents=True)
        (folder / "uevent").write_text(f"DEVNAME={name}\nPARTN=4\n" + (f"PARTNAME={label}\n" if label else ""))
        (tmp_path / name).symlink_to(folder)
    told = subprocess.run(["sh", "-c", f"{found}usb_root"], capture_output=True, text=True, check=True).stdout
    assert told == "/dev/sda4\n"
