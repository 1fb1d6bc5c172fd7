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

    id: str = ""
    job_type: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: set[str] = field(default_factory=set)
    summary: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)  # what metrics, or globs of them, are drawn against
    artifacts: dict[str, set[str]] = field(default_factory=dict)  # files of what the run made
    aliases: dict[str, set[str]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # W&B takes artifacts of one name and digest for one version
    used: dict[str, str] = field(default_factory=dict)  # digests of what the run started from


def read(path: Path) -> OfflineRun:
    found = OfflineRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.id, found.job_type, found.group = record.run.run_id, record.run.job_type, record.run.run_group
            found.tags = list(record.run.tags)
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            found.config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
        elif kind == "history":
            found.history |= {item.key or item.nested_key[0] for item in record.history.item}
        elif kind == "summary":
            found.summary |= {
                item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update
            }
        elif kind == "metric":
            found.steps[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
        elif kind == "artifact" and record.artifact.use_after_commit:
            found.used[record.artifact.name] = record.artifact.digest
        elif kind == "artifact":
            artifact = record.artifact
            found.artifacts[artifact.name] = {entry.path for entry in artifact.manifest.contents}
            found.aliases[artifact.name] = set(artifact.aliases)
            found.digests[artifact.name] = artifact.digest
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
