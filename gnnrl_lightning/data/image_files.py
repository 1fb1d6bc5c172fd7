"""Class folders, or tars of them, indexed by name and read image by image.

Nothing is ever extracted to disk or unpickled: an image is a range of bytes handed to the decoder.
"""

import gzip
import io
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from gnnrl_lightning.core.checks import UserError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MOST_16 = 2**16 - 1


@dataclass(frozen=True)
class ImageFiles:
    """The images `<class>/<file>` of one set, sorted by name; `labels` index the sorted `classes`.

    Where nobody has labelled them, they may lie anywhere, `classes` is empty and `labels` are 0.

    `source` is a folder, a plain tar, or the bytes of a decompressed tar; in a tar, `extents` [N, 2] holds each image's
    offset and size.
    """

    path: Path
    source: Path | bytes
    names: np.ndarray
    extents: np.ndarray | None
    classes: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        """Decode image `index` as RGB.

        Raises:
            UserError: the file is not a readable image.
        """
        try:
            with Image.open(io.BytesIO(self._read(index)), formats=_FORMATS) as image:
                return _rgb(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{self.names[index]} in {self.path} cannot be read as an image; remove or mend it, "
                "or give other images with data.root=<path>."
            ) from error

    def _read(self, index: int) -> bytes:
        if self.extents is None:
            assert isinstance(self.source, Path)
            return (self.source / str(self.names[index])).read_bytes()
        offset, size = self.extents[index].tolist()
        if isinstance(self.source, bytes):
            return self.source[offset : offset + size]
        # Opened anew for each image: safe in threads and in loader processes, and nothing to pickle or close.
        with open(self.source, "rb") as file:
            file.seek(offset)
            return file.read(size)


def _rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB, as torchvision's loaders have it; but 16 bits are scaled to 8 and not cut off.

    Raises:
        SyntaxError: If values have no known range, as those of floating point numbers.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)  # 16 bits a pixel, which Pillow would cut off at 255
        if values.min() < 0 or values.max() > _MOST_16:
            raise SyntaxError(f"values from {values.min()} to {values.max()} are not of 16 bits")
        image = Image.fromarray(np.round(values * (255 / _MOST_16)).astype(np.uint8))
    elif image.mode == "F":
        raise SyntaxError("floating point numbers have no range")
    return image.convert("RGB")


def is_tar(path: Path) -> bool:
    """Tell by the name whether a path is a tar that `index_files` reads."""
    return path.is_file() and path.name.lower().endswith(TAR_SUFFIXES)


def index_files(path: Path, labelled: bool = True, setting: str = "data.root") -> ImageFiles:
    """List the images of a folder of class folders or of a tar, without decoding any.

    Args:
        path: the folder or the tar.
        labelled: whether an image is one of a class folder; else all count, at any depth.
        setting: what the user has named the path with.

    Raises:
        UserError: the tar is damaged, or there is no `<class>/<image>` in it.
    """
    source: Path | bytes = path
    extents: dict[str, tuple[int, int]] = {}
    if path.is_dir():
        names = _names_in_folder(path) if labelled else _names_below(path)
    else:
        source, extents = _open_tar(path, labelled, setting)
        names = list(extents)
    if not names:
        what, of = ("<class>/<image> files", "class folders") if labelled else ("image files", "images")
        raise UserError(
            f"{path} has no {what} ({', '.join(IMAGE_SUFFIXES)}); "
            f"give a folder of {of}, or a .tar of them, with {setting}=<path>"
            f"{', or add data.labels=false for images without classes' if labelled and setting == 'data.root' else ''}."
        )
    names.sort(key=lambda name: name.split("/"))
    of_class = [name.split("/")[0] if labelled else "" for name in names]
    classes, labels = np.unique(of_class, return_inverse=True)
    return ImageFiles(
        path=path,
        source=source,
        names=np.array(names),
        extents=np.array([extents[name] for name in names], dtype=np.int64) if extents else None,
        classes=tuple(classes.tolist()) if labelled else (),
        labels=labels.astype(np.int64),
    )


def _is_image(file_name: str) -> bool:
    # macOS puts "._photo.jpg" beside "photo.jpg" in its tars: same suffix, not an image.
    return file_name.lower().endswith(IMAGE_SUFFIXES) and not file_name.startswith(".")


def _names_in_folder(folder: Path) -> list[str]:
    classes = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return [
        f"{name}/{file.name}"
        for name in classes
        for file in os.scandir(folder / name)
        if _is_image(file.name) and file.is_file()
    ]


def _names_below(folder: Path) -> list[str]:
    """Images at any depth, but for what is hidden."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in files if _is_image(name)]
    return names


def _open_tar(path: Path, labelled: bool, setting: str) -> tuple[Path | bytes, dict[str, tuple[int, int]]]:
    """Read the headers of a tar; a compressed one, which cannot be read at random, is decompressed into memory."""
    plain = path.name.lower().endswith(".tar")
    extents: dict[str, tuple[int, int]] = {}
    try:
        source: Path | bytes = path if plain else gzip.decompress(path.read_bytes())
        stream = io.BytesIO(source) if isinstance(source, bytes) else None
        with tarfile.open(path, mode="r:", fileobj=stream) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else a million headers stay in memory
                parts = PurePosixPath(member.name).parts
                placed = len(parts) == 2 if labelled else parts and not any(part.startswith(".") for part in parts)
                if not placed or parts[0] in ("/", "..") or not _is_image(parts[-1]):
                    continue
                if member.isreg() and not member.issparse():
                    extents["/".join(parts)] = (member.offset_data, member.size)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is damaged or not a tar ({error}); copy it again or give other images with {setting}=<path>."
        ) from error
    return source, extents
