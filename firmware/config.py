"""Configuration: limits.conf, balance.conf and site.conf, read whole or refused whole.

A file is lines of `name = value`; `#` starts a comment; a name that is left out has its default. The models below are
the only description: the default files and docs/configuration.md are generated from them.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from importlib.resources import files
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, get_type_hints

import msgspec
from msgspec import Meta

from statemachine.settings import CellProfile, Settings
from statemachine.signals import LossPolicy

from .conf_file import AGAIN, SCHEMA, Lines, current
from .image import LAYOUT
from .settings_codec import cell_profile

DHCP = "dhcp"
MAX_CELLS = LAYOUT["aggregator"]["cells"] // 6
"""Voltage, temperature and balancing status of a cell take at most three registers in the process image."""


class ConfigError(Exception):
    """A configuration that cannot be used; the text has one line an error: file, line, name, value, what is allowed."""


def _number(default: float, low: float, high: float, unit: str, doc: str) -> Any:
    return _text(float(default), f"{low:g} to {high:g} {unit}".rstrip(), doc, Meta(ge=low, le=high))


def _whole(default: int, low: int, high: int, unit: str, doc: str) -> Any:
    return _text(default, f"{low} to {high} {unit}".rstrip(), doc, Meta(ge=low, le=high))


def _text(default: Any, allowed: str, doc: str, limits: Meta | None = None) -> Any:
    return field(default=default, metadata={"allowed": allowed, "doc": doc, "limits": limits or Meta()})


class Networks(tuple[IPv4Network | IPv6Network, ...]):
    """At most 16 addresses and networks."""


class Address(str):
    """An address with the length of its network's prefix, or dhcp."""

    __slots__ = ()


class Gateway(str):
    """An address, or none."""

    __slots__ = ()


_CHANNELS = "numbers 1 to 8 separated by commas, or none"
_Channel = Annotated[int, Meta(ge=1, le=8)]
Channels = tuple[_Channel, ...]
Zones = tuple[_Channel, _Channel, _Channel, _Channel, _Channel, _Channel, _Channel, _Channel]
Servers = tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:\-]+$")], ...]
_HOST, _NAME = Meta(pattern=r"^[A-Za-z0-9_.:\-]+$"), Meta(pattern=r"^[a-z0-9_]+$")
_PEER = Meta(pattern=r"^([A-Za-z0-9_.:\-]+|/dev/[A-Za-z0-9_.\-/]+)$")
_INTERFACE, _VLAN = r"[A-Za-z][A-Za-z0-9_\-]*", r"([1-9]\d{0,2}|[1-3]\d{3}|40[0-8]\d|409[0-4])"
_ALL = tuple(range(1, 9))


@dataclass(frozen=True)
class _Conf:
    """A file's values; made by `values_of`, which checks them."""


