"""Droop and enter service beside EPRI's OpenDER, an independent model of IEEE 1547-2018, at random points."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from rig import settings
from samples import PCS

from statemachine import grid
from statemachine.grid import DEFAULT, Droop, Service
from statemachine.ratings import rated_discharge_w
from statemachine.signals import Grid, LimitReason, Why

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opender import DER, DER_BESS

POINTS = 250
HZ = 60.0
S = settings(nominal_frequency=HZ)
RATED_W = 1e6


@pytest.fixture(autouse=True)
def step_of_opender(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its time step belongs to the class."""
    with monkeypatch.context() as patch:
        patch.setattr(DER, "t_s", DER.t_s)
        yield


def model(dt_s: float, **values: Any) -> Any:
    """A battery of 1 MW in both directions with nothing between its functions and its output."""
    DER.t_s = dt_s
    der = DER_BESS()
    file = der.der_file
    file.NP_P_MAX = file.NP_P_MAX_CHARGE = RATED_W
    file.NP_VA_MAX = file.NP_APPARENT_POWER_CHARGE_MAX = RATED_W
    file.NP_Q_MAX_INJ = file.NP_Q_MAX_ABS = 0.44 * RATED_W
    file.NP_EFFICIENCY = 1.0
    for name, value in values.items():
        assert hasattr(file, name), name
        setattr(file, name, value)
    return der


class Case(NamedTuple):
    """One random site."""

    g: Grid
    set_pu: float
    hz: tuple[float, ...]  # before, in and after the excursion

    def opender(self, dt_s: float) -> Any:
        return model(
            dt_s, PF_MODE_ENABLE=True, PF_DBOF=self.g.db_of_hz, PF_DBUF=self.g.db_uf_hz, PF_KOF=self.g.k_of,
            PF_KUF=self.g.k_uf, PF_OLRT=self.g.response_s, NP_P_MIN_PU=self.g.p_min_pu, STATUS_INIT=True,
        )  # fmt: skip


def cases() -> list[Case]:
    draw = random.Random(1547)
    made = []
    for _ in range(POINTS):
        g = DEFAULT._replace(
            droop_enabled=True, db_of_hz=draw.uniform(0.017, 1.0), db_uf_hz=draw.uniform(0.017, 1.0),
            k_of=draw.uniform(0.02, 0.05), k_uf=draw.uniform(0.02, 0.05), response_s=draw.uniform(0.2, 10.0),
            p_min_pu=-1.0,
        )  # fmt: skip
        made.append(Case(g, draw.uniform(-1.0, 1.0), (HZ, draw.uniform(58.6, 61.1), draw.uniform(58.6, 61.1), HZ)))
    return made


def both(case: Case, dt_s: float, steps: int) -> Iterator[tuple[float, float, float]]:
    """(hz, power by us, power by OpenDER) after each step, `steps` for each of the frequencies."""
    der, d, power = case.opender(dt_s), Droop(), case.set_pu
    for hz in case.hz:
        for _ in range(steps):
            der.update_der_input(p_dem_pu=case.set_pu, f=hz, v_pu=1.0)
            der.run()
            d = grid.droop(d, case.g, HZ, hz, case.set_pu, power, 1.0, dt_s)
            power = max(-1.0, min(1.0, d.power_pu))
            yield hz, power, der.activepowerfunc.p_desired_pu


def test_droop_settles_where_opender_settles() -> None:
    compared = worst = moved = 0.0
    for case in cases():
        steps = 40
        for at, (_, ours, theirs) in enumerate(both(case, case.g.response_s / 5.0, steps)):
            if at % steps == steps - 1:
                compared += 1
                worst = max(worst, abs(ours - theirs))
                moved += abs(theirs - case.set_pu) > 0.01
    assert compared == 4 * POINTS
    assert moved > POINTS, "the frequency did something"
    assert worst < 1e-6


def test_droop_moves_as_opender_moves() -> None:
    """The same first-order lag, made discrete in another way: with a hundredth of its time as step they agree."""
    worst = moved = 0.0
    for case in cases():
        for _, ours, theirs in both(case, case.g.response_s / 100.0, 150):
            worst = max(worst, abs(ours - theirs))
            moved = max(moved, abs(theirs - case.set_pu))
    assert moved > 0.5
    assert worst < 0.01


class Weather(NamedTuple):
    """One step of a random grid."""

    v_pu: float
    hz: float
    permitted: bool


def service_cases() -> Iterator[tuple[Grid, list[Weather]]]:
    """Fair weather most of the time, so that delays run out; the first step is foul, for OpenDER begins satisfied."""
    draw = random.Random(2018)
    for _ in range(POINTS):
        g = DEFAULT._replace(
            v_low_pu=draw.uniform(0.88, 0.95), v_high_pu=draw.uniform(1.05, 1.06), hz_low=draw.uniform(59.0, 59.9),
            hz_high=draw.uniform(60.1, 61.0), delay_s=float(draw.randrange(0, 40)), ramp_s=float(draw.randrange(1, 60)),
        )  # fmt: skip
        weather = [Weather(0.0, 60.0, True)]
        for _ in range(150):
            v_pu = draw.uniform(0.94, 1.06) if draw.random() < 0.05 else draw.uniform(0.955, 1.045)
            hz = draw.uniform(58.9, 61.1) if draw.random() < 0.05 else draw.uniform(59.92, 60.08)
            weather.append(Weather(v_pu, hz, draw.random() > 0.01))
        yield g, weather


