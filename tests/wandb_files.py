"""What wandb wrote: its files, decoded with its own messages.

A file is a LevelDB log: 7 bytes of its own, then blocks of 32 KiB. A record, or a part of one, has
a head of 7 bytes: CRC, length, and whether it is whole (1), first (2), middle (3) or last (4).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

HEAD, BLOCK = 7, 32768
WHOLE, LAST = 1, 4


def records(file: Path) -> Iterator[pb.Record]:
    """Every record of a .wandb file that is whole."""
    content = file.read_bytes()
    assert content[:HEAD] == b":W&B\xe1\xbe\x00"
    place, found = HEAD, b""
    while place + HEAD <= len(content):
        if BLOCK - place % BLOCK < HEAD:  # too little for a head
            place += BLOCK - place % BLOCK
            continue
        crc, length, kind = struct.unpack("<IHB", content[place : place + HEAD])
        part = content[place + HEAD : place + HEAD + length]
        assert crc == zlib.crc32(bytes([kind]) + part)
        found += part
        place += HEAD + length
        if kind in (WHOLE, LAST):
            yield pb.Record.FromString(found)
            found = b""


def started(run_dir: Path) -> list[list[pb.Record]]:
    """The records of each start, in the order of the starts."""
    files = (run_dir / "wandb").glob("*run-*/*.wandb")
    return [list(records(file)) for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)]


def rows(run_dir: Path) -> list[dict[str, float]]:
    """What was logged, without wandb's clock, in order; `_step` must never be twice the same."""
    found = []
    for record in (one for start in started(run_dir) for one in start):
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: item for item in record.history.item}
            row = {name: json.loads(item.value_json) for name, item in items.items()}
            found.append({n: v for n, v in row.items() if n not in ("_timestamp", "_runtime")})
    steps = [row.pop("_step") for row in found]
    assert steps == sorted(set(steps))
    return found


def run_of(start: list[pb.Record]) -> pb.RunRecord:
    """A start's run: id, project, configuration."""
    (run,) = (record.run for record in start if record.HasField("run"))
    return run


def configuration(start: list[pb.Record]) -> dict[str, Any]:
    """A start's configuration, without wandb's own part."""
    update = {item.key: json.loads(item.value_json) for item in run_of(start).config.update}
    return {name: value for name, value in update.items() if name != "_wandb"}


def axes(start: list[pb.Record]) -> dict[str, str]:
    """Each metric's axis; empty where it is one."""
    return {
        record.metric.name: record.metric.step_metric
        for record in start
        if record.HasField("metric")
    }
