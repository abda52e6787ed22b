"""Where bundles come from: exactly one in the folder, or the site server that is named, over TLS, and no other."""

from __future__ import annotations

import errno
import http.server
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from bundles import Identity, authority, issued
from hypothesis import given
from hypothesis import strategies as st

from firmware import update_source
from firmware.bundle import MOST_BYTES, Refused
from firmware.update_codes import UpdateResult as R

CONTENT = bytes(range(256)) * 5000
HOSTS = ("127.0.0.1",)


class Site(NamedTuple):
    """A site server on loopback, and what it answers next."""

    port: int
    root: Identity
    answer: list[Callable[[http.server.BaseHTTPRequestHandler], None]]
    asked: list[str]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/bundles/new.raucb"


def _good(handler: http.server.BaseHTTPRequestHandler, length: int | None = None, data: bytes = CONTENT) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    handler.end_headers()
    handler.wfile.write(data)


def _without_length(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(CONTENT)


def _chunked(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"4\r\nabcd\r\n0\r\n\r\n")


def _redirect(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "https://127.0.0.2/other.raucb")
    handler.end_headers()


def _missing(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_error(404)


def _serving(identity: Identity, root: Identity) -> Iterator[Site]:
    answer: list[Callable[[http.server.BaseHTTPRequestHandler], None]] = [_good]
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer[0](self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that does not like the certificate is no news here

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield Site(server.server_address[1], root, answer, asked)
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def pki(tmp_path: Path) -> Identity:
    return authority(tmp_path / "pki")


@pytest.fixture
def site(pki: Identity) -> Iterator[Site]:
    yield from _serving(issued(pki, "site server"), pki)


def pulled(site: Site, to: Path, url: str = "", hosts: tuple[str, ...] = HOSTS, roots: Path | None = None) -> R:
    try:
        update_source.pull(url or site.url, hosts, roots or site.root.certificate, to, lambda done, total: None)
    except Refused as refused:
        return refused.result
    return R.NONE


def test_the_named_server_gives_the_bundle_and_only_we_can_read_it(site: Site, tmp_path: Path) -> None:
    beats: list[tuple[int, int]] = []
    to = tmp_path / "update.raucb"
    update_source.pull(site.url, HOSTS, site.root.certificate, to, lambda *now: beats.append(now))
    assert to.read_bytes() == CONTENT
    assert to.stat().st_mode & 0o777 == 0o600
    assert beats[-1] == (len(CONTENT), len(CONTENT))
    assert site.asked == ["/bundles/new.raucb"]


@pytest.mark.parametrize("hosts", [(), ("127.0.0.2",), ("127.0.0.10", "localhost")])
def test_a_host_that_is_not_in_the_list_is_not_asked(site: Site, tmp_path: Path, hosts: tuple[str, ...]) -> None:
    assert pulled(site, tmp_path / "x", hosts=hosts) is R.URL_REFUSED
    assert site.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "https:///x", "127.0.0.1:{port}/x",
        "https://user:secret@127.0.0.1:{port}/x", "https://127.0.0.1:99999/x", "https://127.0.0.1@127.0.0.2/x",
        "https://127.0.0.1.example/x", "",
    ],
)  # fmt: skip
def test_anything_but_https_of_an_allowed_host_is_not_asked(site: Site, url: str) -> None:
    with pytest.raises(Refused) as refused:
        update_source.allowed(url.format(port=site.port), HOSTS)
    assert refused.value.result is R.URL_REFUSED


@given(url=st.text(max_size=60))
def test_whatever_the_url_says_the_host_that_is_asked_is_in_the_list(url: str) -> None:
    for text in (url, f"https://{url}", f"https://127.0.0.1{url}"):
        try:
            host, port, path = update_source.allowed(text, HOSTS)
        except Refused as refused:
            assert refused.result is R.URL_REFUSED
        else:
            assert (host, path[:1]) == ("127.0.0.1", "/")
            assert 0 < port < 65536
            assert path.isascii(), "nothing that a request line cannot carry"
            assert path.isprintable()
            assert " " not in path


def test_an_expired_certificate_is_refused(pki: Identity, tmp_path: Path) -> None:
    for site in _serving(issued(pki, "expired", expired=True), pki):
        assert pulled(site, tmp_path / "x") is R.TLS_REFUSED
        assert site.asked == []


def test_a_certificate_of_another_ca_is_refused(site: Site, tmp_path: Path) -> None:
    other = authority(tmp_path / "other", "other CA")
    assert pulled(site, tmp_path / "x", roots=other.certificate) is R.TLS_REFUSED


def test_a_certificate_of_another_host_is_refused(pki: Identity, tmp_path: Path) -> None:
    for site in _serving(issued(pki, "elsewhere", host="127.0.0.9"), pki):
        assert pulled(site, tmp_path / "x") is R.TLS_REFUSED


def test_without_a_ca_nothing_is_asked(site: Site, tmp_path: Path) -> None:
    assert pulled(site, tmp_path / "x", roots=tmp_path / "ca.crt") is R.TLS_REFUSED
    assert site.asked == []


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (_redirect, R.HTTP_REFUSED), (_missing, R.HTTP_REFUSED), (_without_length, R.HTTP_REFUSED),
        (_chunked, R.HTTP_REFUSED),
        (lambda handler: _good(handler, MOST_BYTES + 1), R.TOO_LARGE),
        (lambda handler: _good(handler, len(CONTENT) + 1), R.SERVER_SILENT),
        (lambda handler: handler.wfile.write(b"garbage\r\n"), R.SERVER_SILENT),
        (lambda handler: None, R.SERVER_SILENT),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_bundle_of_allowed_size_is_refused(
    site: Site, tmp_path: Path, answer: Callable[[http.server.BaseHTTPRequestHandler], None], result: R
) -> None:
    site.answer[0] = answer
    assert pulled(site, tmp_path / "x") is result


def test_more_than_was_announced_is_not_kept(site: Site, tmp_path: Path) -> None:
    site.answer[0] = lambda handler: _good(handler, len(CONTENT) - 7)
    assert pulled(site, tmp_path / "x") is R.NONE
    assert (tmp_path / "x").read_bytes() == CONTENT[:-7]


def test_a_server_that_is_not_there_is_silent(pki: Identity, tmp_path: Path) -> None:
    site = Site(1, pki, [], [])
    assert pulled(site, tmp_path / "x") is R.SERVER_SILENT


def test_a_disk_that_is_full_is_told_as_that(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert pulled(site, tmp_path / "x") is R.NO_SPACE


# the folder


def test_a_folder_that_is_not_there_or_has_no_bundle_has_nothing(tmp_path: Path) -> None:
    assert update_source.find(tmp_path / "nothing") is None
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / "._new.raucb").write_text("what another computer leaves beside a file")
    assert update_source.find(tmp_path) is None


def test_two_bundles_are_refused(tmp_path: Path) -> None:
    for name in ("a.raucb", "b.raucb"):
        (tmp_path / name).write_text("x")
    with pytest.raises(Refused, match=r"a\.raucb, b\.raucb") as refused:
        update_source.find(tmp_path)
    assert refused.value.result is R.SEVERAL_BUNDLES


def test_a_bundle_is_the_same_until_somebody_touches_it(tmp_path: Path) -> None:
    path = tmp_path / "new.raucb"
    path.write_bytes(b"one")
    found = update_source.find(tmp_path)
    assert found is not None
    assert update_source.find(tmp_path) == found
    path.write_bytes(b"three")
    assert update_source.find(tmp_path) != found


def test_what_is_copied_is_ours_and_whole(tmp_path: Path) -> None:
    (tmp_path / "new.raucb").write_bytes(CONTENT)
    found, to = update_source.find(tmp_path), tmp_path / "state"
    to.symlink_to(tmp_path / "somewhere else")
    assert found is not None
    update_source.copy(found, to, lambda done, total: None)
    assert to.read_bytes() == CONTENT
    assert not to.is_symlink()


@pytest.mark.parametrize("what", ["symlink", "fifo", "directory", "gone"])
def test_only_a_file_is_copied(tmp_path: Path, what: str) -> None:
    path = tmp_path / "new.raucb"
    make: dict[str, Callable[[], object]] = {
        "symlink": lambda: path.symlink_to("/etc/hostname"),
        "fifo": lambda: os.mkfifo(path),
        "directory": path.mkdir,
        "gone": path.touch,
    }
    make[what]()
    found = update_source.find(tmp_path)
    assert found is not None
    if what == "gone":
        path.unlink()
    with pytest.raises(Refused) as refused:
        update_source.copy(found, tmp_path / "to", lambda done, total: None)
    assert refused.value.result is R.NOT_READABLE


def test_a_stick_with_a_bundle_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "new.raucb").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    found = update_source.find(tmp_path)
    assert found is not None
    with pytest.raises(Refused) as refused:
        update_source.copy(found, tmp_path / "to", lambda done, total: None)
    assert refused.value.result is R.TOO_LARGE
    assert not (tmp_path / "to").exists()
