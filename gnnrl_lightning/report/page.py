"""The page of a search: report.html, one file that needs nothing else and can be rebuilt from the folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gnnrl_lightning.core.files import write_text
from gnnrl_lightning.core.numbers import MISSING, duration, faster, fixed, millions, percent, short, signed, uncertain
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.figures import save_figures
from gnnrl_lightning.report.record import read_record
from gnnrl_lightning.report.summary import budget_line, finish_line, levels_line, weights_line
from gnnrl_lightning.report.tables import (
    SPEED_COLUMNS,
    check_columns,
    check_rows,
    network_columns,
    network_rows,
    recovery_columns,
    recovery_rows,
    settings_of,
    speed_rows,
    tested,
)

_COUNTED = (("MACs, millions", "macs"), ("Parameters, millions", "params"))


def write_report(folder: Path) -> Path:
    """Build `folder`/report.html and the pictures in `folder`/figures from the files of a finished search.

    Raises:
        UserError: `folder` lacks results.json, history.csv or plan.json.
    """
    record = read_record(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        results=record.results,
        changes=_changes(record.results),
        budget=budget_line(record.results),
        protocol=Protocol.of(record.results),
        levels=levels_line(record.results),
        weights=weights_line(record.results),
        finish=finish_line(record.results),
        network_columns=network_columns(record.results),
        networks=network_rows(record.results),
        speed_columns=SPEED_COLUMNS,
        speeds=speed_rows(record.results),
        check_columns=check_columns,
        check_rows=check_rows,
        recovery_columns=recovery_columns(record.results),
        recovery=recovery_rows(record.recovery),
        figures=save_figures(record, folder / "figures"),
        groups=record.groups,
        settings=_settings(record.results),
        folder=folder.resolve().name,
        own=record.own,
        config=record.config,
        percent=percent,
        fixed=fixed,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _changes(results: dict[str, Any]) -> list[dict[str, str]]:
    """The headline: what each quantity was, what it is now, and the difference in words."""
    first, *_, last = results["networks"]
    size = results["weight_bytes"]
    return [
        _worth(results, first, last),
        *(_shrunk(name, first[key], last[key], millions) for name, key in _COUNTED),
        {
            "name": "Latency, ms",
            "before": short(first["latency_ms"]),
            "after": short(last["latency_ms"]),
            "note": "not measured" if last["latency_ratio"] is None else f"{_speed(last)} on {results['device']}",
        },
        _shrunk("Size on disk, MiB", size["original"], size["pruned"], lambda size: short(size / 2**20)),
    ]


def _speed(row: dict[str, Any]) -> str:
    """How much faster, if that can be told."""
    interval = row.get("latency_interval")
    text = faster(row["latency_ratio"], interval)
    return text if interval is not None and uncertain(interval) else f"{text} as fast"


def _worth(results: dict[str, Any], first: dict[str, Any], last: dict[str, Any]) -> dict[str, str]:
    """Accuracy on test images; or the reward, where that is all that is known."""
    protocol = Protocol.of(results)
    if not tested(results):
        before, after = (fixed(each["reward"], protocol.digits) for each in (first, last))
        return {"name": f"Reward {protocol.unit}".rstrip(), "before": before, "after": after, "note": protocol.meaning}
    known = first["top1"] is not None and last["top1"] is not None
    return {
        "name": "Top-1 accuracy, %" if protocol.labels else "Agreement with the original, %",
        "before": fixed(first["top1"], 2),
        "after": fixed(last["top1"], 2),
        "note": f"{signed(last['top1'] - first['top1'], 2)} points" if known else "not tested",
    }


def _shrunk(name: str, before: int, after: int, text: Callable[[float], str]) -> dict[str, str]:
    """One quantity of the headline that is a share of what it was."""
    return {
        "name": name,
        "before": text(before),
        "after": text(after),
        "note": f"{percent(after / before)} of the original",
    }


def _settings(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What was run, on what and for how long, as pairs of a name and a text."""
    images = ", ".join(f"{count:,} {split}" for split, count in results["images"].items())
    seconds = ", ".join(f"{step} {duration(value)}" for step, value in results["seconds"].items())
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return [
        *((name, str(value)) for name, value in settings_of(results).items() if value is not None),
        ("device", results["device"]),
        ("images", images or MISSING),
        ("episodes", f"{results['episodes']:,} ({results['evaluations']:,} networks evaluated)"),
        ("time", seconds or MISSING),
        ("versions", versions or MISSING),
    ]
