"""`python -m tests.bench.python_servers NAME PORT FIRST COUNT`: a library's server as its documents show it.

COUNT holding registers from FIRST on, all 0. Ends with its parent.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import sys

from pymodbus.datastore import ModbusDeviceContext, ModbusSequentialDataBlock, ModbusServerContext
from pymodbus.server import StartAsyncTcpServer
from pyModbusTCP.server import DataBank, ModbusServer

_HOST = "127.0.0.1"
_PR_SET_PDEATHSIG = 1


def pymodbus(port: int, first: int, count: int) -> None:
    registers = ModbusSequentialDataBlock(first + 1, [0] * count)  # type: ignore[no-untyped-call]  # it counts from 1
    context = ModbusServerContext(devices=ModbusDeviceContext(hr=registers), single=True)
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
    asyncio.run(StartAsyncTcpServer(context, address=(_HOST, port)))


def pymodbustcp(port: int, first: int, count: int) -> None:
    ModbusServer(_HOST, port, data_bank=DataBank(h_regs_size=first + count)).start()


SERVERS = {"pymodbus": pymodbus, "pyModbusTCP": pymodbustcp}

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    SERVERS[sys.argv[1]](*map(int, sys.argv[2:]))
