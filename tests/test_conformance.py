"""Every check of the raw probe against the real server, and docs/conformance.md, which lists them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance import __main__ as conformance
from conformance.__main__ import complaints, main, missing
from conformance.probe import CHECKS, WRITABLE, Check, Refusal, _illegal, _legal, judged
from fake_appliance import FakeAppliance


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with FakeAppliance(tmp_path_factory.mktemp("probe")) as appliance:
        yield appliance.port


@pytest.mark.parametrize("check", CHECKS, ids=[check.id for check in CHECKS])
def test_the_server_answers_as_it_must(port: int, check: Check) -> None:
    answer, right = judged(port, check)
    assert answer == right, check.title


def test_there_are_at_least_60_checks_and_no_number_twice() -> None:
    assert len({check.id for check in CHECKS}) == len(CHECKS) >= 60


def test_what_is_named_is_there_and_the_document_is_current() -> None:
    assert complaints() == []


def test_a_test_or_a_check_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_tls.py").write_text("def test_one() -> None: ...\n")
    made = Refusal("case", "01", ("FC-1", "FC-99", "tls::one", "tls::two", "nowhere::one"))
    monkeypatch.setattr(conformance, "ELSEWHERE", ())
    monkeypatch.setattr(conformance, "REFUSALS", (made,))
    assert missing(tmp_path) == ["FC-99", "tls::two", "nowhere::one"]


def test_a_document_that_differs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conformance, "DOCUMENT", tmp_path / "conformance.md")
    assert main(["--check"]) == 1
    assert "docs/conformance.md differs from its table; run `make docs`" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0


def test_the_probe_tries_every_end_of_a_range_and_what_is_beyond() -> None:
    seen = {p.name: (_legal(p), _illegal(p)) for p in WRITABLE}
    assert seen["HbTmo"] == ([2, 76, 151, 225, 300], [0, 1, 301, 0xFFFF])
    assert seen["LossPol"] == ([0, 1, 2], [3, 0xFFFF])
    assert seen["WSet"][1] == [-(1 << 31), -5_000_001, 5_000_001, (1 << 31) - 1]
    assert all(len(legal) >= 2 and illegal for legal, illegal in seen.values())
