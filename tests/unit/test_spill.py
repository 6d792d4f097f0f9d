"""Rows beyond those that memory holds are read as if they were in it, and equal ones are found part by part."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.prepare.observed import spill
from finetune_trainer.prepare.observed.spill import SpilledRows
from finetune_trainer.prepare.quality import equality

ROW = np.dtype([("content", "<u8"), ("line", "<i4")])


def rows(count: int) -> np.ndarray:
    made = np.zeros(count, ROW)
    made["content"], made["line"] = np.arange(count) * 7919, np.arange(count)
    return made


def test_rows_on_disk_read_as_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "IN_MEMORY", 100)
    monkeypatch.setattr(spill, "BUFFERED", 30)
    expected, kept = rows(1000), SpilledRows(ROW, str(tmp_path))
    for start in range(0, 1000, 37):
        kept.append(expected[start : start + 37])
    read = kept.all()
    assert not isinstance(read, np.ndarray)
    assert len(read) == 1000
    assert all((np.asarray(read[name]) == expected[name]).all() for name in ROW.names or ())
    for first in (0, 77, 997, 1000):
        assert kept.since(first).tolist() == expected[first:].tolist()
    assert list(tmp_path.iterdir()) == []  # files without names go with the process


HASHES = st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**63, 2**64 - 1]), min_size=1, max_size=200)


@settings(max_examples=60, deadline=None)
@given(HASHES, HASHES, st.sampled_from([1, 3, 1000]))
def test_equal_rows_are_found_however_many_are_compared_at_once(ours: list[int], theirs: list[int], size: int) -> None:
    hashes, known = np.array(ours, np.uint64), np.array(theirs, np.uint64)
    second = np.arange(len(hashes)) % 3
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(equality, "PARTITION_ROWS", size)
        assert equality.count_distinct(hashes) == len(set(ours))
        copies = [(ours.index(one), row) for row, one in enumerate(ours) if ours.index(one) < row]
        assert equality.first_copies(hashes, 3) == copies[:3]
        assert equality.found_in(hashes, known).tolist() == [row for row, one in enumerate(ours) if one in theirs]
        groups = [
            rows[start:end].tolist()
            for rows, starts in equality.in_groups(hashes, second)
            for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)
        ]
    expected = [
        sorted((row for row, one in enumerate(ours) if one == value), key=lambda row: (second[row], row))
        for value in sorted(set(ours))
    ]
    assert groups == expected
