"""Reads back what an offline run of W&B has written: a log of protobuf records in LevelDB's format."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_FILE_HEADER, _BLOCK, _PART_HEADER = 7, 32768, 7
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What is in the file that `wandb sync` would upload."""

    job_type: str = ""
    group: str = ""
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: set[str] = field(default_factory=set)
    artifacts: dict[str, set[str]] = field(default_factory=dict)


def read(path: Path) -> OfflineRun:
    found = OfflineRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.job_type, found.group = record.run.job_type, record.run.run_group
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            found.config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
        elif kind == "history":
            found.history |= {item.key or item.nested_key[0] for item in record.history.item}
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
        elif kind == "artifact":
            found.artifacts[record.artifact.name] = {entry.path for entry in record.artifact.manifest.contents}
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            artifact = record.request.log_artifact.artifact
            found.artifacts[artifact.name] = {entry.path for entry in artifact.manifest.contents}
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """Records are cut where a block of the file ends, and each part has a header: checksum, length, kind."""
    place, parts = _FILE_HEADER, b""
    while place + _PART_HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _PART_HEADER:  # too small for a header: filled up
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + _PART_HEADER : place + _PART_HEADER + length]
        place += _PART_HEADER + length
        parts = part if kind in (_WHOLE, _FIRST) else parts + part
        if kind in (_WHOLE, _LAST):
            yield parts
