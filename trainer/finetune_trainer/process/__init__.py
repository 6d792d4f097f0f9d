"""The process side of stages, agents and workers: start, exit, results and messages."""
