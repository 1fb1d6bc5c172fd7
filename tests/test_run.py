"""What a plan from elsewhere may not do to train.py."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize

from gnnrl_lightning.app.config import register
from gnnrl_lightning.app.train import train

DIGITS = {"_target_": "gnnrl_lightning.data.DigitsDataModule", "name": "digits", "num_classes": 10}


@pytest.mark.parametrize(
    "served",
    [
        {"_target_": "os.system", "command": "touch {folder}/ran"},
        {"_target_": "gnnrl_lightning.data.image_files.Path.touch", "self": "{folder}/ran"},
        DIGITS | {"batch_size": {"_target_": "os.system", "command": "touch {folder}/ran"}},
        DIGITS | {"batch_size": [{"_target_": "os.system", "command": "touch {folder}/ran"}]},
        DIGITS | {"name": "${oc.env:HOME}"},
        [],
    ],
)
def test_a_plan_never_runs_the_code_that_it_names_for_its_images(tmp_path: Path, served: object) -> None:
    served = json.loads(json.dumps(served).replace("{folder}", str(tmp_path)))
    plan = {
        "format": 1,
        "groups": [],
        "input_shape": [1, 3, 32, 32],
        "exclude": [],
        "model": {"spec": {"source": "cifar", "name": "resnet20", "kwargs": {}}, "num_classes": 10, "image_size": 32},
        "data": {"config": served, "preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1]}},
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    register()
    with initialize(version_base="1.3", config_path="../conf"):
        paths = [f"paths.root={tmp_path}", f"paths.run={tmp_path}"]
        config = compose("train", [f"plan={path}", "trainer=cpu", "logger=none", *paths])
    with pytest.raises(ValueError, match=r"names images that this package does not serve; add data=") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
