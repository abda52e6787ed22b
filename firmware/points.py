"""Points of a register map by name, and files, read and written as any Modbus client does it: tools, panel, demo."""

from __future__ import annotations

import logging
import select
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from types import TracebackType

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.file_message import FileRecord, ReadFileRecordResponse

from drivers.modbus.point import Point

_MOST = 120  # registers a read
_GAP = 20  # unused registers that are cheaper to read than to skip

logging.getLogger("pymodbus").setLevel(logging.CRITICAL)


class PointError(Exception):
    """No connection, no answer, or the answer was a refusal; the text says which, of whom and for which points."""


class Refusal(PointError):
    """The peer answered with Modbus exception `code`."""

    def __init__(self, peer: str, what: str, code: int) -> None:
        super().__init__(f"{peer} refused {what} with exception {code:02d}")
        self.code = code


class PointClient:
    """Connects with the first request and again after a failure."""

    def __init__(self, host: str, port: int, points: Mapping[str, Point], timeout_s: float = 1.0) -> None:
        self._peer = f"{host}:{port}"
        self._points = points
        self._client = ModbusTcpClient(host, port=port, timeout=timeout_s, retries=0)

    def __enter__(self) -> PointClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()  # type: ignore[no-untyped-call]

    def read(self, *names: str) -> dict[str, float]:
        """Values of numeric points, nan where the device has none. Raises PointError."""
        wanted = sorted((self._points[name] for name in names), key=lambda p: p.address)
        found: dict[str, float] = {}
        for run in _runs(wanted):
            found |= self._read_run(run)
        return found

    def write(self, values: Mapping[str, float]) -> None:
        """Neighbouring points in one FC16, whole or not at all. Raises PointError; ValueError if they do not touch."""
        wanted = sorted((self._points[name] for name in values), key=lambda p: p.address)
        if any(a.end != b.address for a, b in pairwise(wanted)):
            raise ValueError(f"{', '.join(p.name for p in wanted)} do not follow each other; write them one by one")
        data = b"".join(point.encode(values[point.name]) for point in wanted)
        registers = [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]
        first, unit = wanted[0].address, wanted[0].device_id
        self._ask(lambda: self._client.write_registers(first, registers, device_id=unit), _names(wanted))

    def read_file(self, file: int, record: int, count: int, unit: int = 1) -> bytes:
        """`count` registers (1..121) of a Modbus file, big-endian. Raises PointError."""
        wanted = [FileRecord(file_number=file, record_number=record, record_length=2 * count)]
        what = f"file {file} from record {record}"
        answer = self._ask(lambda: self._client.read_file_record(wanted, device_id=unit), what)
        parts = answer.records if isinstance(answer, ReadFileRecordResponse) else []
        if len(parts) != 1 or len(parts[0].record_data) != 2 * count:
            raise PointError(f"{self._peer} answered {what} with another length than {count} registers")
        return parts[0].record_data

    def _read_run(self, run: list[Point]) -> dict[str, float]:
        first, count, unit = run[0].address, run[-1].end - run[0].address, run[0].device_id
        answer = self._ask(lambda: self._client.read_holding_registers(first, count=count, device_id=unit), _names(run))
        if len(answer.registers) != count:
            raise PointError(f"{self._peer} answered {len(answer.registers)} registers instead of {count}")
        data = b"".join(register.to_bytes(2, "big") for register in answer.registers)
        return {
            point.name: _numeric(point, data[2 * (point.address - first) : 2 * (point.end - first)]) for point in run
        }

    def _ask(self, request: Callable[[], ModbusPDU], what: str) -> ModbusPDU:
        try:
            answer = self._answer(request)
        except (ModbusException, OSError) as error:
            self.close()
            raise PointError(f"no answer from {self._peer} for {what}: {error}") from error
        if answer.isError():
            raise Refusal(self._peer, what, getattr(answer, "exception_code", 0))
        return answer

    def _answer(self, request: Callable[[], ModbusPDU]) -> ModbusPDU:
        """A server closes a connection that was idle for long. Nothing is ever sent twice: it may have been done."""
        sock = self._client.socket
        if sock is not None and select.select([sock], [], [], 0)[0]:  # the end, or what came too late
            self.close()
        if not self._client.connected and not self._client.connect():  # type: ignore[no-untyped-call]
            raise PointError(f"no connection to {self._peer}; is it running, and is this the right port?")
        return request()


def _numeric(point: Point, data: bytes) -> float:
    value = point.decode(data)
    assert not isinstance(value, str), point.name
    return value


def _names(points: Iterable[Point]) -> str:
    return ", ".join(point.name for point in points)


def _runs(points: list[Point]) -> list[list[Point]]:
    """Neighbours in one request each."""
    runs: list[list[Point]] = []
    for point in points:
        last = runs[-1] if runs else None
        if last and point.address - last[-1].end <= _GAP and point.end - last[0].address <= _MOST:
            last.append(point)
        else:
            runs.append([point])
    return runs
