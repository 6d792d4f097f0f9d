"""TensorBoard's events as tensorboardX writes them, read as TensorBoard shows them."""

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog


def records(path: Path) -> Iterator[Event]:
    """Yield the events of one file; a record is its length, a checksum, the bytes and another checksum (TFRecord)."""
    data = path.read_bytes()
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event()
        event.ParseFromString(data[at + 12 : at + 12 + length])
        yield event
        at += 12 + length + 4


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values by name over all files of a folder; a later session hides steps after its start."""
    shown: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in records(path):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                for name, points in shown.items():
                    shown[name] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    shown[value.tag].append((event.step, value.simple_value))
    return dict(shown)
