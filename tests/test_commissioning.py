"""Commissioning: what counts as a check, what a record is worth, and what the server makes of both."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_appliance import READY, Client, FakeAppliance
from fake_disk import FakeDisk, Image, some_bytes
from waiting import wait_until

from drivers.modbus.point import UNIMPLEMENTED
from firmware import commission_guide, ems_tool
from firmware.authority import ROLES, RoleRights
from firmware.commissioning import (
    KEY,
    RECORD,
    RECORD_FILE,
    STEADY_NS,
    Checks,
    Commissioning,
    RecordError,
    Seen,
    _private_key,
    canonical,
    changes,
    configuration,
    digest,
    summary,
    verified,
)
from firmware.config import load, prepare
from firmware.image import EventReader
from firmware.models.commissioning import COMMISSIONING_END, COMMISSIONING_FIRST, CommCommand, CommState
from firmware.points import PointClient, Refusal
from firmware.registers import POINT
from firmware.server import MODEL_AT
from firmware.settings_codec import settings_from_json
from statemachine.signals import InterlockBit, StatusBit, Why
from statemachine.states import CLOSED, State

KILL, TAMPER, RESET, KEY_LOCAL = (
    1 << bit
    for bit in (InterlockBit.KILL_OK, InterlockBit.TAMPER_OK, InterlockBit.RESET_PRESSED, InterlockBit.KEY_LOCAL)
)
FEEDBACK = 0b111 << InterlockBit.FEEDBACK_NEG
HEALTHY = 0xFF | KILL | TAMPER
SERVICE = READY._replace(state=State.SERVICE, interlocks=HEALTHY)
CONFIGURATION: dict[str, dict[str, Any]] = {
    "limits.conf": {"max_soc": 90.0},
    "board": {"name": "bench", "sha256": "00"},
}


class Watch:
    """Checks that see one status after the other, each for as long as a position must stand."""

    def __init__(self) -> None:
        self.checks, self.now_ns, self.wall_s = Checks(), 0, 1000.0

    def see(self, interlocks: int = HEALTHY, ns: int = STEADY_NS, **status: Any) -> Watch:
        shown = SERVICE._replace(interlocks=interlocks, **status)
        for at_ns in (self.now_ns, self.now_ns + ns):
            self.checks.look(shown, at_ns, self.wall_s)
        self.now_ns, self.wall_s = self.now_ns + ns, self.wall_s + 1.0
        return self

    def everything(self) -> Watch:
        return self.see().see(RESET).see()


# checks


def test_an_input_counts_when_it_stood_in_both_positions() -> None:
    watch = Watch().see()
    assert watch.checks.both() == 0
    assert watch.see(HEALTHY & ~1).checks.both() == 0b1
    assert watch.see(HEALTHY & ~0b11 & ~KILL).checks.both() == 0b11 | KILL


@pytest.mark.parametrize(("ns", "seen"), [(STEADY_NS - 1, 0), (STEADY_NS, 1)])
def test_a_glitch_is_no_check(ns: int, seen: int) -> None:
    watch = Watch().see().see(HEALTHY & ~1, ns)
    assert watch.checks.both() == seen


def test_before_service_nothing_counts() -> None:
    watch = Watch().see(state=State.ISOLATED).see(0, state=State.ISOLATED).see().see(state=State.ISOLATED)
    assert watch.checks.both() == 0


def test_the_emergency_stop_that_a_check_causes_forgets_nothing() -> None:
    watch = Watch().see().see(HEALTHY & ~KILL, state=State.EMERGENCY_STOP).see(state=State.EMERGENCY_STOP)
    watch.see(state=State.ISOLATED).see(HEALTHY & ~TAMPER, state=State.FAULT).see()
    assert watch.checks.both() == KILL | TAMPER


@pytest.mark.parametrize(
    "status",
    [{"coils": 1}, {"feedback": 4}, *({"state": s} for s in (*CLOSED, State.INIT, State.PRECHARGE, State.LOCKOUT))],
)
def test_what_closes_or_starts_again_forgets_everything(status: dict[str, Any]) -> None:
    watch = Watch().everything().see(**status)
    assert watch.checks.both() == 0
    assert watch.see(state=State.ISOLATED).see(0, state=State.ISOLATED).checks.both() == 0, "SERVICE is entered anew"


def test_a_silent_controller_forgets_everything() -> None:
    watch = Watch().everything()
    watch.checks.look(None, watch.now_ns, 0.0)
    assert watch.checks.both() == 0


def test_what_is_missing_are_required_interlocks_chain_and_reset() -> None:
    watch = Watch().see()
    assert watch.checks.missing(HEALTHY, 0b1001) == 0b1001 | KILL | TAMPER | RESET
    watch.see(HEALTHY & ~0b1001 & ~KILL & ~TAMPER | RESET).see()
    assert watch.checks.missing(HEALTHY, 0b1001) == 0
    assert watch.checks.missing(HEALTHY, 0b1011) == 0b10
    assert watch.checks.missing(HEALTHY & ~0b10, 0b1001) == 0, "what is not required may stand as it likes"


@pytest.mark.parametrize("bit", [1, KILL, TAMPER, RESET, *(1 << InterlockBit.FEEDBACK_NEG << n for n in range(3))])
def test_what_is_not_as_in_operation_is_missing(bit: int) -> None:
    assert Watch().everything().checks.missing(HEALTHY ^ bit, 0xFF) == bit


def test_open_contactors_are_looked_at_for_as_long_as_anything_else() -> None:
    watch = Watch()
    watch.checks.look(SERVICE, 0, 1.0)
    assert watch.checks.missing(HEALTHY, 0) & FEEDBACK == FEEDBACK
    assert Watch().see().checks.missing(HEALTHY, 0) & FEEDBACK == 0


# records


def commissioned(directory: Path, events: list[str], now: Any = CONFIGURATION) -> Commissioning:
    """A unit with a record for `now`."""
    made = Commissioning(directory, events.append)
    made.judge(now)
    made._checks = Watch().everything().see(HEALTHY | KEY_LOCAL).see().checks
    assert made.take(SERVICE, 0b1001) is Why.NONE
    return made


def test_the_record_has_checks_values_versions_and_a_signature_that_verifies(tmp_path: Path) -> None:
    events: list[str] = []
    made = commissioned(tmp_path, events)
    assert made.state is CommState.COMMISSIONED
    record = verified((tmp_path / RECORD).read_bytes())
    assert record["configuration"] == CONFIGURATION
    assert record["sha256"] == digest(CONFIGURATION)
    assert (record["schema"], record["clock_trusted"]) == (1, False)
    checks = {c["input"]: {at: c[at] for at in c if at != "input"} for c in record["checks"]}
    assert list(checks) == [
        *(f"interlock {n}" + " (24 V)" * (n == 4) for n in range(1, 9)), "kill-switch", "tamper", "reset", "key switch",
        "contactor negative", "contactor positive", "contactor precharge",
    ]  # fmt: skip
    assert checks["interlock 1"] == {"open": "1970-01-01T00:16:41Z", "closed": "1970-01-01T00:16:44Z"}
    assert checks["contactor positive"] == {"open": "1970-01-01T00:16:44Z"}
    assert events == [f"COMMISSIONING recorded, sha256 {digest(CONFIGURATION)[:16]}"]
    assert any("kill-switch" in line for line in summary(record))


def test_a_trusted_clock_is_on_record(tmp_path: Path) -> None:
    made = Commissioning(tmp_path, print)
    made.judge(CONFIGURATION)
    made._checks = Watch().everything().checks
    assert made.take(SERVICE._replace(status_bits=1 << StatusBit.CLOCK_TRUSTED), 0) is Why.NONE
    assert verified((tmp_path / RECORD).read_bytes())["clock_trusted"]


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    first = commissioned(tmp_path, [])._record
    key = (tmp_path / KEY).read_bytes()
    assert stat.S_IMODE((tmp_path / KEY).stat().st_mode) == 0o600
    second = commissioned(tmp_path, [])._record
    assert (tmp_path / KEY).read_bytes() == key
    assert first is not None
    assert second is not None
    assert first["public_key"] == second["public_key"]


def test_a_damaged_key_is_replaced_and_its_records_do_not_count(tmp_path: Path) -> None:
    commissioned(tmp_path, [])
    (tmp_path / KEY).write_bytes(b"-----BEGIN PRIVATE KEY-----\nno key\n")
    events: list[str] = []
    assert Commissioning(tmp_path, events.append).state is CommState.NOT_COMMISSIONED
    assert events == ["COMMISSIONING record refused: another unit signed it, or the key is lost"]
    assert commissioned(tmp_path, []).state is CommState.COMMISSIONED


def test_a_restart_keeps_the_commissioning_and_another_configuration_voids_it_with_the_reason(tmp_path: Path) -> None:
    commissioned(tmp_path, [])
    events: list[str] = []
    again = Commissioning(tmp_path, events.append)
    assert again.state is CommState.VOID, "no configuration is valid yet"
    assert again.judge(CONFIGURATION)
    for _ in range(2):
        assert not again.judge({**CONFIGURATION, "limits.conf": {"max_soc": 100.0}})
    assert again.state is CommState.VOID
    assert events == ["COMMISSIONING void: limits.conf max_soc 90 -> 100"], "told once"
    assert again.judge(CONFIGURATION), "as it was recorded"


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "the value of a limit": lambda r: r["configuration"]["limits.conf"].update(max_soc=100.0),
    "the sum": lambda r: r.update(sha256=digest({})),
    "a check": lambda r: r["checks"].pop(),
    "the time": lambda r: r.update(recorded="2026-01-01T00:00:00Z"),
    "the signature": lambda r: r.update(signature="00" * 64),
    "no signature": lambda r: r.pop("signature"),
    "a signature that is none": lambda r: r.update(signature="xyz"),
    "the key": lambda r: r.update(public_key="00" * 31 + "01"),
    "no key": lambda r: r.pop("public_key"),
    "the schema": lambda r: r.update(schema=2),
    "something more": lambda r: r.update(more=1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_record_that_was_edited_does_not_count_and_an_event_says_so(tmp_path: Path, edit: str) -> None:
    commissioned(tmp_path, [])
    record = json.loads((tmp_path / RECORD).read_bytes())
    EDITS[edit](record)
    (tmp_path / RECORD).write_text(json.dumps(record))
    with pytest.raises(RecordError):
        verified((tmp_path / RECORD).read_bytes())
    events: list[str] = []
    made = Commissioning(tmp_path, events.append)
    assert not made.judge(CONFIGURATION)
    assert len(events) == 1
    assert events[0].startswith("COMMISSIONING record refused: ")


def test_spaces_are_no_edit(tmp_path: Path) -> None:
    commissioned(tmp_path, [])
    record = json.loads((tmp_path / RECORD).read_bytes())
    assert verified(json.dumps(record, indent=7, sort_keys=True).encode())


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"{}", b"7", b"\xff", b'"' * 9, b"[" * 100_000, b'{"schema": NaN}']
)
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    with pytest.raises(RecordError):
        verified(raw)


def _resigned(directory: Path, **changes_: Any) -> bytes:
    made = commissioned(directory, [])
    assert made._record is not None
    record = {**made._record, **changes_}
    return json.dumps({**record, "signature": _private_key(directory).sign(canonical(record)).hex()}).encode()


@pytest.mark.parametrize("changes_", [{"schema": 2}, {"sha256": "00"}, {"configuration": {}}])
def test_a_signature_alone_is_not_enough(tmp_path: Path, changes_: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match=r"schema|sha256"):
        verified(_resigned(tmp_path, **changes_))


def test_the_record_of_another_unit_does_not_count(tmp_path: Path) -> None:
    commissioned(tmp_path / "one", [])
    commissioned(tmp_path / "other", [])
    (tmp_path / "other" / RECORD).write_bytes((tmp_path / "one" / RECORD).read_bytes())
    assert Commissioning(tmp_path / "other", print).state is CommState.NOT_COMMISSIONED
    (tmp_path / "one" / KEY).unlink()
    assert Commissioning(tmp_path / "one", print).state is CommState.NOT_COMMISSIONED


def test_a_cut_at_any_call_leaves_the_old_record_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, cut = tmp_path / "state", tmp_path / "cut"
    commissioned(state, [])
    old = (state / RECORD).read_bytes()
    with monkeypatch.context() as patch:
        disk = FakeDisk(state, patch, Image(tuple((path.name, path.read_bytes()) for path in state.iterdir()), ()))
        commissioned(state, [], {**CONFIGURATION, "limits.conf": {"max_soc": 80.0}})
        disk.mark("new")
        images = list(disk.images(some_bytes))
    new = (state / RECORD).read_bytes()
    found = set()
    for image in images:
        raw = (image.lay_out(cut) / RECORD).read_bytes()
        assert raw in ((old, new) if not image.passed else (new,))
        found.add(raw)
    assert found == {old, new}


# the configuration that a record is made for


def test_every_limit_what_is_connected_and_the_board_count(tmp_path: Path) -> None:
    prepare(tmp_path, {})
    now = configuration(load(tmp_path))
    assert len(now["limits.conf"]) > 30
    assert now["board"]["name"] == "bench"
    assert len(now["board"]["sha256"]) == 64
    for name, value, counts in (
        ("max_soc", 90, True), ("interlocks_required", "1,2", True), ("bms_host", "10.0.0.9", True),
        ("strings", 3, True), ("ntp_servers", "10.0.0.9", False), ("allowed_clients", "10.0.0.9", False),
        ("bms_poll_ms", 50, False), ("cell_balancing_threshold", 0.02, False),
    ):  # fmt: skip
        prepare(tmp_path, {name: value})
        found = list(changes(now, configuration(load(tmp_path))))
        assert len(found) == counts, (name, found)
        assert not counts or name in found[0]


def test_another_board_or_one_that_cannot_be_read_is_a_change(tmp_path: Path) -> None:
    prepare(tmp_path, {})
    loaded = load(tmp_path)
    now = configuration(loaded, "bench")
    assert any("board name" in text for text in changes(now, configuration(loaded, "revpi")))
    (tmp_path / "own.toml").write_text('kind = "bench"\n')
    assert any("sha256" in text for text in changes(now, configuration(loaded, str(tmp_path / "own.toml"))))


def test_a_name_that_a_later_version_adds_counts_as_recorded_with_its_default(tmp_path: Path) -> None:
    prepare(tmp_path, {})
    now = configuration(load(tmp_path))
    older = {**now, "limits.conf": {n: v for n, v in now["limits.conf"].items() if n != "max_soc"} | {"gone": 1}}
    assert list(changes(older, now)) == []
    prepare(tmp_path, {"max_soc": 90})
    assert list(changes(older, configuration(load(tmp_path)))) == ["limits.conf max_soc 100 -> 90"]


def test_a_change_reads_like_the_file(tmp_path: Path) -> None:
    prepare(tmp_path, {})
    now = configuration(load(tmp_path))
    prepare(tmp_path, {"interlocks_required": "1,2,4"})
    found = list(changes(now, configuration(load(tmp_path))))
    assert found == ["limits.conf interlocks_required 1,2,3,4,5,6,7,8 -> 1,2,4"]


# at the server


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        made.show(state=State.ISOLATED, interlocks=HEALTHY)
        yield made


@pytest.fixture
def site(appliance: FakeAppliance) -> Iterator[Client]:
    client = Client(appliance.port)
    yield client
    client.close()


def move_everything(appliance: FakeAppliance, site: Client) -> None:
    checks = appliance.device.commissioning._checks
    for interlocks in (HEALTHY, RESET, HEALTHY):
        appliance.show(state=State.SERVICE, interlocks=interlocks)
        counted = {b: at for b, at in checks.seen.items() if b in (0, 14)}
        wait_until(lambda before=counted: _later(checks, before), 5, f"{interlocks:x} counts")  # type: ignore[misc]
    assert site.read("CommMissing") == 0


def _later(checks: Checks, before: dict[InterlockBit, Seen]) -> bool:
    """Interlock 1 and the reset button were seen since."""
    return all(
        checks.seen.get(b, Seen()) != before.get(b, Seen()) for b in (InterlockBit(0), InterlockBit.RESET_PRESSED)
    )


def told(appliance: FakeAppliance) -> list[str]:
    return [e.text for e in EventReader("server", appliance.run_dir).new() if e.text.startswith("COMMISSIONING")]


def in_force(appliance: FakeAppliance) -> bool:
    published = appliance._files["server"]["config"].last()
    assert published is not None
    return settings_from_json(published).commissioned


def test_at_first_nothing_is_commissioned_and_the_registers_say_what_is_missing(
    appliance: FakeAppliance, site: Client
) -> None:
    assert (site.read("CmdComm"), site.read("CommState"), site.read("CommSeen")) == (0, CommState.NOT_COMMISSIONED, 0)
    assert site.read("CommMissing") == 0xFF | KILL | TAMPER | RESET | FEEDBACK
    assert not in_force(appliance)


def test_a_record_is_refused_outside_service_and_while_something_is_missing(
    appliance: FakeAppliance, site: Client
) -> None:
    for state, why in ((State.ISOLATED, Why.NOT_IN_SERVICE), (State.SERVICE, Why.CHECKS_MISSING)):
        appliance.show(state=state)
        assert site.write("CmdComm", CommCommand.RECORD) == 4
        assert (site.read("AckWhy"), site.read("RefAddr")) == (why, POINT["CmdComm"].address)
    assert site.write("CmdComm", 1) == 3
    assert site.write("CommState", 1) == 2
    assert site.write("CmdComm", CommCommand.NONE) == 0
    assert not (appliance.state_dir / RECORD).exists()


def test_when_everything_was_seen_the_record_counts_at_once_and_is_served_as_a_file(
    appliance: FakeAppliance, site: Client
) -> None:
    move_everything(appliance, site)
    assert (site.read("CommSeen"), site.read("CommMissing")) == (0xFF | KILL | TAMPER | RESET, 0)
    assert site.write("CmdRamp", 9) == 3
    assert site.read("AckWhy") == Why.OUT_OF_RANGE
    assert site.write("CmdComm", CommCommand.RECORD) == 0
    assert (site.read("CommState"), site.read("CmdComm"), site.read("AckWhy")) == (CommState.COMMISSIONED, 0, 0)
    assert in_force(appliance)
    with PointClient("127.0.0.1", appliance.port, POINT) as client:
        raw = commission_guide.fetched(client)
        assert raw == (appliance.state_dir / RECORD).read_bytes()
        assert verified(raw)["configuration"]["limits.conf"]["max_soc"] == 100
        with pytest.raises(Refusal, match="exception 02"):
            client.read_file(RECORD_FILE, len(raw) // 2, 120)


def test_a_changed_limit_voids_it_and_a_restart_keeps_it(appliance: FakeAppliance, site: Client) -> None:
    move_everything(appliance, site)
    assert site.write("CmdComm", CommCommand.RECORD) == 0
    path = appliance.config_dir / "limits.conf"
    before = path.read_text()
    path.write_text(before.replace("max_soc = 100", "max_soc = 90"))
    appliance.call(appliance.configuration.reload)
    assert site.read("CommState") == CommState.VOID
    assert not in_force(appliance)
    assert told(appliance)[-1] == "COMMISSIONING void: limits.conf max_soc 100 -> 90"
    path.write_text(before)
    appliance.call(appliance.configuration.reload)
    assert (site.read("CommState"), in_force(appliance)) == (CommState.COMMISSIONED, True)


def test_the_next_server_finds_the_commissioning(tmp_path: Path, appliance: FakeAppliance, site: Client) -> None:
    move_everything(appliance, site)
    assert site.write("CmdComm", CommCommand.RECORD) == 0
    appliance.__exit__(None, None, None)
    with FakeAppliance(tmp_path, configured=False) as again:
        assert in_force(again)


def test_a_refused_configuration_takes_no_record(appliance: FakeAppliance, site: Client) -> None:
    move_everything(appliance, site)
    (appliance.config_dir / "limits.conf").write_text("max_soc = 900\n")
    appliance.call(appliance.configuration.reload)
    assert site.write("CmdComm", CommCommand.RECORD) == 4
    assert site.read("AckWhy") == Why.NO_CONFIGURATION


def test_a_disk_that_takes_no_record_is_named(appliance: FakeAppliance, site: Client) -> None:
    move_everything(appliance, site)
    (appliance.state_dir / (RECORD + ".new")).mkdir(parents=True)
    assert site.write("CmdComm", CommCommand.RECORD) == 4
    assert (site.read("AckWhy"), site.read("CommState")) == (Why.RECORD_NOT_SAVED, CommState.NOT_COMMISSIONED)
    assert told(appliance)[-1].startswith("COMMISSIONING refused, not saved: ")


def test_only_who_may_command_records(appliance: FakeAppliance, site: Client) -> None:
    appliance.call(lambda: appliance.device.write(1, POINT["CmdRamp"].address, b"\0\1", "10.0.0.7:5"))
    assert site.write("CmdComm", CommCommand.RECORD) == 4
    assert site.read("AckWhy") == Why.NOT_IN_AUTHORITY


def test_without_a_controller_nothing_is_seen_or_recorded(appliance: FakeAppliance, site: Client) -> None:
    appliance.alive = False
    wait_until(lambda: site.read("CommMissing") == UNIMPLEMENTED["bitfield32"], 5, "CommMissing is not implemented")
    assert site.write("CmdComm", CommCommand.RECORD) == 4
    assert site.read("AckWhy") == Why.NO_DATA


def test_the_block_has_edges(appliance: FakeAppliance, site: Client) -> None:
    count = COMMISSIONING_END - COMMISSIONING_FIRST
    for first, size, good in (
        (COMMISSIONING_FIRST, count, True), (COMMISSIONING_FIRST - 1, 1, False), (COMMISSIONING_FIRST - 1, 2, False),
        (COMMISSIONING_FIRST, count + 1, False), (COMMISSIONING_END, 1, False), (COMMISSIONING_END - 1, 1, True),
    ):  # fmt: skip
        answer = site.raw.read_holding_registers(first, count=size, device_id=1)
        assert answer.isError() is not good
        assert not good or len(answer.registers) == size
    assert site.write_raw(COMMISSIONING_FIRST, [0, 0]) == 2
    assert site.write_raw(COMMISSIONING_END, [0]) == 2


def test_only_the_super_administrator_commissions_through_tls() -> None:
    assert {r for r in ROLES if RoleRights(r, MODEL_AT).writes(1, COMMISSIONING_FIRST, 1)} == {
        "SuperAdministratorSunSpec"
    }


# the tool


def test_the_guide_asks_for_what_is_missing_and_says_what_is_done() -> None:
    asked = list(commission_guide.asked(0b1 | KILL | 1 << InterlockBit.FEEDBACK_POS | RESET, RESET, HEALTHY | RESET))
    assert asked == [
        "interlock 1: is closed; move it to open and back, a second each",
        "kill-switch: is closed; move it to open and back, a second each",
        "reset: is pressed; put it back as in operation",
        "contactor positive: is looked at",
    ]
    assert list(commission_guide.news(asked, asked[1:])) == ["interlock 1: ok"]
    stuck = list(commission_guide.asked(FEEDBACK, 0, FEEDBACK))
    assert stuck[0] == "contactor negative: is closed; isolate the rack and find out why"


def tool(appliance: FakeAppliance, *options: object) -> int:
    return ems_tool.main([*map(str, options), "--port", str(appliance.port)])


def test_the_tool_does_not_commission_a_rack_that_is_closed(
    appliance: FakeAppliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    appliance.show(state=State.CHARGE_BULK)
    assert tool(appliance, "--commission", "--record", tmp_path / "r.json") == 1
    assert "CHARGE_BULK, allowed is ISOLATED or SERVICE; command mode off first" in capsys.readouterr().err


def test_the_tool_records_fetches_and_verifies(
    appliance: FakeAppliance, site: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "r.json"
    assert tool(appliance, "--commission-record", "--record", record) == 1
    assert "commission first: ems-tool --commission" in capsys.readouterr().err
    move_everything(appliance, site)
    assert tool(appliance, "--commission", "--record", record) == 0
    assert "Commissioned" in capsys.readouterr().out
    assert appliance.command.mode == 0
    first = record.read_bytes()
    record.unlink()
    assert tool(appliance, "--commission-record", "--record", record) == 0
    assert record.read_bytes() == first
    assert ems_tool.main(["--verify-record", str(record)]) == 0
    assert "signature good" in capsys.readouterr().out
    record.write_bytes(first.replace(b'"schema": 1', b'"schema": 3'))
    assert ems_tool.main(["--verify-record", str(record)]) == 1
    assert "does not verify: the signature is wrong" in capsys.readouterr().err
    assert ems_tool.main(["--verify-record", str(tmp_path / "none.json")]) == 1
    assert tool(appliance, "--commission-record", "--record", tmp_path / "none" / "r.json") == 1
    assert "recorded on the appliance, but" in capsys.readouterr().err


def test_status_has_the_checks_in_their_order() -> None:
    names = [check.name for check in ems_tool.checks(HEALTHY, 0, 0xFF)]
    assert names[8:] == [
        "kill-switch", "tamper", "insulation", "reset", "key switch", "contactor negative", "contactor positive",
        "contactor precharge",
    ]  # fmt: skip
