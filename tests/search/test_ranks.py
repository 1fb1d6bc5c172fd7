import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import start

SCRIPT = Path(__file__).with_name("search_on_two_ranks.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "episodes", "changed"),
    [
        ("gnnrl", 12, {}),
        ("gnnrl", 14, {}),
        ("gnnrl", 13, {}),
        ("gnnrl", 12, {"encoder": {"features": "random"}}),  # with parameters that nothing would learn
        ("random", 7, {}),
        ("uniform", 3, {}),
        ("amc", 8, {"ddpg": {"warmup": 2}}),
    ],
)
def test_two_ranks_search_together(tmp_path: Path, agent: str, episodes: int, changed: dict[str, Any]) -> None:
    process = start(SCRIPT, [str(tmp_path), agent, str(episodes), json.dumps(changed)], tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["history"] == second["history"]
    assert len(first["history"]) == episodes
    for name, value in first["parameters"].items():
        assert torch.equal(value, second["parameters"][name]), name
    if agent != "uniform":  # no rank repeats what the other one tries
        assert len({row["widths"] for row in first["history"]}) == episodes
    assert len((tmp_path / "history.csv").read_text().splitlines()) == episodes + 1
