"""The plan: every value of a run chosen by a rule where the user chose none. Pure."""
