"""Search: a trained network and a budget in, a smaller network out.

python search.py model=mobilenet_v2 budget=0.7
python search.py -m model=resnet20,resnet56 budget=0.3,0.5
"""

import hydra
from omegaconf import DictConfig

from gnnrl_lightning.app.config import register
from gnnrl_lightning.app.launch import job, launch

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="search")
def main(config: DictConfig) -> float:
    """Runs one search; returns the reward of its winner, for a sweeper."""
    from gnnrl_lightning.app.search import search

    return job(search, config)


if __name__ == "__main__":
    launch(main)
