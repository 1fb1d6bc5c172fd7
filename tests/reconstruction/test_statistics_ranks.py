from pathlib import Path

import pytest
import torch
from closed_forms import closed_forms, pictures
from commands import start
from statistics_on_two_ranks import network, numbers

SCRIPT = Path(__file__).with_name("statistics_on_two_ranks.py")


@pytest.mark.parametrize("images", [200, 1])
def test_ranks_sum_what_they_have_seen(tmp_path: Path, images: int) -> None:
    """200 images are four batches, two for each rank; a single image is one, which both look at."""
    process = start(SCRIPT, [str(tmp_path), str(images)], tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    alone = numbers(closed_forms(network(), pictures(images)).statistics)
    together = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in alone.items():
        assert torch.equal(together[0][name], together[1][name]), name
        torch.testing.assert_close(together[0][name], value, rtol=1e-6, atol=1e-9, msg=name)
