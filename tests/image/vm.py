"""A virtual machine that runs the built image as it is: the disk is an overlay, and what helps a test comes in from
outside, as systemd credentials in SMBIOS strings. Nothing of a test is in the image.

The agent is a unit made from such a credential; it runs commands as root over a virtio-serial port. QEMU's user network
is the plant's: the host is 10.0.2.2, and the guest's Modbus port is forwarded to `modbus_port`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, cast

PANIC = "Kernel panic"
"""What the console says of it."""
MIB = 1 << 20
ESP_AT_MIB, ESP_MIB = 1, 64
HOST = "10.0.2.2"
"""The host as the guest sees it."""
LABEL, STICK = "EMS-UPDATE", "/run/ems-update"
"""What a stick with a bundle is called, and where the unit mounts it."""


class Machine(NamedTuple):
    """QEMU's for an architecture."""

    qemu: str
    machine: str
    cpu: str  # emulated: x86-64-v2; a larger set is slower
    code: Path
    variables: Path


_OVMF, _AAVMF = Path("/usr/share/OVMF"), Path("/usr/share/AAVMF")
MACHINES = {
    "BOOTX64.EFI": Machine(
        "qemu-system-x86_64", "q35,smm=off", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf-lm",
        _OVMF / "OVMF_CODE_4M.fd", _OVMF / "OVMF_VARS_4M.fd",
    ),
    "BOOTAA64.EFI": Machine(
        "qemu-system-aarch64", "virt", "cortex-a72", _AAVMF / "AAVMF_CODE.fd", _AAVMF / "AAVMF_VARS.fd"
    ),
}  # fmt: skip
"""By the boot loader on the disk."""

_AGENT = """
import json, os, subprocess, time
port = os.open("/dev/virtio-ports/ems.test", os.O_RDWR)
left = b""
while True:
    data = os.read(port, 65536)
    if not data:
        time.sleep(0.05)
        continue
    *lines, left = (left + data).split(b"\\n")
    for line in lines:
        asked = json.loads(line)
        try:
            done = subprocess.run(asked["run"], shell=True, stdout=-1, stderr=subprocess.STDOUT, timeout=asked["s"])
            rc, out = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            rc, out = -1, (error.stdout or b"") + b" (timed out)"
        answer = {"id": asked["id"], "rc": rc, "out": out.decode(errors="replace")}
        text = json.dumps(answer).encode() + b"\\n"
        while text:
            text = text[os.write(port, text):]
"""
_AGENT_UNIT = """[Unit]
Description=Test agent
DefaultDependencies=no
BindsTo=dev-virtio\\x2dports-ems.test.device
After=dev-virtio\\x2dports-ems.test.device
[Service]
ExecStart=/usr/bin/python3 -I -c "exec(__import__('base64').b64decode('{code}'))"
Restart=always
OOMScoreAdjust=-1000
"""
_DROPIN = "[Unit]\nWants=test-agent.service\n"


class VmError(Exception):
    """The machine did not do what was asked; the text says what, and the end of its console."""


class Ran(NamedTuple):
    rc: int
    out: str


def accelerated() -> bool:
    """EMS_QEMU_ACCEL=kvm: the processor's virtualisation is used. Nested ones fail in the firmware: off by default."""
    return os.environ.get("EMS_QEMU_ACCEL", "") == "kvm"


def slowness() -> float:
    """What a time-out for real hardware is multiplied with."""
    return 1.0 if accelerated() else 8.0


