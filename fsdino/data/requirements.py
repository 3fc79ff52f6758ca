"""The official files of each data set and where to fetch them."""

from __future__ import annotations

from dataclasses import dataclass

from fsdino.data.readers import davis, fss, lvis, parts, voc


@dataclass(frozen=True)
class Requirement:
    """A file or folder of a data set.

    Attributes:
        path: relative path, may hold `*`.
        what: what it is.
        fetch: what to fetch when it is missing.
        folders: places under the root to look in.
        optional: the data set works without it.
    """

    path: str
    what: str
    fetch: str
    folders: tuple[str, ...] = (".",)
    optional: bool = False


_VOC = "VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012"
_SBD = (
    "needed for the published counts: SegmentationClassAug (VOC and SBD masks as PNG), or SBD's benchmark.tgz, "
    "unpacked beside it"
)
_COCO = "from cocodataset.org/#download"
_LVIS = "from lvisdataset.org/dataset"
_PACO = "paco_annotations.zip from github.com/facebookresearch/paco"
_PARTS = "trainval.tar.gz from the PASCAL-Part page (roozbehm.info/pascal-parts)"
_VOC2010 = "VOCtrainval_03-May-2010.tar from host.robots.ox.ac.uk/pascal/VOC/voc2010"
_DAVIS = "DAVIS-{}-trainval-480p.zip from davischallenge.org"
_PERSEG = "PerSeg.zip from the PerSAM page"
_FSS = "fewshot_data.zip from the FSS-1000 page (github.com/HKUSTCV/FSS-1000)"
_COCO_ROOTS = ("COCO2014", "coco2014", "coco", "COCO", ".")
_LVIS_ROOTS = (*lvis.ROOTS, "annotations", "LVIS/annotations")
_IMAGE_ROOTS = ("LVIS", "LVIS/coco", "PACO-Part", "PACO-Part/coco", "PACO", "PACO/coco", "coco", ".")


def _coco_part(split: str) -> tuple[Requirement, Requirement]:
    images = Requirement(f"{split}2014", f"{split} images", f"{split}2014.zip {_COCO}", _COCO_ROOTS)
    masks = f"annotations/instances_{split}2014.json"
    return images, Requirement(masks, f"{split} masks", f"annotations_trainval2014.zip {_COCO}", _COCO_ROOTS)


def _coco2017(split: str) -> Requirement:
    return Requirement(f"{split}2017", f"COCO {split} images", f"{split}2017.zip {_COCO}", _IMAGE_ROOTS)


def _davis(year: int) -> tuple[Requirement, ...]:
    fetch = _DAVIS.format(year) if year == 2017 else "DAVIS-data.zip (2016) from davischallenge.org, or the 2017 files"
    return (
        Requirement("JPEGImages/480p", "frames", fetch, davis.ROOTS),
        Requirement("Annotations/480p", "masks", fetch, davis.ROOTS),
        Requirement(f"ImageSets/{year}/val.txt", "list of val sequences", fetch, davis.ROOTS),
        Requirement(f"ImageSets/{year}/train.txt", "list of train sequences", fetch, davis.ROOTS),
    )


REQUIREMENTS: dict[str, tuple[Requirement, ...]] = {
    "pascal5i": (
        Requirement("JPEGImages", "images", _VOC, voc.ROOTS),
        Requirement("ImageSets/Segmentation/val.txt", "list of val images", _VOC, voc.ROOTS),
        Requirement("SegmentationClass*", "masks", _VOC, voc.ROOTS),
        Requirement("SegmentationClassAug", "masks of VOC and SBD", _SBD, voc.ROOTS, optional=True),
        Requirement("splits/pascal/val/fold0.txt", "published lists of pairs",
                    "derived from the masks where they are missing", optional=True),
    ),
    "coco20i": (*_coco_part("train"), *_coco_part("val")),
    "fss1000": (
        Requirement("*/1.jpg", "class folders", _FSS, fss.ROOTS),
        Requirement("*/1.png", "masks", _FSS, fss.ROOTS),
        Requirement("splits/fss/test.txt", "your own class split", "the package's table is used", optional=True),
    ),
    "lvis92i": (
        Requirement("lvis_v1_val.json", "val masks", f"lvis_v1_val.json.zip {_LVIS}", _LVIS_ROOTS),
        Requirement("lvis_v1_train.json", "train masks", f"lvis_v1_train.json.zip {_LVIS}", _LVIS_ROOTS),
        _coco2017("train"),
        _coco2017("val"),
    ),
    "pascal-part": (
        Requirement("JPEGImages", "images of VOC 2010", _VOC2010, parts.PASCAL_ROOTS),
        Requirement("ImageSets/Main/val.txt", "list of val images", _VOC2010, parts.PASCAL_ROOTS),
        Requirement("Annotations_Part", "part masks (.mat)", _PARTS,
                    ("Pascal-Part", "VOCdevkit", *parts.PASCAL_ROOTS)),
    ),
    "paco-part": (
        Requirement("paco_lvis_v1_train.json", "train masks", _PACO, parts.PACO_ROOTS),
        Requirement("paco_lvis_v1_test.json", "test masks", _PACO, parts.PACO_ROOTS),
        _coco2017("train"),
        _coco2017("val"),
    ),
    "davis2016": _davis(2016),
    "davis2017": _davis(2017),
    "perseg": (
        Requirement("Images/*", "images", _PERSEG, ("PerSeg", "data", ".")),
        Requirement("Annotations/*", "masks", _PERSEG, ("PerSeg", "data", ".")),
    ),
}
