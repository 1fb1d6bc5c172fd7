"""The drawn topology: nothing overlaps, nothing is cut, and every link reaches what it joins."""

from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch
import torchvision
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gnnrl_lightning.report.style import STYLE
from gnnrl_lightning.report.topology_figure import topology_figure
from gnnrl_lightning.report.topology_layout import Layout, arrange
from gnnrl_lightning.topology import Topology, trace
from gnnrl_lightning.topology.outline import Layer, outline


def chain(length: int) -> list[Layer]:
    return [Layer(f"layer{i}.conv", "convolution", 64, 32, (i - 1,) if i else ()) for i in range(length)]


def dense(steps: int) -> list[Layer]:
    """A dense block: each step reads a concat of all before."""
    layers, parts = [Layer("stem", "convolution", 64, 32, ())], [0]
    for step in range(steps):
        layers.append(Layer(f"step{step}", "convolution", 32, 16, (len(layers) - 1,)))
        parts.append(len(layers) - 1)
        width = 64 + 32 * (len(parts) - 1)
        layers.append(Layer("block", "cat", width, width // 2, tuple(parts)))
    return layers


def tangled(count: int, seed: int) -> list[Layer]:
    """Layers that read one, two or three of any before them."""
    generator = np.random.default_rng(seed)
    layers = [Layer("stem", "convolution", 16, 8, ())]
    for index in range(1, count):
        reads = {int(read) for read in generator.integers(max(0, index - 6), index, generator.integers(1, 4))}
        kind = "add" if len(reads) > 1 else "convolution"
        layers.append(Layer(f"part.{index}.{kind}", kind, 16, 1 + index % 16, tuple(sorted(reads))))
    return layers


KINDS = ("convolution", "depth-wise", "linear", "product")
DRAWN = {
    "every kind": [
        *(Layer(f"stage.{kind}", kind, 4096, 1111, (index - 1,) if index else ()) for index, kind in enumerate(KINDS)),
        Layer("stage", "add", 4096, 1111, (0, 3)),
    ],
    "one": chain(1),
    "sixteen": chain(16),
    "hundred": chain(100),
    "dense": dense(30),
    **{f"tangled {seed}": tangled(60, seed) for seed in range(5)},
}


def check_layout(layers: list[Layer], layout: Layout, most: float) -> None:
    places = layout.places
    assert max(layout.rows) <= most + 1e-9
    for layer, place in zip(layers, places, strict=True):
        assert 0 < place.x < layout.rows[place.row]
        assert all((places[read].row, places[read].x) < (place.row, place.x) for read in layer.reads)
    assert len({(place.row, place.lane, place.x) for place in places}) == len(layers)
    for piece in layout.pieces:
        assert piece.left <= piece.right
        if not piece.level:
            standing = {place.x for place in places if (place.row, place.lane) == (piece.row, piece.lane)}
            assert not any(piece.left < x < piece.right for x in standing), "a link runs through a bar"
    arcs = [piece for piece in layout.pieces if piece.level]
    for a, b in combinations(arcs, 2):
        if (a.row, a.lane, a.level) == (b.row, b.lane, b.level):
            assert a.right <= b.left or b.right <= a.left, "two arcs run over each other"


@pytest.mark.parametrize("name", DRAWN)
def test_every_layer_stands_right_of_what_it_reads(name: str) -> None:
    check_layout(DRAWN[name], arrange(DRAWN[name], 20), 20)


def test_every_link_begins_and_ends_at_its_layers() -> None:
    layers = tangled(60, 0)
    pieces = arrange(layers, 20).pieces
    begun = sorted(piece.source for piece in pieces if piece.source is not None)
    ended = sorted(piece.target for piece in pieces if piece.target is not None)
    assert begun == sorted(read for layer in layers for read in layer.reads)
    assert ended == sorted(index for index, layer in enumerate(layers) for _ in layer.reads)


def test_a_residual_network_has_one_lane_and_an_arc_a_block(resnet20_topology: Topology) -> None:
    layers = outline(resnet20_topology, resnet20_topology.full_widths())
    layout = arrange(layers, 100)
    assert {place.lane for place in layout.places} == {0}
    arcs = {(piece.source, piece.target) for piece in layout.pieces if piece.level}
    assert arcs == {(min(layer.reads), i) for i, layer in enumerate(layers) if layer.kind == "add"}
    assert {piece.level for piece in layout.pieces} == {0, 1}


def test_a_branch_lies_in_a_lane_of_its_own() -> None:
    topology = trace(torchvision.models.resnet18(weights=None), torch.zeros(1, 3, 64, 64))
    layers = outline(topology, topology.full_widths())
    places = arrange(layers, 100).places
    assert {layer.name for layer, place in zip(layers, places, strict=True) if place.lane} == {
        f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)
    }


def test_a_dense_block_is_a_chain_of_concats() -> None:
    layout = arrange(dense(20), 100)
    assert {place.lane for place in layout.places} == {0}
    assert {piece.level for piece in layout.pieces} == {0, 1}


@pytest.mark.parametrize("name", DRAWN)
def test_no_two_names_overlap_and_none_is_cut(name: str) -> None:
    layers = DRAWN[name]
    with matplotlib.rc_context(STYLE):
        figure = topology_figure(layers)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert len(boxes) == len(layers)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    rest = [figure.legends[0].get_window_extent(renderer), figure._suptitle.get_window_extent(renderer)]
    for box in [*boxes, *rest]:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    bars = [bar.get_window_extent(renderer) for bar in figure.axes[0].patches]
    assert not any(box.overlaps(other) for box in boxes for other in [*rest, *bars[: 2 * len(layers)]])
    assert not any(bar.overlaps(other) for bar in bars for other in rest)
    links = [link.get_transform().transform_path(link.get_path()) for link in figure.axes[0].patches[2 * len(layers) :]]
    assert not any(link.intersects_bbox(box, filled=False) for link in links for box in boxes)


def test_the_kept_share_of_a_bar_is_that_of_its_channels() -> None:
    figure = topology_figure([Layer("a", "convolution", 16, 4, ()), Layer("b", "linear", 4096, 1024, (0,))])
    full, kept = figure.axes[0].patches[0:4:2], figure.axes[0].patches[1:4:2]
    assert [a.get_height() / b.get_height() for a, b in zip(kept, full, strict=True)] == pytest.approx([0.25, 0.25])
    assert full[1].get_height() / full[0].get_height() == pytest.approx(16)
    assert [text.get_text() for text in figure.axes[0].texts] == ["a 4/16", "b 1024/4096"]


def test_long_names_lose_their_beginning() -> None:
    name = "features.denseblock3.denselayer16.conv1"
    figure = topology_figure([Layer(name, "convolution", 8, 2, ()), Layer("x", "linear", 8, 8, (0,))])
    assert [text.get_text() for text in figure.axes[0].texts] == ["…denselayer16.conv1 2/8", "x 8"]
    assert figure.get_suptitle() == f"{name} keeps the smallest part of its channels: 2 of 8"


def test_the_legend_names_only_what_there_is(resnet20_topology: Topology) -> None:
    layers = outline(resnet20_topology, resnet20_topology.full_widths())
    labels = [text.get_text() for text in topology_figure(layers).legends[0].get_texts()]
    assert labels[:2] == ["kept share: convolution, linear layer", "kept share: join of branches"]
    assert labels[-1] == "skip connection"
    labels = [text.get_text() for text in topology_figure(chain(3)).legends[0].get_texts()]
    assert labels[0] == "kept share: convolution" and len(labels) == 2
