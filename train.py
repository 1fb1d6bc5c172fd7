"""Train: fine-tune what a search found, or train a base network.

python train.py plan=outputs/search/<run>/plan.json
python train.py model=resnet20 data=cifar10 fit.lr=0.1 fit.epochs=200
"""

import hydra
from omegaconf import DictConfig

from gnnrl_lightning.app.config import register
from gnnrl_lightning.app.launch import job, launch

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Runs one training; returns the accuracy on the reward split, for a sweeper."""
    from gnnrl_lightning.app.train import train

    return job(train, config)


if __name__ == "__main__":
    launch(main)
