"""The scripted site controller: charges the rack by register writes and keeps its heartbeat, as a real one does.

Only register names, never anything of the appliance's inside.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable

from statemachine.signals import Mode, Result, Why
from statemachine.states import OPEN, State

from . import cli, words
from .points import PointClient, PointError
from .registers import POINT

_HEARTBEAT_S = 1.0
_POLL_S = 0.2
_START_S = 30.0
_ANSWER_S = 5.0


class Refused(Exception):
    """The appliance does not do what it was told; the text says why."""


class SiteController:
    """One commanding client. `wait` paces it and raises to end it."""

    def __init__(self, client: PointClient, wait: Callable[[float], None], say: Callable[[str], None]) -> None:
        self._client, self._wait, self._say = client, wait, say
        self._beat = 0
        self._next_beat_s = 0.0
        self.passed: list[tuple[float, State]] = []
        """Every state seen, with CLOCK_MONOTONIC s."""
        self.fault_bits = 0
        """Every fault bit ever seen."""

    def state(self) -> State:
        """The present state, INIT while the controller is silent. Notes it and the faults, keeps the heartbeat."""
        self._heartbeat()
        values = self._client.read("CmfState", *words.FAULT_BITS)
        if values["CmfState"] != values["CmfState"]:
            return State.INIT
        state = State(int(values["CmfState"]))
        self.fault_bits |= words.faults_in(values)
        if not self.passed or self.passed[-1][1] != state:
            self.passed.append((time.monotonic(), state))
            self._say(f"state {state.name}")
        return state

    def until(self, wanted: Callable[[State], bool], timeout_s: float, what: str) -> State:
        """The first state that is wanted. Raises Refused after `timeout_s`."""
        end_s = time.monotonic() + timeout_s
        while not wanted(state := self.state()):
            if time.monotonic() > end_s:
                raise Refused(f"{what}: still {state.name} after {timeout_s:g} s; faults {self._faults()}")
            self._wait(_POLL_S)
        return state

    def until_permitted(self, timeout_s: float) -> None:
        """ISOLATED says that the contactors are open, Permit that they may close: the guard arms when it wants to.

        Raises Refused after `timeout_s`.
        """
        end_s = time.monotonic() + timeout_s
        while (why := int(self._client.read("Permit")["Permit"])) != Why.NONE:
            if time.monotonic() > end_s:
                raise Refused(f"the contactors may not close after {timeout_s:g} s: {words.why(why)}")
            self._wait(_POLL_S)
            self.state()

    def command(self, mode: Mode, rate_c: float = 0.5, target_pct: float = 80.0) -> None:
        """One FC16 with a new sequence number; returns when the appliance has accepted it. Raises Refused."""
        seq = int(self._client.read("CmdSeq")["CmdSeq"]) + 1
        block = {"CmdSeq": seq, "CmdMode": mode, "CmdW": 0, "CmdRamp": rate_c, "CmdTgtSoC": target_pct}
        details = "" if mode is Mode.OFF else f" {rate_c:g}C to {target_pct:g} %"
        self._say(f"command {seq}: {mode.name.lower()}{details}")
        try:
            cli.write(self._client, block)
        except cli.Failed as failed:
            raise Refused(f"command {seq} {failed}") from failed
        end_s = time.monotonic() + _ANSWER_S
        while True:
            answer = self._client.read("AckSeq", "AckResult", "AckWhy")
            if answer["AckSeq"] == seq and answer["AckResult"] == Result.ACCEPTED:
                return
            if answer["AckSeq"] == seq and answer["AckResult"] == Result.REJECTED:
                raise Refused(f"command {seq} rejected: {words.why(int(answer['AckWhy']))}")
            if time.monotonic() > end_s:
                raise Refused(f"command {seq} has no answer after {_ANSWER_S:g} s; is the controller running?")
            self._wait(_POLL_S)

    def charge(self, rate_c: float, target_pct: float, timeout_s: float) -> None:
        """From ISOLATED (waited for) to CHARGED at the target. Raises Refused."""
        self.until(lambda s: s in (State.ISOLATED, State.READY, State.CHARGED), _START_S, "start of the appliance")
        self.until_permitted(_START_S)
        self.command(Mode.CHARGE, rate_c, target_pct)
        ends = {State.CHARGED, State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT}
        end = self.until(lambda s: s in ends, timeout_s, f"charge to {target_pct:g} %")
        if end != State.CHARGED:
            raise Refused(f"the charge ended in {end.name}; faults {self._faults()}")

    def off(self, timeout_s: float = 60.0) -> None:
        """Mode off, and the way down to ISOLATED. Raises Refused."""
        self.command(Mode.OFF)
        end = self.until(lambda s: s in OPEN, timeout_s, "stop")
        if end != State.ISOLATED:
            raise Refused(f"the stop ended in {end.name}; faults {self._faults()}")

    def keep(self, seconds: float) -> None:
        """Only the heartbeat, for a while."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.state()
            self._wait(_POLL_S)

    def _heartbeat(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_beat_s:
            return
        self._next_beat_s = now_s + _HEARTBEAT_S
        self._beat = (self._beat + 1) % 0xFFFF
        self._client.write({"CtrlHb": self._beat})

    def _faults(self) -> str:
        names = [words.fault(bit) for bit in range(64) if self.fault_bits >> bit & 1]
        return " | ".join(names) or "none"


class _Ended(Exception):
    """SIGTERM or Ctrl-C."""


def _wait_for_signal(seconds: float) -> None:
    if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, seconds) is not None:
        raise _Ended


def main() -> None:
    """Charges once and keeps the heartbeat until SIGTERM or Ctrl-C. Exit 1 when the appliance does not follow."""
    parser = argparse.ArgumentParser(description="A site controller that charges the rack once.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=502)
    parser.add_argument("--ramp", type=float, default=0.5, help="C-rate")
    parser.add_argument("--target", type=float, default=80.0, help="SoC in percent")
    parser.add_argument("--then-off", action="store_true", help="open the contactors when charged")
    args = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        with PointClient(args.host, args.port, POINT) as client:
            site = SiteController(client, _wait_for_signal, lambda text: print(f"site: {text}", file=sys.stderr))
            site.charge(args.ramp, args.target, timeout_s=12 * 3600)
            if args.then_off:
                site.off()
            site.keep(float("inf"))
    except _Ended:
        return
    except (PointError, Refused) as error:
        sys.exit(f"site controller: {error}")


if __name__ == "__main__":
    main()
