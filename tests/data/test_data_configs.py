from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gnnrl_lightning.data import IMAGENET, ImageDataModule
from gnnrl_lightning.library.components import build

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_makes_its_data_module(path: Path) -> None:
    config = OmegaConf.create({"paths": {"data": "data"}, "data": OmegaConf.load(path)})
    for key, value in {"root": "pictures", "num_classes": 3}.items():
        if OmegaConf.is_missing(config.data, key):
            config.data[key] = value
    data = build(config.data, preprocessing=IMAGENET, seed=0)
    assert isinstance(data, ImageDataModule)
    assert data.preprocessing == IMAGENET and type(data.preprocessing) is type(IMAGENET)
    assert data.name == path.stem
