"""What the update agent says in registers, and in words: one table. Numbers never change meaning."""

from __future__ import annotations

from enum import IntEnum


class UpdateState(IntEnum):
    """UpdState: the step that runs."""

    IDLE = 0
    DOWNLOADING = 1
    COPYING = 2
    VERIFYING = 3
    INSTALLING = 4
    RESTARTING = 5
    CHECKING = 6


class UpdateResult(IntEnum):
    """UpdResult: how the last update ended."""

    NONE = 0
    CONFIRMED = 1
    INSTALLED = 2
    NOTHING_NEW = 3
    NOT_IN_SERVICE = 10
    CONTACTORS_NOT_OPEN = 11
    CONTROLLER_SILENT = 12
    NOT_HELD = 13
    SEVERAL_BUNDLES = 20
    TOO_LARGE = 21
    NOT_READABLE = 22
    NO_SPACE = 23
    TRUNCATED = 30
    SIGNATURE = 31
    COMPATIBLE = 32
    FORMAT = 33
    DAMAGED = 34
    OLDER = 35
    TAKEN_BACK_BEFORE = 36
    URL_REFUSED = 40
    SERVER_SILENT = 41
    TLS_REFUSED = 42
    HTTP_REFUSED = 43
    INSTALL_FAILED = 50
    RESTART_FAILED = 51
    NOT_BOOTED = 60
    CHECK_MODBUS = 61
    CHECK_IO = 62
    CHECK_FIREWALL = 63
    CHECK_SCAN = 64
    CHECK_MARK = 65
    FELL_BACK = 66


R = UpdateResult
TEXT: dict[UpdateResult, str] = {
    R.NONE: "no update was tried",
    R.CONFIRMED: "the new version runs and has passed its self-test",
    R.INSTALLED: "installed; the unit restarts into it",
    R.NOTHING_NEW: "this version runs already; nothing to do",
    R.NOT_IN_SERVICE: "the rack is not in SERVICE; command mode off, then mode service, and wait for CmfState 2",
    R.CONTACTORS_NOT_OPEN: "a contactor is not verified open; read Coils and Feedback, mend the feedback first",
    R.CONTROLLER_SILENT: "the controller is silent, so nobody knows where the contactors are; restart the unit",
    R.NOT_HELD: "the controller did not say that it holds the rack (Permit 31); restart the unit and try again",
    R.SEVERAL_BUNDLES: "the folder has more than one .raucb; leave exactly one",
    R.TOO_LARGE: "the bundle is larger than 512 MiB; ask for the right file",
    R.NOT_READABLE: "the bundle cannot be read; use another stick or copy it again",
    R.NO_SPACE: "the bundle cannot be kept on the data partition; free space and try again",
    R.TRUNCATED: "the bundle ends too early or has something behind its end; copy it again",
    R.SIGNATURE: "the signature is not by this site's CA; ask for a bundle that is signed for this site",
    R.COMPATIBLE: "the bundle is for another board; ask for the one of this board",
    R.FORMAT: "the bundle is not of format verity; ask for a bundle of this product",
    R.DAMAGED: "the content is not what was signed; copy it again",
    R.OLDER: "the bundle is older than what runs; ask for one with a higher version",
    R.TAKEN_BACK_BEFORE: "this bundle was taken back before; put it on a stick to try it again, or offer another",
    R.URL_REFUSED: "update_url is not https or its host is not in update_hosts; correct site.conf and restart the unit",
    R.SERVER_SILENT: "the site server does not answer; check update_url, cable and firewall",
    R.TLS_REFUSED: "the site server's certificate is refused; check ca.crt in /etc/ems/tls, its name and its dates",
    R.HTTP_REFUSED: "the site server does not give the bundle (UpdDetail is its status); check update_url",
    R.INSTALL_FAILED: "rauc could not install it (UpdDetail is its exit code); read the journal, the old version stays",
    R.RESTART_FAILED: "installed, but the unit could not restart; switch its supply off and on",
    R.NOT_BOOTED: "taken back: the new version never came up; the old one runs, read the journal",
    R.CHECK_MODBUS: "taken back: the new version did not answer over Modbus",
    R.CHECK_IO: "taken back: controller, guard or contactor feedback were not there in the new version",
    R.CHECK_FIREWALL: "taken back: the firewall was not loaded in the new version",
    R.CHECK_SCAN: "taken back: the scan was not on time in the new version",
    R.CHECK_MARK: "taken back: the new version passed its self-test, but could not be marked good",
    R.FELL_BACK: "the version in use did not come up in three starts (power cuts, or its slot is damaged); the one in "
    "the other slot runs; put the newer one on a stick",
}
assert set(TEXT) == set(UpdateResult)
