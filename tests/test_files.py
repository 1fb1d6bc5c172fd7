import json
import os
import stat
from pathlib import Path

import pytest

from gnnrl_lightning.core.files import write_bytes, write_json, write_text


def test_writes_into_a_new_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "größer\r\n")
    assert path.read_bytes() == "größer\r\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_round_trips_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"top1": None, "names": ["é", "b"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"top1": None, "names": ["é", "b"]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"top1": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["top1"] is None


def test_the_file_has_the_users_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")}
    assert len(modes) == 1