@dataclass(frozen=True, kw_only=True)
class Limits(_Conf):
    """limits.conf: the soft guardrails of the charge cycle. The hard-wired chain is not configured here."""

    max_charge_voltage: float = _number(
        1260, 100, 1500, "V", "rack voltage above which charging stops (300 cells x 4.20 V)"
    )
    min_discharge_voltage: float = _number(
        900, 50, 1500, "V", "rack voltage below which discharging stops (300 cells x 3.00 V)"
    )
    max_charge_current: float = _number(1120, 1, 10000, "A", "charge current of the whole rack")
    max_discharge_current: float = _number(1120, 1, 10000, "A", "discharge current of the whole rack")
    max_charge_rate: float = _number(1.0, 0.01, 5, "C", "charge rate on rated capacity")
    max_discharge_rate: float = _number(1.0, 0.01, 5, "C", "discharge rate on rated capacity")
    max_cell_temperature: float = _number(
        50, 20, 70, "degC", "hottest cell: the rack stops in order (charging already ends at the profile's 45 degC)"
    )
    trip_cell_temperature: float = _number(60, 30, 80, "degC", "hottest cell: the contactors open")
    min_cell_temperature: float = _number(-10, -30, 20, "degC", "coldest cell: discharging stops below it")
    max_soc: float = _number(100, 50, 100, "%", "state of charge at which charging ends")
    min_soc: float = _number(5, 0, 50, "%", "state of charge at which discharging ends")
    max_delta_voltage: float = _number(
        2.0, 0.5, 10, "V", "BMS against PCS terminal voltage, after zero-current calibration: emergency stop"
    )
    max_delta_offset: float = _number(
        12.0,
        0,
        30,
        "V",
        "largest offset between the two meters that calibration takes out (2 x 0.5 % of 1260 V)",
    )
    break_current: float = _number(10, 1, 200, "A", "contactors open in order below this current")
    stop_time_limit: float = _number(
        15, 1, 120, "s", "an orderly stop opens the contactors after this time whatever the current"
    )
    ramp_up_rate: float = _number(
        0.02,
        0.001,
        1,
        "C/s",
        "fastest rise of the current; with a faster one a late voltage sample looks like a bad joint",
    )
    ramp_down_rate: float = _number(
        0.5, 0.01, 10, "C/s", "fall of the current in an orderly end; a falling limit acts at once"
    )
    bms_timeout: float = _number(0.35, 0.05, 5, "s", "age at which BMS data is stale (three missed polls of 100 ms)")
    pcs_timeout: float = _number(0.2, 0.05, 5, "s", "age at which PCS data is stale")
    min_insulation: float = _number(
        130, 1, 100000, "kohm", "insulation resistance below which the rack stops (100 ohm/V x 1260 V, rounded up)"
    )
    precharge_voltage: float = _number(13, 0.5, 50, "V", "voltage left over the precharge resistor at its end (1 %)")
    precharge_current: float = _number(1.0, 0.05, 20, "A", "current left at the end of precharge")
    precharge_min_time: float = _number(0.3, 0.05, 10, "s", "a precharge that ends sooner is not believed")
    precharge_max_time: float = _number(6, 0.5, 60, "s", "one try of precharge")
    interlocks_required: Channels = _text(_ALL, _CHANNELS, "interlocks that must be closed; 4 is the 24 V signal")
    loops_used: Channels = _text(_ALL, _CHANNELS, "4-20 mA thermal loops that are wired")
    loop_low_c: float = _number(-20, -100, 100, "degC", "temperature of a thermal loop at 4 mA")
    loop_high_c: float = _number(60, 0, 300, "degC", "temperature of a thermal loop at 20 mA")
    loop_zones: Zones = _text(
        (1, 1, 2, 2, 3, 3, 4, 4),
        "eight numbers 1 to 8 separated by commas",
        "zone that each of the loops 1 to 8 watches; two failed loops in one zone stop the rack",
    )
    loop_timeout: float = _number(0.3, 0.1, 2, "s", "age at which the samples of the thermal loops are stale")
    loop_filter_time: float = _number(1.0, 0, 60, "s", "time constant of a thermal loop's filter")
    loop_max_rate: float = _number(
        5.0,
        0.1,
        100,
        "K/s",
        "a thermal loop that moves faster is not believed; what it shows above counts all the same",
    )
    max_closings_per_hour: int = _whole(20, 1, 1000, "", "contactor closings in a row, and an hour on average")
    max_precharges: int = _whole(6, 3, 100, "", "precharges in a row, and in ten minutes on average")
    max_under_load: int = _whole(10, 1, 1000, "", "openings and closings under load until inspection is due")
    contactor_life: int = _whole(100_000, 100, 10_000_000, "", "contactor operations until replacement is due")


@dataclass(frozen=True, kw_only=True)
class Balance(_Conf):
    """balance.conf: the end of the charge, when single cells are brought together."""

    cell_balancing_threshold: float = _number(
        0.010, 0.001, 0.1, "V", "spread between highest and lowest cell at which balancing is done"
    )
    balance_time_limit: float = _number(7200, 60, 86400, "s", "balancing ends after this time whatever the spread")


