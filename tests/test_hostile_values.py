"""Odd values of every option of a configuration, a recipe and the Python API: taken, or refused in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsdino.base.reference import Reference
from fsdino.base.storage import load
from fsdino.models.config import SegmenterConfig
from fsdino.pipeline.recipe import Recipe, read_run
from tests.hostile import ODD_VALUES, Tally, ended, judge, leaves
from tests.small import SEGMENTER, scene, small_segmenter


def test_configs_of_odd_values() -> None:
    tally = Tally()
    for name in SegmenterConfig.__dataclass_fields__:
        for odd, value in ODD_VALUES.items():
            judge(tally, f"{name} = {odd}", lambda n=name, v=value: SegmenterConfig(**{**SEGMENTER, n: v}), free=True)
    for key in ("depth", "embed_dim", "num_heads", "patch_size"):
        for odd in ("minus one", "huge", "text", "NaN", "nothing"):
            args = {**SEGMENTER, "encoder_kwargs": {**SEGMENTER["encoder_kwargs"], key: ODD_VALUES[odd]}}
            judge(tally, f"{key} = {odd}", lambda a=args: SegmenterConfig(**a), free=True)
    ended(tally, "configs", 200)


def test_recipes_of_odd_values(tmp_path: Path) -> None:
    tally, file = Tally(), tmp_path / "recipe.yaml"
    paths = list(leaves(Recipe))[::2]
    odd = list(ODD_VALUES)
    for i, path in enumerate(paths):
        for name in (odd[i % len(odd)],):
            values: Any = ODD_VALUES[name]
            for key in reversed(path):
                values = {key: values}
            file.write_text(json.dumps(values))
            judge(tally, f"{'.'.join(path)} = {name}", lambda: read_run(["--config", str(file)]), free=True)
    numbers = {"train.lr": ".nan", "train.epochs": "-1", "train.batch_size": "0", "data.val_share": "1.5", "seed": "-3",
               "distill.lr": "-1", "distill.sizes": "[0]", "num_workers": "-1", "data.fold": "-1"}  # fmt: skip
    for key, value in numbers.items():
        outer, _, inner = key.rpartition(".")
        file.write_text(f"{outer}: {{{inner}: {value}}}\n" if outer else f"{key}: {value}\n")
        before = tally.refused
        judge(tally, f"{key}: {value}", lambda: read_run(["--config", str(file)]))
        assert tally.refused == before + 1, (key, value, tally.wrong)
    ended(tally, "recipes", 50)


def test_arguments_of_odd_values() -> None:
    model, tally = small_segmenter(seed=1, variant="full", promptable=True), Tally()
    image, mask = scene()
    memory = model.remember([Reference(image, mask=mask)])
    wanted = model.segment(memory, image).probs
    odd = {**ODD_VALUES, "an array": np.zeros(3), "an empty array": np.zeros((0, 0, 3), np.uint8), "words": ["a", "b"],
           "NaN everywhere": np.full((60, 80, 3), np.nan), "floats": image / 255, "a flat tensor": torch.zeros(9),
           "a path": Path("a.png"), "nested": [[[1]]], "numbers": [5, 5, 1e30]}  # fmt: skip
    calls: dict[str, Callable[[Any], Any]] = {
        "image": lambda v: model.segment(memory, v).probs,
        "memory": lambda v: model.segment(v, image).probs,
        "batch": lambda v: model.segment_batch(memory, v),
        "references": lambda v: model.segment(model.remember(v), image).probs,
        "reference": lambda v: model.segment(model.remember([Reference(v, mask=mask)]), image).probs,
        "points": lambda v: model.refine(memory, image, v).probs,
        "labels": lambda v: model.refine(memory, image, [[20, 20]], v).probs,
        **{
            field: lambda v, f=field: model.segment(model.remember([Reference(image, **{f: v})]), image).probs
            for field in ("mask", "points", "box", "scribble")
        },
        "unpack": lambda v: model.unpack(v),
        "array": lambda v: model.unpack({**model.pack(memory), "fg": v}),
        "load": lambda v: load(v),
        "device": lambda v: load("tiny", device=v),
    }
    # None and True say what is meant by default, or that all points are on the object; an empty batch has no answers.
    free = {"labels = nothing", "labels = true", "batch = an empty array"}
    for name, call in calls.items():
        for kind, value in odd.items():
            case = f"{name} = {kind}"
            judge(tally, case, lambda c=call, v=value: c(v), wanted, free=case in free)
    ended(tally, "arguments", 300)
