"""An update bundle: squashfs, dm-verity tree, CMS signature around the manifest, length of the signature (8 bytes).

rauc checks the signature. A flipped bit in squashfs or tree it finds only while it copies, when the standby slot is
half written and the way back is lost; so everything is read through here first, against the hash that was signed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .update_codes import UpdateResult

BLOCK, DIGEST = 4096, 32
MOST_BYTES = 512 << 20
_HASHES = BLOCK // DIGEST
_LENGTH, _MOST_CMS = 8, 1 << 20
_CHUNK = 256 * BLOCK
_SEQUENCE, _CONTEXT_0, _OCTETS = 0x30, 0xA0, 0x04

Beat = Callable[[int, int], None]
"""Called often with bytes done and bytes to do; what it raises ends the work."""


class Refused(Exception):
    """An update ends here; `detail` is a number that helps, `text` what was seen."""

    def __init__(self, result: UpdateResult, text: str = "", detail: int = 0) -> None:
        super().__init__(text)
        self.result, self.detail = result, detail


class Manifest(NamedTuple):
    """What was signed, and where in the file it is."""

    compatible: str
    version: str
    root: bytes  # hash of the tree
    salt: bytes
    data_bytes: int  # squashfs
    tree_bytes: int


def manifest(path: Path) -> Manifest:
    """The manifest in the signature, which rauc must have checked. Raises Refused (TRUNCATED or FORMAT), OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        cms = _signature(file, size)
    text = _content(cms).decode("utf-8", "replace")
    parser = ConfigParser(interpolation=None, delimiters=("=",), strict=True)
    try:
        parser.read_string(text)
        return _manifest(parser, size - _LENGTH - len(cms))
    except (ConfigParserError, KeyError, ValueError) as error:
        raise Refused(UpdateResult.FORMAT, f"manifest: {error}") from error


def _manifest(parser: ConfigParser, before: int) -> Manifest:
    """Raises KeyError, ValueError, ConfigParserError."""
    update, bundle = parser["update"], parser["bundle"]
    if bundle.get("format") != "verity":
        raise ValueError(f"format = {bundle.get('format')}, allowed is verity")
    tree = int(bundle["verity-size"])
    found = Manifest(
        update["compatible"], update.get("version", ""), bytes.fromhex(bundle["verity-hash"]),
        bytes.fromhex(bundle["verity-salt"]), before - tree, tree,
    )  # fmt: skip
    whole = found.data_bytes > 0 and found.data_bytes % BLOCK == 0
    if not whole or tree != BLOCK * sum(levels(found.data_bytes // BLOCK)) or len(found.root) != DIGEST:
        raise ValueError(f"{found.data_bytes} bytes of data do not have a tree of {tree} bytes")
    return found


def _signature(file: BinaryIO, size: int) -> bytes:
    if size > MOST_BYTES:
        raise Refused(UpdateResult.TOO_LARGE, f"{size} bytes, allowed {MOST_BYTES}")
    if size < _LENGTH:
        raise Refused(UpdateResult.TRUNCATED, f"{size} bytes")
    file.seek(size - _LENGTH)
    length = int.from_bytes(file.read(_LENGTH), "big")
    if not 0 < length <= min(_MOST_CMS, size - _LENGTH):
        raise Refused(UpdateResult.TRUNCATED, f"a signature of {length} bytes is not in it")
    file.seek(size - _LENGTH - length)
    cms = file.read(length)
    if len(cms) < length or _der(cms, 0, _SEQUENCE)[1] != length:
        raise Refused(UpdateResult.TRUNCATED, "the signature is not whole")
    return cms


def _der(data: bytes, at: int, tag: int) -> tuple[int, int]:
    """First byte and end of the content of an element (DER, definite length). Raises Refused (TRUNCATED)."""
    first = data[at + 1 : at + 2]
    long = first[0] & 0x7F if first and first[0] & 0x80 else 0
    begin = at + 2 + long
    length = int.from_bytes(data[at + 2 : begin], "big") if long else int.from_bytes(first, "big")
    if data[at : at + 1] != bytes((tag,)) or long > 4 or begin + length > len(data):
        raise Refused(UpdateResult.TRUNCATED, "the signature is no CMS")
    return begin, begin + length


def _after(data: bytes, at: int) -> int:
    return _der(data, at, data[at] if at < len(data) else -1 & 0xFF)[1]


def _content(cms: bytes) -> bytes:
    """RFC 5652: ContentInfo, [0] SignedData, its encapContentInfo, [0] the octets."""
    at = _der(cms, 0, _SEQUENCE)[0]
    at = _der(cms, _after(cms, at), _CONTEXT_0)[0]
    at = _der(cms, at, _SEQUENCE)[0]
    at = _after(cms, _after(cms, at))  # behind version and digest algorithms
    at = _der(cms, at, _SEQUENCE)[0]
    at = _der(cms, _after(cms, at), _CONTEXT_0)[0]
    begin, end = _der(cms, at, _OCTETS)
    return cms[begin:end]


def levels(blocks: int) -> list[int]:
    """Blocks in each level of the tree over `blocks` of data, the lowest first; one block alone has no tree."""
    found = []
    while blocks > 1:
        blocks = -(-blocks // _HASHES)
        found.append(blocks)
    return found


def read_through(path: Path, m: Manifest, beat: Beat) -> None:
    """Every byte of data and tree against the hash that was signed. Raises Refused (DAMAGED), OSError."""
    with path.open("rb") as file:
        digests = b"".join(_hashed(_blocks(file, m.data_bytes, m.data_bytes, beat), m.salt))
        end = m.data_bytes + m.tree_bytes
        for number, blocks in enumerate(levels(m.data_bytes // BLOCK)):
            end -= blocks * BLOCK
            file.seek(end)
            stored = file.read(blocks * BLOCK)
            if stored != digests.ljust(blocks * BLOCK, b"\0"):
                raise Refused(UpdateResult.DAMAGED, f"level {number} of the tree does not fit")
            digests = b"".join(_hashed([stored], m.salt))
    if digests != m.root:
        raise Refused(UpdateResult.DAMAGED, "the tree is not the one that was signed")


def _blocks(file: BinaryIO, size: int, total: int, beat: Beat) -> Iterator[bytes]:
    while size:
        beat(total - size, total)
        data = file.read(min(size, _CHUNK))
        if len(data) < min(size, _CHUNK):
            raise Refused(UpdateResult.TRUNCATED, f"{size} bytes are missing")
        size -= len(data)
        yield data


def _hashed(chunks: Iterator[bytes] | list[bytes], salt: bytes) -> Iterator[bytes]:
    salted = hashlib.sha256(salt)
    for data in chunks:
        for at in range(0, len(data), BLOCK):
            block = salted.copy()
            block.update(data[at : at + BLOCK])
            yield block.digest()


def older(version: str, than: str) -> bool:
    """By the numbers before a - or +; False when one of them has none."""
    a, b = ([int(n) for n in re.findall(r"\d+", re.split(r"[-+~]", text)[0])] for text in (version, than))
    parts = list(zip_longest(a, b, fillvalue=0))
    return bool(a and b) and [n for n, _ in parts] < [n for _, n in parts]
