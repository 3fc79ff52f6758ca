"""Real photographs, read once for all tests."""

import pytest

from fsdino.data.readers.coco import CocoIndex
from tests.data.small import shared_data


@pytest.fixture(scope="session")
def coco386() -> CocoIndex:
    folder = shared_data("coco386")
    return CocoIndex(folder / "instances.json", folder / "images", "coco386", min_cover=0.02)
