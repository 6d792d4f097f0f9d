"""Faults that are planted into clean sets are found: a few here, all in the matrix and in benchmarks/report.py."""

import pytest

from tests.support.planted.faults import Fault, faults
from tests.support.planted.run import finds

ALL = faults()
FEW = {
    "German among English",
    "a label None",
    "empty answers after calls of tools",
    "a name to fill in, in the system message",
    "leftovers beside code",
    "telephone in pairs, fr",
    "IBAN in labelled texts, nl",
    "persons in labelled texts, es",
    "IP in chats, de",
    "a skew, old people, zh",
}


@pytest.mark.parametrize("fault", [fault for fault in ALL if fault.name in FEW], ids=lambda fault: fault.name)
def test_a_planted_fault_is_named(fault: Fault) -> None:
    assert finds(fault)


@pytest.mark.matrix
@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.name)
def test_every_planted_fault_is_named(fault: Fault) -> None:
    assert finds(fault)


def test_the_names_of_the_few_are_faults() -> None:
    assert {fault.name for fault in ALL} >= FEW
    assert len({(fault.code, fault.name) for fault in ALL}) == len(ALL)
