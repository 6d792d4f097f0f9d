"""Data in: files found, read as a stream, and every record checked against the task.

Where it lies     sources (what a job names) -> locate, file_patterns, file_places, web, hub_files, hub_splits; streams
What it is        opening (format and columns of every file) -> detect, sniff; shapes, column_names, proposals
How it is read    chunks (parts for processes) -> lines, record_parts, jsonl, jsonarray, delimited, text, tables;
                  formats (Row, Fault)
What rows are     examples (Example) -> conversation, alpaca, label_values; contents (a hash of each); tally (faults)
All of it         dataset (the check) -> reading (every row), checked_files (what is known then), label_kinds,
                  row_choice and row_splits (held out, weighted), notices (what training does not see);
                  portions (work for the processes that tokenise); byte_progress
"""
