"""Data in: files found, read as a stream, and every record checked against the task.

Where it lies     sources (what a job names) -> locate, patterns, places, web, hub_files, hub_splits; streams (bytes)
What it is        opening (format and columns of every file) -> detect, sniff; shapes, names, proposals
How it is read    chunks (parts for processes) -> lines, jsonl, jsonarray, delimited, text, tables; formats (Row, Fault)
What rows are     rows (Example) -> conversation, alpaca, labels; contents (a hash of each); tally (what is wrong)
All of it         dataset (the check) -> reading (every row), checked (what is known then), kinds (what labels are),
                  choice and said_splits (held out, weighted), notices (what training does not see);
                  portions (work for those who tokenise); progress
"""
