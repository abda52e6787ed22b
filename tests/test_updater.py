"""The update agent: what it refuses and when, what it does in which order, and what it says after the next start."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import Identity, authority, bundle, issued, needs_rauc
from fake_appliance import FakeAppliance, zeros
from hypothesis import given, settings
from hypothesis import strategies as st
from update_rack import ARMED, NEW, RUNNING, Rack

from firmware import config, update_source
from firmware.bundle import Refused
from firmware.config import Site
from firmware.image import GUARD, STATUS, Status
from firmware.update_codes import TEXT
from firmware.update_codes import UpdateResult as R
from firmware.update_codes import UpdateState as S
from firmware.updater import CHECK_NS, RETRY_NS, WATCH_NS, Agent, Phase, Record, Stopped, refusal
from statemachine.signals import EventKind, Why
from statemachine.states import State


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return authority(tmp_path_factory.mktemp("site") / "pki")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, pki: Identity) -> Path:
    return bundle(tmp_path_factory.mktemp("bundles") / "new.raucb", issued(pki, "signer"), pki, NEW, size=100_000)


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMS_RUN_DIR", str(tmp_path / "run"))


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    made = Rack(tmp_path)
    yield made
    made.close()


# who may, and when


@given(
    state=st.sampled_from(State), coils=st.integers(0, 7), feedback=st.integers(0, 7), heard=st.booleans()
)  # fmt: skip
def test_nothing_is_installed_but_in_service_with_contactors_verified_open(
    state: State, coils: int, feedback: int, heard: bool
) -> None:
    status = zeros(Status, state=state, coils=coils, feedback=feedback) if heard else None
    allowed = heard and state is State.SERVICE and not coils and not feedback
    assert (refusal(status) is R.NONE) == allowed


REFUSED: dict[str, tuple[Callable[[Rack], None], R]] = {
    "isolated": (lambda r: _set(r, state=State.ISOLATED), R.NOT_IN_SERVICE),
    "charging": (lambda r: _set(r, state=State.CHARGE_BULK, coils=3, feedback=3), R.NOT_IN_SERVICE),
    "feedback": (lambda r: _set(r, feedback=2), R.CONTACTORS_NOT_OPEN),
    "coil": (lambda r: _set(r, coils=1), R.CONTACTORS_NOT_OPEN),
    "silent": (lambda r: _silent(r), R.CONTROLLER_SILENT),
}


def _set(rack: Rack, **changes: Any) -> None:
    rack.status = rack.status._replace(**changes)


def _silent(rack: Rack) -> None:
    rack.answers = False
    rack.writers["controller"]["status"].publish(STATUS.pack(*rack.status), 1)


def _stick(rack: Rack, path: Path) -> None:
    shutil.copy(path, rack.stick / "new.raucb")


@needs_rauc
@pytest.mark.parametrize("when", REFUSED)
def test_a_stick_is_refused_with_its_reason(rack: Rack, good: Path, when: str) -> None:
    change, result = REFUSED[when]
    rack.ready()
    change(rack)
    _stick(rack, good)
    rack.look(3)
    assert (rack.result, rack.done, rack.held) == (result, [], False)
    assert not (rack.directory / "state" / "update.raucb").exists()


@needs_rauc
@pytest.mark.parametrize("when", REFUSED)
@pytest.mark.parametrize("step", [S.COPYING, S.VERIFYING])
def test_what_changes_before_the_slot_is_touched_ends_the_update(rack: Rack, good: Path, when: str, step: S) -> None:
    change, result = REFUSED[when]
    rack.ready()
    _stick(rack, good)

    def then() -> None:
        said = rack.said.refresh()
        if said is not None and said.state == step:
            change(rack)
            rack.scan()

    rack.on_beat = then
    rack.look()
    assert (rack.result, rack.done, rack.held) == (result, [], False)


@needs_rauc
def test_entering_service_tries_the_stick_again(rack: Rack, good: Path) -> None:
    rack.ready()
    _set(rack, state=State.ISOLATED)
    _stick(rack, good)
    assert rack.look(3).result is R.NOT_IN_SERVICE
    assert [e.a for e in rack.events.new() if e.kind == EventKind.UPDATE] == [R.NOT_IN_SERVICE], "said once"
    _set(rack, state=State.SERVICE)
    assert rack.look(2).done == ["install", "restart"]


@needs_rauc
def test_a_controller_that_does_not_hold_the_rack_stops_the_update(rack: Rack, good: Path) -> None:
    rack.ready()
    rack.holds = False
    _stick(rack, good)
    rack.look()
    assert (rack.result, rack.done, rack.held) == (R.NOT_HELD, [], False)


# the whole way


@needs_rauc
def test_the_way_of_a_good_bundle_from_the_stick_to_the_confirmed_version(
    rack: Rack, good: Path, pki: Identity
) -> None:
    rack.signed = None
    rack.ready()
    _stick(rack, good)
    holds: list[bool] = []
    rack.during_install = lambda: holds.append(rack.held)
    (rack.directory / "pki").mkdir()
    shutil.copy(pki.certificate, rack.directory / "pki")
    rack.look(2)
    assert (rack.result, rack.done, holds) == (R.INSTALLED, ["install", "restart"], [True] * 3)
    assert rack.held
    assert [s for s in rack.seen_states if s != S.IDLE] == [S.COPYING, S.VERIFYING, S.INSTALLING, S.RESTARTING]
    rack.done.clear()
    rack.running = NEW
    _set(rack, state=State.ISOLATED)
    rack.reboot(slot=2)
    assert rack.held, "an unconfirmed version closes nothing"
    rack.look(30)
    assert (rack.result, rack.done, rack.held) == (R.CONFIRMED, ["good"], False)
    said = rack.said.refresh()
    assert said is not None
    assert (said.state, said.slot, said.result) == (S.IDLE, 2, R.CONFIRMED)
    told = [R(e.a) for e in rack.events.new() if e.kind == EventKind.UPDATE]
    assert told == [R.INSTALLED, R.CONFIRMED, R.NOT_IN_SERVICE], "the stick is still in: that hides nothing"
    _set(rack, state=State.SERVICE)
    assert (rack.look(5).result, rack.done) == (R.NOTHING_NEW, ["good"])


@pytest.mark.parametrize("result", [R.SIGNATURE, R.COMPATIBLE, R.FORMAT])
@needs_rauc
def test_what_rauc_refuses_is_not_installed(rack: Rack, good: Path, result: R) -> None:
    rack.ready()
    rack.signed = result
    _stick(rack, good)
    rack.look()
    assert (rack.result, rack.done) == (result, [])


@needs_rauc
def test_a_payload_that_is_damaged_is_refused_before_the_slot_is_touched(rack: Rack, good: Path) -> None:
    rack.ready()
    data = bytearray(good.read_bytes())
    data[50_000] ^= 1
    (rack.stick / "new.raucb").write_bytes(data)
    rack.look()
    assert (rack.result, rack.done) == (R.DAMAGED, [])
    (rack.stick / "new.raucb").write_bytes(good.read_bytes())
    assert rack.look(2).done == ["install", "restart"], "another copy is another try"


@needs_rauc
@pytest.mark.parametrize(("version", "result"), [(RUNNING, R.NOTHING_NEW), ("8.9.9", R.OLDER), ("", R.INSTALLED)])
def test_only_another_and_no_older_version_is_installed(
    rack: Rack, tmp_path: Path, pki: Identity, version: str, result: R
) -> None:
    rack.ready()
    bundle(rack.stick / "new.raucb", issued(pki, "signer"), pki, version, size=20_000)
    shutil.rmtree(rack.stick / "new.raucb.d")
    rack.look(2)
    assert (rack.result, "install" in rack.done) == (result, result is R.INSTALLED)


def test_two_bundles_on_the_stick_are_told_once(rack: Rack) -> None:
    rack.ready()
    for name in "ab":
        (rack.stick / f"{name}.raucb").write_text("x")
    rack.look(5)
    assert rack.result is R.SEVERAL_BUNDLES
    assert [e.a for e in rack.events.new() if e.kind == EventKind.UPDATE] == [R.SEVERAL_BUNDLES]


@needs_rauc
def test_an_installation_that_fails_leaves_the_rack_free(rack: Rack, good: Path) -> None:
    rack.ready()
    rack.code["install"] = 1
    _stick(rack, good)
    rack.look(2)
    assert (rack.result, rack.agent.record.detail, rack.done, rack.held) == (R.INSTALL_FAILED, 1, ["install"], False)
    assert Phase(rack.agent.record.phase) is Phase.IDLE


@needs_rauc
def test_a_kill_switch_during_the_installation_puts_off_the_restart_and_keeps_the_hold(rack: Rack, good: Path) -> None:
    rack.ready()
    _stick(rack, good)
    rack.during_install = lambda: _set(rack, state=State.EMERGENCY_STOP)
    rack.look(5)
    assert (rack.done, rack.held, rack.result) == (["install"], True, R.INSTALLED)
    _set(rack, state=State.ISOLATED)
    assert rack.look(5).done == ["install"]
    _set(rack, state=State.SERVICE)
    assert rack.look(2).done == ["install", "restart"]


@needs_rauc
def test_a_restart_that_fails_is_told_and_tried_again(rack: Rack, good: Path) -> None:
    rack.ready()
    rack.code["restart"] = 1
    _stick(rack, good)
    rack.look(5)
    assert (rack.result, rack.done) == (R.RESTART_FAILED, ["install", "restart"])
    rack.look(1, RETRY_NS / 1e9)
    assert rack.done == ["install", "restart", "restart"]


@needs_rauc
def test_sigterm_during_the_installation_leaves_the_record_and_the_next_process_waits_for_rauc(
    rack: Rack, good: Path
) -> None:
    rack.ready()
    _stick(rack, good)

    def killed() -> None:
        raise Stopped

    rack.during_install = killed
    with pytest.raises(Stopped):
        rack.look()
    rack.during_install, rack.busy = lambda: None, True
    rack.files.close()
    rack.start()
    assert rack.held
    rack.look(5)
    assert (rack.held, Phase(rack.agent.record.phase)) == (True, Phase.INSTALLING)
    rack.busy = False
    (rack.stick / "new.raucb").unlink()
    rack.look(2)
    assert (rack.held, rack.result) == (False, R.INSTALL_FAILED)


@needs_rauc
def test_a_record_that_cannot_be_kept_stops_the_update(rack: Rack, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rack.ready()
    _stick(rack, good)

    def full(record: Record) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rack.agent._slots, "save", full)
    rack.look(2)
    assert (rack.result, rack.done, rack.held) == (R.NO_SPACE, [], False)


# after the start


def _came_back(rack: Rack, phase: Phase, slot: int, **record: int) -> None:
    rack.agent._slots.save(Record(phase=phase, boot=rack.boot, slot=2, root=77, **record))
    rack.done.clear()
    rack.reboot(slot)


LACKS: dict[str, tuple[Callable[[Rack], None], R]] = {
    "modbus": (lambda r: setattr(r, "modbus", False), R.CHECK_MODBUS),
    "firewall": (lambda r: setattr(r, "firewall", False), R.CHECK_FIREWALL),
    "scan late": (lambda r: setattr(r, "scan_late", 1), R.CHECK_SCAN),
    "mark": (lambda r: r.code.update(good=1), R.CHECK_MARK),
    "guard": (lambda r: _no_guard(r), R.CHECK_IO),
    "controller": (lambda r: _silent(r), R.CHECK_IO),
}


def _no_guard(rack: Rack) -> None:
    rack.writers["guard"]["guard"].publish(GUARD.pack(*ARMED), 1)
    rack.scan = lambda: rack.writers["controller"]["status"].publish(  # type: ignore[method-assign]
        STATUS.pack(*rack.status._replace(permit=Why.UPDATING))
    )


@pytest.mark.parametrize("lack", LACKS)
def test_a_new_version_that_lacks_something_is_taken_back_with_the_reason(rack: Rack, lack: str) -> None:
    lacks, why = LACKS[lack]
    _came_back(rack, Phase.INSTALLED, 2)
    lacks(rack)
    rack.look(int(CHECK_NS / 3e9) - 1, 3.0)
    assert not {"bad", "restart"} & set(rack.done)
    assert rack.held
    rack.look(3, 3.0)
    assert [what for what in rack.done if what != "good"] == ["bad", "restart"]
    rack.answers = True
    rack.done.clear()
    rack.reboot(1)
    assert (rack.result, rack.held) == (why, False)
    found = rack.hold.refresh()
    assert found is not None
    assert found.rolled_back, "the panel shows it"


def test_a_new_version_is_not_taken_back_while_a_contactor_is_closed(rack: Rack) -> None:
    _came_back(rack, Phase.INSTALLED, 2)
    rack.firewall = False
    _set(rack, state=State.READY, coils=3, feedback=3)
    rack.look(40, 10.0)
    assert not {"bad", "restart"} & set(rack.done)
    _set(rack, state=State.ISOLATED, coils=0, feedback=0)
    rack.look(2, 10.0)
    assert rack.done == ["bad", "restart"]


def test_a_new_version_that_never_came_up_is_told_and_entering_service_ends_the_display(rack: Rack) -> None:
    _set(rack, state=State.ISOLATED)
    _came_back(rack, Phase.INSTALLED, 1)
    assert (rack.result, rack.held) == (R.NOT_BOOTED, False)
    assert "slot A runs again" in next(e.text for e in rack.events.new() if e.a == R.NOT_BOOTED)
    rack.look(30)
    assert rack.done == ["good"], "the version before is confirmed by its own self-test"
    assert rack.hold.refresh() == (False, True)
    _set(rack, state=State.SERVICE)
    rack.look(2)
    assert rack.hold.refresh() == (False, False)
    assert rack.result is R.NOT_BOOTED, "the register keeps the reason"


USED_UP = "ORDER=B A\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=3\n"


def _told(rack: Rack, result: R) -> int:
    return sum(event.a == result for event in rack.events.new() if event.kind == EventKind.UPDATE)


def test_a_slot_in_use_that_used_up_its_starts_is_told_once_and_shown_until_service(rack: Rack) -> None:
    _set(rack, state=State.ISOLATED)
    rack.grubenv.write_text(USED_UP)
    rack.reboot(1)
    assert (rack.result, rack.held, _told(rack, R.FELL_BACK)) == (R.FELL_BACK, False, 1)
    assert rack.hold.refresh() == (False, True)
    assert rack.look(30).done == ["good"]
    rack.reboot(1)
    assert _told(rack, R.FELL_BACK) == 0
    _set(rack, state=State.SERVICE)
    rack.look(2)
    assert rack.hold.refresh() == (False, False)


def test_a_slot_that_runs_again_is_no_longer_told_and_told_anew_the_next_time(rack: Rack) -> None:
    rack.grubenv.write_text(USED_UP)
    rack.reboot(1)
    rack.reboot(2)
    assert (rack.result, rack.hold.refresh()) == (R.NONE, (False, False))
    rack.reboot(1)
    assert (rack.result, _told(rack, R.FELL_BACK)) == (R.FELL_BACK, 2)


@pytest.mark.parametrize(
    ("slot", "text"),
    [
        (2, USED_UP),  # the first one runs
        (1, USED_UP.replace("ORDER=B A", "ORDER=A B")),
        (1, USED_UP.replace("B_OK=1", "B_OK=0")),  # marked bad: not to be started
        (1, ""),  # lost, made anew by and by
        (0, USED_UP),  # a unit without slots
    ],
)
def test_a_slot_that_runs_as_it_should_is_not_told(rack: Rack, slot: int, text: str) -> None:
    rack.grubenv.write_text(text)
    rack.reboot(slot)
    assert (rack.result, _told(rack, R.FELL_BACK)) == (R.NONE, 0)


def test_a_version_that_was_taken_back_stays_told_as_that(rack: Rack) -> None:
    rack.grubenv.write_text(USED_UP)
    _came_back(rack, Phase.INSTALLED, 1)
    rack.reboot(1)
    assert rack.result is R.NOT_BOOTED


def test_what_was_taken_back_once_and_is_confirmed_since_is_in_use(rack: Rack) -> None:
    rack.grubenv.write_text(USED_UP)
    _came_back(rack, Phase.INSTALLED, 2, taken_back=77)
    rack.look(30)
    rack.reboot(1)
    assert rack.result is R.FELL_BACK


def test_a_cut_during_the_installation_is_told_and_the_old_version_goes_on(rack: Rack) -> None:
    _came_back(rack, Phase.INSTALLING, 1)
    assert (rack.result, rack.held) == (R.INSTALL_FAILED, False)
    assert rack.look(30).done == ["good"]


def test_a_cut_between_the_installation_and_its_record_is_no_failure(rack: Rack) -> None:
    _came_back(rack, Phase.INSTALLING, 2)
    assert rack.held
    assert rack.look(30).result is R.CONFIRMED


@needs_rauc
def test_what_was_taken_back_is_not_pulled_again_but_a_stick_may(
    rack: Rack, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(url: str, hosts: tuple[str, ...], roots: Path, to: Path, beat: Callable[[int, int], None]) -> None:
        to.parent.mkdir(exist_ok=True)
        to.write_bytes(good.read_bytes())
        beat(1, 1)

    monkeypatch.setattr(update_source, "pull", fetched)
    rack.site = Site(update_url="https://10.0.0.1/x.raucb", update_hosts=("10.0.0.1",))
    rack.reboot(1)
    rack.look(30)
    assert rack.done == ["install", "restart"]
    rack.done.clear()
    rack.reboot(1)
    assert rack.result is R.NOT_BOOTED
    rack.look(2)
    assert (rack.result, "install" in rack.done) == (R.TAKEN_BACK_BEFORE, False)
    _stick(rack, good)
    rack.look(2)
    assert "install" in rack.done


@needs_rauc
def test_the_site_server_is_asked_once_when_service_is_entered(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    asked: list[tuple[object, ...]] = []

    def refused(*of: object) -> None:
        asked.append(of)
        raise Refused(R.HTTP_REFUSED, "", 404)

    monkeypatch.setattr(update_source, "pull", refused)
    rack.site = Site(update_url="https://10.0.0.1/x.raucb", update_hosts=("10.0.0.1",))
    rack.reboot(1)
    rack.look(30)
    assert (len(asked), rack.result, rack.agent.record.detail) == (1, R.HTTP_REFUSED, 404)
    _set(rack, state=State.ISOLATED)
    rack.look(3)
    assert len(asked) == 1
    _set(rack, state=State.SERVICE)
    rack.look(3)
    assert len(asked) == 2
    assert asked[0][:3] == (
        "https://10.0.0.1/x.raucb", ("10.0.0.1",), rack.directory / "config" / "tls" / "ca.crt",
    )  # fmt: skip


def test_the_scan_is_watched_for_its_time_and_a_restart_of_the_controller_begins_anew(rack: Rack) -> None:
    rack.look(19)
    assert rack.done == []
    _set(rack, started_ns=2)
    rack.look(int(WATCH_NS / 0.5e9))
    assert rack.done == []
    assert rack.look(2).done == ["good"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from([State.SERVICE, State.ISOLATED, State.CHARGE_BULK, State.EMERGENCY_STOP, State.FAULT]),
        st.sampled_from([0, 0, 0, 3]),
        st.sampled_from(["stick", "none", "reboot A", "reboot B", "process", "fails", "works", "silent", "heard"]),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip
NUMBER = itertools.count()


@needs_rauc
@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_nothing_is_written_or_restarted_without_permission_and_hold(
    good: Path, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[State, int, str]]
) -> None:
    directory = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMS_RUN_DIR", str(directory / "run"))
        rack = Rack(directory)
        rack.during_install = lambda: _must_hold(rack)
        for state, contacts, what in steps:
            _set(rack, state=state, coils=contacts, feedback=contacts)
            {
                "stick": lambda: _stick(rack, good), "none": lambda: None, "reboot A": lambda: rack.reboot(1),
                "reboot B": lambda: rack.reboot(2), "process": lambda: rack.reboot(rack.slot),
                "fails": lambda: rack.code.update(install=1, good=1), "silent": lambda: _silent(rack),
                "works": lambda: rack.code.update(install=0, good=0),
                "heard": lambda: setattr(rack, "answers", True),
            }[what]()  # fmt: skip
            before = len(rack.done)
            rack.look(3, 4.0)
            happened = rack.done[before:]
            permitted = state is State.SERVICE and not contacts and rack.answers
            assert permitted or not {"install", "restart"} & set(happened), (happened, state, contacts)
        rack.close()


def _must_hold(rack: Rack) -> None:
    assert rack.held
    assert refusal(rack.status) is R.NONE


# words, configuration, the unit itself


def test_every_result_has_a_text_in_the_manual_for_technicians() -> None:
    manual = (Path(__file__).parents[1] / "docs" / "updates.md").read_text("utf-8")
    for result, text in TEXT.items():
        assert f"| {result.value} | `{result.name}` | {text} |" in manual, result.name


def test_the_configuration_names_the_server_and_refuses_plain_http(tmp_path: Path) -> None:
    config.prepare(tmp_path, {"update_url": "https://10.0.0.1/new.raucb", "update_hosts": "10.0.0.1"})
    assert config.load_site(tmp_path).update_hosts == ("10.0.0.1",)
    config.prepare(tmp_path, {"update_url": "http://10.0.0.1/new.raucb"})
    with pytest.raises(config.ConfigError, match=r"update_url = http://10\.0\.0\.1/new\.raucb: allowed https://"):
        config.load_site(tmp_path)


@pytest.mark.parametrize(
    ("plain", "host"), [(True, "0.0.0.0"), (True, "127.0.0.1"), (False, "192.0.2.1")], ids=["all", "one", "secure"]
)
def test_the_self_read_goes_over_the_units_own_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool, host: str
) -> None:
    with FakeAppliance(tmp_path / "unit") as unit:
        monkeypatch.setenv("EMS_MODBUS_PORT", str(unit.port))
        unit.show(state=State.SERVICE, period_us=10_000)
        rack = Rack(tmp_path, modbus_plain=plain, modbus_host=host)
        answers = Agent._answers
        assert answers(rack.agent)
        unit.show(state=State.FAULT)
        rack.scan()
        assert not answers(rack.agent), "another state than the controller's"
        rack.close()
    rack.scan = lambda: None  # type: ignore[method-assign]
    assert not answers(rack.agent), "nobody answers"


def test_a_stick_that_is_left_in_is_tried_once_though_fat_gives_its_file_another_inode_number(rack: Rack) -> None:
    """Seen in the image: the kernel makes the number up, anew when it had to forget the file for want of memory."""
    rack.ready()
    path = rack.stick / "new.raucb"
    path.write_bytes(b"x" * 100)
    rack.look(5)
    again = path.with_name("again")
    shutil.copy2(path, again)
    again.replace(path)
    rack.look(5)
    assert [e.a for e in rack.events.new() if e.kind == EventKind.UPDATE] == [R.TRUNCATED]


def test_a_stick_that_is_put_in_again_is_tried_again(rack: Rack) -> None:
    rack.ready()
    path = rack.stick / "new.raucb"
    path.write_bytes(b"x" * 100)
    rack.look(5)
    path.rename(rack.directory / "pulled out")
    rack.look(2)
    (rack.directory / "pulled out").rename(path)
    rack.look(5)
    assert [e.a for e in rack.events.new() if e.kind == EventKind.UPDATE] == [R.TRUNCATED, R.TRUNCATED]
