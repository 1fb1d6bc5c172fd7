"""Files to deploy: each is loaded again and compared with the network on real images before it is called done."""

import copy
import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.pruning.saved import load_pruned

ABSOLUTE_TOLERANCE = 1e-4
"""Largest absolute difference of scores that a loaded file may have."""

log = logging.getLogger(__name__)


def check_formats(formats: Sequence[str]) -> None:
    """Finds out before any work whether the formats can be written here.

    Raises:
        UserError: If one is not known, or its packages are not installed.
    """
    for name in formats:
        if name not in {*FORMATS, "safetensors"}:
            raise UserError(f"export=[{name}] is not known; give any of export=[{','.join(FORMATS)}].")
    for package in ("onnx", "onnxscript", "onnxruntime") if "onnx" in formats else ():
        try:
            importlib.import_module(package)
        except Exception as error:  # a broken installation raises whatever it likes
            raise UserError(
                f"export=[onnx] needs {package} ({str(error).partition(chr(10))[0]}); "
                "install it with pip install -e '.[onnx]', or leave onnx out."
            ) from error


def export(network: nn.Module, images: Tensor, formats: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Writes a network for deployment, for any number of images, and checks what was written.

    Args:
        network: In any mode and on any device; unchanged.
        images: Real images as the network is fed, [N, 3, H, W] with N ≥ 2.
        formats: Of `FORMATS`.
        folder: Where the files go: `network.pt2`, `network.onnx`.

    Returns:
        For each format: `file`, `bytes`, and `difference`, the largest absolute one of scores on these images.

    Raises:
        UserError: If a format cannot be written, or its file computes something else; the file is not left behind.
    """
    network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()
    images = images.cpu()
    results = {}
    with torch.inference_mode(False), torch.no_grad():
        scores = network(images)
        for name in (name for name in formats if name != "safetensors"):  # that one every run writes
            file, write, run = FORMATS[name]
            temporary = folder / f"tmp_{file}"
            try:
                write(network, images, temporary)
                # Another number of images than the file was written with.
                difference = max(
                    float((run(temporary, part) - scores[: len(part)]).abs().max()) for part in (images, images[:1])
                )
                if not difference <= ABSOLUTE_TOLERANCE:
                    raise UserError(f"it differs from the network by {difference:.1e}")
                results[name] = {"file": file, "bytes": temporary.stat().st_size, "difference": difference}
                temporary.replace(folder / file)
            except Exception as error:  # whatever an exporter raises
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                raise UserError(f"export=[{name}] failed ({reason}); leave {name} out.") from error
            finally:
                temporary.unlink(missing_ok=True)
            log.info("%s: %s, scores within %.0e", name, folder / file, results[name]["difference"])
    return results


def check_saved(network: nn.Module, unpruned: nn.Module, images: Tensor, folder: Path) -> dict[str, dict[str, Any]]:
    """Loads a run's `pruned.safetensors` again and compares it with the network, as `export` does.

    Args:
        network: What was saved.
        unpruned: What it was pruned from, with any weights.
        images: As for `export`.
        folder: Of the run.

    Raises:
        UserError: If the file gives another network.
    """
    small, images = copy.deepcopy(network).cpu().eval(), images.cpu()
    with torch.no_grad():
        difference = float((load_pruned(folder, copy.deepcopy(unpruned).cpu())(images) - small(images)).abs().max())
    path = folder / "pruned.safetensors"
    if not difference <= ABSOLUTE_TOLERANCE:
        raise UserError(f"{path} gives another network than was saved (scores differ by {difference:.1e}).")
    return {"safetensors": {"file": path.name, "bytes": path.stat().st_size, "difference": difference}}


def _write_torch(network: nn.Module, images: Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},), strict=False)
    torch.export.save(program, path)


def _run_torch(path: Path, images: Tensor) -> Tensor:
    scores: Tensor = torch.export.load(path).module()(images)
    return scores


def _write_onnx(network: nn.Module, images: Tensor, path: Path) -> None:
    program = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        input_names=["images"],
        output_names=["scores"],
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)


def _run_onnx(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


FORMATS: dict[str, tuple[str, Callable[[nn.Module, Tensor, Path], None], Callable[[Path, Tensor], Tensor]]] = {
    "torch_export": ("network.pt2", _write_torch, _run_torch),
    "onnx": ("network.onnx", _write_onnx, _run_onnx),
}
"""Format to its file, what writes it and what runs it. The first needs torch alone to be loaded."""