class Vm:
    """`disk` is never written. `seed`: a folder for the ESP. `options`: QEMU's, for more devices, which may name
    `descriptors` of ours. `machine`: that of a disk that has no boot loader yet."""

    def __init__(
        self,
        disk: Path,
        work: Path,
        seed: Path | None = None,
        options: Sequence[str] = (),
        disk_mib: int = 4096,
        memory_mib: int = 1024,
        cores: int = 1,
        credentials: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
        machine: Machine | None = None,
    ) -> None:
        self.work, self._options, self._memory_mib, self._cores = work, tuple(options), memory_mib, cores
        self._descriptors = tuple(descriptors)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        self.overlay, self._vars = work / "overlay.qcow2", work / "vars.fd"
        call(
            "qemu-img", "create", "-q", "-f", "qcow2", "-b", disk.absolute(), "-F", "raw", self.overlay, f"{disk_mib}M"
        )
        self._machine = machine or machine_of(disk)
        shutil.copyfile(self._machine.variables, self._vars)
        if seed:
            self.seed(seed)
        self.modbus_port, self.secure_port = free_port(), free_port()
        self.started_s, self._sticks = 0.0, 0
        self._credentials = {**_agent_credentials(), **(credentials or {})}
        self._qemu: subprocess.Popen[bytes] | None = None
        self._agent: socket.socket | None = None
        self._left, self._asked = b"", 0

    def __enter__(self) -> Vm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut_power()

    # The disk, while the machine is off

    def read_esp(self) -> Path:
        """The ESP as it is now, as a file for mtools."""
        esp = self.work / "esp.img"
        call("qemu-img", "dd", "-f", "qcow2", "-O", "raw", f"if={self.overlay}", f"of={esp}", "bs=1M",
              f"count={ESP_AT_MIB + ESP_MIB}", f"skip={ESP_AT_MIB}")  # fmt: skip
        return esp

    def seed(self, folder: Path) -> None:
        """Puts `folder` onto the ESP as ems-seed, as `make flash SEED=` does."""
        esp = self.read_esp()
        call("mcopy", "-s", "-o", "-i", esp, folder, "::ems-seed")
        call("qemu-io", "-f", "qcow2", "-c", f"write -q -s {esp} {ESP_AT_MIB}M {ESP_MIB}M", self.overlay)

    def fill(self, at: int, size: int) -> None:
        """Overwrites bytes of the disk with a pattern."""
        call("qemu-io", "-f", "qcow2", "-c", f"write -q -P 0xa5 {at} {size}", self.overlay)

    # Power

    def start(self, *more: str) -> None:
        """With `more` options for this time. Returns at once; see `await_agent`."""
        serial, port = self.work / "serial.log", self.work / "agent.sock"
        kvm, machine = accelerated(), self._machine
        command = [
            machine.qemu, "-machine", machine.machine, "-display", "none", "-nodefaults", "-no-user-config",
            "-accel", "kvm" if kvm else "tcg,thread=multi,tb-size=512", "-cpu", "host" if kvm else machine.cpu,
            "-smp", str(self._cores), "-m", str(self._memory_mib), "-name", "ems",
            "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={machine.code}",
            "-drive", f"if=pflash,format=raw,unit=1,file={self._vars}",
            "-drive", f"if=none,id=d0,format=qcow2,file={self.overlay}", "-device", "virtio-blk-pci,drive=d0",
            "-chardev", f"file,id=serial,path={serial},append=on", "-serial", "chardev:serial",
            "-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{self.modbus_port}-:502,"
            f"hostfwd=tcp:127.0.0.1:{self.secure_port}-:802",
            "-device", "virtio-net-pci,netdev=n0,romfile=", "-device", "i6300esb", "-action", "watchdog=reset",
            "-device", "virtio-serial-pci", "-chardev", f"socket,id=t,path={port},server=on,wait=off",
            "-device", "virtserialport,chardev=t,name=ems.test", "-device", "qemu-xhci,id=sticks",
            "-qmp", f"unix:{self.work / 'qmp.sock'},server=on,wait=off",
        ]  # fmt: skip
        command += [*self._options, *more]
        for number, (name, value) in enumerate(self._credentials.items()):
            path = self.work / f"credential{number}"
            path.write_text(f"io.systemd.credential.binary:{name}={base64.b64encode(value.encode()).decode()}")
            command += ["-smbios", f"type=11,path={path}"]
        self.started_s = time.monotonic()
        with (self.work / "qemu.log").open("ab") as log:
            self._qemu = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=self._descriptors
            )

    @property
    def pid(self) -> int:
        """QEMU's, and its first thread's."""
        assert self._qemu is not None
        return self._qemu.pid

    def cpus(self) -> list[int]:
        """Threads of the emulated processors."""
        cpus = cast(list[dict[str, int]], self.qmp("query-cpus-fast"))
        return [cpu["thread-id"] for cpu in cpus]

    def cut_power(self) -> None:
        """At once, as the plug is pulled."""
        self._hang_up()
        if self._qemu:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None

    def await_off(self, timeout_s: float) -> float:
        """Seconds since `start` until it has switched itself off. Raises VmError."""
        assert self._qemu is not None
        try:
            self._qemu.wait(timeout_s * slowness())
        except subprocess.TimeoutExpired as error:
            raise VmError(f"not off after {timeout_s * slowness():g} s; console:\n{self.console()[-3000:]}") from error
        self.cut_power()
        return time.monotonic() - self.started_s

    def qmp(self, command: str, **arguments: object) -> object:
        """One command of QEMU's machine protocol, such as `device_del`."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(10.0)
            peer.connect(str(self.work / "qmp.sock"))
            lines = peer.makefile("rwb")
            lines.readline()
            for asked in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                lines.write(json.dumps(asked).encode() + b"\n")
                lines.flush()
                while "event" in (answer := json.loads(lines.readline())):
                    pass
        if "error" in answer:
            raise VmError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    @contextmanager
    def stick(self, image: Path) -> Iterator[None]:
        """A USB stick with that content, put in and pulled out again; not on the bus of what is in `options`."""
        self._sticks += 1
        name = f"stick{self._sticks}"
        self.qmp("blockdev-add", **{"node-name": name, "driver": "raw"},
                 file={"driver": "file", "filename": str(image.absolute())})  # fmt: skip
        self.qmp("device_add", driver="usb-storage", id=name, bus="sticks.0", drive=name, removable=True)
        try:
            yield
        finally:
            with contextlib.suppress(VmError, OSError):  # a machine that is off holds nothing
                self.qmp("device_del", id=name)
                self.qmp("blockdev-del", **{"node-name": name})  # it would keep the file's lock

    def must_run(self) -> None:
        """Raises VmError when QEMU has ended by itself."""
        if self._qemu and self._qemu.poll() is not None:
            raise VmError(f"QEMU ended: {(self.work / 'qemu.log').read_text()[-800:]}")

    # The agent

    def await_agent(self, timeout_s: float = 60.0) -> float:
        """Seconds since `start`. The time-out is for a machine with acceleration. Raises VmError."""
        end_s = time.monotonic() + timeout_s * slowness()
        while time.monotonic() < end_s:
            with contextlib.suppress(OSError, VmError):
                if self.run("true", 5.0).rc == 0:
                    return time.monotonic() - self.started_s
            self.must_run()
            self._hang_up()
            time.sleep(0.2)
        raise VmError(f"no test agent after {timeout_s * slowness():g} s; console:\n{self.console()[-3000:]}")

    def run(self, command: str, timeout_s: float = 20.0) -> Ran:
        """A shell command as root. Raises VmError when no answer comes."""
        self._asked += 1
        try:
            if self._agent is None:
                self._agent = socket.socket(socket.AF_UNIX)
                self._agent.settimeout(1.0)
                self._agent.connect(str(self.work / "agent.sock"))
            seconds = timeout_s * slowness()
            self._agent.settimeout(seconds + 5.0)
            self._agent.sendall(json.dumps({"id": self._asked, "run": command, "s": seconds}).encode() + b"\n")
            while True:
                while b"\n" not in self._left:
                    if not (data := self._agent.recv(65536)):
                        raise OSError("hung up")
                    self._left += data
                line, _, self._left = self._left.partition(b"\n")
                answer = json.loads(line)
                if answer["id"] == self._asked:
                    return Ran(answer["rc"], answer["out"])
        except (OSError, ValueError) as error:
            self._hang_up()
            raise VmError(f"no answer to {command!r}: {error}") from error

    def out(self, command: str, timeout_s: float = 20.0) -> str:
        """What it prints. Raises VmError on another exit code than 0."""
        done = self.run(command, timeout_s)
        if done.rc:
            raise VmError(f"{command}: exit code {done.rc}: {done.out.strip()[-2000:]}")
        return done.out.strip()

    def console(self) -> str:
        path = self.work / "serial.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _hang_up(self) -> None:
        if self._agent:
            self._agent.close()
        self._agent, self._left = None, b""


def machine_of(disk: Path) -> Machine:
    """By the boot loader on its ESP."""
    listed = call("mdir", "-b", "-i", f"{disk}@@{ESP_AT_MIB}M", "::EFI/BOOT")
    return MACHINES[listed.strip().rpartition("/")[2]]


def _agent_credentials() -> dict[str, str]:
    code = base64.b64encode(_AGENT.encode()).decode()
    return {
        "systemd.extra-unit.test-agent.service": _AGENT_UNIT.format(code=code),
        "systemd.unit-dropin.sysinit.target~test": _DROPIN,
    }


def tried(*command: str | Path) -> Ran:
    """How a program on the host ends and what it prints; of one that fails also what it says on stderr."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return Ran(done.returncode, done.stdout + (done.stderr if done.returncode else ""))


def call(*command: str | Path) -> str:
    """The same, of a program that has to succeed. Raises VmError."""
    done = tried(*command)
    if done.rc:
        raise VmError(f"{' '.join(map(str, command))}: {done.out.strip()}")
    return done.out


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
