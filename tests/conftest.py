"""Which tests are the quick ones of `make test-fast`: those without processes, and a smoke test of each other tier."""

import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell that starts the tests in the background ignores Ctrl-C for them and for all that they start
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMOKE = (
    "tests/unit/",
    "tests/local/test_worker.py::test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one",
    "tests/local/test_run.py::test_a_misspelt_field_is_answered_with_the_name_that_was_meant",
    "tests/local/test_quality_page.py",
    "tests/chart/test_rendered.py",
    "tests/cluster/test_crd.py",
)
# Unit tests that look at one thing over many inputs and took 70 of 190 CPU seconds. The smaller tests
# of the same files stay.
SWEEPS = (
    "tests/unit/test_histories.py",
    "tests/unit/test_losses.py::test_logits_in_chunks_give_the_loss_and_gradients_of_the_models_own",
    "tests/unit/test_losses.py::test_every_family_with_flat_batches_keeps_its_documents_apart",
    "tests/unit/test_quality_clean.py::test_500_random_rows_split_at_random_raise_no_warning",
    "tests/unit/test_quality_clean.py::test_real_text_raises_no_warning",
    "tests/unit/test_tokens_words.py::test_every_character_let_through_is_parted_alike",
)
OF_EACH_SWEEP = ("[llama-causal-lm]", "[llama]", "[0-chats]", "[expression1]")  # one case


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them."""
    for item in items:
        sweeps = item.nodeid.startswith(SWEEPS) and not item.nodeid.endswith(OF_EACH_SWEEP)
        if item.nodeid.startswith(SMOKE) and not sweeps:
            item.add_marker(pytest.mark.smoke)
