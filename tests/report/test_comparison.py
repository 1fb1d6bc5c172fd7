import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from gnnrl_lightning.report.comparison import compare, main, mean_std
from gnnrl_lightning.report.comparison_figure import draw_curves, limits, line_styles, padded
from gnnrl_lightning.report.comparison_methods import by_task, unequal_settings
from gnnrl_lightning.report.comparison_runs import evaluations_until, read_runs, running_best

MakeRun = Callable[..., Path]

NB, MINUS = "\N{NO-BREAK SPACE}", "\N{MINUS SIGN}"


def top1(pruned: float, fine_tuned: float | None) -> list[dict[str, Any]]:
    values = {"original": 93.31, "pruned": pruned, "fine-tuned": fine_tuned}
    return [{"name": name, "top1": value} for name, value in values.items()]


@pytest.fixture
def sweep(tmp_path: Path, make_run: MakeRun) -> Path:
    """Three seeds of gnnrl, two of random, one of uniform, and a job that failed."""
    folder = tmp_path / "sweep"
    gnnrl = ((-40.0, -9.0, -8.0), (-50.0, -30.0, -10.0), (-20.0, -12.0, -12.0))
    for seed, (rewards, whole) in enumerate(zip(gnnrl, (-9.0, -11.0, -10.0), strict=True)):
        make_run(
            folder / str(seed),
            rewards,
            method="gnnrl",
            seed=seed,
            reward={"best_seen": max(rewards), "whole_split": whole},
            networks=top1(80 + seed, 90 + 2 * seed),
            seconds={"search": 70.0 + 10 * seed},
        )
    make_run(folder / "3", (-60.0, -50.0), method="random", agent="random", seed=0, networks=top1(50, 60))
    make_run(
        folder / "4", (-70.0, -46.0, -40.0, -30.0), method="random", agent="random", seed=1, networks=top1(60, None)
    )
    make_run(folder / "5", (-36.5,), method="uniform", agent="uniform", seed=0, networks=top1(64.5, 83))
    (folder / "6" / ".hydra").mkdir(parents=True)
    (folder / "6" / ".hydra" / "overrides.yaml").write_text("- method=random\n- seed=2\n- episodes=4\n")
    return folder


def compared(folders: list[Path], out: Path) -> tuple[str, list[dict[str, str]]]:
    """What is printed, and the rows of comparison.csv."""
    text = io.StringIO()
    runs, unfinished = read_runs(folders)
    compare(by_task(runs), unfinished, out, Console(width=140, file=text))
    with (out / "comparison.csv").open(newline="") as file:
        return text.getvalue(), list(csv.DictReader(file))


def test_means_and_deviations_are_those_done_by_hand(sweep: Path, tmp_path: Path) -> None:
    _, rows = compared([sweep], tmp_path / "out")
    assert [(row["method"], row["runs"], row["seeds"]) for row in rows] == [
        ("gnnrl", "3", "0 1 2"),
        ("uniform", "1", "0"),
        ("random", "2", "0 1"),
    ]
    gnnrl, uniform, random = ({name: float(v) if v else None for name, v in list(r.items())[10:]} for r in rows)
    expected = {
        "best_reward": (-10, 2),  # -8, -10, -12
        "winner_reward": (-10, 1),  # -9, -11, -10
        "top1_pruned": (81, 1),
        "top1_fine_tuned": (92, 2),
        "evaluations": (3, 0),
        "search_seconds": (80, 10),
        "evaluations_to_99": (8 / 3, 1 / 3**0.5),  # 3 (91 is less than 0.99 · 92), 3, 2
    }
    for name, (mean, std) in expected.items():
        assert gnnrl[f"{name}_mean"] == pytest.approx(mean) and gnnrl[f"{name}_std"] == pytest.approx(std)
    assert uniform["best_reward_mean"] == -36.5 and uniform["best_reward_std"] is None
    assert uniform["evaluations_mean"] == uniform["evaluations_to_99_mean"] == 1
    assert random["best_reward_mean"] == -40 and random["best_reward_std"] == pytest.approx(200**0.5)
    assert random["evaluations_mean"] == 3  # 2 and 4
    # One of the two was not fine-tuned: no mean over the other alone.
    assert random["top1_pruned_mean"] == 55 and random["top1_fine_tuned_mean"] is None


