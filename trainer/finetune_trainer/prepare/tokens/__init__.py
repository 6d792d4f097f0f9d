"""Examples to token ids, once, for every rank of every run."""
