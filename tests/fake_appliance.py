"""The real Modbus server in this process, between a fake controller, aggregator and guard that the test drives."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, get_type_hints

from pymodbus.client import ModbusTcpClient
from pymodbus.pdu import ModbusPDU

from firmware import config
from firmware.appliance import Appliance
from firmware.image import BMS, COMMAND, GUARD, LINKS, PCS, STATUS, Links, Status, View, writer
from firmware.registers import POINT
from firmware.server import Configuration, listen
from statemachine.signals import Bms, Command, Guard, Pcs, Result
from statemachine.states import State

K = TypeVar("K", bound=tuple)  # type: ignore[type-arg]
_PUBLISH_S = 0.02
_TURN_S = 0.002


def zeros(kind: type[K], **values: Any) -> K:
    """A section with every field 0 except `values`."""
    return kind(**{name: type_() for name, type_ in get_type_hints(kind).items()} | values)


BATTERY = zeros(
    Bms, poll=7, rack_v=1100.0, rack_a=-560.0, soc_pct=42.5, soh_pct=98.0, cell_v_max=3.7, cell_v_min=3.65,
    cell_v_avg=3.67, cell_v_max_at=301, cell_v_min_at=12, cell_c_max=31.5, cell_c_min=-4.5, cell_c_max_at=1199,
)  # fmt: skip
READY = zeros(
    Status, state=State.READY, charge_limit_a=500.0, discharge_limit_a=600.0, available_charge_a=500.0,
    available_discharge_a=600.0, period_us=10_000,
)  # fmt: skip


class FakeAppliance:
    """`with FakeAppliance(tmp_path) as appliance:`; `show` changes what the fake controller publishes."""

    def __init__(self, directory: Path, configured: bool = True, **configuration: object) -> None:
        self.run_dir, self.config_dir, self.state_dir = (directory / name for name in ("run", "config", "state"))
        if configured:
            config.prepare(self.config_dir, configuration)
        self.status, self.bms, self.pcs, self.echo, self.alive = READY, BATTERY, zeros(Pcs, dc_v=1101.0), True, True
        self.cells = self.strings = b""  # their sections, published when there is something in them
        self.answer: Callable[[Command, Status], Status] = lambda command, status: status._replace(
            ack_seq=command.seq, ack_result=Result.ACCEPTED
        )
        self._ready, self._stop = threading.Event(), threading.Event()
        self._actions: queue.SimpleQueue[Future[object]] = queue.SimpleQueue()
        self._todo: dict[Future[object], Callable[[], object]] = {}
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> FakeAppliance:
        self._thread.start()
        assert self._ready.wait(5), "the server did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5)

    def _serve(self) -> None:
        files = {name: writer(name, self.run_dir) for name in ("controller", "aggregator", "guard", "server")}
        self._files = files
        self.device = Appliance(files["server"], self.run_dir, self.state_dir)
        self.configuration = Configuration(self.config_dir, files["server"], self.device)
        self.configuration.reload()
        self._commands = View(COMMAND, "server", "command", self.run_dir)
        self._publish()
        self.device.tick()
        self.server = listen(self.device, "127.0.0.1", 0)
        self._ready.set()
        published_s = 0.0
        while not self._stop.is_set():
            if time.monotonic() - published_s >= _PUBLISH_S:
                published_s = time.monotonic()
                self._publish()
                self.device.tick()
            while not self._actions.empty():
                action = self._actions.get()
                action.set_result(self._todo.pop(action)())
            self.server.step(_TURN_S)
        self.server.close()
        for file in files.values():
            file.close()

    def _publish(self) -> None:
        if not self.alive:
            return
        command = self._commands.refresh()
        if self.echo and command is not None:
            self.status = self.answer(command, self.status)
        self._files["controller"]["status"].publish(STATUS.pack(*self.status))
        self._files["aggregator"]["bms"].publish(BMS.pack(*self.bms))
        self._files["aggregator"]["pcs"].publish(PCS.pack(*self.pcs))
        if self.cells:
            self._files["aggregator"]["cells"].publish(self.cells)
            self._files["aggregator"]["strings"].publish(self.strings)
        self._files["aggregator"]["links"].publish(
            LINKS.pack(*zeros(Links, bms_garbage=2, bms_wrong_unit=3, bms_crc=7))
        )
        self._files["guard"]["guard"].publish(GUARD.pack(*zeros(Guard, armed=True)))

    def call(self, action: Callable[[], object]) -> None:
        """Runs `action` in the server's thread."""

        done: Future[object] = Future()
        self._todo[done] = action
        self._actions.put(done)
        done.result(5)

    def show(self, **changes: Any) -> None:
        """The controller publishes a changed status, now and from now on."""

        def change() -> None:
            self.status = self.status._replace(**changes)
            self._publish()

        self.call(change)

    @property
    def command(self) -> Command:
        """What the controller reads."""
        found = View(COMMAND, "server", "command", self.run_dir).refresh()
        assert found is not None
        return found

    @property
    def port(self) -> int:
        return self.server.port


class Client:
    """A site controller by name, with an independent Modbus client."""

    def __init__(self, port: int) -> None:
        self.raw = ModbusTcpClient("127.0.0.1", port=port, timeout=2, retries=0)
        assert self.raw.connect()  # type: ignore[no-untyped-call]

    def read_raw(self, name: str) -> list[int]:
        point = POINT[name]
        answer = self.raw.read_holding_registers(point.address, count=point.count, device_id=1)
        assert not answer.isError(), answer
        return list(answer.registers)

    def read(self, name: str) -> float:
        data = b"".join(register.to_bytes(2, "big") for register in self.read_raw(name))
        value = POINT[name].decode(data)
        assert not isinstance(value, str)
        return value

    def write(self, name: str, *values: float) -> int:
        """Exception code of one FC16 that begins at `name` and takes the points as they follow; 0 = accepted."""
        data, address = b"", POINT[name].address
        for value in values:
            point = next(p for p in POINT.values() if p.address == address + len(data) // 2)
            data += point.encode(value)
        return self.write_raw(address, [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)])

    def write_raw(self, address: int, registers: list[int]) -> int:
        return _code(self.raw.write_registers(address, registers, device_id=1))

    def write_one(self, address: int, register: int) -> int:
        """FC06."""
        return _code(self.raw.write_register(address, register, device_id=1))

    def close(self) -> None:
        self.raw.close()  # type: ignore[no-untyped-call]


def _code(answer: ModbusPDU) -> int:
    return getattr(answer, "exception_code", 0) if answer.isError() else 0
