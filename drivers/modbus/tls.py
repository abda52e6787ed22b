"""Modbus/TCP Security without I/O: mutual TLS, and the role that the peer's certificate carries.

MODBUS/TCP Security Protocol Specification v36 and Secure SunSpec Modbus v1.0: TLS 1.2 or newer, P-256, the three named
suites, a certificate from the client always, its role in extension 1.3.6.1.4.1.50316.802.1 as exactly one UTF8String.
"""

from __future__ import annotations

import ssl
from datetime import datetime
from pathlib import Path

ROLE = "1.3.6.1.4.1.50316.802.1"
CERTIFICATE, KEY, ROOTS = "server.crt", "server.key", "ca.crt"
_SUITES = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-CCM8"
_UTF8_STRING = 0x0C
_CHUNK = 16_384


class TlsError(Exception):
    """Certificates cannot be used; the text names the file and what to do."""


def server_context(directory: Path) -> ssl.SSLContext:
    """From server.crt (with its chain), server.key and ca.crt (every root that clients may have). Raises TlsError."""
    for name in (CERTIFICATE, KEY, ROOTS):
        if not (directory / name).is_file():
            raise TlsError(f"{directory / name} is missing: put {CERTIFICATE}, {KEY} and {ROOTS} there, send SIGHUP")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.num_tickets = 0  # every connection shows its certificate
    context.set_ciphers(_SUITES)
    context.set_ecdh_curve("prime256v1")
    try:
        context.load_cert_chain(directory / CERTIFICATE, directory / KEY)
        context.load_verify_locations(directory / ROOTS)
    except (ssl.SSLError, OSError) as error:
        raise TlsError(f"{directory}: {error.strerror or error}; check {CERTIFICATE}, {KEY}, {ROOTS}") from error
    return context


def expires(directory: Path) -> datetime:
    """When server.crt ends, UTC. Raises TlsError."""
    from cryptography import x509  # 5 MB, not loaded where there are no certificates

    try:
        return x509.load_pem_x509_certificate((directory / CERTIFICATE).read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise TlsError(f"{directory / CERTIFICATE}: {error}") from error


def role(certificate: bytes) -> str:
    """The role in a DER certificate; "" without one, with more than one, or when it is no UTF8String."""
    from cryptography import x509

    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        extension = extensions.get_extension_for_oid(x509.ObjectIdentifier(ROLE)).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return ""
    data = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    if len(data) < 2 or data[0] != _UTF8_STRING or data[1] != len(data) - 2:
        return ""
    return data[2:].decode("utf-8", "replace")


class TlsPipe:
    """One connection: what comes from the peer in, what it says out; and back."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self.role: str | None = None  # known when the handshake is done

    def feed(self, data: bytes) -> bytes:
        """What the peer says in `data`. Raises ssl.SSLError; `outgoing` then has the alert."""
        self._in.write(data)
        if self.role is None:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                return b""
            self.role = role(self._tls.getpeercert(True) or b"")
        said = b""
        try:
            while chunk := self._tls.read(_CHUNK):
                said += chunk
        except ssl.SSLWantReadError:
            pass
        return said

    def seal(self, data: bytes) -> bytes:
        """What goes to the peer: this, and what the protocol itself has to say."""
        if data:
            self._tls.write(data)
        return self._out.read()
