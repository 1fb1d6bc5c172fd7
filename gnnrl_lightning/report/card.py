"""The model card: README.md beside a pruned network, for whoever is handed the folder."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_lightning.core.files import write_text
from gnnrl_lightning.core.numbers import fixed, millions, percent
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.pruning.plan import PruningPlan

_LOADING = {
    "torch_export": (
        "needs torch alone",
        'network = torch.export.load("network.pt2").module()\nscores = network(images)',
    ),
    "onnx": (
        "needs onnxruntime alone",
        'session = onnxruntime.InferenceSession("network.onnx")\nscores = session.run(None, {"images": images})[0]',
    ),
}


def write_card(
    folder: Path,
    plan: PruningPlan,
    network: nn.Module,
    top1: dict[str, float],
    exported: dict[str, dict[str, Any]],
    protocol: Protocol,
) -> None:
    """Writes what the network is, what it came from, how good it is and how it is loaded.

    Args:
        folder: Of the run.
        plan: How the network came about, with its model, data and circumstances.
        network: The final one.
        top1: Accuracy in % on the test split, by name; the last is this network's.
        exported: What `export` returned.
        protocol: Which images the accuracy is of, and whether it is one.
    """
    assert plan.model is not None and plan.data is not None
    spec, about, side = plan.model["spec"], plan.about, plan.model["image_size"]
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side, device=device))
    kept = sum(len(group.kept) for group in plan.groups) / sum(group.width for group in plan.groups)
    own = ", model=…" if spec["source"] == "module" else ""
    mean, std = (plan.data["preprocessing"][name] for name in ("mean", "std"))
    lines = [
        f"# {spec['name']}, pruned",
        "",
        f"A smaller {spec['name']} for images of {side}×{side} pixels and {plan.model['num_classes']} classes, made by "
        f"gnnrl-lightning: {percent(kept)} of the prunable channels are left.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in about.items()),
        f"| data | {plan.data['config']['name']} |",
        f"| multiply-accumulates, million | {millions(counter.get_total_flops() // 2)} |",
        f"| parameters, million | {millions(sum(p.numel() for p in network.parameters()))} |",
        *(f"| test {protocol.accuracy} %, {name} | {fixed(value, 2)} |" for name, value in top1.items()),
        "",
        *(line for note in protocol.notes for line in (note, "")),
        f"Images: RGB in [0, 1], minus {_numbers(mean)}, divided by {_numbers(std)}.",
        "",
        "## Loading",
        "",
        "`pruned.safetensors` and `plan.json` need gnnrl-lightning, of which nothing of the search:",
        "",
        "```python",
        "import gnnrl_lightning as gl",
        "",
        f'network = gl.load_pruned("."{own})  # the path of this folder',
        "```",
    ]
    for name, of in exported.items():
        if name in _LOADING:
            needs, code = _LOADING[name]
            checked = f"Loaded again, its scores of real images were within {of['difference']:.0e} of the network's."
            lines += ["", f"`{of['file']}` {needs}. {checked}", "", "```python", code, "```"]
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def _numbers(values: list[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
