"""`python -m firmware.safe_outputs`: waits for the board, drives every output to its safe level and lets the lines go.

The appliance runs it before guard and controller; `--wait` only waits, and drives nothing, for a process that is
started again while its adapter is unplugged.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from drivers import gpiochip
from drivers.board import BoardError, Role, open_board
from drivers.board_file import BoardFile, load

from .image import run_directory

RETRY_S = 2.0


def missing(board: BoardFile) -> Iterator[str]:
    """What of the board is not there, one text a chip or converter."""
    for name, wanted in board.chips.items():
        if trouble := _trouble("gpio", wanted):
            yield f"chip {name}: {trouble}"
    for name, adc in board.adcs.items():
        if trouble := _trouble("i2c" if adc.kind == "ads1115" else "spidev", adc.device):
            yield f"converter {name}: {trouble}"


def _trouble(kind: gpiochip.Kind, wanted: gpiochip.Device) -> str:
    try:
        gpiochip.find(kind, wanted)
    except OSError as error:
        return str(error)
    return ""


def drive(directory: Path) -> None:
    """Each output to its safe level. Raises BoardError."""
    for role in get_args(Role):
        open_board(role, directory).close()


def wait(trouble: Callable[[], str], say: Callable[[str], None], pause: Callable[[float], None] = time.sleep) -> None:
    """Until there is no trouble; each new one is said once."""
    said = ""
    while found := trouble():
        if found != said:
            say(found)
            said = found
        pause(RETRY_S)


def main() -> int:
    """Ends when all is there and safe; 2 when the board file is wrong."""
    parser = argparse.ArgumentParser(description="Every output of the board to its safe level, once it is there.")
    parser.add_argument("--wait", action="store_true", help="wait for the board only")
    only_wait = parser.parse_args().wait
    try:
        board = load(os.environ.get("EMS_BOARD") or "bench")
    except BoardError as error:
        print(f"outputs: {error}", file=sys.stderr)
        return 2
    if board.is_bench:
        return 0

    def trouble() -> str:
        if found := "; ".join(missing(board)):
            return found
        try:
            if not only_wait:
                drive(run_directory())
        except OSError as error:
            return str(error)
        return ""

    wait(trouble, lambda text: print(f"outputs: waiting: {text}", file=sys.stderr, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
