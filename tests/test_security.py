"""Files that would run code when unpickled, given to every option that takes a path and left where runs look."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Outcome, run_all


class Malicious:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.path),)


# Where the file lies → the command that comes across it.
COMMANDS = {
    "weights.pt": "search.py {tiny} weights={file}",
    "plan.json": "search.py {tiny} plan={file}",
    "pruned/pruned.safetensors": "search.py {tiny} budget=0.25 plan={folder}/pruned/plan.json",
    "search/checkpoints/last.ckpt": "search.py {tiny} hydra.run.dir={folder}/search",
    "base/checkpoints/base.ckpt": "search.py {tiny} seed=5 hydra.run.dir={folder}/base",
    "encoder/checkpoints/last.ckpt": "search.py {tiny} agent.encoder_from={folder}/encoder",
    "start.pt": "train.py model=resnet20 data=digits weights={file}",
    "teacher.pt": "train.py plan={plan} fit.distill=0.5 teacher={file}",
    "plan2.json": "train.py plan={file}",
    "again/pruned.safetensors": "train.py plan={folder}/again/plan.json",
    "training/checkpoints/last.ckpt": "train.py plan={plan} fit.max_steps=1 hydra.run.dir={folder}/training",
}


@pytest.fixture(scope="module")
def outcomes(
    tiny: list[str], finished: tuple[Path, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Outcome]]:
    folder = tmp_path_factory.mktemp("malicious")
    plan = finished[0] / "plan.json"
    lines = []
    for name, command in COMMANDS.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(Malicious(folder / "executed")))
        if file.name == "pruned.safetensors":
            (file.parent / "plan.json").write_bytes(plan.read_bytes())
        words = command.format(tiny="@", file=file, folder=folder, plan=plan).split()
        if not any(word.startswith("hydra.run.dir") for word in words):
            words.append(f"hydra.run.dir={folder / 'run' / str(len(lines))}")
        at = words.index("@") if "@" in words else None
        lines.append(words if at is None else [*words[:at], *tiny, *words[at + 1 :]])
    return folder, dict(zip(COMMANDS, run_all(lines, folder), strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_refused_in_one_sentence(outcomes: tuple[Path, dict[str, Outcome]], name: str) -> None:
    folder, of = outcomes
    (line,) = [line for line in of[name].err.splitlines() if line.startswith("error: ")]
    assert of[name].code == 1
    assert str(folder / name) in line
    assert "Traceback" not in of[name].out + of[name].err


def test_no_code_ran(outcomes: tuple[Path, dict[str, Outcome]]) -> None:
    folder, _ = outcomes
    assert not (folder / "executed").exists()
    pickle.loads((folder / "weights.pt").read_bytes())  # it would have
    assert (folder / "executed").exists()
