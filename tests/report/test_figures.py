from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gnnrl_lightning.report.error_figure import error_figure
from gnnrl_lightning.report.figures import (
    cost_figure,
    groups_figure,
    lowest_shown,
    pareto_front,
    reward_figure,
    save_figures,
)
from gnnrl_lightning.report.record import ErrorCurve, read_record
from gnnrl_lightning.report.recovery_figure import recovery_figure
from gnnrl_lightning.report.style import STYLE, write_figure

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


def test_levels_of_rivals_are_lines_and_those_far_below_marks(tmp_path: Path, make_run: MakeRun) -> None:
    plain = reward_figure(read_record(make_run(tmp_path, (-12.0, -8.0))))
    levels = {"uniform": -13.5, "random": -80.0, "best known": -6.0}
    figure = reward_figure(read_record(make_run(tmp_path, (-12.0, -8.0), levels=levels)))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["uniform: \N{MINUS SIGN}13.50 %"].get_linestyle() == ":"
    assert lines["random: \N{MINUS SIGN}80.00 %, below the axis"].get_marker() == "v"
    assert set(lines) <= set(legend(figure)), "each has its name in the legend"
    bottom, top = figure.axes[0].get_ylim()
    assert bottom < -13.5 and top > -6.0
    assert top - bottom < 2 * np.ptp(plain.axes[0].get_ylim())


def test_three_levels_show_what_a_search_adds(tmp_path: Path, make_run: MakeRun) -> None:
    levels = {"uniform": -12.0, "closed_form": -8.0}
    figure = reward_figure(read_record(make_run(tmp_path, (-12.0, -8.0, -7.5), levels=levels)))
    at = {line.get_label(): set(line.get_ydata()) for line in figure.axes[0].lines}
    for label, level in (("uniform", -12.0), ("closed form", -8.0), ("best", -7.5)):
        assert at[f"{label}: \N{MINUS SIGN}{-level:.2f} %"] == {level}


def test_error_curves_are_drawn_to_the_found_network(full_run: Path) -> None:
    figure = error_figure(read_record(full_run).curves)
    axes, bars, scale = figure.axes
    # Errors are 2 to the 10 − kept: of 8 channels 4, of 4 channels 64.
    less = "6\N{NO-BREAK SPACE}%"
    assert figure.get_suptitle() == f"By the error curves, the found network loses {less} of what uniform widths lose"
    uniform, found = axes.lines
    assert list(uniform.get_xdata()) == [25] * 3 and list(found.get_xdata()) == [50] * 3
    (image,) = axes.images
    colours = np.asarray(image.get_array())
    assert colours.shape[0] == 3 and colours[0, 0] == 1024 and colours[0, 100] == 4
    assert colours[0, -1] == image.norm.vmin, "no error at all is the lightest"
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([100 / 3] * 3)
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"layer{index}.conv<1>" for index in range(3)]
    assert scale.get_ylabel() == "change of the scores, mean square"


def test_error_curves_of_a_network_that_stays_whole_are_drawn(tmp_path: Path) -> None:
    whole = ErrorCurve("conv1", 4, 4, 4, (8.0, 4.0, 2.0, 1.0, 0.0))
    figure = error_figure([whole, ErrorCurve("dead", 2, 2, 2, (0.0, 0.0, 0.0))])
    assert "are worth" in figure.get_suptitle()
    write_figure(figure, tmp_path, "whole")
    write_figure(error_figure([ErrorCurve("dead", 2, 1, 1, (0.0, 0.0, 0.0))]), tmp_path, "dead")


@pytest.mark.parametrize("groups", [1, 12, 120])
def test_no_two_names_beside_error_curves_overlap(groups: int) -> None:
    curves = [ErrorCurve(f"features.{i}.conv.0", 8, 4, 2, (*range(8, -1, -1),)) for i in range(groups)]
    with matplotlib.rc_context(STYLE):
        figure = error_figure(curves)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)


def test_a_recovery_begins_before_the_training_and_meets_the_original(full_run: Path) -> None:
    record = read_record(full_run)
    figure = recovery_figure(record)
    curve, level = figure.axes[0].lines
    assert list(curve.get_xdata()) == [0, 12800, 25600] and list(curve.get_ydata()) == [85.7, 88.1, 90.12]
    assert list(level.get_ydata()) == [93.3, 93.3]
    assert legend(figure) == ["pruned network", "original network: 93.30 %"]
    assert figure.get_suptitle() == "Fine-tuning takes the network from 85.70 % to 90.12 % on the reward images"
    del record.results["reward_top1_original"]
    assert legend(recovery_figure(record)) == ["pruned network"]


def test_a_run_has_the_figures_that_it_has_numbers_for(tmp_path: Path, full_run: Path, make_run: MakeRun) -> None:
    assert {*save_figures(read_record(full_run), tmp_path)} == {
        *("reward", "groups", "cost", "recovery", "topology", "error_curves")
    }
    folder = make_run(tmp_path / "plain", recovery_curve=[])
    assert {*save_figures(read_record(folder), tmp_path)} == {"reward", "groups", "cost"}


@pytest.mark.parametrize(
    ("unit", "original", "text"), [("ms", 80_100_000, "80.1 ms"), ("MMACs", 125_485_696, "125.5 MMACs")]
)
def test_the_cost_axis_tells_the_unit(tmp_path: Path, make_run: MakeRun, unit: str, original: int, text: str) -> None:
    values = {"original": original, "used": original // 2}
    figure = cost_figure(read_record(make_run(tmp_path, cost_unit=unit, cost_values=values)))
    assert figure.axes[0].get_xlabel() == f"cost, % of the original's {text}"


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
