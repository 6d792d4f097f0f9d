"""Benchmarks of lm-evaluation-harness on the exported model (`spec.evaluation.suites`), each in its own process."""
