"""PASCAL-5i: VOC 2012 with SBD's additional masks, 20 classes in four folds of five."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fsdino.data.catalog import TRAIN_VAL, DataSet, Published, Requirement, Source
from fsdino.data.files import DataSetError, existing, files_by_stem, first_existing, read_names
from fsdino.data.images import read_labels
from fsdino.data.readers.label_maps import LabelMapIndex

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
FOLDS = tuple(tuple(range(5 * fold + 1, 5 * fold + 6)) for fold in range(4))
# Smaller objects were left out when the benchmark was made.
MIN_PIXELS = 2 * 32 * 32
ROOTS = ("VOCdevkit/VOC2012", "VOC2012", ".")


class VocIndex(LabelMapIndex):
    """PASCAL-5i. Class ids are VOC's own label numbers, 1 to 20; the border label 255 is ignored.

    Masks are `SegmentationClassAug/*.png`. Where that folder is missing they are read from the two official sources,
    VOC's `SegmentationClass/*.png` and SBD's `benchmark_RELEASE/dataset/cls/*.mat` (beside or above VOC2012), VOC's
    first. "val" are the images of `ImageSets/Segmentation/val.txt`, "train" all others with a mask.

    Args:
        root: folder with `JPEGImages`, `SegmentationClassAug` and `ImageSets`, or one holding it as `VOC2012` or
            `VOCdevkit/VOC2012`. If it has published lists of pairs, `splits/pascal/{trn,val}/fold<f>.txt` (lines such
            as `2007_000032__01`, the class number last), these decide which image counts for which class.
        min_pixels: smallest number of pixels that a class needs to count for an image, where there is no such list.

    Source: Shaban et al., 2017 (folds and smallest size); Hariharan et al., 2011 (SBD).
    """

    def __init__(self, root: str | Path, split: Literal["train", "val"] = "val", min_pixels: int = MIN_PIXELS) -> None:
        base = first_existing(root, ROOTS, "JPEGImages")
        labels = label_files(Path(root), base)
        val = set(read_names(base / "ImageSets/Segmentation/val.txt"))
        stems = sorted(val if split == "val" else set(labels) - val)
        lacking = [stem for stem in stems if stem not in labels]
        if lacking:
            listed = base / "ImageSets/Segmentation/val.txt"
            raise DataSetError(
                f"image '{lacking[0]}' of '{listed}' has no label map ({len(lacking)} such): "
                "fetch VOC's SegmentationClass or SegmentationClassAug again."
            )
        if not stems:
            raise DataSetError(f"'{base}' has label maps for val images only: fetch SegmentationClassAug or SBD.")
        files = {stem: (base / f"JPEGImages/{stem}.jpg", labels[stem]) for stem in stems}
        names = dict(enumerate(CLASSES, start=1))
        self._listed = _published_pairs(Path(root), base, split)
        pairs: dict[int, list[str]] | None = None
        if self._listed is not None:
            pairs = {class_id: [] for class_id in names}
            for stem, class_id in self._listed:
                pairs[class_id].append(stem)
        super().__init__("pascal5i", files, names, FOLDS, min_pixels=min_pixels, pairs=pairs)

    def pairs(self, fold: int) -> list[tuple[str, int]]:
        if self._listed is None:
            return super().pairs(fold)
        novel = self.novel_classes(fold)
        return [(stem, class_id) for stem, class_id in self._listed if class_id in novel]

    def _read_map(self, path: Path) -> np.ndarray:
        return _read_sbd(path) if path.suffix == ".mat" else read_labels(path)


def label_files(root: Path, base: Path) -> dict[str, Path]:
    """Image name -> label map, from SegmentationClassAug, or from VOC and SBD themselves."""
    if (base / "SegmentationClassAug").is_dir():
        return files_by_stem(base / "SegmentationClassAug", (".png",))
    found: dict[str, Path] = {}
    for place in (root, base, base.parent, base.parent.parent):
        sbd = place / "benchmark_RELEASE/dataset/cls"
        if sbd.is_dir():
            found = files_by_stem(sbd, (".mat",))
            break
    if (base / "SegmentationClass").is_dir():
        # After SBD's, so that VOC's own map is taken where both have one.
        found |= files_by_stem(base / "SegmentationClass", (".png",))
    if not found:
        raise DataSetError(
            f"'{base}' has neither SegmentationClassAug nor SegmentationClass: unpack "
            "VOCtrainval_11-May-2012.tar there, and SegmentationClassAug (or SBD's benchmark.tgz)."
        )
    return found


def _published_pairs(root: Path, base: Path, split: str) -> list[tuple[str, int]] | None:
    folder = "trn" if split == "train" else "val"
    for place in (root / "splits/pascal", base / "splits/pascal", root / "splits"):
        lists = [place / folder / f"fold{fold}.txt" for fold in range(4)]
        if lists[0].is_file():
            pairs: list[tuple[str, int]] = []
            for path in lists:
                for line in read_names(path):
                    stem, _, number = line.rpartition("__")
                    if not number.isdigit() or not 1 <= int(number) <= len(CLASSES):
                        raise DataSetError(
                            f"line '{line}' of '{path}' is not '<image>__<class 01 to 20>': "
                            "fetch the list again or remove the splits folder."
                        )
                    pairs.append((stem, int(number)))
            return pairs
    return None


def _read_sbd(path: Path) -> np.ndarray:
    """SBD's class map: field Segmentation of the struct GTcls."""
    content = read_mat(path)
    if "GTcls" not in content:
        raise DataSetError(f"'{path}' has no GTcls: it is no class map of SBD (dataset/cls/*.mat).")
    return np.asarray(content["GTcls"]["Segmentation"][0, 0]).astype(np.int64)