def test_the_tables_say_the_same_and_name_what_failed(sweep: Path, tmp_path: Path) -> None:
    printed, _ = compared([sweep], tmp_path)
    page = (tmp_path / "comparison.md").read_text()
    cells = "−10.00 ± 2.00", "−10.00 ± 1.00", "81.00 ± 1.00", "92.00 ± 2.00", "3 ± 0", "80 ± 10", "3 ± 1"
    assert f"| gnnrl | 3 | {' | '.join(cells)} |" in page
    assert f"| uniform | 1 | {MINUS}36.50 | {MINUS}37.50 | 64.50 | 83.00 | 1 | 75 | 1 |" in page
    assert "**resnet56 on digits, budget 0.5 (flops)**" in page
    for text in (page, " ".join(printed.split())):
        assert f"unpruned network: 93.31{NB}%." in text.replace("93.31 %", f"93.31{NB}%")
        assert "Left out, not finished: sweep/6 (method random, seed 2)." in text
    assert all(cell in printed for cell in cells) and max(map(len, printed.splitlines())) <= 140
    assert "Warning" not in page
    picture = (tmp_path / "comparison.svg").read_text()
    assert "<svg" in picture and (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_says_where_searches_began(tmp_path: Path, make_run: MakeRun) -> None:
    for seed, closed_form in enumerate((-14.0, -15.0)):
        levels = {"uniform": -20.0, "closed_form": closed_form}
        make_run(tmp_path / f"gnnrl{seed}", method="gnnrl", seed=seed, levels=levels)
    make_run(tmp_path / "amc", method="amc", levels={"uniform": -20.0})
    printed, _ = compared([tmp_path], tmp_path / "out")
    for text in (" ".join(printed.split()), (tmp_path / "out" / "comparison.md").read_text()):
        assert f"Reward of uniform widths, before the search: {MINUS}20.00 (amc, gnnrl)." in text
        assert f"Reward of the best plan in closed form, before the search: {MINUS}14.50 ± 0.71 (gnnrl)." in text


def test_what_was_known_already_is_no_evaluation(tmp_path: Path) -> None:
    def curve(*rows: tuple[float, int]) -> list[float]:
        lines = [f"{number},{reward},{cached}" for number, (reward, cached) in enumerate(rows)]
        (tmp_path / "history.csv").write_text("\n".join(["episode,reward,cached", *lines]) + "\n")
        return running_best(tmp_path / "history.csv").tolist()

    assert curve((-50, 0), (-50, 1), (-30, 0), (-40, 0), (-30, 1), (-20, 0)) == [-50, -30, -30, -20]
    # An agent that knew its first proposals.
    assert curve((-50, 1), (-40, 1), (-60, 0), (-30, 0)) == [-40, -30]
    assert curve((-36.5, 1)) == [-36.5]


def test_the_share_is_one_of_the_accuracy() -> None:
    # 79.2 of 80 is 99 %; in rewards, 99 % of -20 would be -19.8, which is never reached.
    assert evaluations_until(np.array([-40.0, -20.81, -20.8, -20.8, -20.0])) == 3
    assert evaluations_until(np.array([-40.0, -20.81, -20.81, -20.0])) == 4
    assert evaluations_until(np.array([-36.5])) == 1
    assert evaluations_until(np.array([-100.0, -100.0])) == 1
    assert evaluations_until(np.array([-60.0, -20.0]), share=0.5) == 1


def test_mean_and_sample_standard_deviation() -> None:
    assert mean_std([-7.0, -9.0, -5.0]) == (-7.0, 2.0)
    assert mean_std([0.1, 0.1, 0.1])[1] == 0
    assert mean_std([4.0]) == (4.0, None)
    assert mean_std([4.0, None]) == (None, None)


def test_mixed_folders_are_sorted_into_tasks_and_methods(tmp_path: Path, make_run: MakeRun) -> None:
    both = {"method": "gnnrl", "seed": 0}
    make_run(tmp_path / "a" / "0", budget=0.5, importance="l1", **both)
    make_run(tmp_path / "a" / "1", budget=0.5, importance="l2", **both)
    make_run(tmp_path / "b", budget=0.3, importance="l1", **both)
    make_run(tmp_path / "b" / "stages" / "1", budget=0.6, importance="l1", **both)
    make_run(tmp_path / "c", budget=0.3, method=None, agent="random", importance="l2")
    older = json.loads((tmp_path / "c" / "results.json").read_text())
    del older["method"]
    (tmp_path / "c" / "results.json").write_text(json.dumps(older))
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "results.json").write_text('{"model": "resnet56", "stage": "finetune", "top1": {}}')

    runs, unfinished = read_runs([tmp_path / "b", tmp_path, tmp_path / "a" / "1"])
    assert len(runs) == 4 and unfinished == []
    found = {str(task): {label: len(of) for label, of in methods.items()} for task, methods in by_task(runs).items()}
    assert found == {
        "resnet56 on digits, budget 0.3 (flops)": {"gnnrl (importance=l1)": 1, "random": 1},
        "resnet56 on digits, budget 0.5 (flops)": {"gnnrl (importance=l1)": 1, "gnnrl (importance=l2)": 1},
    }
    _, rows = compared([tmp_path], tmp_path / "out")
    assert [row["budget"] for row in rows] == ["0.3", "0.3", "0.5", "0.5"]
    assert (tmp_path / "out" / "comparison.md").read_text().count("| method | runs |") == 2


