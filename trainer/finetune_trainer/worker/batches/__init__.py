"""Rows to batches: padded, flat (documents one after the other, without padding), or with hidden tokens."""
