"""Data sets that are clean, and faults to be planted into them: what the report is measured on.

The texts were written for this purpose, without a look at the report's own word lists and patterns.
"""
