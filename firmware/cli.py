"""What the command-line tools share: options, errors of one line, the reason of a refusal in words."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from drivers.modbus.point import Point

from . import words
from .points import PointClient, PointError
from .registers import POINT

_DASHES = "‐‑‒–—―−"


class Failed(Exception):
    """The tool did not do what it was asked to; the text says why and what to do next."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """With --host and --port. A wrong argument is one line and exit code 2."""
    made = _Parser(prog=prog, description=description, allow_abbrev=False)
    made.add_argument("--host", default="127.0.0.1", help="appliance (default %(default)s)")
    default = os.environ.get("EMS_PORT", "502")
    made.add_argument("--port", type=port, default=default, help="its port (default $EMS_PORT, else 502)")
    return made


def port(text: str) -> int:
    """An argparse type."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"port {text!r}: allowed 1 to 65535")
    return int(text)


def arguments(argv: Sequence[str] | None) -> list[str]:
    """The arguments with the typographic dashes of a printed manual made plain: `–mode` is `--mode`.

    A dash before a digit is a minus: `--power -250000W` is `--power=-250000W`.
    """
    plain: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        if plain and word[:1] in (*_DASHES, "-") and word[1:2].isdecimal():
            plain[-1] += f"=-{word[1:]}"
        else:
            plain.append("--" + word.lstrip(_DASHES + "-") if word[:1] in tuple(_DASHES) else word)
    return plain


def write(client: PointClient, values: Mapping[str, float]) -> None:
    """One FC16. Raises Failed with the appliance's own reason when it is refused."""
    try:
        client.write(values)
    except PointError as error:
        seen = client.read("AckWhy", "RefAddr")
        if not seen["AckWhy"]:
            raise
        where = next(
            (p.name for p in POINT.values() if p.address == seen["RefAddr"]), f"register {seen['RefAddr']:.0f}"
        )
        raise Failed(f"refused at {where}: {words.why(int(seen['AckWhy']))}") from error


def run(
    prog: str,
    args: argparse.Namespace,
    action: Callable[[PointClient], int],
    points: Mapping[str, Point] = POINT,
    timeout_s: float = 1.0,
) -> int:
    """Runs `action` on a connection that knows `points`; 1 and one line on stderr when it fails."""

    def connected() -> int:
        with PointClient(args.host, args.port, points, timeout_s) as client:
            return action(client)

    return told(prog, connected)


def told(prog: str, action: Callable[[], int]) -> int:
    """Runs `action`; 1 and one line on stderr when it fails."""
    try:
        return action()
    except (PointError, Failed) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; the last accepted command stays in force", file=sys.stderr)
        return 130
