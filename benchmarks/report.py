"""Measurement of the data report: the planted faults that it finds, its false alarms on clean data, the time of its
checks.

Each fault of tests/support/planted is planted into a clean set of a few hundred rows (eleven languages, code, chats,
tools, reasoning, tables, poems). It counts as found if the report has a finding of its code with the expected words. A
clean set counts as a false alarm if the report has any warning or error, or a note of personal data, of another
language or of another script. Processor time is that of `examine` on 10,000 conversations, and of their observation.

    python benchmarks/report.py
"""

import importlib.metadata
import json
import platform
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from finetune_api.messages import Task  # noqa: E402
from finetune_trainer.prepare.data.examples import Example  # noqa: E402
from finetune_trainer.prepare.observed.observation import Observation  # noqa: E402
from finetune_trainer.prepare.quality.context import Context  # noqa: E402
from finetune_trainer.prepare.quality.judge import examine  # noqa: E402
from tests.support.planted.clean import SETS  # noqa: E402
from tests.support.planted.faults import faults  # noqa: E402
from tests.support.planted.run import encode, false_alarms, finds  # noqa: E402

LIBRARIES = ("py3langid", "phonenumberslite", "python-stdnum", "datasketch", "numpy")
ROWS = 10_000
LENGTH = 512


def main() -> None:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    found = {}
    for fault in faults():
        found[f"{fault.code}: {fault.name}"] = finds(fault)
    alarms = {name: false_alarms(name) for name in SETS}
    table = Table("code", "planted", "found", "missed")
    planted = Counter(name.partition(":")[0] for name in found)
    for code, count in sorted(planted.items()):
        missed = [name.partition(": ")[2] for name, hit in found.items() if name.startswith(f"{code}:") and not hit]
        table.add_row(code, str(count), str(count - len(missed)), "; ".join(missed))
    console = Console(width=120)
    console.print(table)
    clean = Table("clean set", "false alarms")
    for name, findings in alarms.items():
        clean.add_row(name, "; ".join(findings))
    console.print(clean)
    seconds = cost()
    result = {
        "planted": len(found),
        "found": sum(found.values()),
        "found_share": round(sum(found.values()) / len(found), 4),
        "clean_sets": len(alarms),
        "false_alarms": sum(map(bool, alarms.values())),
        "false_alarm_share": round(sum(map(bool, alarms.values())) / len(alarms), 4),
        **seconds,
    }
    record = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"python": platform.python_version(), "processor": platform.machine()},
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "found": found,
        "alarms": alarms,
        "result": result,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps(result))


def cost() -> dict[str, float]:
    """Return the seconds of one processor for 10,000 conversations of docstrings' sentences."""
    from benchmarks.chats import sentences

    draw, pool = random.Random(0), sentences()
    rows = [
        Example(
            line,
            "",
            messages=tuple(
                {"role": role, "content": " ".join(draw.choices(pool, k=draw.randint(2, 7)))}
                for role in ("user", "assistant", "user", "assistant")
            ),
        )
        for line in range(1, ROWS + 1)
    ]
    encoded = [encode(row, LENGTH) for row in rows]
    seen = Observation(rows=ROWS, file="chats.jsonl")
    began = time.process_time()
    for start in range(0, ROWS, 500):
        part = Observation(rows=ROWS, file="chats.jsonl")
        part.add(rows[start : start + 500], encoded[start : start + 500])
        seen.merge(part)
    observed = time.process_time()
    examine(seen, None, Context(Task.CAUSAL_LM, LENGTH))
    return {"observe_s": round(observed - began, 2), "examine_s": round(time.process_time() - observed, 2)}


if __name__ == "__main__":
    main()
