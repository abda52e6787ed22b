"""Every check of the raw probe against the real server, and docs/conformance.md, which lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.__main__ import DOCUMENT, document
from conformance.probe import CHECKS, ELSEWHERE, Check, judged
from fake_appliance import FakeAppliance

TESTS = Path(__file__).parent


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


def test_what_is_shown_elsewhere_is_there() -> None:
    for _, _, file, name in ELSEWHERE:
        assert re.search(rf"^def test_{name}\b", (TESTS / f"test_{file}.py").read_text(), re.MULTILINE), name


def test_the_document_lists_exactly_these() -> None:
    assert (TESTS.parent / DOCUMENT).read_text() == document(), "run: python -m tests.conformance"