@dataclass(frozen=True, kw_only=True)
class Site(_Conf):
    """site.conf: what is connected, and how."""

    cell_profile: str = _text("nmc_energy", "a profile in statemachine/cells", "what the cells allow", _NAME)
    rated_ah: float = _number(1120, 1, 20000, "Ah", "rated capacity of the rack, all strings")
    strings: int = _whole(4, 1, 16, "", "parallel strings; one BMS unit id each")
    modules_per_string: int = _whole(20, 1, 64, "", "modules in series in a string")
    cells_per_module: int = _whole(15, 1, 32, "", "cells in series in a module")
    bms_host: str = _text(
        "192.168.10.50", "a host name, an address or a serial line", "battery management system", _PEER
    )
    bms_port: int = _whole(502, 1, 65535, "", "its Modbus TCP port")
    bms_profile: str = _text("bms_2100", "a profile in drivers/profiles", "its register layout", _NAME)
    bms_poll_ms: int = _whole(100, 20, 1000, "ms", "period of a full poll of all cells")
    request_gap_ms: int = _whole(0, 0, 100, "ms", "pause between two requests, for slow gateways")
    request_timeout_ms: int = _whole(300, 20, 5000, "ms", "longest wait for an answer, attempts included")
    pcs_host: str = _text("192.168.10.60", "a host name, an address or a serial line", "power conversion system", _PEER)
    pcs_port: int = _whole(502, 1, 65535, "", "its Modbus TCP port")
    pcs_profile: str = _text("pcs_bench", "a profile in drivers/profiles", "its register layout", _NAME)
    pcs_poll_ms: int = _whole(20, 10, 100, "ms", "period of its poll; slower, its voltage could not be compared")
    modbus_host: str = _text("0.0.0.0", "a host name or address", "where the appliance listens", _HOST)
    modbus_port: int = _whole(502, 1, 65535, "", "the appliance's own Modbus TCP port")
    modbus_plain: bool = _text(
        True,
        "yes or no",
        "plain Modbus for everybody; no: from this unit itself only; takes effect when the server starts",
    )
    tls_port: int = _whole(802, 1, 65535, "", "port of Modbus/TCP Security, open when tls/ holds certificates")
    allowed_clients: Networks = _text(
        (),
        "at most 16 addresses or networks such as 192.168.10.0/24 separated by commas, or none for everybody",
        "who may connect to it, besides the unit itself",
    )
    management_interface: str = _text(
        "none",
        "an interface such as eth0, a VLAN of one such as eth0.20, or none for all",
        "the only one that they may connect by",
        Meta(pattern=rf"^(none|{_INTERFACE}(\.{_VLAN})?)$", max_length=15),
    )
    management_address: Address = _text(
        Address(DHCP), "an address with its network such as 192.168.10.5/24, or dhcp", "of management_interface"
    )
    management_gateway: Gateway = _text(
        Gateway("none"), "an address in the network of management_address, or none", "way to other networks"
    )
    management_mtu: int = _whole(
        1500, 1280, 9000, "bytes", "of management_interface; above 1500 (jumbo frames) only where the switch has it too"
    )
    require_heartbeat: bool = _text(
        False, "yes or no", "watch the site controller's heartbeat from the start, not only from its first write"
    )
    heartbeat_timeout: float = _number(10, 2, 300, "s", "the site controller's heartbeat must change within it")
    loss_policy: Literal["standby", "hold", "isolate"] = _text(
        "standby", "standby, hold or isolate", "after a lost heartbeat and the ramp to zero"
    )
    nominal_frequency: Literal["50", "60"] = _text("50", "50 or 60", "frequency of the grid in Hz")
    nominal_voltage: float = _number(400, 100, 5000, "V", "voltage of the grid at the PCS, line to line")
    enter_service_delay: float = _number(
        0,
        0,
        600,
        "s",
        "the grid is in order for so long before contactors close (IEEE 1547: 300); until 703 is written",
    )
    enter_service_ramp: float = _number(
        0, 0, 1000, "s", "rise to rated power after they closed (IEEE 1547: 300); until 703 is written"
    )
    ntp_servers: Servers = _text(
        (),
        "at most 4 host names or addresses separated by commas, or none",
        "time servers that the clock is checked by",
        Meta(max_length=4),
    )
    update_url: str = _text(
        "none",
        "https://host/path.raucb, or none",
        "update bundle of the site server; it is asked when SERVICE is entered",
        Meta(pattern=r"^(none|https://[!-~]+)$"),
    )
    update_hosts: Servers = _text(
        (),
        "at most 4 host names or addresses separated by commas, or none",
        "hosts that update_url may name",
        Meta(max_length=4),
    )
    max_clock_offset: float = _number(100, 1, 60000, "ms", "the clock is trusted when it is this near to a server")
    scan_period_ms: int = _whole(10, 5, 50, "ms", "period of the scan; takes effect when the controller starts")
    rt_core: int = _whole(-1, -1, 255, "", "processor core of the scan; -1 is the last one")
    log_directory: str = _text(
        "/var/log/ems", "an absolute path", "where battery.log and cycle.csv are", Meta(pattern="^/")
    )

    @property
    def cells_in_series(self) -> int:
        return self.modules_per_string * self.cells_per_module


