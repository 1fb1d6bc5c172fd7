import numpy as np
import pytest
from PIL import Image

from gnnrl_lightning.data import IMAGENET, FolderDataModule


def folder_of(tmp_path, sizes):
    for index, size in enumerate(sizes):
        for name in ("a", "b"):
            path = tmp_path / name / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((size[1], size[0], 3), 7, np.uint8)).save(path)
    return FolderDataModule(
        name="folder", root=str(tmp_path), num_classes=2, size=None, resize=None, test_fraction=0.5,
        reward_images=2, batch_size=2, eval_batch_size=2, num_workers=0, flip=True, epochs=1,
        preprocessing=IMAGENET, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(224, 300)] * 4, 224),  # brought to the crop's side before: not enlarged to 256
        ([(240, 300)] * 4, 240),
        ([(224, 300)] * 3 + [(500, 400)], 256),  # of all sizes: as the weights want it
        ([(300, 500)] * 4, 256),
        ([(200, 300)] * 4, 256),  # smaller than the crop: must be enlarged
    ],
)
def test_images_that_were_resized_before_are_not_enlarged(tmp_path, sizes, side):
    data = folder_of(tmp_path, sizes)
    data.setup()
    assert data.splits["test"].preprocessing.resize == side
