"""The appliance's Modbus server, `python -m firmware.server`: configuration in, registers out, one loop.

SIGHUP reads the configuration and the certificates again; the first certificates open the secure port.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic

from drivers.modbus.server import StrictServer
from drivers.section import SectionError, SectionFile
from statemachine.settings import Settings, same

from . import registers
from .appliance import UNIT, Appliance
from .authority import RoleRights
from .commissioning import configuration
from .conf_file import AGAIN
from .config import ConfigError, Loaded, Site, config_directory, load, load_site
from .image import run_directory, writer
from .models.commissioning import COMMISSIONING_FIRST, COMMISSIONING_MODEL
from .notify import Notifier
from .settings_codec import settings_from_json, settings_to_json
from .tls import Certificates

TICK_S = 0.05
"""The command section is published this often at least; the controller judges our life by it."""


class Configuration:
    """Reads the files, publishes what is valid, keeps what was valid when they are not."""

    def __init__(self, directory: Path, file: SectionFile, appliance: Appliance) -> None:
        self._directory, self._section, self._appliance = directory, file["config"], appliance
        self._settings = self._left_over()
        appliance.commissioned = self._commissioned

    def _left_over(self) -> Settings | None:
        last = self._section.last()
        try:
            return settings_from_json(last) if last else None
        except ValueError:
            return None

    def reload(self) -> Site | None:
        """All files: in force and published, or refused with one event and one line on stderr an error."""
        revision = self._settings.revision if self._settings else 0
        try:
            loaded = load(self._directory, revision + 1)
        except ConfigError as error:
            for line in str(error).splitlines():
                print(f"configuration refused: {line}", file=sys.stderr, flush=True)
                text = line.replace(f"{self._directory}/", "").removesuffix(f"; {AGAIN}")
                self._appliance.events.add(0, text=f"CONFIG {text}")
            self._appliance.configure(self._settings, None, error=True)
            return None
        return self._accept(loaded)

    def _accept(self, loaded: Loaded) -> Site:
        commissioned = self._appliance.commissioning.judge(configuration(loaded))
        settings = replace(loaded.settings, commissioned=commissioned)
        if self._settings is None or not same(self._settings, settings):
            self._settings = settings
        self._section.publish(settings_to_json(self._settings))
        self._appliance.configure(self._settings, loaded.site, error=False)
        return loaded.site

    def _commissioned(self) -> None:
        """The record of this configuration is on the disk."""
        if self._settings is None:
            return
        self._settings = replace(self._settings, revision=self._settings.revision + 1, commissioned=True)
        self._section.publish(settings_to_json(self._settings))
        self._appliance.configure(self._settings, None, error=False)


def _site(directory: Path) -> Site:
    """site.conf alone, or its defaults: a bad file must not silence the appliance."""
    try:
        return load_site(directory)
    except ConfigError:
        return Site()


def _endpoint(variable: str, default: int, site: Site) -> tuple[str, int]:
    port = os.environ.get(variable, str(default))
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{variable} = {port}: allowed 0 to 65535 (0 = any free port)")
    return os.environ.get("EMS_MODBUS_HOST", site.modbus_host), int(port)


MODEL_AT = [(row.point.address, int(row.fixed)) for row in registers.ROWS if row.point.name.endswith(".ID")]
MODEL_AT.append((COMMISSIONING_FIRST, COMMISSIONING_MODEL))


def listen(appliance: Appliance, host: str, port: int) -> StrictServer:
    """Raises OSError when the port is in use."""
    return StrictServer(
        appliance, host, port, admits=appliance.admits, preferred=appliance.commands,
        rights=lambda role: RoleRights(role, MODEL_AT), version=appliance.version,
    )  # fmt: skip


class SecurePort:
    """The TLS port. It opens as soon as there are certificates, at the start or at a later SIGHUP, and stays open.

    Only SIGHUP makes it look: files come one by one, and a technician who is not ready yet is not listened to.
    """

    def __init__(self, server: StrictServer, certificates: Certificates) -> None:
        self._server, self._certificates, self._open = server, certificates, False

    def open(self, site: Site) -> None:
        """Raises ValueError or OSError."""
        if self._open or self._certificates.context is None:
            return
        host, port = _endpoint("EMS_MODBUS_TLS_PORT", site.tls_port, site)
        with _named(host, port):
            secure = self._server.listen(host, port, self._certificates.in_force)
        self._open = True
        print(f"modbus server: TLS on {host}:{secure}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _named(host: str, port: int) -> Iterator[None]:
    """An OSError says which port it was."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _listen_plain(appliance: Appliance, site: Site) -> StrictServer:
    """Raises ValueError or OSError."""
    host, port = _endpoint("EMS_MODBUS_PORT", site.modbus_port, site)
    host = host if site.modbus_plain else "127.0.0.1"
    with _named(host, port):
        server = listen(appliance, host, port)
    print(f"modbus server: unit {UNIT} on {host}:{server.port}", file=sys.stderr, flush=True)
    return server


def run(run_dir: Path, config_dir: Path) -> int:
    """Serves until SIGTERM or SIGINT. Exit code."""
    asked = _Asked()
    try:
        file = writer("server", run_dir)
    except SectionError as error:
        return _complain(str(error))
    appliance = Appliance(file, run_dir)
    configuration = Configuration(config_dir, file, appliance)
    site = configuration.reload()
    if site is None:
        site = _site(config_dir)
        appliance.configure(None, site, error=True)
    certificates = Certificates(
        config_dir / "tls", lambda text: appliance.events.add(0, text=text.replace(f"{config_dir}/", ""))
    )
    appliance.tls_days = certificates.days_left
    try:
        server = _listen_plain(appliance, site)
        secure = SecurePort(server, certificates)
        secure.open(site)
    except ValueError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error}; free the port or set EMS_MODBUS_PORT and EMS_MODBUS_TLS_PORT")
    due_s, life = monotonic(), Notifier()
    while not asked.stop:
        if asked.reload:
            asked.reload = False
            site = configuration.reload() or site
            certificates.reload()
            _open_late(secure, site, appliance)
        now_s = monotonic()
        if now_s >= due_s:
            appliance.tick()
            certificates.tick()
            life.tick()
            due_s = max(due_s + TICK_S, now_s)
        server.serve(due_s)
    server.close()
    return 0


def _open_late(secure: SecurePort, site: Site, appliance: Appliance) -> None:
    """After a SIGHUP: a port that cannot be opened is told and tried again at the next one; all else goes on."""
    try:
        secure.open(site)
    except (ValueError, OSError) as error:
        _complain(f"no TLS: {error}")
        appliance.events.add(0, text=f"TLS {error}")


class _Asked:
    """What signals ask for."""

    def __init__(self) -> None:
        self.stop = self.reload = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stop", True))
        signal.signal(signal.SIGHUP, lambda *_: setattr(self, "reload", True))


def _complain(text: str) -> int:
    print(f"modbus server: {text}", file=sys.stderr, flush=True)
    return 1


def main() -> int:
    return run(run_directory(), config_directory())


if __name__ == "__main__":
    sys.exit(main())
