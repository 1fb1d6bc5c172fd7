from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gnnrl_lightning.report.figures import (
    STYLE,
    cost_figure,
    groups_figure,
    lowest_shown,
    pareto_front,
    reward_figure,
    save_figures,
)
from gnnrl_lightning.report.record import read_record

MakeRun = Callable[..., Path]


def test_pareto_front_equals_its_definition() -> None:
    generator = np.random.default_rng(0)
    cost, reward = generator.integers(0, 12, 60).astype(float), generator.integers(0, 12, 60).astype(float)
    front = {(cost[i], reward[i]) for i in pareto_front(cost, reward)}
    points = set(zip(cost, reward, strict=True))
    beaten = {(c, r) for c, r in points if any((d <= c and s >= r) and (d, s) != (c, r) for d, s in points)}
    assert front == points - beaten
    assert list(cost[pareto_front(cost, reward)]) == sorted(c for c, _ in front)


def test_a_few_outliers_do_not_flatten_the_rest() -> None:
    usual = np.linspace(-12, -6, 95)
    assert lowest_shown(np.concatenate([usual, np.full(5, -90.0)])) == pytest.approx(-12, abs=1)
    assert lowest_shown(usual) == -12
    assert lowest_shown(np.array([-90.0, -6.0])) == -90
    assert lowest_shown(np.array([-50.0])) == -50


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_reward_figure_counts_what_it_leaves_out(tmp_path: Path, make_run: MakeRun) -> None:
    rewards = (-90.0, -89.0, *np.linspace(-12, -6, 48))
    figure = reward_figure(read_record(make_run(tmp_path, rewards)))
    assert any(text.startswith("2 of 50 episodes below \N{MINUS SIGN}1") for text in legend(figure))
    assert figure.axes[0].get_ylim()[0] > -20
    assert figure.get_suptitle().startswith("Best reward \N{MINUS SIGN}6.00 % at episode 50 ")


def test_the_reward_figure_shows_the_chosen_plans_own_level(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path, (-8.0, -7.9), reward={"best_seen": -7.9, "whole_split": -15.0})
    figure = reward_figure(read_record(folder))
    assert figure.axes[0].get_ylim()[0] < -15
    assert "chosen plan on the whole reward split: \N{MINUS SIGN}15.00 %" in legend(figure)


def test_the_cost_axis_is_calm_when_all_episodes_land_on_the_budget(tmp_path: Path, make_run: MakeRun) -> None:
    left, right = cost_figure(read_record(make_run(tmp_path))).axes[0].get_xlim()
    assert right > 50 > left
    assert 0.5 <= right - left < 0.7


def test_the_cost_figure_marks_the_plan_even_if_another_scored_higher(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path, (-9.0, -7.0))
    other = make_run(tmp_path / "other", (-7.0, -9.0))
    (folder / "plan.json").write_bytes((other / "plan.json").read_bytes())
    figure = cost_figure(read_record(folder))
    assert "91.00 % on the reward images" in figure.get_suptitle()


@pytest.mark.parametrize("groups", [1, 3, 35, 41, 120])
def test_no_two_group_names_overlap_and_none_is_cut(tmp_path: Path, make_run: MakeRun, groups: int) -> None:
    with matplotlib.rc_context(STYLE):
        figure = groups_figure(read_record(make_run(tmp_path, groups=groups)))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    names = []
    for axes in figure.axes:
        labels = axes.get_xticklabels()
        boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
        names += [label.get_text() for label in labels]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert axes.get_window_extent().height > 100
    assert names == [f"layer{index}.conv<1>" for index in range(groups)]


@pytest.mark.parametrize("rewards", [(-90.0,), tuple(np.linspace(-60, -6, 2500))])
def test_figures_are_saved_for_one_episode_and_for_thousands(
    tmp_path: Path, make_run: MakeRun, rewards: tuple[float, ...]
) -> None:
    saved = save_figures(read_record(make_run(tmp_path, rewards)), tmp_path / "figures")
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == [f"{name}.{kind}" for name in ("cost", "groups", "reward") for kind in ("png", "svg")]
    assert all(len(figure.svg) < 500_000 for figure in saved.values())
    again = save_figures(read_record(tmp_path), tmp_path / "again")
    assert again == saved
