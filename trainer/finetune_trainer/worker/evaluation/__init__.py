"""Evaluation: scores by task, generated answers, and the decisions that depend on them."""