def settings(folder: Path, episodes: int, lr: float) -> None:
    agent = f"agent: {{lr: {lr}, encoder: {{size: 5}}}}"
    (folder / "config.yaml").write_text(f"episodes: {episodes}\npaths: {{run: {folder}}}\nexclude: []\n{agent}\n")


def test_what_is_not_alike_is_said(sweep: Path, tmp_path: Path) -> None:
    for job in range(3):
        settings(sweep / str(job), episodes=3, lr=0.1)
    settings(sweep / "3", episodes=3, lr=0.2)  # random's own affair; 4 and 5 are too old to say
    ((_, methods),) = by_task(read_runs([sweep])[0]).items()
    assert unequal_settings(methods) == []

    settings(sweep / "3", episodes=4, lr=0.2)
    results = json.loads((sweep / "4" / "results.json").read_text())
    (sweep / "4" / "results.json").write_text(json.dumps(results | {"seed": 0, "device": "CUDA"}))
    ((_, methods),) = by_task(read_runs([sweep])[0]).items()
    assert unequal_settings(methods) == [
        "Warning: not alike in all runs: episodes 3 (gnnrl) against 4 (random); "
        "device CPU, 2 threads (gnnrl, uniform, random) against CUDA (random).",
        "Warning: runs of random share a seed: 0 0.",
    ]
    _, _ = compared([sweep], tmp_path)
    assert "episodes 3 (gnnrl) against 4 (random)" in (tmp_path / "comparison.md").read_text()


def test_settings_that_tell_runs_of_a_method_apart_stand_in_its_name(sweep: Path, make_run: MakeRun) -> None:
    make_run(sweep / "other", method="gnnrl", model="resnet20")
    (sweep / "other" / "config.yaml").write_text("agent: {lr: 0.3}")  # of another task
    for job, encoder in enumerate(("null", "/runs/outputs/56", "/runs/outputs/56")):
        text = f"agent: {{_target_: v{job}, encoder_from: {encoder}, frozen: {encoder != 'null'}, lr: 0.1}}"
        (sweep / str(job) / "config.yaml").write_text(text)
    other, methods = by_task(read_runs([sweep])[0]).values()
    assert list(other) == ["gnnrl"]
    assert {label: len(runs) for label, runs in methods.items()} == {
        "gnnrl (agent.encoder_from=56, agent.frozen=true)": 2,
        "gnnrl (agent.encoder_from=null, agent.frozen=false)": 1,
        "uniform": 1,
        "random": 2,
    }
    assert unequal_settings(methods) == []


