"""No test looks for models on the network or in the caches of the machine: what is there differs between machines."""

import os
import tempfile
from pathlib import Path

import pytest

# Before the Hub's client is imported, which reads them once; processes that tests start inherit them.
_EMPTY = tempfile.mkdtemp(prefix="fsdino-tests-")
os.environ |= {"HF_HUB_CACHE": f"{_EMPTY}/hub", "TORCH_HOME": f"{_EMPTY}/torch", "HF_HUB_OFFLINE": "1"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="make the tensors of tests there: `pytest tests/models --device cuda`")


def pytest_configure(config: pytest.Config) -> None:
    if device := config.getoption("--device"):
        # Only where it is asked for: it imports torch.
        from tests.on_device import OnDevice

        OnDevice(device).__enter__()


@pytest.fixture(scope="session")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's smallest Vision Transformer, in the form in which weights are published."""
    # After the settings above, and only where it is asked for: timm imports torch.
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit")  # with its classifier, as published
    file = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file(model.state_dict(), file)
    return file
