"""What the update agent says reaches a site controller: the step at a fixed place, the rest in model 64991."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sunspec2.device
import sunspec2.modbus.client as sunspec
from fake_appliance import Client, FakeAppliance, zeros

from firmware import docgen
from firmware.image import UPDATE, Update, writer
from firmware.registers import POINT, UPDATE_LENGTH, UPDATE_MODEL
from firmware.update_codes import UpdateResult, UpdateState

SHOWN = zeros(
    Update, state=UpdateState.VERIFYING, progress_pct=42, result=UpdateResult.DAMAGED, detail=5, slot=2, tries=1,
    done_mb=51, total_mb=123, running=b"1.2.0", offered=b"1.3.0-rc1",
)  # fmt: skip
POINTS = [p for name, p in POINT.items() if name.startswith("Upd")]


@pytest.fixture(params=[1, 4, 16], ids="{} strings".format)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    (tmp_path / "run").mkdir()
    file = writer("updater", tmp_path / "run")
    file["update"].publish(UPDATE.pack(*SHOWN))
    with FakeAppliance(tmp_path, strings=request.param) as appliance:
        client = Client(appliance.port)
        client.strings, client.file = request.param, file  # type: ignore[attr-defined]
        yield client
        client.close()
        file.close()


def _model(site: Any) -> Any:
    device = sunspec.SunSpecModbusClientDeviceTCP(
        slave_id=1, ipaddr="127.0.0.1", ipport=site.raw.comm_params.port
    )  # fmt: skip
    device.scan()
    device.close()
    return device.models[UPDATE_MODEL][0]


@pytest.fixture(autouse=True)
def definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sunspec2.device, "model_defs_cache", {})
    path = [str(docgen.ROOT / "docs"), *sunspec2.device.model_defs_path]
    monkeypatch.setattr(sunspec2.device, "model_defs_path", path)


def test_a_sunspec_client_finds_the_update_whatever_the_number_of_strings(site: Any) -> None:
    model = _model(site)
    assert (model.model_addr, model.L.value) == (40676 + 32 * site.strings, UPDATE_LENGTH)
    assert (model.UpdProgress.value, model.UpdResult.value, model.UpdDetail.value) == (42, UpdateResult.DAMAGED, 5)
    assert (model.UpdSlot.value, model.UpdTries.value) == (2, 1)
    assert (model.UpdDone.value, model.UpdTotal.value) == (51, 123)
    assert (model.UpdRunning.value, model.UpdOffered.value) == ("1.2.0", "1.3.0-rc1")
    assert site.read("UpdState") == UpdateState.VERIFYING


def test_tries_that_nobody_knows_are_not_implemented(site: Any) -> None:
    site.file["update"].publish(UPDATE.pack(*SHOWN._replace(tries=-1)))
    assert _model(site).UpdTries.value is None


@pytest.mark.parametrize("site", [4], indirect=True)
def test_no_register_of_an_update_can_be_written(site: Any) -> None:
    assert len(POINTS) == 10
    for point in POINTS:
        assert site.write_raw(point.address, [0] * point.count) == 2, point.name


def test_without_an_agent_the_registers_are_not_implemented(tmp_path: Path) -> None:
    with FakeAppliance(tmp_path) as appliance:
        site = Client(appliance.port)
        for point in POINTS:
            value = point.decode(b"".join(r.to_bytes(2, "big") for r in site.read_raw(point.name)))
            assert value in ("",) or value != value, point.name
        site.close()
