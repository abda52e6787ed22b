"""What is asked of rauc and the boot loader, and how their answers are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from firmware import rauc
from firmware.rauc import System


@pytest.mark.parametrize(
    ("cmdline", "slot"),
    [("quiet rauc.slot=A", 1), ("rauc.slot=B roothash=x", 2), ("rauc.slot=C", 0), ("quiet", 0),
     ("rauc.slot=A rauc.slot=B", 2)],
)  # fmt: skip
def test_the_booted_slot_is_what_the_kernel_was_told(cmdline: str, slot: int) -> None:
    assert rauc.booted(cmdline) == slot


@pytest.mark.parametrize(
    ("text", "left"),
    [("A_TRY=0\nB_TRY=2\n", 1), ("B_TRY=3\n###\n", 0), ("A_TRY=1\n", -1), ("B_TRY=x\n", -1), (None, -1)],
)  # fmt: skip
def test_the_starts_that_are_left_are_read_from_the_bootloader(tmp_path: Path, text: str | None, left: int) -> None:
    path = tmp_path / "grubenv"
    if text is not None:
        path.write_text(f"# GRUB Environment Block\n{text}")
    assert rauc.tries_left(path, 2) == left
    assert rauc.tries_left(None, 2) == rauc.tries_left(path, 0) == -1


@pytest.mark.parametrize(
    ("text", "slot"),
    [("ORDER=B A\nA_OK=1\nB_OK=1\nB_TRY=3\n", 2),
     ("ORDER=A B\nA_OK=0\nB_OK=1\n", 2), ("ORDER=A B\nA_OK=1\n", 1), ("ORDER=A B\n", 0),
     ("ORDER=C\nC_OK=1\n", 0), ("A_OK=1\n", 0), (None, 0)],
)  # fmt: skip
def test_the_slot_that_the_bootloader_prefers_is_the_first_good_one(
    tmp_path: Path, text: str | None, slot: int
) -> None:
    path = tmp_path / "grubenv"
    if text is not None:
        path.write_text(f"# GRUB Environment Block\n{text}####")
    assert rauc.first(path) == slot
    assert rauc.first(None) == 0


def test_what_rauc_needs_is_read_from_its_own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "system.conf"
    monkeypatch.setenv("EMS_RAUC_CONF", str(path))
    with pytest.raises(ValueError, match=r"system\.conf: No such file or directory; without it nothing"):
        rauc.system()
    path.write_text("[system]\ncompatible=box\ngrubenv=/efi/grubenv\n[keyring]\npath=/etc/rauc/ca.pem\n")
    assert rauc.system() == System(path, "box", Path("/etc/rauc/ca.pem"), Path("/efi/grubenv"))
    path.write_text("[system]\ncompatible=box\n")
    with pytest.raises(ValueError, match=r"'keyring' is missing"):
        rauc.system()


@pytest.mark.parametrize(
    ("script", "code"),
    [("echo one; echo two; exit 3", 3), ("echo one; echo two; kill -9 $$", 137), ("sleep 9", 137)],
    ids=["ends", "killed", "hangs"],
)  # fmt: skip
def test_a_command_is_followed_line_by_line_and_bounded(script: str, code: int) -> None:
    lines: list[str] = []
    found, said = rauc.run(("sh", "-c", script), 0.5, lambda: None, lines.append)
    assert found == code
    assert script == "sleep 9" or ([line for line in lines if line], said) == (["one", "two"], "one\ntwo\n")


def test_a_program_that_is_not_there_is_told_by_name() -> None:
    assert rauc.run(("no-such-program",), 1, lambda: None) == (127, "no-such-program: No such file or directory")


def test_the_progress_of_rauc_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "rauc"
    program.write_text("#!/bin/sh\nprintf 'installing\\n  0%% Installing\\n 40%% Copying image\\n100%% done\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    seen: list[int] = []
    assert rauc.install(tmp_path / "x", lambda: None, seen.append)[0] == 0
    assert seen == [0, 40, 100]