def read_mat(path: Path, **options: bool) -> dict[str, np.ndarray]:
    """Read a MATLAB file; the options are those of `scipy.io.loadmat`."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"reading '{path}' needs scipy: pip install scipy.") from error
    existing(path, "a MATLAB file of masks")
    try:
        return loadmat(str(path), **options)
    except Exception as error:  # scipy raises a dozen kinds for damaged files
        raise DataSetError(f"'{path}' cannot be read ({error}): download it again.") from error


_VOC = "VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012"
_SBD = (
    "needed for the published counts: SegmentationClassAug (VOC and SBD masks as PNG), or SBD's benchmark.tgz, "
    "unpacked beside it"
)
VOC_HOME = "https://thor.robots.ox.ac.uk/pascal/VOC"
VOC_LICENCE = "the photographs are Flickr's and stand under its terms of use (host.robots.ox.ac.uk/pascal/VOC)"
_SBD_HOME = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"
_LISTS = "splits/pascal/val/fold0.txt"

DATA_SETS = (
    DataSet(
        "pascal5i",
        "PASCAL-5i (VOC 2012 + SBD)",
        VocIndex,
        roles=TRAIN_VAL,
        requirements=(
            Requirement("JPEGImages", "images", _VOC, ROOTS),
            Requirement("ImageSets/Segmentation/val.txt", "list of val images", _VOC, ROOTS),
            Requirement("SegmentationClass*", "masks", _VOC, ROOTS),
            Requirement("SegmentationClassAug", "masks of VOC and SBD", _SBD, ROOTS, optional=True),
            Requirement(_LISTS, "published lists of pairs", "derived from the masks if missing", optional=True),
        ),
        published=Published(
            classes=20, fold_classes=5, fold_pairs={"train": (2286, 3425, 5883, 2086), "val": (346, 451, 725, 346)}
        ),
        # Neither page gives checksums; these are the ones that torchvision holds the same files to.
        sources=(
            Source(
                f"{VOC_HOME}/voc2012/{_VOC.split()[0]}",
                "VOCdevkit/VOC2012/JPEGImages",
                megabytes=2_000,
                checksum="md5:6cd6e144f989b92b3379bac3b3de84fd",
            ),
            Source(
                f"{_SBD_HOME}/benchmark.tgz",
                "benchmark_RELEASE/dataset/cls",
                megabytes=1_400,
                checksum="md5:82b4d87ceb2ed10f6038a1cba92111cb",
            ),
        ),
        licence=f"{VOC_LICENCE}; SBD: none stated",
    ),
)
