"""A point is encoded when it is read: however reads are cut and repeated, they say what a fresh server says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_appliance import BATTERY, READY
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.section import SectionFile
from firmware.appliance import Appliance
from firmware.image import BMS, STATUS, writer
from firmware.registers import BASE, END
from statemachine.states import State

CHANGES = {
    "state": st.sampled_from(list(State)), "ack_seq": st.integers(0, 9), "setpoint_a": st.floats(-500, 500),
    "faults_latched": st.integers(0, 2**40), "demand_w": st.just(float("nan")),
}  # fmt: skip
STEPS = st.lists(
    st.one_of(
        st.sampled_from(list(CHANGES)).flatmap(lambda name: st.tuples(st.just(name), CHANGES[name])),
        st.tuples(st.just("soc_pct"), st.floats(0, 100)),
        st.tuples(st.just("read"), st.tuples(st.integers(0, END - BASE - 1), st.integers(1, 125))),
        st.just(("whole", None)),
    ),
    max_size=30,
)

Racks = tuple[Appliance, Callable[[], Appliance], dict[str, SectionFile]]


@pytest.fixture(scope="module")
def racks(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Appliance, Callable[[], Appliance], dict[str, SectionFile]]:
    run, other = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("other")
    files = {name: writer(name, run) for name in ("controller", "aggregator", "server")}
    pieces = Appliance(files["server"], run, run)
    left = writer("server", other)
    return pieces, lambda: Appliance(left, run, other), dict(files)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_pieces_are_what_a_fresh_server_says(racks, steps) -> None:  # type: ignore[no-untyped-def]
    pieces, fresh, files = racks
    status, bms = READY, BATTERY
    for what, value in [*steps, ("read", (0, 125)), ("whole", None)]:
        if what in ("read", "whole"):
            whole = fresh()
            expected = b"".join(whole.read(1, at, min(125, END - at)) for at in range(BASE, END, 125))
            first, count = value if value is not None else (0, END - BASE)
            for at in range(first, min(first + count, END - BASE), 125):
                n = min(125, first + count - at, END - BASE - at)
                assert pieces.read(1, BASE + at, n) == expected[2 * at : 2 * (at + n)], (at, n)
        else:
            if what == "soc_pct":
                bms = bms._replace(soc_pct=value)
            else:
                status = status._replace(**{what: value})
            files["controller"]["status"].publish(STATUS.pack(*status))
            files["aggregator"]["bms"].publish(BMS.pack(*bms))
