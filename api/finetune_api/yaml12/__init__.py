"""YAML 1.2, read with the line of every value, and written so that readers of YAML 1.1 agree.

loader   `load` and `LineIndex`
dumper   `dump`
"""

from finetune_api.yaml12.dumper import dump
from finetune_api.yaml12.loader import LineIndex, load

__all__ = ["LineIndex", "dump", "load"]
