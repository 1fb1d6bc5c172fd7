"""Searches with other rewards than ever, as a user types them; the last of them on images without labels."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Outcome, run_all
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import save_file

from gnnrl_lightning.app.config import SearchConfig, TrainConfig, register, typed
from gnnrl_lightning.app.unlabelled import check_search, check_training
from gnnrl_lightning.models.resnet_cifar import resnet_cifar

CONF = Path(__file__).resolve().parents[1] / "conf"


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in no folders, and the weights of a network that tells them apart somehow."""
    folder = tmp_path_factory.mktemp("flat")
    generator = torch.Generator().manual_seed(0)
    (folder / "images").mkdir()
    for number in range(120):
        colours = torch.randint(256, (2, 2, 3), generator=generator).byte()
        Image.fromarray(colours.numpy()).resize((32, 32), 0).save(folder / "images" / f"{number}.png")
    torch.manual_seed(0)
    network = resnet_cifar(20, 10)
    with torch.no_grad():
        network.get_parameter("linear.weight").mul_(5)  # fresh, it would say the same of all images
    save_file(network.state_dict(), folder / "net.safetensors")
    return folder


@pytest.fixture(scope="module")
def runs(flat: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """One search on held-out digits; without labels, one search, its fine-tuning, and a resumption that is refused."""
    folder = tmp_path_factory.mktemp("runs")
    weights = f"weights={flat}/net.safetensors"
    images = ["data=folder", f"data.root={flat}/images", "data.num_classes=10", "data.labels=false"]
    quick = [*(each for each in tiny if "agent" not in each), "debug=fast", "agent=random", "episodes=3"]
    flat_run = [*quick, *images, weights, "finetune.distill=1", "finetune.max_steps=2", f"hydra.run.dir={folder}/flat"]
    held_out = [*quick, "reward=kl", "reward_split=held_out", "finetune.epochs=0", f"hydra.run.dir={folder}/held"]
    lines = [
        ["search.py", *flat_run, "reward=kl"],
        ["search.py", *flat_run, "reward=kl", "reward_split=held_out"],
        [
            *("train.py", f"plan={folder}/flat/plan.json", f"teacher={flat}/net.safetensors", "fit.distill=1"),
            *("fit.max_steps=2", "trainer=cpu", f"hydra.run.dir={folder}/tuned"),
        ],
        ["train.py", f"plan={folder}/flat/plan.json", "trainer=cpu", f"hydra.run.dir={folder}/refused"],
        ["search.py", *held_out],
        ["train.py", f"plan={folder}/held/plan.json", "fit.max_steps=1", "trainer=cpu", f"hydra.run.dir={folder}/more"],
        [
            *("search.py", "-m", *quick, "reward=top1,kl", "finetune.epochs=0", f"hydra.sweep.dir={folder}/sweep"),
            *("logger=none", "reward_split=held_out"),
        ],
    ]
    return folder, run_all(lines, folder)


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_a_flat_folder_of_images_is_enough(runs: tuple[Path, list[Outcome]]) -> None:
    folder, (search, *_) = runs
    assert search.code == 0, search.err
    results = results_of(folder / "flat")
    assert results["images"] == {"train": 30, "reward": 30, "test": 60}
    top1 = {stage["name"]: stage["top1"] for stage in results["networks"]}
    assert top1.pop("original") == 100 and {"pruned", "fine-tuned"} <= top1.keys() and max(top1.values()) < 100
    assert results["reward_top1_original"] == 100
    with (folder / "flat" / "history.csv").open(newline="") as file:
        assert all(float(row["reward"]) < 0 for row in csv.DictReader(file))
    assert "best divergence " in search.out


def test_agreement_is_called_so(runs: tuple[Path, list[Outcome]]) -> None:
    folder, (search, _, tuned, *_) = runs
    page, card = ((folder / "flat" / name).read_text() for name in ("report.html", "README.md"))
    note = "Agreement with the unpruned network: the share of images"
    for text in (search.out, tuned.out, page, card, (folder / "tuned" / "README.md").read_text()):
        assert note in " ".join(text.split())
    assert "agreement %" in search.out and "top-1" not in search.out.split("resnet20 on folder")[1]
    assert "test agreement %, pruned" in card and "top-1" not in card
    assert "top-1" not in page.partition("<h2>Settings")[0].lower()
    assert "minus the Kullback-Leibler divergence" in page
    assert tuned.code == 0 and "test agreement %" in tuned.out


def test_another_reward_is_another_search(runs: tuple[Path, list[Outcome]]) -> None:
    _, (_, resumed, *_) = runs
    assert resumed.code == 1
    assert resumed.err.startswith("error: the checkpoint is of a run with reward_split=train; resume with the same")


def test_there_is_no_training_without_labels(runs: tuple[Path, list[Outcome]]) -> None:
    _, (_, _, _, refused, *_) = runs
    assert refused.code == 1
    assert refused.err.startswith(
        "error: data.labels=false, but fit.distill=0 and teacher=None need labels; add teacher="
    )


def test_held_out_images_are_said_in_every_table(runs: tuple[Path, list[Outcome]]) -> None:
    folder, (*_, held, more, sweep) = runs
    assert held.code == 0 and more.code == 0 and sweep.code == 0, held.err + more.err + sweep.err
    # The fine-tuning of the plan must not report on images that its rewards were taken on.
    assert results_of(folder / "held")["images"] == {"train": 1437, "reward": 180, "test": 180}
    said = (
        "Rewards: 180 images of one half of the test images (a fixed, stratified cut); accuracies: the other half, 180"
    )
    texts = [held.out, more.out, sweep.out]
    texts += [(folder / "held" / name).read_text() for name in ("report.html", "README.md")]
    texts += [(folder / "more" / "README.md").read_text(), (folder / "sweep" / "comparison.md").read_text()]
    for text in texts:
        assert said in " ".join(text.split())
    assert results_of(folder / "held")["networks"][0]["top1"] < 100


def test_rewards_of_two_kinds_are_compared_in_two_tables(runs: tuple[Path, list[Outcome]]) -> None:
    folder, _ = runs
    page = (folder / "sweep" / "comparison.md").read_text()
    first, second = page.split("**resnet20 on digits, budget 0.5 (flops), ")[1:]
    assert first.startswith("reward=kl, reward_split=held_out**") and "best reward, nats" in first
    assert second.startswith("reward_split=held_out**") and "best reward, %" in second


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RUN_STAMP", "now")
    register()

    def compose_(name: str, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, ["paths.root=/root", "paths.run=/run", *overrides])

    return compose_


UNLABELLED = ("data=folder", "data.root=images", "data.num_classes=10", "data.labels=false")
COMPLETE = ("reward=kl", "weights=net.pt", "finetune.epochs=0")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["reward=top1"], "reward=top1 needs labels; add reward=kl."),
        (["weights=null"], "weights=null needs labels; give the trained network, weights=<file> or weights=default."),
        (["finetune.epochs=1"], "finetune.distill=0 needs labels; add finetune.epochs=0, or finetune.distill=1 to"),
        (["finetune.epochs=1", "finetune.distill=0.5"], "finetune.distill=0.5 needs labels"),
        (["importance=taylor"], "the importance Taylor needs labels; add importance=l1, or another that needs none."),
        (["importance=fisher"], "the importance Fisher needs labels"),
        (["importance=soft"], "the importance SoftPruning needs labels"),
        (["importance=group_fisher"], "the importance GroupFisher needs labels"),
        (["recovery=finetune"], "the recovery FinetuneRecovery needs labels; add recovery=bn."),
    ],
)
def test_what_needs_labels_is_refused(composed: Any, changes: list[str], said: str) -> None:
    def check(*overrides: str) -> None:
        config = composed("search", "model=resnet20", "budget=0.5", *overrides)
        check_search(typed(config, SearchConfig))

    with pytest.raises(ValueError) as raised:
        check(*UNLABELLED, *COMPLETE, *changes)
    assert str(raised.value).startswith(f"data.labels=false, but {said}") and "\n" not in str(raised.value)
    check(*COMPLETE, *changes)  # of images with labels all is possible


@pytest.mark.parametrize("importance", ["l1", "l2", "fpgm", "bn_scale", "hrank", "genetic", "random"])
def test_what_needs_no_labels_is_not_refused(composed: Any, importance: str) -> None:
    changes = [f"importance={importance}", "finetune.epochs=1", "finetune.distill=1"]
    config = composed("search", "model=resnet20", "budget=0.5", *UNLABELLED, *COMPLETE, *changes)
    check_search(typed(config, SearchConfig))


def test_a_base_network_is_not_trained_without_labels(composed: Any) -> None:
    config = composed("train", "model=resnet20", *UNLABELLED)
    with pytest.raises(ValueError, match="or give labelled images with data="):
        check_training(typed(config, TrainConfig))