FILES: dict[str, type[_Conf]] = {"limits.conf": Limits, "balance.conf": Balance, "site.conf": Site}
C = TypeVar("C", bound=_Conf)


class Loaded(NamedTuple):
    """One valid configuration."""

    settings: Settings  # not commissioned: that is the server's word
    site: Site
    limits: Limits


class _Read(NamedTuple, Generic[C]):
    conf: C
    lines: Lines

    def where(self, name: str) -> str:
        """`/etc/ems/limits.conf:12: name = value`, ready to be continued."""
        number = self.lines.numbers.get(name)
        at = f"{self.lines.path}:{number}" if number else f"{self.lines.path}"
        return f"{at}: {name} = {_written(getattr(self.conf, name))}"


def config_directory() -> Path:
    """Where the files are: $EMS_CONFIG_DIR, else /etc/ems."""
    return Path(os.environ.get("EMS_CONFIG_DIR", "/etc/ems"))


def _entries(kind: type[_Conf]) -> dict[str, Field[Any]]:
    return {entry.name: entry for entry in fields(kind)}


def _of_ours(kind: type, found: Any) -> object:
    """msgspec's hook for the types that it does not know. Raises ValueError."""
    if kind is Address:
        if found != DHCP and "/" not in found:
            raise ValueError("an address without its network")
        return Address(found if found == DHCP else ip_interface(found))
    if kind is Gateway:
        return Gateway(found if found == "none" else ip_address(found))
    if len(found) > 16:
        raise ValueError(f"{len(found)} networks, allowed up to 16")
    return kind(map(ip_network, found))


_YES_NO = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def _spelled(text: str, like: object) -> Any:
    """A value as msgspec has it. Raises ValueError."""
    if isinstance(like, tuple):
        return [] if text == "none" else [part.strip() for part in text.split(",")]
    if isinstance(like, bool):
        return _YES_NO.get(text.lower(), text)
    if isinstance(like, int):
        with contextlib.suppress(ValueError):
            return int(text)  # 04 and +4 as well; msgspec takes 4.0
    return float(text) if isinstance(like, float) else text


def values_of(kind: type[C], values: Mapping[str, str]) -> tuple[C, list[str]]:
    """What is right of a file's values, the rest having its default; the names of what is wrong or unknown."""
    entries, hints = _entries(kind), get_type_hints(kind, include_extras=True)
    taken, wrong = dict[str, Any](), list[str]()
    for name, text in values.items():
        try:
            allowed: Any = Annotated[hints[name], entries[name].metadata["limits"]]
            value = _spelled(text, entries[name].default)
            taken[name] = msgspec.convert(value, allowed, strict=False, dec_hook=_of_ours)
        except (KeyError, ValueError):
            wrong.append(name)
    return kind(**taken), wrong


def plain(conf: _Conf) -> dict[str, Any]:
    """As JSON has it."""
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(conf, enc_hook=str))
    return made


def load(directory: Path, revision: int = 1) -> Loaded:
    """All three files. Raises ConfigError with every error of every file."""
    errors: list[str] = []
    limits = _read(directory, "limits.conf", Limits, errors)
    balance = _read(directory, "balance.conf", Balance, errors)
    site = _read(directory, "site.conf", Site, errors)
    cell = _cell_of(site, errors) if site else None
    if limits and site and cell:
        errors += _contradictions(limits, site, cell)
    if errors or not (limits and balance and site and cell):
        raise ConfigError("\n".join(errors))
    return Loaded(_settings(limits.conf, balance.conf, site.conf, cell, revision), site.conf, limits.conf)


def load_site(directory: Path) -> Site:
    """site.conf alone. Raises ConfigError."""
    errors: list[str] = []
    site = _read(directory, "site.conf", Site, errors)
    if site is None:
        raise ConfigError("\n".join(errors))
    return site.conf


