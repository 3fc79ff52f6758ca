"""The table of families of encoders, in short."""

from pathlib import Path

import numpy as np
import pytest
import timm

from benchmarks.accuracy import families
from benchmarks.accuracy.families import cases, main, verdict, wanted, whole
from benchmarks.common import read_rows
from fsdino.methods.chain import ChainMethod


def test_every_family_has_its_smallest_encoder_exported() -> None:
    found = {case.family for case in cases()}
    assert found >= {"dinov2", "dinov2-reg", "dinov3", "pe-spatial", "tipsv2", "c-radiov3", "c-radiov4", "lingbot"}
    smallest = [case for case, first in wanted("") if first]
    assert len({case.family for case in smallest}) == len(smallest)
    assert {case.timm for case, first in wanted("dinov3") if first} >= {"vit_small_patch16_dinov3"}


def test_sizes_are_multiples_of_the_patch() -> None:
    assert whole("vit_base_patch16_224", 518).img_size == 512
    encoder = whole("vit_base_patch14_dinov2", 518)
    assert encoder.img_size == 518 and encoder.depth == 12 and next(encoder.parameters()).is_meta


@pytest.mark.skipif(not timm.is_model("vit_giant_patch16_lingbot"), reason="this timm is older than LingBot's encoders")
def test_a_row_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []

    def exported(method: ChainMethod) -> np.ndarray:
        asked.append(method.encoder.depth)
        return families.masks(method)

    monkeypatch.setattr(families, "exported", exported)
    args = {"csv": tmp_path / "families.csv", "only": "lingbot", "sizes": (64,), "blocks": 1, "small": True}
    main(**args)
    rows = {one["timm"]: one for one in read_rows(args["csv"]).to_dict("records")}
    first, large = rows["vit_small_patch16_lingbot"], rows["vit_giant_patch16_lingbot"]
    assert first["predicts"] == first["exports"] == "yes" and first["agreement"] == "1.0" and asked == [1]
    assert large["predicts"].startswith("not tried") and large["builds"] == "yes" and large["agreement"] == ""
    main(**args)
    assert len(read_rows(args["csv"])) == len(rows) and asked == [1], "rows that are there are kept"
    main(**{**args, "sizes": (32,)}, minutes=0)
    assert len(read_rows(args["csv"])) == len(rows)


def test_masks_of_everything_are_no_prediction() -> None:
    assert verdict(np.array([True, False])) == "yes"
    assert verdict(np.ones(3, bool)) == "no, masks of 100 %" and verdict(np.zeros(3, bool)) == "no, masks of 0 %"
