"""703, the limit of 704 and 711 in the register map: what is written reaches the controller, and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_appliance import Client, FakeAppliance

from firmware.grid_functions import ALLOWED, SETS
from firmware.image import GRID, View
from firmware.registers import LIMIT_GROUP, POINT
from firmware.server import MODEL_AT
from firmware.sunspec import Adoption
from statemachine import grid
from statemachine.grid import DEFAULT
from statemachine.signals import Grid, Why
from statemachine.states import State

LIVE = tuple(f"Ctl1.{point}" for point in SETS)
NEXT = tuple(f"Ctl2.{point}" for point in SETS)
STEEP = (0.5, 0.4, 0.02, 0.03, 1.5, -40)


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        yield made


@pytest.fixture
def site(appliance: FakeAppliance) -> Iterator[Client]:
    client = Client(appliance.port)
    yield client
    client.close()


def told(appliance: FakeAppliance) -> Grid:
    """What the controller reads."""
    found = View(GRID, "server", "grid", appliance.run_dir).refresh()
    assert found is not None
    return found


def read(site: Client, names: tuple[str, ...]) -> list[float]:
    return [site.read(name) for name in names]


def test_before_anything_is_written_the_controller_gets_the_defaults(appliance: FakeAppliance) -> None:
    assert told(appliance) == pytest.approx(DEFAULT._replace(limit_version=1, droop_version=1))


def test_the_configuration_says_what_enter_service_is_before_it_is_written(tmp_path: Path) -> None:
    with FakeAppliance(
        tmp_path, nominal_frequency="60", enter_service_delay=300.0, enter_service_ramp=100.0
    ) as appliance:
        site = Client(appliance.port)
        names = ("ESHzLo", "ESHzHi", "ESDlyTms", "ESRmpTms", "ESVLo", "ESVHi", "ES")
        assert read(site, names) == pytest.approx([59.5, 60.1, 300, 100, 91.7, 105, 1])
        site.close()


def test_what_is_not_configured_is_not_touched_by_a_reload(appliance: FakeAppliance, site: Client) -> None:
    site.write("ESDlyTms", 20)
    appliance.call(appliance.configuration.reload)
    assert site.read("ESDlyTms") == 20
    path = appliance.config_dir / "site.conf"
    path.write_text(path.read_text().replace("enter_service_delay = 0", "enter_service_delay = 77"))
    appliance.call(appliance.configuration.reload)
    assert (site.read("ESDlyTms"), told(appliance).delay_s) == (77, 77.0)


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("ES", 0, "service_permitted", False), ("ESVHi", 110.0, "v_high_pu", 1.1), ("ESVLo", 88.5, "v_low_pu", 0.885),
        ("ESHzHi", 50.05, "hz_high", 50.05), ("ESHzLo", 47.5, "hz_low", 47.5), ("ESDlyTms", 600, "delay_s", 600.0),
        ("ESRmpTms", 1000, "ramp_s", 1000.0), ("WMaxLimPctEna", 1, "limit_enabled", True),
        ("WMaxLimPct", 42.5, "limit_pu", 0.425), ("WMaxLimPctRvrt", 7.5, "limit_revert_pu", 0.075),
        ("WMaxLimPctEnaRvrt", 1, "limit_revert_enabled", True), ("WMaxLimPctRvrtTms", 9, "limit_revert_s", 9.0),
        ("711.Ena", 1, "droop_enabled", True), ("711.RvrtTms", 5, "droop_revert_s", 5.0),
        ("711.RvrtCtl", 2, "droop_revert_set", 2), ("Ctl2.KOf", 0.03, "next_k_of", 0.03),
    ],
)  # fmt: skip
def test_what_is_written_reaches_the_controller(
    appliance: FakeAppliance, site: Client, name: str, value: float, field: str, expected: float
) -> None:
    before = told(appliance)
    assert site.write(name, value) == 0
    after = told(appliance)
    assert getattr(after, field) == pytest.approx(expected)
    changed = {f for f in Grid._fields if getattr(after, f) != getattr(before, f)} - {"limit_version", "droop_version"}
    assert changed == {field}


def test_a_write_to_a_group_makes_a_new_version_of_it_and_of_no_other(appliance: FakeAppliance, site: Client) -> None:
    for name in LIMIT_GROUP:
        before = told(appliance)
        site.write(name, site.read(name))
        assert told(appliance) == before._replace(limit_version=before.limit_version + 1), name
    for name in ("711.Ena", "AdptCtlReq", "711.RvrtTms", "711.RvrtCtl"):
        before = told(appliance)
        site.write(name, site.read(name))
        assert told(appliance) == before._replace(droop_version=before.droop_version + 1), name
    before = told(appliance)
    site.write("ESDlyTms", 0)
    site.write("Ctl2.PMin", -100)
    site.write("WSet", 0)
    assert told(appliance) == before


def test_the_limit_is_one_block_and_a_bad_value_refuses_it_whole(appliance: FakeAppliance, site: Client) -> None:
    before = told(appliance)
    assert site.write("WMaxLimPctEna", 1, 100.1, 50, 1, 30) == 3
    assert (site.read("AckWhy"), site.read("RefAddr")) == (Why.OUT_OF_RANGE, POINT["WMaxLimPct"].address)
    assert told(appliance) == before
    assert site.write("WMaxLimPctEna", 1, 40, 50, 1, 30) == 0
    after = told(appliance)
    assert (after.limit_enabled, after.limit_pu, after.limit_revert_pu) == (True, 0.4, 0.5)
    assert (after.limit_revert_enabled, after.limit_revert_s) == (True, 30.0)
    assert after.limit_version == before.limit_version + 1


def test_a_limit_reverts_in_the_registers_once(appliance: FakeAppliance, site: Client) -> None:
    site.write("WMaxLimPctEna", 1, 40, 75, 0, 3)
    version = told(appliance).limit_version
    appliance.show(limit_remaining_s=1.6)
    assert (site.read("WMaxLimPctRvrtRem"), site.read("WMaxLimPct")) == (2, 40)
    appliance.show(limit_remaining_s=0.0, limit_reverted=version)
    assert read(site, ("WMaxLimPctEna", "WMaxLimPct", "WMaxLimPctRvrtRem")) == [0, 75, 0]
    assert (told(appliance).limit_enabled, told(appliance).limit_version) == (False, version)
    site.write("WMaxLimPct", 20)
    assert (site.read("WMaxLimPct"), told(appliance).limit_version) == (20, version + 1)


def test_rests_of_time_are_those_of_the_controller(appliance: FakeAppliance, site: Client) -> None:
    appliance.show(service_delay_s=299.0, limit_remaining_s=12.0, droop_remaining_s=7.0)
    assert read(site, ("ESDlyRemTms", "WMaxLimPctRvrtRem", "711.RvrtRem")) == [299, 12, 7]


# adopting a droop set


def test_set_1_is_in_force_and_cannot_be_written(appliance: FakeAppliance, site: Client) -> None:
    assert (site.read("Ctl1.ReadOnly"), site.read("Ctl2.ReadOnly"), site.read("NCtl")) == (1, 0, 2)
    for name in LIVE:
        assert site.write(name, site.read(name)) == 2
        assert site.read("AckWhy") == Why.READ_ONLY


def test_a_set_counts_when_it_is_adopted(appliance: FakeAppliance, site: Client) -> None:
    before = read(site, LIVE)
    assert site.write("Ctl2.DbOf", *STEEP) == 0
    assert read(site, LIVE) == before
    assert told(appliance).k_of == pytest.approx(0.05)
    assert site.write("AdptCtlReq", 2) == 0
    assert read(site, LIVE) == pytest.approx(STEEP)
    assert site.read("AdptCtlRslt") == Adoption.COMPLETED
    after = told(appliance)
    assert (after.db_of_hz, after.db_uf_hz, after.k_of, after.k_uf, after.response_s, after.p_min_pu) == pytest.approx(
        (0.5, 0.4, 0.02, 0.03, 1.5, -0.4)
    )


@pytest.mark.parametrize("point", [point for point in SETS if point != "PMin"])
@pytest.mark.parametrize("high", [False, True])
def test_a_set_is_checked_when_it_is_adopted_and_not_before(
    appliance: FakeAppliance, site: Client, point: str, high: bool
) -> None:
    edge, step = ALLOWED[point][high], POINT[f"Ctl2.{point}"].scale
    before = read(site, LIVE)
    assert site.write(f"Ctl2.{point}", edge + (step if high else -step)) == 0
    assert site.write("AdptCtlReq", 2) == 0
    assert (site.read("AdptCtlRslt"), read(site, LIVE)) == (Adoption.FAILED, before)
    assert told(appliance).k_of == pytest.approx(before[2])
    assert site.write(f"Ctl2.{point}", edge) == 0
    assert site.write("AdptCtlReq", 2) == 0
    assert (site.read("AdptCtlRslt"), site.read(f"Ctl1.{point}")) == pytest.approx((Adoption.COMPLETED, edge))


@pytest.mark.parametrize("number", [0, 3, 65534])
def test_a_set_that_does_not_exist_is_not_adopted(appliance: FakeAppliance, site: Client, number: int) -> None:
    before = read(site, LIVE)
    site.write("Ctl2.DbOf", *STEEP)
    assert site.write("AdptCtlReq", number) == 0
    assert (site.read("AdptCtlReq"), site.read("AdptCtlRslt")) == (number, Adoption.FAILED)
    assert read(site, LIVE) == before
    assert site.write("AdptCtlReq", 1) == 0
    assert (site.read("AdptCtlRslt"), read(site, LIVE)) == (Adoption.COMPLETED, before), "it is in force already"


def test_a_reversion_adopts_the_set_that_was_named_for_it(appliance: FakeAppliance, site: Client) -> None:
    site.write("Ctl2.DbOf", *STEEP)
    site.write("711.RvrtCtl", 2)
    site.write("711.RvrtTms", 30)
    version = told(appliance).droop_version
    appliance.show(droop_reverted=version - 1)
    assert read(site, LIVE) != pytest.approx(STEEP)
    appliance.show(droop_reverted=version)
    assert read(site, LIVE) == pytest.approx(STEEP)
    assert (told(appliance).k_of, told(appliance).droop_version) == pytest.approx((0.02, version))
    site.write("Ctl2.KOf", 0.04)
    appliance.show(droop_remaining_s=0.0)
    assert site.read("Ctl1.KOf") == pytest.approx(0.02), "once"


def test_the_map_names_the_models_that_roles_may_write() -> None:
    assert {(40277, 703), (40363, 711)} <= set(MODEL_AT)


# restarts


def test_a_restarted_server_goes_on_with_what_was_written(tmp_path: Path) -> None:
    with FakeAppliance(tmp_path) as appliance:
        site = Client(appliance.port)
        site.write("ESDlyTms", 120)
        site.write("ES", 0)
        site.write("WMaxLimPctEna", 1, 40, 75, 0, 3)
        site.write("Ctl2.DbOf", *STEEP)
        site.write("AdptCtlReq", 2)
        site.write("Ctl2.KOf", 0.9)
        site.write("711.Ena", 1)
        before = told(appliance)
        site.close()
    with FakeAppliance(tmp_path) as appliance:
        assert told(appliance) == pytest.approx(before)
        site = Client(appliance.port)
        assert read(site, ("ES", "ESDlyTms", "WMaxLimPct", "711.Ena", "Ctl2.KOf")) == pytest.approx(
            [0, 120, 40, 1, 0.9]
        )
        assert read(site, LIVE) == pytest.approx(STEEP)
        site.close()


def test_a_restarted_server_does_not_adopt_what_was_written_after_the_reversion(tmp_path: Path) -> None:
    with FakeAppliance(tmp_path) as appliance:
        site = Client(appliance.port)
        site.write("Ctl2.DbOf", *STEEP)
        site.write("711.RvrtCtl", 2)
        appliance.show(droop_reverted=told(appliance).droop_version)
        assert site.read("Ctl1.KOf") == pytest.approx(0.02)
        site.write("Ctl2.KOf", 0.04)
        status = appliance.status
        site.close()
    with FakeAppliance(tmp_path) as appliance:
        appliance.show(**status._asdict())
        site = Client(appliance.port)
        assert (site.read("Ctl1.KOf"), site.read("Ctl2.KOf")) == pytest.approx((0.02, 0.04))
        site.close()


def test_after_a_boot_the_configuration_counts_again(tmp_path: Path) -> None:
    with FakeAppliance(tmp_path) as appliance:
        site = Client(appliance.port)
        site.write("ES", 0)
        site.close()
    (tmp_path / "run" / "server.img").unlink()
    with FakeAppliance(tmp_path) as appliance:
        assert told(appliance).service_permitted


def test_a_command_while_service_is_not_permitted_is_refused_with_the_reason(
    appliance: FakeAppliance, site: Client
) -> None:
    appliance.show(state=State.ISOLATED, permit=Why.SERVICE_NOT_PERMITTED)
    assert site.write("CmdMode", 1) == 4
    assert site.read("AckWhy") == Why.SERVICE_NOT_PERMITTED


def test_the_defaults_are_within_what_may_be_adopted() -> None:
    for point, (field, unit) in SETS.items():
        low, high = ALLOWED[point]
        assert low <= getattr(grid.DEFAULT, field) * unit <= high, point
