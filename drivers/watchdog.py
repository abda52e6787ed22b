"""The hardware watchdog behind /dev/watchdogN: once opened it resets the machine unless it is petted in time.

Numbers: Linux include/uapi/linux/watchdog.h; behaviour: Documentation/watchdog/watchdog-api.rst. Petting is a write,
which every driver takes; the KEEPALIVE ioctl is optional. A device that is closed without the magic character goes on
counting, so a process that is killed is followed by a reset unless a successor opens the device in time. On a kernel
with `nowayout` it goes on after an orderly close as well.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_GETSUPPORT, _GETBOOTSTATUS, _SETTIMEOUT, _GETTIMEOUT = 0x80285700, 0x80045702, 0xC0045706, 0x80045707
_SUPPORT = struct.Struct("=II32s")  # options, firmware version, identity
_MAGIC_CLOSE, _ALARM_ONLY = 0x0100, 0x0400
_NO_SUCH_CALL = (errno.ENOTTY, errno.EOPNOTSUPP)

POWER_UNDER, CARD_RESET, POWER_OVER = 0x10, 0x20, 0x40
"""Bits of `boot_status`: why the machine started, as far as the chip knows."""
SHORTEST_S = 4
"""With a pet a second, two may fail before the reset."""


class WatchdogError(OSError):
    """The watchdog cannot be used; the message says which, why and what to do."""


class Watchdog:
    """An open watchdog, which counts. `timeout_s` is the one in force, not the one asked for."""

    def __init__(self, fd: int, timeout_s: int, boot_status: int) -> None:
        self.timeout_s, self.boot_status = timeout_s, boot_status
        self._fd = fd

    def pet(self) -> None:
        """Starts the time again. Raises OSError."""
        os.write(self._fd, b"\0")

    def close(self, disarm: bool) -> None:
        """With `disarm` no reset follows, unless the kernel has `nowayout`; without, one does. Raises OSError."""
        try:
            if disarm:
                os.write(self._fd, b"V")
        finally:
            os.close(self._fd)


def open(path: str, timeout_s: int) -> Watchdog:
    """Starts the watchdog with a time-out as near to `timeout_s` as its driver can. Raises WatchdogError.

    One that a dead guard could not make reset the machine, or that resets too soon, is refused and disarmed.
    """
    fd, options = _opened(path)
    try:
        if trouble := _trouble(options):
            raise WatchdogError(trouble)
        return Watchdog(fd, _timeout(fd, timeout_s), _boot_status(fd))
    except OSError as error:
        Watchdog(fd, 0, 0).close(disarm=True)
        raise WatchdogError(f"watchdog {path}: {error.strerror or error}") from error


def _opened(path: str) -> tuple[int, int]:
    """Descriptor and options of a device that is a watchdog; it counts from here on."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise WatchdogError(f"watchdog {path}: {error.strerror}; {_advice(error)}") from error
    try:
        options, _, _ = _SUPPORT.unpack(_ask(fd, _GETSUPPORT, bytes(_SUPPORT.size)))
    except OSError as error:
        os.close(fd)
        raise WatchdogError(f"watchdog {path}: {error.strerror}; allowed is a device such as /dev/watchdog0") from error
    return fd, options


def _advice(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "another program holds it; take it away from there (systemd: RuntimeWatchdogSec=off)"
    return "load its kernel driver, or name another device in the board file's [watchdog]"


def _trouble(options: int) -> str:
    if options & _ALARM_ONLY:
        return "it raises an alarm only; allowed is one that resets the machine"
    if not options & _MAGIC_CLOSE:
        return "its driver has no magic close, so a killed guard would stop it; allowed is one that has"
    return ""


def _timeout(fd: int, wanted_s: int) -> int:
    """The time-out in force; a driver may round the wanted one, or have a fixed one."""
    try:
        _number(fd, _SETTIMEOUT, wanted_s)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise WatchdogError(f"its driver takes no time-out of {wanted_s} s; give a shorter timeout_s") from error
        if error.errno not in _NO_SUCH_CALL:
            raise
    found_s = _number(fd, _GETTIMEOUT)
    if found_s < SHORTEST_S:
        raise WatchdogError(f"its time-out is {found_s} s; allowed is {SHORTEST_S} s or more")
    return found_s


def _boot_status(fd: int) -> int:
    try:
        return _number(fd, _GETBOOTSTATUS)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise
        return 0


def _number(fd: int, request: int, value: int = 0) -> int:
    (answer,) = struct.unpack("=i", _ask(fd, request, struct.pack("=i", value)))
    return int(answer)


def _ask(fd: int, request: int, value: bytes) -> bytearray:
    buffer = bytearray(value)
    fcntl.ioctl(fd, request, buffer)
    return buffer
