"""Sums up a sweep (`python search.py -m …`): one table over all jobs, printed and as summary.csv, and one figure.

A sweep over several methods, importances or settings ends with their comparison as well.
"""

import atexit
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from gnnrl_lightning.core.files import write_csv
from gnnrl_lightning.report.tables import sweep_rows, sweep_table


class SweepSummary(Callback):
    """Hydra callback that sums up a sweep when its last job has ended, even if some of them failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make sure of the summary: Hydra leaves out `on_multirun_end` when a job has failed."""
        atexit.register(summarise, Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write summary.csv into the sweep's folder."""
        atexit.unregister(summarise)
        summarise(Path(config.hydra.sweep.dir))


def summarise(folder: Path) -> None:
    """Print one table over the jobs in `folder`, write it to summary.csv there and draw it; nothing without jobs.

    Where searches that differ in more than their seed have ended at one task, they are compared.
    """
    rows = sweep_rows(folder)
    if not rows:
        return
    write_csv(folder / "summary.csv", rows, list(rows[0]))
    # A log file has no width of its own, and rich's 80 columns would break the names of jobs.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(sweep_table(rows))
    console.print(f"Sweep written to {folder / 'summary.csv'}", markup=False, soft_wrap=True)
    # Imported here: matplotlib takes a second, which every `--help` would wait for.
    from gnnrl_lightning.report.sweep_figure import save_sweep_figure

    if save_sweep_figure(rows, folder):
        console.print(f"The figure: {folder / 'summary.png'}", markup=False, soft_wrap=True)
    if any(row["status"] == "done" for row in rows):
        from gnnrl_lightning.report.comparison import compare
        from gnnrl_lightning.report.comparison_methods import by_task
        from gnnrl_lightning.report.comparison_runs import read_runs

        runs, unfinished = read_runs([folder])
        tasks = by_task(runs)
        # What rewards are is no task of its own here: runs that differ in it alone are compared, a table each.
        if sum(map(len, tasks.values())) > len({task[:4] for task in tasks}):
            compare(tasks, unfinished, folder, console)
