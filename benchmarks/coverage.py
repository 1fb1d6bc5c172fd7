"""Which networks of torchvision and timm can be pruned, and how: docs/models.md. Run: make coverage.

Every network gets random BatchNorm statistics and loses half of every group. It passes if the result runs with 1, 2 and
3 images and backward, keeps its output's shape, computes what the masked original computes, and has the MACs and the
parameters that the closed form says. Then weights are refitted, from statistics of 64 images of coarse noise, to which
BatchNorm is set before; the error of the scores on 32 other images must not be larger for that. As in a search, cut
weights are taken where they do better on 32 images more. Torch-Pruning, where it is installed, prunes the same network
in the same run; of its result only shapes, sizes and a forward pass are checked, not the function.

    python benchmarks/coverage.py [--only REGEX] [--limit SECONDS] [--output docs/models.md]
"""

import argparse
import json
import logging
import multiprocessing
import re
import resource
import time
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from rich.progress import track
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_lightning.data import IMAGENET, HeldImages
from gnnrl_lightning.evaluation.recovery import recalibrate
from gnnrl_lightning.pruning.apply import uniform_plan
from gnnrl_lightning.pruning.verify import verified
from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.settings import RefitConfig
from gnnrl_lightning.topology import trace

TIMM = """
resnet18 resnet50 resnet26d resnet26t resnetaa50 resnetblur50 resnetv2_50 nf_resnet50 seresnet50 ecaresnet26t skresnet18
resnest14d gcresnet33ts resnext50_32x4d seresnext50_32x4d skresnext50_32x4d resnet51q bat_resnext26ts legacy_seresnet18
regnetx_002 regnety_002 regnetz_b16 efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t tf_efficientnet_b0
tf_efficientnetv2_s tf_efficientnet_lite0 tf_mobilenetv3_small_100 mobilenetv1_100 mobilenetv2_100 mobilenetv3_large_100
mobilenetv4_conv_small mnasnet_100 semnasnet_075 fbnetc_100 fbnetv3_b spnasnet_100 mixnet_s tf_mixnet_s ghostnet_100
ghostnetv2_100 ghostnetv3_100 repghostnet_050 densenet121 densenetblur121d rdnet_tiny vgg11_bn vgg16 dla34
dla60_res2net hrnet_w18_small res2net50_26w_4s res2next50 dpn48b dpn68 inception_v3 inception_v4 inception_resnet_v2
inception_next_atto xception41 xception65 legacy_xception repvgg_a0 repvit_m0_9 mobileone_s0 fastvit_t8
edgenext_xx_small convnext_atto convnext_tiny convnextv2_atto convmixer_768_32 hardcorenas_a tinynet_a lcnet_050
cspresnet50 cspresnext50 cspdarknet53 cs3darknet_s darknet53 darknetaa53 selecsls42b nfnet_f0 dm_nfnet_f0 eca_nfnet_l0
ese_vovnet19b_dw ese_vovnet39b rexnet_100 rexnetr_200 poolformer_s12 poolformerv2_s12 convformer_s18 gernet_s hgnet_tiny
hgnetv2_b0 starnet_s1 fasternet_t0 nasnetalarge pnasnet5large tresnet_m mambaout_femto
vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 maxvit_tiny_tf_224
mobilevit_xxs mobilevitv2_050 levit_128s levit_conv_128s coatnet_0_rw_224 pit_ti_224 visformer_tiny efficientformer_l1
efficientvit_b0 efficientvit_m0 mobilenetv4_hybrid_medium botnet26t_256 lambda_resnet26t halonet26t mixer_s32_224
""".split()
SIZES = (64, 128, 224, 256, 299, 331)
"""Input sizes, tried in this order: the smallest that a network takes."""
CLASSES = 1000
REFIT_LIMIT = 600
"""Seconds of processor time for the refit, its checks included."""
IMAGES, OTHERS = 64, 32
"""Images for the statistics, and others for the error."""
HARM = 1.01
"""By how much the error with refitted weights may be above that with cut ones."""