def load_cell_profile(name: str) -> CellProfile:
    """statemachine/cells/<name>.toml. Raises ConfigError."""
    path = files("statemachine") / "cells" / f"{name}.toml"
    try:
        return cell_profile(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"cell profile {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"cell profile {path}: {error}") from error


def prepare(directory: Path, overrides: Mapping[str, object]) -> None:
    """Writes the three default files with some values replaced. Raises ConfigError on a name that is in none."""
    known = {name for conf in FILES.values() for name in _entries(conf)}
    if unknown := sorted(overrides.keys() - known):
        raise ConfigError(f"no such configuration name: {', '.join(unknown)}")
    directory.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (directory / name).write_text(default_text(name, overrides), "utf-8")


FACTORY: dict[str, object] = {
    "max_charge_current": 100.0, "max_discharge_current": 100.0, "max_charge_rate": 0.1, "max_discharge_rate": 0.1,
    "max_soc": 80.0, "min_soc": 20.0,
}  # fmt: skip
"""What a unit is delivered with: narrower than the defaults, which are those of the simulated rack."""


def factory_text(file: str) -> str:
    """The content of one of `FILES` as delivered, firmware/defaults."""
    return default_text(file, FACTORY)


def default_text(file: str, overrides: Mapping[str, object] | None = None) -> str:
    """The default content of one of `FILES`, explained, with `overrides` in place of the defaults they name."""
    conf = FILES[file]
    blocks = [_comment(conf.__doc__ or "")]
    for entry in fields(conf):
        value = (overrides or {}).get(entry.name, entry.default)
        meaning = _comment(f"{entry.metadata['doc']} (allowed: {entry.metadata['allowed']})")
        blocks.append(f"{meaning}{entry.name} = {_written(value)}\n")
    return "\n".join(blocks)


def configuration_markdown() -> str:
    """docs/configuration.md."""
    text = [
        "# Configuration\n",
        "Three files in `/etc/ems` (`$EMS_CONFIG_DIR`): lines of `name = value`, `#` starts a comment, a name left out",
        "has its default. SIGHUP to `firmware.server` reads them again: all or nothing. A file that is refused changes",
        "nothing, is named in `battery.log` with line, value and allowed range, and sets the status bit",
        "`CONFIG_REFUSED`. While a contactor is closed a new value narrows a limit at once; one that widens waits",
        "until the contactors are open (`CONFIG_PENDING`). What is connected (site.conf) counts from the next start.\n",
        f"This is schema {SCHEMA}. A later version may name things anew; its files then begin with `schema = n`. It",
        "makes them from the old ones once it is confirmed and keeps those beside them (`limits.conf.schema1`): the",
        "old version finds its own after a rollback. A file of a newer schema than the version knows is refused.\n",
        "Generated by `make docs`; do not edit.",
    ]
    for file, conf in FILES.items():
        text += [f"\n## {file}\n", (conf.__doc__ or "").split(": ", 1)[1] + "\n"]
        text += ["| name | default | allowed | meaning |", "|---|---|---|---|"]
        for entry in fields(conf):
            about = entry.metadata
            text.append(f"| `{entry.name}` | {_written(entry.default)} | {about['allowed']} | {about['doc']} |")
    return "\n".join(text) + "\n"


def _comment(text: str) -> str:
    return f"# {text}\n"


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _read(directory: Path, file: str, kind: type[C], errors: list[str]) -> _Read[C] | None:
    lines = current(directory / file)
    conf, wrong = values_of(kind, lines.values)
    lines.errors.extend((lines.numbers.get(name, 0), _refused(lines, kind, name)) for name in wrong)
    errors += [text for _, text in sorted(lines.errors)]
    return None if lines.errors else _Read(conf, lines)


def _refused(lines: Lines, kind: type[_Conf], name: str) -> str:
    known = _entries(kind).get(name)
    what = f"allowed {known.metadata['allowed']}" if known else f"unknown name; {_elsewhere(name)}"
    return f"{lines.path}:{lines.numbers.get(name, 0)}: {name} = {lines.values[name]}: {what}; {AGAIN}"


def _elsewhere(name: str) -> str:
    file = next((file for file, conf in FILES.items() if name in _entries(conf)), None)
    return f"it belongs into {file}" if file else "allowed names are in docs/configuration.md"


def _cell_of(site: _Read[Site], errors: list[str]) -> CellProfile | None:
    try:
        return load_cell_profile(site.conf.cell_profile)
    except ConfigError as error:
        errors.append(f"{site.where('cell_profile')}: {error}; {AGAIN}")
        return None


def _contradictions(limits: _Read[Limits], site: _Read[Site], cell: CellProfile) -> Iterator[str]:
    c, series = limits.conf, site.conf.cells_in_series
    rising = (
        ("min_discharge_voltage", "max_charge_voltage"), ("min_cell_temperature", "max_cell_temperature"),
        ("max_cell_temperature", "trip_cell_temperature"), ("min_soc", "max_soc"),
        ("precharge_min_time", "precharge_max_time"), ("loop_low_c", "loop_high_c"),
    )  # fmt: skip
    for low, high in rising:
        if getattr(c, low) >= getattr(c, high):
            yield f"{limits.where(low)}: allowed below {high} = {_written(getattr(c, high))}; {AGAIN}"
    top, bottom = series * cell.v_limit_v, series * cell.v_min_v
    cells = f"{series} cells in series of profile {cell.name}"
    if c.max_charge_voltage > top + 1e-6:
        yield f"{limits.where('max_charge_voltage')}: allowed up to {top:g} V, {cells} x {cell.v_limit_v:g} V; {AGAIN}"
    if c.min_discharge_voltage < bottom - 1e-6:
        at = limits.where("min_discharge_voltage")
        yield f"{at}: allowed from {bottom:g} V, {cells} x {cell.v_min_v:g} V; {AGAIN}"
    fall_s = max(c.max_charge_rate, c.max_discharge_rate) / c.ramp_down_rate
    if fall_s > c.stop_time_limit:
        yield (
            f"{limits.where('stop_time_limit')}: allowed from {fall_s:g} s, the time ramp_down_rate = "
            f"{_written(c.ramp_down_rate)} C/s needs from the highest rate; {AGAIN}"
        )
    yield from _poll_contradictions(limits, site)
    yield from _network_contradictions(site)
    if series * site.conf.strings > MAX_CELLS:
        yield f"{site.where('strings')}: {series * site.conf.strings} cells, allowed up to {MAX_CELLS} in all; {AGAIN}"


def _poll_contradictions(limits: _Read[Limits], site: _Read[Site]) -> Iterator[str]:
    for timeout, poll in (("bms_timeout", "bms_poll_ms"), ("pcs_timeout", "pcs_poll_ms")):
        poll_s = getattr(site.conf, poll) / 1000
        if getattr(limits.conf, timeout) < 2 * poll_s:
            yield f"{limits.where(timeout)}: allowed from {2 * poll_s:g} s, twice {poll} in site.conf; {AGAIN}"


def _network_contradictions(site: _Read[Site]) -> Iterator[str]:
    address, gateway = site.conf.management_address, site.conf.management_gateway
    if gateway == "none":
        return
    at = site.where("management_gateway")
    if address == DHCP:
        yield f"{at}: allowed none, management_address = dhcp brings its own; {AGAIN}"
    elif ip_address(gateway) not in ip_interface(address).network:
        yield f"{at}: allowed is an address in {ip_interface(address).network}; {AGAIN}"


def _bits(channels: tuple[int, ...]) -> int:
    return sum(1 << n - 1 for n in set(channels))


def _settings(limits: Limits, balance: Balance, site: Site, cell: CellProfile, revision: int) -> Settings:
    values = asdict(limits) | asdict(balance)
    values["interlocks_required"] = _bits(limits.interlocks_required)
    values["loops_used"] = _bits(limits.loops_used)
    return Settings(
        revision=revision,
        cell=cell,
        rated_ah=site.rated_ah,
        cells_in_series=site.cells_in_series,
        strings=site.strings,
        loss_policy=LossPolicy[site.loss_policy.upper()],
        scan_period_ms=site.scan_period_ms,
        clock_servers=len(site.ntp_servers),
        nominal_frequency=float(site.nominal_frequency),
        nominal_voltage=site.nominal_voltage,
        enter_service_delay=site.enter_service_delay,
        enter_service_ramp=site.enter_service_ramp,
        commissioned=False,
        **values,
    )
