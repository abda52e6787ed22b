"""A bundle is read through before anything is written: a bit that is flipped anywhere is found, by rauc or by us."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from bundles import COMPATIBLE, Identity, authority, bundle, issued, needs_rauc
from hypothesis import given
from hypothesis import strategies as st

from firmware import rauc
from firmware.bundle import BLOCK, MOST_BYTES, Manifest, Refused, levels, manifest, older, read_through
from firmware.rauc import System
from firmware.update_codes import UpdateResult as R


class Made(NamedTuple):
    """A good bundle and who signs at this site."""

    path: Path
    root: Identity
    signer: Identity
    system: System

    def judge(self, path: Path) -> R:
        """As the agent does before it installs."""
        try:
            manifest(path)
            rauc.check(path, self.system, lambda: None)
            read_through(path, manifest(path), lambda done, total: None)
        except Refused as refused:
            return refused.result
        return R.NONE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("bundle")
    root = authority(directory / "pki")
    signer = issued(root, "signer")
    path = bundle(directory / "good.raucb", signer, root)
    return Made(path, root, signer, System(directory / "system.conf", COMPATIBLE, root.certificate, None))


@needs_rauc
def test_the_right_bundle_is_accepted_and_says_what_it_is(made: Made) -> None:
    assert made.judge(made.path) is R.NONE
    m = manifest(made.path)
    assert (m.compatible, m.version, len(m.root)) == (COMPATIBLE, "9.1.0", 32)


@needs_rauc
def test_a_flipped_bit_in_every_64th_of_the_file_is_refused(made: Made, tmp_path: Path) -> None:
    data, bad = made.path.read_bytes(), tmp_path / "bad.raucb"
    seen = {}
    for part in range(64):
        at = (len(data) * part + len(data) // 2) // 64
        bad.write_bytes(data[:at] + bytes((data[at] ^ 1 << part % 8,)) + data[at + 1 :])
        seen[at] = made.judge(bad)
    assert R.NONE not in seen.values(), seen
    m = manifest(made.path)
    places = {R.DAMAGED: range(m.data_bytes + m.tree_bytes)}
    assert all(result is R.DAMAGED for at, result in seen.items() if at in places[R.DAMAGED])


@needs_rauc
def test_a_flipped_bit_in_the_tree_the_signature_and_its_length_is_refused(made: Made, tmp_path: Path) -> None:
    data, bad, m = made.path.read_bytes(), tmp_path / "bad.raucb", manifest(made.path)
    end = m.data_bytes + m.tree_bytes
    places = [
        m.data_bytes, m.data_bytes + BLOCK - 1, end - 1, end, end + 3, end + 60, len(data) - 9, len(data) - 8,
        len(data) - 1,
    ]  # fmt: skip
    for at in places:
        bad.write_bytes(data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :])
        assert made.judge(bad) in (R.DAMAGED, R.SIGNATURE, R.TRUNCATED), at


@needs_rauc
@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 4096, 100_000, -1, -8, -9])
def test_a_truncated_bundle_is_refused(made: Made, tmp_path: Path, left: int) -> None:
    bad = tmp_path / "bad.raucb"
    bad.write_bytes(made.path.read_bytes()[:left])
    assert made.judge(bad) is R.TRUNCATED


@needs_rauc
def test_bytes_behind_the_end_are_refused(made: Made, tmp_path: Path) -> None:
    bad = tmp_path / "bad.raucb"
    bad.write_bytes(made.path.read_bytes() + b"\0" * 4096)
    assert made.judge(bad) is R.TRUNCATED


@needs_rauc
def test_another_ca_is_refused(made: Made, tmp_path: Path) -> None:
    other = authority(tmp_path / "pki", "other CA")
    path = bundle(tmp_path / "other.raucb", issued(other, "signer"), other)
    assert made.judge(path) is R.SIGNATURE


@needs_rauc
def test_an_expired_signer_is_refused(made: Made, tmp_path: Path) -> None:
    expired = issued(made.root, "expired", expired=True)
    bad = tmp_path / "bad.raucb"
    content = tmp_path / "content"
    content.mkdir()
    m, data = manifest(made.path), made.path.read_bytes()
    text = (
        f"[update]\ncompatible={m.compatible}\nversion=9.9\n[bundle]\nformat=verity\nverity-hash={m.root.hex()}\n"
        f"verity-salt={m.salt.hex()}\nverity-size={m.tree_bytes}\n"
    )
    (content / "m").write_text(text)
    cms = subprocess.run(
        ["openssl", "cms", "-sign", "-nodetach", "-binary", "-nosmimecap", "-signer", str(expired.certificate),
         "-inkey", str(expired.key), "-outform", "DER", "-in", str(content / "m")],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    bad.write_bytes(data[: m.data_bytes + m.tree_bytes] + cms + len(cms).to_bytes(8, "big"))
    assert manifest(bad).version == "9.9"
    assert made.judge(bad) is R.SIGNATURE


@needs_rauc
def test_another_board_is_refused(made: Made, tmp_path: Path) -> None:
    path = bundle(tmp_path / "other.raucb", made.signer, made.root, compatible="another-board")
    assert made.judge(path) is R.COMPATIBLE


@needs_rauc
def test_a_bundle_of_another_format_is_refused(made: Made, tmp_path: Path) -> None:
    """A plain one has its manifest inside, and nothing that could be read through."""
    path = bundle(tmp_path / "plain.raucb", made.signer, made.root, form="plain")
    assert made.judge(path) in (R.FORMAT, R.TRUNCATED)


def test_a_bundle_that_is_too_large_is_refused_by_its_size_alone(tmp_path: Path) -> None:
    path = tmp_path / "large.raucb"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(Refused) as refused:
        manifest(path)
    assert refused.value.result is R.TOO_LARGE


@needs_rauc
def test_reading_through_stops_when_it_is_told_to(made: Made) -> None:
    class Enough(Exception):
        pass

    def beat(done: int, total: int) -> None:
        assert 0 <= done <= total
        raise Enough

    with pytest.raises(Enough):
        read_through(made.path, manifest(made.path), beat)


@pytest.mark.skipif(shutil.which("veritysetup") is None, reason="veritysetup, an independent reader, is not installed")
@pytest.mark.parametrize("blocks", [1, 2, 127, 128, 129, 1000, 128 * 128 + 1])
def test_the_tree_is_the_one_of_veritysetup(tmp_path: Path, blocks: int) -> None:
    data, tree, salt = tmp_path / "data", tmp_path / "tree", b"\x5a" * 32
    with data.open("wb") as file:
        file.truncate(blocks * BLOCK)
        file.seek((blocks - 1) * BLOCK)
        file.write(b"the last block is not empty")
    said = subprocess.run(
        ["veritysetup", "format", "--no-superblock", f"--salt={salt.hex()}", str(data), str(tree)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    root = next(line.split()[-1] for line in said.splitlines() if line.startswith("Root hash"))
    stored = tree.read_bytes() if tree.exists() else b""
    assert len(stored) == BLOCK * sum(levels(blocks))
    both = tmp_path / "both"
    both.write_bytes(data.read_bytes() + stored)
    m = Manifest("", "", bytes.fromhex(root), salt, blocks * BLOCK, len(stored))
    read_through(both, m, lambda done, total: None)
    with pytest.raises(Refused):
        read_through(both, m._replace(root=bytes(32)), lambda done, total: None)


def test_a_signature_that_is_no_signature_is_refused_whatever_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.raucb"

    @given(cms=st.binary(max_size=200), before=st.integers(0, 2))
    def holds(cms: bytes, before: int) -> None:
        path.write_bytes(bytes(before * BLOCK) + cms + len(cms).to_bytes(8, "big"))
        with pytest.raises(Refused) as refused:
            manifest(path)
        assert refused.value.result in (R.TRUNCATED, R.FORMAT)

    holds()


@pytest.mark.parametrize(
    ("version", "than", "is_older"),
    [
        ("1.2.0", "1.3.0", True), ("1.10.0", "1.9.0", False), ("1.2.0-rc1", "1.2.0", False), ("1.2", "1.2.0", False),
        ("2", "1.9", False), ("", "1.0", False), ("nightly", "1.0", False), ("1.0", "nightly", False),
    ],
)  # fmt: skip
def test_a_version_is_older_by_its_numbers(version: str, than: str, is_older: bool) -> None:
    assert older(version, than) is is_older
