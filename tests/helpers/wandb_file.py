"""Reads the file of an offline W&B run: LevelDB's log format (blocks of 32 KiB) with a W&B header, protobuf records inside."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Records of a `.wandb` file, in order; a record that a kill has cut ends it."""
    data = path.read_bytes()
    assert data[:4] == b":W&B", path
    position, pieces = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        piece = data[position + HEADER : position + HEADER + length]
        if len(piece) < length:
            return
        position += HEADER + length
        pieces = piece if kind in (FULL, FIRST) else pieces + piece
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            yield record


class OfflineRun:
    """What one offline folder holds: run id, name, project, `history` as (step, metrics), `summary`, `config`."""

    def __init__(self, folder: Path) -> None:
        (self.path,) = folder.glob("run-*.wandb")
        self.history: list[tuple[int, dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.ended = False
        for record in records(self.path):
            if record.HasField("run"):
                self.id, self.name, self.project = record.run.run_id, record.run.display_name, record.run.project
                self._configure(record.run.config)
            elif record.HasField("config"):
                self._configure(record.config)
            elif record.HasField("history"):
                self.history.append(_line(record.history))
            elif record.HasField("summary"):
                self.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
            self.ended |= record.HasField("exit")

    def _configure(self, config: Any) -> None:
        self.config |= {_key(item): json.loads(item.value_json) for item in config.update}

    def values(self, metric: str) -> dict[int, float]:
        """A metric by step."""
        return {step: metrics[metric] for step, metrics in self.history if metric in metrics}


def _line(history: Any) -> tuple[int, dict[str, Any]]:
    values = {_key(item): json.loads(item.value_json) for item in history.item}
    return history.step.num, {key: value for key, value in values.items() if not key.startswith("_")}


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The runs in a `wandb` folder, oldest first."""
    return [OfflineRun(path) for path in sorted(folder.glob("offline-run-*"))]
