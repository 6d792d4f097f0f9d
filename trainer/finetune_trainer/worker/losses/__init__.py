"""Losses of a batch: a sum over trained tokens or rows, divided by their number in the whole step, in any layout."""