def build(library: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Linear) and not module.weight.any():  # heads that begin at zero say the same of all
            nn.init.trunc_normal_(module.weight, std=0.02)
    return model.eval()


def first(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def input_size(model: nn.Module) -> int:
    """The smallest of `SIZES` that the network takes."""
    for size in SIZES:
        try:
            with torch.no_grad():
                assert first(model(torch.zeros(2, 3, size, size))).shape == (2, CLASSES)
            return size
        except (RuntimeError, AssertionError, ValueError, IndexError):
            continue
    raise ValueError(f"takes none of the input sizes {SIZES}")


def size_of(model: nn.Module, without: Collection[str] = ()) -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in without)


def check(small: nn.Module, size: int) -> None:
    """Forward with 1, 2 and 3 images, and backward."""
    small.eval()
    for count in (1, 2, 3):
        assert first(small(torch.randn(count, 3, size, size))).shape == (count, CLASSES), f"shape at batch {count}"
    first(small(torch.randn(2, 3, size, size))).square().mean().backward()


def ours(library: str, name: str) -> dict[str, Any]:
    model = build(library, name)
    size = input_size(model)
    started = time.process_time()
    topology = trace(model, torch.zeros(1, 3, size, size))
    plan = uniform_plan(topology, model, keep=0.5)
    small = verified(model, topology, [group.kept for group in plan.groups])
    seconds = time.process_time() - started
    check(small, size)
    widths = torch.tensor(plan.widths)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(torch.zeros(1, 3, size, size))
    macs = counter.get_total_flops() // 2
    assert macs == int(topology.macs(widths)), f"{macs} MACs counted, {int(topology.macs(widths))} in closed form"
    left = size_of(small, topology.program.unused)
    assert left == int(topology.parameters(widths)), (
        f"{left} parameters, not the {int(topology.parameters(widths))} expected"
    )
    locked = {reason: count for reason, count in topology.locked if reason != "network output"}
    return {
        "verdict": "rewrite" if isinstance(small, fx.GraphModule) else "surgery",
        "size": size,
        "groups": len(topology.groups),
        "parameters": left / topology.parameters(),
        "macs": macs / topology.macs(),
        "seconds": seconds,
        "operations": len(topology.program.graph.nodes),
        "locked": "; ".join(f"{reason} ({count})" for reason, count in list(locked.items())[:2]),
    }


def noise(count: int, size: int, seed: int) -> HeldImages:
    """Noise of three scales, in which neighbours are alike."""
    generator = torch.Generator().manual_seed(seed)
    parts = [(4, 1.0), (16, 0.7), (size, 0.4)]
    drawn = [(torch.randn(count, 3, side, side, generator=generator), share) for side, share in parts]
    whole = sum(share * F.interpolate(x, size=(size, size), mode="bilinear") for x, share in drawn)
    assert isinstance(whole, Tensor)
    return HeldImages((128 + 45 * whole).clamp(0, 255).byte(), IMAGENET)


def refitted(library: str, name: str) -> dict[str, Any]:
    """The error of the scores with cut and with refitted weights, relative to their variance; and what that took."""
    model = build(library, name)
    size = input_size(model)
    seen, others, deciding = noise(IMAGES, size, 0), noise(OTHERS, size, 1), noise(OTHERS, size, 2)
    recalibrate(model, seen, 32)
    topology = trace(model, torch.zeros(1, 3, size, size))
    kept = [list(group.kept) for group in uniform_plan(topology, model, keep=0.5).groups]
    started = time.process_time()
    values = Reconstruction(model, topology, seen, RefitConfig(images=IMAGES)).values(kept)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    networks = {"cut": verified(model, topology, kept), "refitted": verified(model, topology, kept, values)}
    errors = {way: error_of(network.eval(), model, others) for way, network in networks.items()}
    decided = {way: error_of(network.eval(), model, deciding) for way, network in networks.items()}
    verdict = "refitted" if decided["refitted"] <= decided["cut"] else "cut"
    if errors[verdict] > HARM * errors["cut"]:
        verdict = "worse"
    return {"verdict": verdict, "seconds": seconds, "gib": peak, **errors}


