"""Which tests are the quick ones of `make test-fast`: those without processes, and a smoke test of each other tier."""

import pytest

SMOKE = (
    "tests/unit/",
    "tests/local/test_worker.py::test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one",
    "tests/local/test_run.py::test_a_misspelt_field_is_answered_with_the_name_that_was_meant",
    "tests/local/test_quality_page.py",
    "tests/chart/test_rendered.py",
    "tests/cluster/test_crd.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them."""
    for item in items:
        if item.nodeid.startswith(SMOKE):
            item.add_marker(pytest.mark.smoke)
