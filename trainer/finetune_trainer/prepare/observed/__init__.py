"""Rows as a model sees them, and what is counted of them while they are tokenised. Used by `tokens` and by `quality`.

One row         encoded (token ids); texts (what is given, what is learnt)
All of them     observation (counts that add up) -> fingerprints, leftovers, code, sample, spill (beyond memory)
"""
