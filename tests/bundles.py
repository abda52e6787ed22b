"""Throw-away certificates, and update bundles as rauc makes and signs them."""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

COMPATIBLE = "ems-edge-test"
needs_rauc = pytest.mark.skipif(
    any(shutil.which(program) is None for program in ("rauc", "mksquashfs")),
    reason="rauc or squashfs-tools, which make bundles, are not installed",
)


class Identity(NamedTuple):
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


def authority(directory: Path, name: str = "site CA") -> Identity:
    """A self-signed CA."""
    return _made(directory, name, None, timedelta(days=-1), timedelta(days=365))


def issued(by: Identity, name: str, expired: bool = False, host: str = "127.0.0.1") -> Identity:
    """A certificate for signing and for serving `host`."""
    begin, end = (timedelta(days=-20), timedelta(days=-10)) if expired else (timedelta(days=-1), timedelta(days=365))
    return _made(by.certificate.parent, name, by, begin, end, host)


def _made(
    directory: Path, name: str, by: Identity | None, begin: timedelta, end: timedelta, host: str = ""
) -> Identity:
    directory.mkdir(parents=True, exist_ok=True)
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = key if by is None else serialization.load_pem_private_key(by.key.read_bytes(), None)
    issuer = subject if by is None else x509.load_pem_x509_certificate(by.certificate.read_bytes()).subject
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
    )
    if host:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        builder = builder.add_extension(names, critical=False)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    certificate = builder.sign(signer, hashes.SHA256())
    made = Identity(directory / f"{name}.crt", directory / f"{name}.key")
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return made


def bundle(
    to: Path, signer: Identity, root: Identity, version: str = "9.1.0", compatible: str = COMPATIBLE,
    size: int = 300_000, form: str = "verity",
) -> Path:  # fmt: skip
    """A bundle of two images that cannot be compressed."""
    content = to.with_name(to.name + ".d")
    content.mkdir(parents=True)
    for name, length in (("root.img", size), ("boot.img", 20_000)):
        (content / name).write_bytes(_noise(length, name))
    (content / "manifest.raucm").write_text(
        f"[update]\ncompatible={compatible}\nversion={version}\n\n[bundle]\nformat={form}\n\n"
        "[image.rootfs]\nfilename=root.img\n\n[image.boot]\nfilename=boot.img\n"
    )
    made = subprocess.run(
        ["rauc", "bundle", f"--cert={signer.certificate}", f"--key={signer.key}", f"--keyring={root.certificate}",
         str(content), str(to)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return to


def _noise(length: int, seed: str) -> bytes:
    digest = hashes.Hash(hashes.SHAKE256(length))
    digest.update(seed.encode())
    return digest.finalize()
