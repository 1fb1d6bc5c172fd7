import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from gnnrl_lightning.report.summary import budget_line, finish_line, levels_line, summary, weights_line
from gnnrl_lightning.report.tables import (
    check_columns,
    check_rows,
    network_rows,
    network_table,
    sweep_rows,
    sweep_table,
)

MakeRun = Callable[..., Path]
MINUS = "\N{MINUS SIGN}"


def printed(table: Table, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text().replace("\N{NO-BREAK SPACE}", " ")


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_stage_table_says_what_changed_and_what_was_allowed(tmp_path: Path, make_run: MakeRun) -> None:
    text = printed(network_table(results_of(make_run(tmp_path))), width=80)
    assert "budget 0.50: 50.0 of 100.0 MMACs allowed, 50.0 used" in text
    fine_tuned = next(line for line in text.splitlines() if "fine-tuned" in line)
    cells = [cell.strip() for cell in fine_tuned.split("│")]
    assert cells[2:6] == ["92.10", "50.0 (50.0 %)", "0.400 (50.0 %)", "8.00 (1.50\N{MULTIPLICATION SIGN})"]


@pytest.mark.parametrize(
    ("unit", "values", "allowed", "text"),
    [
        ("M parameters", (800_000, 399_990), 400_001, "0.400 of 0.800 M parameters allowed, 0.400 used"),
        ("ms", (80_100_000, 39_950_000), 40_050_000, "40.0 of 80.1 ms allowed, 40.0 used"),
        ("MB", (512_000_000, 256_000_000), 256_000_000, "256.0 of 512.0 MB allowed, 256.0 used"),
    ],
)
def test_a_budget_is_told_in_its_own_unit(
    tmp_path: Path, make_run: MakeRun, unit: str, values: tuple[int, int], allowed: int, text: str
) -> None:
    cost = {"cost_unit": unit, "cost_values": dict(zip(("original", "used"), values, strict=True))}
    results = results_of(make_run(tmp_path, **cost, allowed={"cost": allowed, "fraction": 0.5}))
    assert budget_line(results) == f"budget 0.50: {text}"
    (row,) = sweep_rows(tmp_path)
    assert row["cost_percent"] == pytest.approx(100 * values[1] / values[0])


def test_the_levels_are_worded_as_the_rewards(tmp_path: Path, make_run: MakeRun) -> None:
    results = results_of(make_run(tmp_path, (-12.5, -9.25), levels={"uniform": -16.0, "closed_form": -13.7}))
    line = levels_line(results)
    assert line == f"reward: uniform {MINUS}16.00 %, closed form {MINUS}13.70 %, best {MINUS}9.25 %"
    assert line in printed(network_table(results), width=80)
    nats = results | {"protocol": {"reward": "kl"}, "levels": {"uniform": -0.154}, "reward": {"best_seen": -0.0871}}
    assert levels_line(nats) == f"reward: uniform {MINUS}0.1540 nats, best {MINUS}0.0871 nats"


@pytest.mark.parametrize(
    ("made", "rewards", "text"),
    [
        ("cut", {}, "weights cut"),
        ("refitted", {}, "weights refitted in closed form"),
        (
            "refitted in sequence",
            {"refitted": -14.9, "refitted in sequence": -12.08},
            f"weights refitted layer after layer (reward {MINUS}12.08 %, in closed form {MINUS}14.90 %)",
        ),
        (
            "refitted",
            {"refitted": -14.9, "refitted in sequence": -15.0},
            f"weights refitted in closed form (reward {MINUS}14.90 %, layer after layer {MINUS}15.00 %)",
        ),
    ],
)
def test_the_table_says_where_the_weights_come_from(
    tmp_path: Path, make_run: MakeRun, made: str, rewards: dict[str, float], text: str
) -> None:
    results = results_of(make_run(tmp_path, weights={"from": made, "rewards": rewards}))
    assert weights_line(results) == text
    assert text in printed(network_table(results))


def test_a_run_that_is_older_than_the_closed_forms_has_its_budget_alone(tmp_path: Path, make_run: MakeRun) -> None:
    assert summary(results_of(make_run(tmp_path))) == ["budget 0.50: 50.0 of 100.0 MMACs allowed, 50.0 used"]


def test_the_check_of_a_budget_compares_the_ratios(full_run: Path) -> None:
    results = results_of(full_run)
    assert check_columns(results)[:3] == ("latency at batch 32", "original, ms", "pruned, ms")
    counted, measured = ([cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in check_rows(results))
    # 48.0 of 80.0 is 0.6; 48.9 of 78.9 is 0.6198: the first is 3.2 % less.
    assert counted == ["counted by the budget", "80.00", "48.00", "60.0 %", "\N{MINUS SIGN}3.2 %"]
    assert measured == ["measured", "78.90", "48.90", "62.0 %", ""]


def test_what_was_not_measured_is_a_dash(tmp_path: Path, make_run: MakeRun) -> None:
    results = results_of(make_run(tmp_path))
    for stage in results["networks"]:
        stage |= {"top1": None, "latency_ms": None, "latency_ratio": None}
    assert {row[1] for row in network_rows(results)} == {"\N{EN DASH}"}
    assert {row[4] for row in network_rows(results)} == {"\N{EN DASH}"}


def test_names_with_brackets_are_not_markup(tmp_path: Path, make_run: MakeRun) -> None:
    assert "net[bold] on digits" in printed(network_table(results_of(make_run(tmp_path, model="net[bold]"))))


@pytest.fixture
def sweep(tmp_path: Path, make_run: MakeRun) -> Path:
    for job in range(11):
        if job != 3:
            make_run(tmp_path / str(job), budget=0.3 if job % 2 else 0.5)
    (tmp_path / "3" / ".hydra").mkdir(parents=True)
    (tmp_path / "3" / ".hydra" / "overrides.yaml").write_text("- budget=0.3\n- trainer.epochs=1\n")
    return tmp_path


def test_sweep_rows_follow_the_jobs_and_name_the_failed(sweep: Path) -> None:
    rows = sweep_rows(sweep)
    assert [row["folder"] for row in rows] == [str(job) for job in range(11)]
    assert [row["folder"] for row in rows if row["status"] == "failed"] == ["3"]
    assert rows[3]["budget"] == "0.3" and rows[3]["top1_original"] is None
    assert "trainer.epochs" not in rows[3]
    assert rows[0]["top1_fine_tuned"] == 92.1
    assert rows[0]["cost_percent"] == pytest.approx(49.99)
    assert rows[0]["params_percent"] == pytest.approx(50.0)
    assert len({tuple(row) for row in rows}) == 1


def test_sweep_table_has_a_column_only_for_what_differs(sweep: Path) -> None:
    rows = sweep_rows(sweep)
    text = printed(sweep_table(rows))
    assert "failed" in text
    # The failed job named only its budget: its unknown model must not make a column of the model.
    assert [column.header for column in sweep_table(rows).columns][:2] == ["budget", "top-1 %\noriginal"]
    assert "model resnet56, data digits, agent gnnrl" in text and "seed 0" in text


def test_a_finish_that_made_it_worse_says_so() -> None:
    line = finish_line({"finish": {"taken": False, "error": (0.3, 0.1), "divergence": (0.2, 0.21)}})
    assert line is not None and line.endswith("; not taken")
    assert finish_line({}) is None and finish_line({"finish": None}) is None
