"""Histories that `test_histories` once found by chance; each ended badly."""

from tests.unit.test_histories import Histories


def test_a_best_that_was_uploaded_while_its_node_was_cut_off_is_committed() -> None:
    """The node begins anew and keeps only a better checkpoint, which no other node has. It does not report its part of
    the best that all have stored."""
    history = Histories()
    history.trains_and_stores()
    history.trains_and_stores()
    history.is_cut_off(index=0)
    history.trains_and_stores()
    history.trains(saving={0})
    history.trains(saving={0})
    history.trains_and_stores()
    history.is_lost(index=0, with_disk=False)
    history.no_committed_checkpoint_is_lost()
    history.what_is_whole_in_storage_is_seen()
    history.teardown()
