"""From a batch to a loss: a sum over trained tokens or rows, divided by those of the whole step, in any layout."""
