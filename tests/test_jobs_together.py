"""Ranks that search together go on with one result, and of jobs that start together one makes what all need."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gnnrl_lightning.core.ranks import agreed, alone
from gnnrl_lightning.data import IMAGENET, CifarDataModule, DigitsDataModule
from gnnrl_lightning.models.factory import ModelSpec
from gnnrl_lightning.settings import FitConfig
from gnnrl_lightning.training import base
from gnnrl_lightning.training.run import Run

COMMON: dict[str, Any] = {
    **{"num_classes": 10, "reward_images": None, "batch_size": 64, "eval_batch_size": 100, "epochs": 1},
    **{"preprocessing": IMAGENET, "seed": 0},
}


def together(*jobs: Callable[[], Any]) -> None:
    """Starts jobs at the same time and raises what they raise."""
    raised: list[BaseException] = []

    def run(job: Callable[[], Any]) -> None:
        try:
            job()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=[job]) for job in jobs]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
        assert not each.is_alive()
    if raised:
        raise raised[0]


def test_ranks_that_differ_go_on_with_the_first_ones_result(tmp_path: Path) -> None:
    """And they wait together for a job that makes what they need."""
    script = Path(__file__).parent / "two_ranks.py"
    with alone(tmp_path / "made"):
        ranks = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
        while not (tmp_path / "meet").is_file():
            assert ranks.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        (tmp_path / "made").touch()
    assert ranks.wait(300) == 0
    times = set()
    for rank in range(2):
        widths, reward, kept, weight, found, nanoseconds = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        times.add(nanoseconds)
        assert widths.tolist() == [0, 7] and reward == 0
        assert kept == [[1]] and weight == 0  # of 0 and 0.5 the second is more important, of 1 and 0.5 the first
        assert found
    assert len(times) == 1 and times.pop() > 0  # one has measured
    assert agreed("alone") == "alone"


OTHER_IMAGES = """
import os, runpy, sys
sys.path.insert(0, {root!r})
from gnnrl_lightning.data.module import ImageDataModule

tensors = ImageDataModule.tensors

def other(self, split, images=None):
    held, labels = tensors(self, split, images)
    if split == "reward" and os.environ["LOCAL_RANK"] == "1":
        held.pixels[:40] = 255 - held.pixels[:40]
    return held, labels

ImageDataModule.tensors = other
sys.argv[0] = {root!r} + "/search.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_ranks_that_see_other_images_search_to_the_end(tmp_path: Path) -> None:
    """Their rewards differ and so would their winners: a network of other shapes cannot be trained together."""
    root = Path(__file__).parents[1]
    (tmp_path / "search.py").write_text(OTHER_IMAGES.format(root=str(root)))
    launcher = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", "--master-port", "29511"]
    asked = "model=resnet20 data=digits budget=0.5 agent=random episodes=16 base.max_steps=30 finetune.max_steps=4"
    more = f"finish.steps=4 logger=none trainer=ddp_cpu paths.root={tmp_path} paths.run={tmp_path / 'run'}"
    subprocess.run([*launcher, "search.py", *asked.split(), *more.split()], cwd=tmp_path, check=True, timeout=600)
    assert (tmp_path / "run" / "report.html").is_file()


def test_what_fails_in_one_job_is_tried_by_the_next(tmp_path: Path) -> None:
    with pytest.raises(KeyError), alone(tmp_path / "made"):
        raise KeyError
    with alone(tmp_path / "made"):
        pass


def test_of_jobs_that_start_together_one_trains_the_base_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def fit(model: nn.Module, *rest: object) -> list[Any]:
        time.sleep(0.5)
        trained.append(nn.init.constant_(model.weight, 7.0))  # type: ignore[arg-type]
        return []

    monkeypatch.setattr(base, "fit", fit)
    models = [nn.Linear(2, 3) for _ in range(3)]
    data = DigitsDataModule(name="digits", size=8, test_images=360, **COMMON)

    def job(number: int) -> None:
        settings = {"data": {}, "trainer": {}, "seed": 0, "paths": {"cache": str(tmp_path)}}
        run = Run(tmp_path / str(number), settings, dict)
        base.train_base(models[number], ModelSpec("cifar", "tiny"), "linear", data, FitConfig(), run)

    together(*(lambda number=number: job(number) for number in range(3)))  # type: ignore[misc]
    assert len(trained) == 1 and all((model.weight == 7).all() for model in models)


def test_of_jobs_that_start_together_one_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []

    class Remote:
        base_folder = "cifar-10-batches-py"

        def __init__(self, root: str, download: bool) -> None:
            downloads.append(root)
            time.sleep(0.5)
            Path(root, self.base_folder).mkdir()

    monkeypatch.setattr("gnnrl_lightning.data.cifar._DATASETS", {10: Remote})
    data = CifarDataModule(root=str(tmp_path / "new" / "cifar10"), name="cifar10", flip=True, **COMMON)
    together(*[data.prepare_data] * 3)
    assert len(downloads) == 1 and (tmp_path / "new" / "cifar10" / Remote.base_folder).is_dir()
