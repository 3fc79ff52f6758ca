"""PASCAL-Part's part names, merged over sides and numbers, and its folds."""

from __future__ import annotations

import re

# Names in the files that are not just a side or number away from their part.
_RENAMED = {
    "lfho": "hoof", "rfho": "hoof", "lbho": "hoof", "rbho": "hoof",
    "lfpa": "paw", "rfpa": "paw", "lbpa": "paw", "rbpa": "paw",
    "lfleg": "leg", "rfleg": "leg", "lbleg": "leg", "rbleg": "leg", "lleg": "leg", "rleg": "leg",
    "lfuleg": "leg", "lflleg": "leg", "rfuleg": "leg", "rflleg": "leg",
    "lbuleg": "leg", "lblleg": "leg", "rbuleg": "leg", "rblleg": "leg",
    "llleg": "leg", "luleg": "leg", "rlleg": "leg", "ruleg": "leg",
    "llarm": "arm", "luarm": "arm", "rlarm": "arm", "ruarm": "arm",
    "leye": "eye", "reye": "eye", "lear": "ear", "rear": "ear", "lebrow": "eyebrow", "rebrow": "eyebrow",
    "lhand": "hand", "rhand": "hand", "lfoot": "foot", "rfoot": "foot", "lhorn": "horn", "rhorn": "horn",
    "lwing": "wing", "rwing": "wing", "fwheel": "wheel", "bwheel": "wheel",
    "leftmirror": "mirror", "rightmirror": "mirror", "fliplate": "plate", "bliplate": "plate",
    "frontside": "side", "leftside": "side", "rightside": "side", "backside": "side", "roofside": "side",
    "hfrontside": "head", "hleftside": "head", "hrightside": "head", "hbackside": "head", "hroofside": "head",
    "cfrontside": "coach", "cleftside": "coach", "crightside": "coach", "cbackside": "coach", "croofside": "coach",
}  # fmt: skip

_PARTS = {
    "animals": {
        "bird": "beak eye foot head leg neck tail torso wing",
        "cat": "ear eye head leg neck nose paw tail torso",
        "cow": "ear eye head horn leg muzzle neck tail torso",
        "dog": "ear eye head leg muzzle neck nose paw tail torso",
        "horse": "ear eye head hoof leg muzzle neck tail torso",
        "sheep": "ear eye head horn leg muzzle neck tail torso",
    },
    "indoor": {"bottle": "body cap", "pottedplant": "plant pot", "tvmonitor": "screen"},
    "person": {"person": "arm ear eye eyebrow foot hair hand head leg mouth neck nose torso"},
    "vehicles": {
        "aeroplane": "body engine stern tail wheel wing",
        "bicycle": "chainwheel handlebar headlight saddle wheel",
        "bus": "door headlight mirror plate side wheel window",
        "car": "door headlight mirror plate side wheel window",
        "motorbike": "handlebar headlight saddle wheel",
        "train": "coach head headlight",
    },
}
PART_FOLDS = {
    fold: [f"{thing}:{part}" for thing, parts in things.items() for part in parts.split()]
    for fold, things in _PARTS.items()
}


def merged_part(name: str) -> str:
    """A part's name without side and number: `door_2` -> `door`, `lfpa` -> `paw`; others stay as they are."""
    plain = re.sub(r"_\d+$", "", name)
    return _RENAMED.get(plain, plain)