def entering(g: Grid, dt_s: float) -> Any:
    return model(
        dt_s, STATUS_INIT=False, ES_V_LOW=g.v_low_pu, ES_V_HIGH=g.v_high_pu, ES_F_LOW=g.hz_low, ES_F_HIGH=g.hz_high,
        ES_DELAY=g.delay_s, ES_RAMP_RATE=g.ramp_s, ES_RANDOMIZED_DELAY=0, PF_MODE_ENABLE=False,
    )  # fmt: skip


def watched(m: Service, g: Grid, w: Weather, closed: bool, dt_s: float) -> Service:
    pcs = PCS._replace(ac_hz=w.hz, ac_v=w.v_pu * S.nominal_voltage)
    return grid.watch(m, g, S, pcs, closed, 1000.0 * dt_s)


def test_service_is_entered_in_the_same_step_as_in_opender() -> None:
    """Criteria and delay, step by step, until it is entered."""
    steps = entered = 0
    for g, weather in service_cases():
        der, m = entering(g, 1.0), Service()
        for w in weather:
            der.der_file.ES_PERMIT_SERVICE = w.permitted
            der.update_der_input(p_dem_pu=0.5, f=w.hz, v_pu=w.v_pu)
            der.run()
            g = g._replace(service_permitted=w.permitted)
            m = watched(m, g, w, False, 1.0)
            steps += 1
            assert (grid.refusal(m, g) is Why.NONE) == (der.der_status != "Trip"), (g, w, m)
            if der.der_status != "Trip":
                entered += 1
                break
    assert steps > 10 * POINTS
    assert entered > 200


def test_after_entering_service_the_power_rises_as_in_opender() -> None:
    """With the contactors closed in the step in which OpenDER enters service."""
    draw, fine = random.Random(4), Weather(1.0, 60.0, True)
    compared = 0
    for g, _ in service_cases():
        g = g._replace(delay_s=0.0)
        der, m, wanted = entering(g, 0.5), Service(), draw.choice((-1.0, 1.0)) * draw.uniform(0.2, 1.0)
        for v_pu in (0.0, *[1.0] * 80):
            der.update_der_input(p_dem_pu=wanted, f=60.0, v_pu=v_pu)
            der.run()
            if v_pu:
                m = watched(m, g, fine, True, 0.5)
                charge, discharge = grid.caps(m, g, S, 1000.0)
                for c, reason in discharge if wanted > 0.0 else charge:
                    assert reason is LimitReason.ENTER_SERVICE
                    most_pu = c * 1000.0 * S.rated_ah / rated_discharge_w(S)
                    ours = max(-most_pu, min(most_pu, wanted))
                    assert ours == pytest.approx(der.activepowerfunc.p_desired_pu, abs=1e-9)
                    compared += 1
                if not discharge:
                    assert der.activepowerfunc.p_desired_pu == pytest.approx(wanted)
    assert compared > 20 * POINTS


def test_service_that_is_not_permitted_trips_opender_in_the_step_in_which_we_cease() -> None:
    der, m = entering(DEFAULT, 1.0), Service()
    for step, permitted in enumerate((True, True, False, False)):
        g = DEFAULT._replace(service_permitted=permitted)
        der.der_file.ES_PERMIT_SERVICE = permitted
        der.update_der_input(p_dem_pu=0.5, f=60.0, v_pu=1.0)
        der.run()
        m = watched(m, g, Weather(1.0, 60.0, permitted), step > 0, 1.0)
        assert (m.ceased_ms > 0.0) is (der.der_status == "Trip") is not permitted


def test_the_power_limit_is_that_of_opender() -> None:
    """Discharge only, of the rated discharge power; OpenDER takes its response time to get there, we do at once."""
    draw, compared = random.Random(7), 0
    for _ in range(POINTS):
        limit, wanted = draw.uniform(0.01, 1.0), draw.uniform(-1.0, 1.0)
        der = model(100.0, AP_LIMIT_ENABLE=True, AP_LIMIT=limit, STATUS_INIT=True, PF_MODE_ENABLE=False)
        for _ in range(3):
            der.update_der_input(p_dem_pu=wanted, f=60.0, v_pu=1.0)
            der.run()
        charge, discharge = grid.caps(Service(), DEFAULT._replace(limit_enabled=True, limit_pu=limit), S, 1000.0)
        most_pu = discharge[0][0] * 1000.0 * S.rated_ah / rated_discharge_w(S)
        assert charge == []
        assert min(wanted, most_pu) == pytest.approx(der.activepowerfunc.p_desired_pu, abs=1e-9)
        compared += 1
    assert compared == POINTS
