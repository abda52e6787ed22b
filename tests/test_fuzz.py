"""A short run of the fuzzer; `make fuzz` makes five million."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.__main__ import Wrong, against_the_appliance, against_the_oracle

from drivers.modbus.session import Session


@pytest.mark.parametrize("seed", range(3))
def test_every_byte_of_every_answer_is_that_of_the_oracle(seed: int) -> None:
    assert against_the_oracle(10_000, seed) >= 10_000


def test_the_appliance_answers_anything_well_formed_and_applies_nothing_that_it_refused(tmp_path: Path) -> None:
    assert against_the_appliance(3_000, 1, tmp_path) >= 3_000


def test_the_fuzzer_finds_an_answer_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Session._registers

    def careless(self: Session, unit: int, address: int, count: int) -> bytes:
        return right(self, unit, address, count) if count != 125 else bytes(250)

    monkeypatch.setattr(Session, "_registers", careless)
    with pytest.raises(Wrong):
        against_the_oracle(20_000, 1)
