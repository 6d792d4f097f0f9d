"""The GPU check: one command that proves the product on a real GPU, without a network, in eight minutes.

`make gpu-kit` collects what such a machine lacks (`kit.py`), `tests/gpu/run` installs it there and runs the cases.
docs/development/gpu.md says how.
"""
