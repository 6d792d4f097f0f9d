"""YAML 1.2, read with the line of every value, and written so that readers of YAML 1.1 agree.

reader   `load` and `LineIndex`
writer   `dump`
"""

from finetune_api.yaml12.reader import LineIndex, load
from finetune_api.yaml12.writer import dump

__all__ = ["LineIndex", "dump", "load"]
