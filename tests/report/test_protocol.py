"""Rewards that are no accuracies, and accuracies that are agreement, are called so and drawn to their scale."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.comparison import compare
from gnnrl_lightning.report.comparison_figure import limits
from gnnrl_lightning.report.comparison_methods import by_task
from gnnrl_lightning.report.comparison_runs import evaluations_until, read_runs
from gnnrl_lightning.report.figures import cost_figure, lowest_shown, reward_figure
from gnnrl_lightning.report.page import write_report
from gnnrl_lightning.report.record import read_record
from gnnrl_lightning.report.recovery_figure import recovery_figure
from gnnrl_lightning.report.tables import network_table, sweep_rows, sweep_table, top1_table

MakeRun = Callable[..., Path]
MINUS = "\N{MINUS SIGN}"
IMAGES = "Rewards: 50 images of val/; accuracies: the 1,234 test images."
KL: dict[str, Any] = {
    "protocol": {"reward": "kl", "split": "held_out", "labels": True, "images": IMAGES},
    "reward": {"best_seen": -0.0871, "whole_split": -0.09},
    "levels": {"uniform": -0.154},
}
UNLABELLED = {"protocol": {"reward": "kl", "split": "train", "labels": False, "images": ""}}
REWARDS = (-0.154, -0.1, -0.0871, -0.12)


def printed(table: Any) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table)
    return " ".join(console.export_text().split())


def test_what_is_older_than_the_choice_is_as_ever(tmp_path: Path, make_run: MakeRun) -> None:
    results = json.loads((make_run(tmp_path) / "results.json").read_text())
    assert "protocol" not in results
    protocol = Protocol.of(results)
    assert (protocol.reward, protocol.split, protocol.accuracy, protocol.notes) == ("top1", "train", "top-1", [])
    assert protocol.text(-9.25) == f"{MINUS}9.25 %" and protocol.best(-9.25) == "top-1 90.75 %"


def test_a_divergence_is_drawn_in_nats_and_to_its_scale(tmp_path: Path, make_run: MakeRun) -> None:
    record = read_record(make_run(tmp_path, REWARDS, **KL))
    reward, cost = reward_figure(record), cost_figure(record)
    assert reward.get_suptitle().startswith(f"Best reward {MINUS}0.0871 nats at episode 3 ")
    legend = [text.get_text() for text in reward.legends[0].get_texts()]
    assert f"chosen plan on the whole reward split: {MINUS}0.0900 nats" in legend
    assert f"uniform: {MINUS}0.1540 nats" in legend
    assert cost.get_suptitle().startswith(f"The chosen plan scores {MINUS}0.0871 nats on the reward images")
    for figure in (reward, cost):
        (axes,) = figure.axes
        assert axes.get_ylabel() == f"reward = {MINUS}KL from the unpruned network, nats"
        bottom, top = axes.get_ylim()
        assert -0.2 < bottom < -0.154 and -0.0871 < top < -0.05


def test_outliers_of_a_divergence_do_not_flatten_the_rest() -> None:
    values = np.array([*np.linspace(-0.12, -0.08, 20), -2.0])
    assert lowest_shown(values, Protocol("kl").step) == pytest.approx(-0.12)
    band = (values[:20] - 0.001, values[:20], values[:20] + 0.001)
    bottom, top = limits([band], Protocol("kl").step)
    assert -0.13 < bottom < -0.121 and -0.079 < top < -0.07


def test_nearly_the_best_divergence_is_within_a_hundredth() -> None:
    curve = np.array([-2.0, -0.1102, -0.11, -0.1])  # e to the 0.01005 is 1 / 0.99
    assert evaluations_until(curve, protocol=Protocol("kl")) == 3
    assert evaluations_until(curve) == 2  # as errors in % they would be 98 and 99.9 % right


def test_the_page_says_what_a_reward_is_and_of_which_images(tmp_path: Path, make_run: MakeRun) -> None:
    text = write_report(make_run(tmp_path, REWARDS, **KL)).read_text()
    assert "minus the Kullback-Leibler divergence from the unpruned network&#39;s scores, in nats" in text
    assert f"the best seen was {MINUS}0.0871, and the chosen plan scores {MINUS}0.0900" in text
    assert IMAGES in text and "Top-1 accuracy, %" in text
    usual = write_report(make_run(tmp_path / "usual")).read_text()
    assert "minus the top-1 error in %" in usual and "Rewards:" not in usual


def test_agreement_is_no_accuracy(tmp_path: Path, make_run: MakeRun) -> None:
    curve = [{"images": 0, "top1": 85.7}, {"images": 100, "top1": 90.0}]
    folder = make_run(tmp_path / "0", REWARDS, recovery_curve=curve, **(KL | UNLABELLED))
    results = json.loads((folder / "results.json").read_text())
    note = "Agreement with the unpruned network: "
    table = printed(network_table(results))
    assert "agreement %" in table and note in table and "top-1" not in table
    of_training = results | {"top1": {"after": {"reward": 90.0, "test": 89.0}}}
    assert "test agreement %" in printed(top1_table(of_training)) and note in printed(top1_table(of_training))
    page = write_report(folder).read_text()
    assert note in page and "Agreement with the original, %" in page and "top-1" not in page.lower()
    assert recovery_figure(read_record(folder)).axes[0].get_ylabel() == "agreement on the reward images, %"
    summary = printed(sweep_table(sweep_rows(tmp_path)))
    assert "agreement %" in summary and note in summary


def test_a_sweep_tells_rewards_apart(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path / "0")
    make_run(tmp_path / "1", REWARDS, **KL)
    rows = sweep_rows(tmp_path)
    assert [(row["reward"], row["reward_split"]) for row in rows] == [("top1", "train"), ("kl", "held_out")]
    table = sweep_table(rows)
    assert [column.header for column in table.columns][:2] == ["reward", "reward_split"]
    assert IMAGES in printed(table)


def test_rewards_of_two_kinds_share_no_table(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path / "0", method="gnnrl")
    make_run(tmp_path / "1", REWARDS, method="gnnrl", **KL)
    make_run(tmp_path / "2", (-0.2,), method="uniform", **KL)
    make_run(tmp_path / "3", REWARDS, method="gnnrl", **(KL | UNLABELLED))
    tasks = by_task(read_runs([tmp_path])[0])
    assert [str(task).partition(", reward")[2] for task in tasks] == [
        "=kl, reward_split=held_out",
        "=kl, labels=false",
        "",
    ]
    compare(tasks, [], tmp_path, Console(width=140, file=io.StringIO()))
    page = (tmp_path / "comparison.md").read_text()
    held_out, unlabelled, usual = page.split("**resnet56")[1:]
    assert f"| gnnrl | 1 | {MINUS}0.0871 | {MINUS}0.0900 | 80.00 |" in held_out and "best reward, nats" in held_out
    assert IMAGES in held_out and "test top-1 pruned, %" in held_out
    assert "test agreement pruned, %" in unlabelled and "Agreement with the unpruned network: " in unlabelled
    assert "Test agreement of the unpruned network: " in unlabelled and IMAGES not in unlabelled
    assert f"| gnnrl | 1 | {MINUS}9.25 |" in usual and "best reward, %" in usual
    assert "or with reward=kl" in usual and "which is within 0.01 nats" in usual  # the legend of all three