def test_runs_with_one_seed_are_no_repetitions(tmp_path: Path, make_run: MakeRun) -> None:
    def run(seed: int, text: str) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        make_run(folder, method="gnnrl", seed=seed)
        (folder / "config.yaml").write_text(text)

    def found() -> dict[str, int]:
        return {
            label: len(of) for methods in by_task(read_runs([tmp_path])[0]).values() for label, of in methods.items()
        }

    for seed in range(2):  # a network for each seed, and the rest alike: repetitions, though not quite alike
        run(seed, f"{{episodes: 100, weights: /base/{seed}.pt}}")
    assert found() == {"gnnrl": 2}
    for seed in range(2):
        run(seed, f"{{episodes: 400, weights: /base/{seed}.pt}}")
    assert found() == {"gnnrl (episodes=100)": 2, "gnnrl (episodes=400)": 2}
    run(1, "{episodes: 400, weights: /base/0.pt}")
    assert found() == {
        "gnnrl (episodes=100, weights=0.pt)": 1,
        "gnnrl (episodes=100, weights=1.pt)": 1,
        "gnnrl (episodes=400, weights=0.pt)": 2,
        "gnnrl (episodes=400, weights=1.pt)": 1,
    }


def test_seeds_of_one_method_are_averaged_whatever_takes_the_seed(sweep: Path) -> None:
    for job in range(3):
        (sweep / str(job) / "config.yaml").write_text(f"importance: {{images: 9, seed: {job}}}")
    ((_, methods),) = by_task(read_runs([sweep])[0]).items()
    assert len(methods["gnnrl"]) == 3 and unequal_settings(methods) == []
    (sweep / "2" / "config.yaml").write_text("importance: {images: 9, seed: 7}")  # not the run's
    ((_, methods),) = by_task(read_runs([sweep])[0]).items()
    assert {f"gnnrl (importance.seed={seed})" for seed in (0, 1, 7)} < set(methods)


def test_paths_that_end_alike_are_told_apart(sweep: Path) -> None:
    for job, sweep_of_encoder in enumerate("ABA"):
        (sweep / str(job) / "config.yaml").write_text(f"agent: {{encoder_from: /runs/{sweep_of_encoder}/0}}")
    ((_, methods),) = by_task(read_runs([sweep])[0]).items()
    assert len(methods["gnnrl (agent.encoder_from=/runs/A/0)"]) == 2
    assert len(methods["gnnrl (agent.encoder_from=/runs/B/0)"]) == 1


def test_parts_that_methods_do_not_share_are_said(tmp_path: Path, make_run: MakeRun) -> None:
    def run(number: int, agent: str, importance: str, recovery: str, text: str) -> None:
        make_run(tmp_path / str(number), method=None, agent=agent, importance=importance, recovery=recovery)
        (tmp_path / str(number) / "config.yaml").write_text(text)

    run(0, "gnnrl", "l1", "finetune", "recovery: {images: 9, epochs: 1}")
    run(1, "amc", "l1", "finetune", "recovery: {images: 9, epochs: 4}")
    run(2, "random", "genetic", "bn", "{importance: {seed: 0}, recovery: {images: 9}}")
    ((_, methods),) = by_task(read_runs([tmp_path])[0]).items()
    assert set(methods) == {"gnnrl", "amc", "random"}
    importances, recoveries = unequal_settings(methods)
    assert importances == "Warning: channels are chosen by different importances: l1 (gnnrl, amc); genetic (random)."
    for choice in ("finetune recovery.epochs=1 (gnnrl)", "finetune recovery.epochs=4 (amc)", "bn (random)"):
        assert choice in recoveries


