import json

import pytest
import torch

from fsdino.models.config import PRESETS, SegmenterConfig, preset
from fsdino.models.segmenter import FewShotSegmenter
from tests.small import refuses


def test_dict_round_trip_through_json() -> None:
    for config in PRESETS.values():
        assert SegmenterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_preset_with_changes_leaves_the_preset_alone() -> None:
    changed = preset("tiny", variant="compact", encoder_kwargs={"depth": 1})
    assert changed.variant == "compact" and PRESETS["tiny"].variant == "full"
    assert PRESETS["tiny"].encoder_kwargs["depth"] == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "huge"}, "variant 'huge' is unknown; use one of compact, compact_frozen, full"),
        ({"reader_taps": ()}, "reader_taps is empty; name at least one block"),
    ],
)
def test_errors_name_the_choices(fields: dict[str, object], message: str) -> None:
    refuses(message, SegmenterConfig, **fields)


def test_unknown_names() -> None:
    refuses(r"preset 'mini' is unknown; use one of tiny, .*b14, l14", preset, "mini")
    refuses("SegmenterConfig has no colour; it has adapter_dim", SegmenterConfig.from_dict, {"colour": 1})


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_build_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = FewShotSegmenter(PRESETS[name])
    assert next(model.parameters()).is_meta
    assert model.encoder.grid_size == {"tiny": 16, "photos": 28}.get(name, 37)
