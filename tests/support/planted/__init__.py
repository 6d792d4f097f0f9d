"""Clean data sets, and faults to be planted into them, to measure the report.

The texts were written for this purpose, without reference to the report's own word lists and patterns.
"""
