"""The sampler: reads the 4-20 mA loops outside the scan and publishes them with their stamps.

SCHED_FIFO below the controller. A bus that hangs stops the publishing; the controller sees the section age. On the
bench there is nothing to sample and the process ends at once.
"""

from __future__ import annotations

import gc
import os
import sys
from time import monotonic_ns, thread_time_ns

from drivers.adc import LoopSampler
from drivers.board import BoardError
from drivers.board_file import load
from drivers.loops import SECTION, pack
from drivers.section import SectionWriter

from . import image
from .notify import Notifier
from .realtime import lock_memory, pending_stop, settle, sleep_until, use_fifo

PRIORITY = 40  # below the kernel's interrupt threads (50): guard and controller wait for them on a slow bus


def run(sampler: LoopSampler, section: SectionWriter, period_ns: int) -> None:
    """A round every `period_ns` until SIGTERM; on a slow processor a third of it is left to the processes below.

    The stamp is the start of the round.
    """
    deadline, life = monotonic_ns(), Notifier()
    while not pending_stop():
        sleep_until(deadline)
        start_ns, worked_ns = monotonic_ns(), thread_time_ns()
        section.publish(pack(sampler.round()), start_ns)
        gc.collect(0)  # a bus error leaves a cycle, and the collector is off
        life.tick()
        deadline = max(deadline + period_ns, monotonic_ns() + (thread_time_ns() - worked_ns) // 2)


def main() -> int:
    """Process entry."""
    try:
        board = load(os.environ.get("EMS_BOARD") or "bench")
        if board.is_bench:
            print("sampler: the bench samples its own loops; nothing to do", file=sys.stderr)
            return 0
        files = image.writer("sampler")
    except (BoardError, OSError) as error:
        print(f"sampler: {error}", file=sys.stderr)
        return 2
    log = image.EventLog(files["events"])
    sampler = LoopSampler(board, lambda text: log.add(0, text=text))
    settle()
    fifo, _ = use_fifo(PRIORITY), lock_memory()
    grade = f"SCHED_FIFO {PRIORITY}" if fifo else "without the right to SCHED_FIFO"
    print(f"sampler: {len(board.loops)} loops of board {board.path.stem}, {grade}", file=sys.stderr)
    run(sampler, files[SECTION], board.loops_ms * 1_000_000)
    sampler.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