def test_stages_are_said_and_their_plans_are_no_difference(tmp_path: Path, make_run: MakeRun) -> None:
    for job, agent in enumerate(("gnnrl", "amc")):
        make_run(tmp_path / str(job), method=None, agent=agent)
        (tmp_path / str(job) / "config.yaml").write_text(f"stages: 2\nplan: /runs/{job}/stages/1/plan.json\n")
    ((_, methods),) = by_task(read_runs([tmp_path])[0]).items()
    assert unequal_settings(methods) == [
        "Warning: gnnrl, amc searched in stages: evaluations, seconds and curves are of the last one."
    ]
    for job in range(2):
        (tmp_path / str(job) / "config.yaml").write_text(f"stages: 1\nplan: /runs/{job}/plan.json\n")
    ((_, methods),) = by_task(read_runs([tmp_path])[0]).items()
    (plans,) = unequal_settings(methods)
    assert "plan /runs/0/plan.json (gnnrl) against /runs/1/plan.json (amc)" in plans


def test_curves_are_means_and_a_single_network_is_a_level() -> None:
    assert padded([np.array([-9.0, -5.0, -1.0]), np.array([-7.0])]).tolist() == [[-9, -5, -1], [-7, -7, -7]]
    axes = Figure().subplots()
    curves = {
        "gnnrl": [np.array([-40.0, -20.0, -10.0]), np.array([-50.0, -30.0])],
        "uniform": [np.array([-36.5]), np.array([-36.5])],
        "short": [np.array([-12.0, -11.0])],
    }
    lines = draw_curves(axes, curves, dict(zip(curves, line_styles(), strict=False)))
    assert lines["gnnrl"].get_xydata().tolist() == [[1, -45], [2, -25], [3, -20]]
    assert lines["uniform"].get_xydata().tolist() == [[1, -36.5], [2, -36.5], [3, -36.5]]
    assert [line.get_linestyle() for line in lines.values()] == ["-", "--", "-"]
    assert [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"] == [[[2, -11]]]
    # The band of gnnrl is 10 and 20 apart by hand: ± the sample standard deviation of two, distance / sqrt(2).
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(-45 - 50**0.5) and band.max() == pytest.approx(-20 + 200**0.5)


def test_twelve_methods_can_be_told_apart() -> None:
    assert len({style for style, _ in zip(line_styles(), range(12), strict=False)}) == 12


def test_a_start_far_below_does_not_flatten_the_rest() -> None:
    def band(*rewards: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (np.array(rewards) - 1, np.array(rewards), np.array(rewards) + 1)

    # From -90 to -10 in one step: the axis begins where the rest is; all ends are on it, however low.
    bottom, top = limits([band(-90, *[-20] * 50, -10)])
    assert -22 < bottom < -20 and -9 < top < -8
    bottom, _ = limits([band(-90, *[-20] * 50, -10), band(-50)])
    assert -54 < bottom < -51
    # A slow rise is shown whole.
    bottom, _ = limits([band(*range(-90, -10))])
    assert bottom < -90


def test_what_cannot_be_compared_is_told_in_one_line(sweep: Path, tmp_path: Path) -> None:
    def refused(*folders: Path) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, folders), "--out", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
        return str(ended.value.code)

    assert refused(sweep / "6").startswith(f"error: no finished search in {sweep / '6'}; give folders that hold a ")
    assert refused(sweep, tmp_path / "nowhere").startswith(
        f"error: {tmp_path / 'nowhere'} is no folder; give folders of "
    )
    (sweep / "5" / "history.csv").unlink()
    assert refused(sweep).startswith(f"error: {sweep / '5'} holds no history.csv; give the whole folder")


def test_the_command_line(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(sweep / "0"), str(sweep / "5"), "--out", str(tmp_path / "new" / "out")])
    assert f"Comparison written to {tmp_path / 'new' / 'out' / 'comparison.md'}" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert names == {"comparison.csv", "comparison.md", "comparison.png", "comparison.svg"}
