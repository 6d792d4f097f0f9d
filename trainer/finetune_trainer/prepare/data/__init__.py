"""Data in: files found, read as a stream, and every record checked against the task."""
