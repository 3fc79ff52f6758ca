"""The table of encoders says what timm says."""

from pathlib import PurePosixPath

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from fsdino.base.catalog import CATALOG, NONCOMMERCIAL, entry_of, likely_meant


@pytest.mark.parametrize("name", list(CATALOG))
def test_names_and_licences_are_those_of_timm(name: str) -> None:
    entry, told = CATALOG[name], get_pretrained_cfg(CATALOG[name].timm, allow_unregistered=False)
    assert told is not None and told.hf_hub_id == entry.repository and told.license == entry.licence
    # What the checks of weights count on: no classifier, so that timm forgives no missing weight.
    assert told.num_classes == 0 and told.hf_hub_filename is None
    if entry.authors_file is not None:
        assert PurePosixPath(told.url).name == entry.authors_file


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if entry.parameters < 30e6])
def test_sizes_are_those_of_the_model(name: str) -> None:
    entry = CATALOG[name]
    with torch.device("meta"):
        model = timm.create_model(entry.timm, num_classes=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
    assert entry.img_size % model.patch_embed.patch_size[0] == 0


def test_an_entry_by_any_of_its_names() -> None:
    entry = CATALOG["dinov3-l16"]
    assert entry_of(entry.repository) is entry
    assert entry_of("dinov3-l16") is entry_of("vit_large_patch16_dinov3.lvd1689m") is entry_of(entry.timm[:24]) is entry
    assert entry_of("vit_large_patch16_dinov3.sat493m") is None and entry_of("tiny") is None
    assert likely_meant("dinov2-b41")[0] == "dinov2-b14" and likely_meant("cats") == []


def test_auto_takes_no_giant_and_nothing_that_may_not_be_used_at_work() -> None:
    assert not any(entry.may_be_chosen for entry in CATALOG.values() if entry.licence == NONCOMMERCIAL)
    assert not CATALOG["dinov3-7b16"].may_be_chosen and CATALOG["dinov3-l16"].may_be_chosen
