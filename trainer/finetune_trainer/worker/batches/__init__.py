"""Collation of rows into batches: padded, flat (documents in one line, without padding), or with masked tokens."""
