"""The update that the unit fetches itself, over TLS from the site's server, when SERVICE is entered."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import bundles

from firmware.update_codes import UpdateResult, UpdateState
from statemachine.states import State

from .faults import PATIENCE_S, isolated, recover, restarted, settled, to_isolated
from .plant import Booted, Row, awaited, rows
from .updates import LENIENT, Bundles, given, kept, result, service, standby
from .vm import HOST


@contextmanager
def site_server(identity: bundles.Identity, folder: Path) -> Iterator[int]:
    """Serves the folder; its port."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that does not like the certificate is no news here

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    with Server(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _named(a: Booted, port: int, root: Path) -> None:
    """In site.conf, with the authority of its certificate; the firewall lets the agent there."""
    if a.state() is not State.ISOLATED:
        to_isolated(a)
    lines = f"update_url = https://{HOST}:{port}/good.raucb\nupdate_hosts = {HOST}"
    a.vm.out(f"sed -i /^update_/d /etc/ems/site.conf; echo '{lines}' >>/etc/ems/site.conf; mkdir -p /etc/ems/tls")
    a.vm.out(f"echo '{root.read_text()}' >/etc/ems/tls/ca.crt; ems-tool --lock-telemetry", 60.0)
    a.vm.out("systemctl restart ems-updater", 60.0)
    awaited(lambda: result(a) is not None, PATIENCE_S, "the agent")


def strangers_server(a: Booted, folder: Path) -> Row:
    """Its certificate is of another authority."""
    stranger, site = (bundles.authority(folder / name) for name in ("strange", "site"))
    with site_server(bundles.issued(stranger, "server", host=HOST), folder) as port:
        _named(a, port, site.certificate)
        before = standby(a)
        service(a)
        why = UpdateResult.TLS_REFUSED
        awaited(lambda: kept(a, lambda: result(a) is why), 2 * PATIENCE_S, lambda: f"{why.name}; {result(a)}")
    return Row("a site server with a stranger's certificate: nothing is fetched", standby(a) == before, why.name)


def pulled(a: Booted, folder: Path) -> Row:
    """From the server into the other slot, restart, self-test, mark-good."""
    site, start, slot, told = bundles.authority(folder / "site"), time.monotonic(), a.get("UpdSlot"), set[float]()

    def installed() -> bool:
        step = a.get("UpdState")
        if step == UpdateState.DOWNLOADING:
            told.add(a.get("UpdProgress"))
        return step == UpdateState.RESTARTING

    with site_server(bundles.issued(site, "server", host=HOST), folder) as port:
        _named(a, port, site.certificate)
        service(a)
        awaited(lambda: kept(a, installed), 4 * PATIENCE_S, lambda: f"installed; {result(a)}")
        restarted(a, lambda: None)
        awaited(lambda: result(a) is UpdateResult.CONFIRMED, 20 * PATIENCE_S, lambda: f"CONFIRMED; {result(a)}")
    progress = f"{min(told):g} to {max(told):g} % read meanwhile" if told else "no progress read"
    seen = f"{progress}, slot {slot:g} to {a.get('UpdSlot'):g} in {time.monotonic() - start:.0f} s, CONFIRMED"
    return Row(
        "a bundle is pulled from the site server, installed, confirmed", a.get("UpdSlot") != slot and bool(told), seen
    )


def pull(disk: Path, work: Path) -> Iterator[Row]:
    """One machine, one bundle."""
    folder = Bundles(disk.parent, work / "bundles").made("good").parent
    with settled(disk, work, LENIENT) as a:
        yield from rows(a, (isolated, given(folder, strangers_server), given(folder, pulled)), recover)
