"""Evaluations of a run: what the worker records, and how storage holds it."""