@torch.no_grad()
def error_of(network: nn.Module, original: nn.Module, images: HeldImages) -> float:
    """Of the scores, relative to the variance of the original's."""
    scores = first(original(images[:]))
    return float((first(network(images[:])) - scores).square().sum() / (scores - scores.mean(0)).square().sum())


def theirs(library: str, name: str) -> dict[str, Any]:
    import torch_pruning  # type: ignore[import-not-found]

    model = build(library, name)
    size = input_size(model)
    whole = size_of(model)
    last = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == CLASSES]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.BasePruner(
        model, torch.zeros(1, 3, size, size), importance=importance, pruning_ratio=0.5, ignored_layers=last
    )
    pruner.step()
    check(model, size)
    share = size_of(model) / whole
    assert share < 0.75, f"keeps {share:.0%} of the parameters"
    return {"verdict": "runs", "parameters": share}


def _guarded(function: Any, library: str, name: str, limit: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))  # of the processor: other work must not fail a network
    try:
        pipe.send(function(library, name))
    except Exception as error:
        pipe.send({"verdict": "fails", "error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"})


def limited(function: Any, library: str, name: str, limit: int) -> dict[str, Any]:
    """Runs in a process of its own, which ends when its processor time is up."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    arguments = (function, library, name, limit, sender)
    process = multiprocessing.get_context("fork").Process(target=_guarded, args=arguments)
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        result = {"verdict": "hangs", "error": f"over {limit} s of processor time, or out of memory"}
    process.join()
    return result


def table(rows: list[dict[str, Any]], with_peer: bool) -> str:
    head = ["network", "input", "ours", "groups", "parameters left", "MACs left", "s", "not prunable"]
    lines = ["| " + " | ".join(head + ["Torch-Pruning"] * with_peer) + " |", "|---" * (len(head) + with_peer) + "|"]
    for row in rows:
        mine = row["ours"]
        if "error" in mine:
            cells = [row["name"], "", f"**{mine['verdict']}**", "", "", "", "", mine["error"][:160].replace("|", "/")]
        else:
            cells = [
                row["name"], str(mine["size"]), mine["verdict"], str(mine["groups"]), f"{mine['parameters']:.0%}",
                f"{mine['macs']:.0%}", f"{mine['seconds']:.1f}", mine["locked"].replace("|", "/"),
            ]  # fmt: skip
        peer = row.get("theirs", {})
        shown = f"{peer['parameters']:.0%}" if "parameters" in peer else f"{peer.get('verdict')}"
        lines.append("| " + " | ".join(cells + [shown] * with_peer) + " |")
    return "\n".join(lines)


def refit_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | error, cut | error, refitted | statistics and refit, s | peak memory, GiB |",
        "|---" * 5 + "|",
    ]
    for row in rows:
        refit = row["refit"]
        if "error" in refit:
            cells = [f"**{refit['verdict']}**", refit["error"][:160].replace("|", "/"), "", ""]
        else:
            mark = "**" if refit["verdict"] == "worse" else ""
            cells = [f"{refit['cut']:.3g}", f"{mark}{refit['refitted']:.3g}{mark}", f"{refit['seconds']:.0f}"]
            cells += [f"{refit['gib']:.1f}"]
        lines.append(f"| {' | '.join([row['name'], *cells])} |")
    return "\n".join(lines)


def refit_page(rows: list[dict[str, Any]]) -> list[str]:
    """The section on refitted weights."""
    verdicts = [row["refit"]["verdict"] for row in rows]
    gains = [row["refit"]["refitted"] / row["refit"]["cut"] for row in rows if row["refit"].get("cut")]
    parts = [
        "## Refit",
        "",
        f"On torch {torch.__version__}. The same halves, weights cut and refitted in closed form from statistics of "
        f"{IMAGES} images of coarse noise, to which BatchNorm was set before: the squared error of the scores on "
        f"{OTHERS} other images, over their variance, nothing recovered. Weights are random: errors say whether the "
        "algebra holds for the network, not what a trained one would lose. Seconds of one thread's processor time; "
        "the peak is of the whole process, with the network and the libraries.",
        "",
        f"Of {len(rows)} networks {verdicts.count('refitted')} have an error that is smaller, or at most "
        f"{HARM - 1:.0%} larger, with refitted weights; of {verdicts.count('cut')} the cut weights are taken, as a "
        f"search does where its rewards say so (here the error on {OTHERS} images more); "
        f"{verdicts.count('worse')} are worse, "
        f"{verdicts.count('fails')} fail, {verdicts.count('hangs')} take too long or too much memory. "
        f"The median of the errors' ratios is {sorted(gains)[len(gains) // 2]:.2f}.",
    ]
    for library in ("torchvision", "timm"):
        of = [row for row in rows if row["library"] == library]
        parts += ["", f"### Refit: {library}", "", refit_table(of)] if of else []
    return parts


def page(rows: list[dict[str, Any]], with_peer: bool, limit: int) -> str:
    parts = [
        "# Networks that can be pruned",
        "",
        f"Written by `make coverage` on torch {torch.__version__}, torchvision {torchvision.__version__}, timm "
        f"{timm.__version__}: half of every channel group removed, the smallest of the input sizes {list(SIZES)} that "
        f"the network takes, one thread; {limit} s of processor time at most for Torch-Pruning, twice that for ours, "
        "whose result is checked.",
        "",
        "*surgery*: the network's own class with smaller layers; *rewrite*: the traced graph with its sizes corrected. "
        "Every network named so runs with 1, 2 and 3 images, trains, computes what the masked original computes "
        "(relative error under 1e-4), and has exactly the MACs and parameters of the closed form. Seconds are "
        "processor time of trace, groups, importance, removal and check.",
        "",
        "Last column: what Torch-Pruning 1.6.1 leaves of the parameters at ratio 0.5 with its README's settings, or "
        "that it fails or hangs; of its networks only shapes and sizes are checked, not the function.",
        "",
        "| | networks | ours pass | of these rewritten | Torch-Pruning runs |",
        "|---|---|---|---|---|",
    ]
    for library in ("torchvision", "timm"):
        of = [row for row in rows if row["library"] == library]
        passed = [row for row in of if "error" not in row["ours"]]
        rewritten = sum(row["ours"]["verdict"] == "rewrite" for row in passed)
        peer = sum(row.get("theirs", {}).get("verdict") == "runs" for row in of) if with_peer else "not installed"
        parts.append(f"| {library} | {len(of)} | {len(passed)} | {rewritten} | {peer} |")
    for library in ("torchvision", "timm"):
        of = [row for row in rows if row["library"] == library]
        parts += ["", f"## {library}", "", table(of, with_peer)] if of else []
    parts += ["", *refit_page(rows)]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="regular expression of library:name")
    parser.add_argument("--limit", type=int, default=60, help="seconds of processor time a network may take")
    parser.add_argument("--output", type=Path, default=Path("docs/models.md"))
    parser.add_argument("--results", type=Path, default=Path("outputs/coverage.jsonl"), help="goes on where it stopped")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    try:
        import torch_pruning  # noqa: F401

        with_peer = True
    except ImportError:
        with_peer = False
    names = [("torchvision", name) for name in torchvision.models.list_models(module=torchvision.models)]
    names += [("timm", name) for name in TIMM]
    names = [(library, name) for library, name in names if re.search(options.only, f"{library}:{name}")]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    rows = {(row["library"], row["name"]): row for row in known}
    for library, name in track(names, "networks"):
        if (library, name) in rows:
            continue
        row: dict[str, Any] = {
            "library": library,
            "name": name,
            "ours": limited(ours, library, name, 2 * options.limit),
            "refit": limited(refitted, library, name, REFIT_LIMIT),
        }
        if with_peer:
            row["theirs"] = limited(theirs, library, name, options.limit)
        rows[library, name] = row
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
    options.output.write_text(page([rows[key] for key in names if key in rows], with_peer, options.limit))


if __name__ == "__main__":
    main()
