"""Data in: files found, read as a stream, and every record checked against the task.

Where it lies     sources (what a job names) -> locate, patterns, places, web, hub_files; streams (bytes, decompressed)
What it is        opening (format and columns of every file) -> detect, shapes
How it is read    chunks (parts for processes) -> lines, jsonl, jsonarray, delimited, text, tables; formats (Row, Fault)
What rows are     rows (Example) -> conversation, alpaca, labels; kinds (labels of them all); tally (what is wrong),
                  choice (held out, weighted)
All of it         dataset (the check) -> portions (work for those who tokenise); progress
"""
