import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gnnrl_lightning.report.page import write_report

MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """Collects the text, the addresses and the nesting of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def read(path: Path) -> tuple[Page, str]:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page, re.sub(r"\s+", " ", " ".join(page.text))


def test_the_page_tells_the_result_and_needs_no_other_file(tmp_path: Path, make_run: MakeRun) -> None:
    path = write_report(make_run(tmp_path / "my run"))
    page, text = read(path)
    assert path == tmp_path / "my run" / "report.html"
    assert "93.31 → 92.10 \N{MINUS SIGN}1.21 points" in text
    assert "100.0 → 50.0 50.0 % of the original" in text
    assert "4.00 → 2.00 50.0 % of the original" in text, "MiB on disk"
    assert "12.0 → 8.00 1.50\N{MULTIPLICATION SIGN} as fast on CPU, 2 threads" in text
    assert "budget 0.50: 50.0 of 100.0 MMACs allowed, 50.0 used" in text
    assert "python search.py model=resnet56 budget=0.5" in text
    assert "Accuracy on 1,234 test images" in text
    assert 'gl.load_pruned("my run")' in text
    assert "base 1.5 s, search 1 min 15 s, finetune 1 h 01 min" in text
    assert len(page.addresses) == 3
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "figures",
        "history.csv",
        "plan.json",
        "report.html",
        "results.json",
    ]


def test_the_page_shows_all_that_a_run_wrote(full_run: Path) -> None:
    page, text = read(write_report(full_run))
    assert len(page.addresses) == 6
    assert "A row is a group of channels." in text and "stay and the layers that read them are refitted" in text
    assert "Weights refitted in closed form." in text
    assert "Reward: uniform \N{MINUS SIGN}13.50 %, closed form \N{MINUS SIGN}11.00 %," in text
    assert "The fine-tuning images seen top-1 % 0 85.70 12,800 88.10 25,600 90.12" in text
    assert "latency at batch 32 original, ms pruned, ms ratio" in text
    assert "counted by the budget 80.00 48.00" in text
    assert "alt=\"The network's topology. " in (full_run / "report.html").read_text(encoding="utf-8")


def test_the_page_is_silent_on_what_a_run_did_not_do(tmp_path: Path, make_run: MakeRun) -> None:
    _, text = read(write_report(make_run(tmp_path, recovery_curve=[], budget_check=None)))
    assert "fine-tuning" not in text and "counted by the budget" not in text
    assert "A row is a group" not in text and "Weights" not in text and "uniform" not in text


def test_every_group_is_listed_and_names_are_escaped(tmp_path: Path, make_run: MakeRun) -> None:
    path = write_report(make_run(tmp_path, groups=50, model="<script>alert(1)</script>"))
    _, text = read(path)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert "<script>alert(1)</script> on digits" in text
    assert all(f"layer{index}.conv<1>" in text for index in range(50))


def test_a_run_without_test_images_says_so(tmp_path: Path, make_run: MakeRun) -> None:
    numbers = {"top1": None, "macs": 10, "params": 10, "latency_ms": None, "latency_ratio": None}
    networks = [{"name": name, **numbers} for name in ("original", "pruned", "fine-tuned")]
    _, text = read(write_report(make_run(tmp_path, networks=networks, images={"train": 5, "reward": 5, "test": 0})))
    assert "not tested" in text and "not measured" in text
    assert "test images" not in text


def test_what_was_learned_without_labels_and_where_the_search_began_stand_below(
    tmp_path: Path, make_run: MakeRun
) -> None:
    numbers = {"top1": 80.0, "macs": 10, "params": 10, "latency_ms": 1.0, "latency_ratio": 1.0}
    networks = [{"name": name, **numbers} for name in ("original", "closed-form", "pruned", "finished")]
    finish = {"taken": True, "error": [0.3, 0.12], "divergence": [0.5, 0.25]}
    _, text = read(write_report(make_run(tmp_path, networks=networks, finish=finish)))
    assert "Finished: divergence from the unpruned network 0.500 to 0.250 nats, error of the activations 30.0 %" in text
    assert "Closed-form: the best plan of the error curves" in text


def test_a_rebuilt_page_is_the_same(tmp_path: Path, make_run: MakeRun) -> None:
    path = write_report(make_run(tmp_path))
    first = path.read_bytes()
    assert write_report(tmp_path).read_bytes() == first


@pytest.mark.parametrize("name", ["results.json", "history.csv", "plan.json"])
def test_an_unfinished_run_is_named_and_gets_no_page(tmp_path: Path, make_run: MakeRun, name: str) -> None:
    (make_run(tmp_path) / name).unlink()
    with pytest.raises(ValueError, match=f"holds no {re.escape(name)}; give the folder of a finished search"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_an_empty_history_is_named(tmp_path: Path, make_run: MakeRun) -> None:
    (make_run(tmp_path) / "history.csv").write_text("episode,reward\n")
    with pytest.raises(ValueError, match="holds no episode"):
        write_report(tmp_path)


def test_both_networks_are_measured_at_both_batch_sizes(tmp_path: Path, make_run: MakeRun) -> None:
    _, text = read(write_report(make_run(tmp_path)))
    words = " ".join(text.split()) if isinstance(text, str) else text
    for cells in ("original 1 12.00 (1.00×) 24.00 83", "pruned 32 256.00 (1.50×) 512.00 125 16.0 (50.0 %) 2.00"):
        assert cells in words.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([0.8, 1.3], "no difference seen, 0.80 to 1.30× on CPU"),
        ([1.2, 1.3], "1.50× as fast on CPU"),
        (None, "1.50× as fast"),
    ],
)
def test_noise_is_no_headline(tmp_path: Path, make_run: MakeRun, interval: list[float] | None, said: str) -> None:
    folder = make_run(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    for row in results["networks"][1:]:
        row["latency_interval"] = interval
    (folder / "results.json").write_text(json.dumps(results))
    assert said in read(write_report(folder))[1]
