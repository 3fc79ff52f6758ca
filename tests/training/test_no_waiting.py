"""A step on a GPU never waits for it: run on a pretended one, where no number can be read and no device be mixed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fsdino.base import registry
from fsdino.training.distill import DistillModule, DistillPart
from fsdino.training.episodes import EpisodeModule, TrainPart
from tests.small import METHOD_ARGS
from tests.training.small import small_teacher, student

GPU = torch.device("cuda:0")


class NothingComesBack(TorchDispatchMode):
    """Refuses copies from the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = next((one for one in args if isinstance(one, Tensor)), None)
        if func is torch.ops.aten._to_copy.default and given is not None and given.is_cuda:
            assert found.is_cuda, "a tensor is copied from the GPU"
        return found


@contextmanager
def pretended(*modules: nn.Module) -> Iterator[None]:
    """A GPU without one: modules lie there, and shapes and devices are all that is computed."""
    with FakeTensorMode(), NothingComesBack():
        for module in (part for whole in modules for part in whole.modules()):
            for name, value in module._parameters.items():
                if value is not None:
                    there = torch.empty(value.shape, dtype=value.dtype, device=GPU)
                    module._parameters[name] = nn.Parameter(there, value.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU)
        yield


def batch_of(size: int, shots: int) -> dict[str, Tensor]:
    """Two episodes."""
    truth = torch.zeros(2, size, size, dtype=torch.long, device=GPU)
    images, masks = torch.empty(2, 1 + shots, 3, size, size, device=GPU), truth[:, None].expand(2, shots, size, size)
    return {
        "query_image": images[:, 0], "support_images": images[:, 1:], "support_masks": masks.float(),
        "query_mask": truth, "support_truths": masks.to(torch.uint8),
        "class_id": truth[:, 0, 0], "episode_index": truth[:, 0, 0],
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*reference is not registered")
@pytest.mark.parametrize(
    "name", ["fsdino", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sansa", "fssam"))]
)
def test_a_step_of_episodes(name: str) -> None:
    targets = 2 if name == "sansa" else 1
    module = EpisodeModule(registry.build(name, **METHOD_ARGS[name]), part=TrainPart(num_targets=targets)).train()
    with pretended(module):
        loss = module.training_step(batch_of(module.model.img_size, targets), 0)
        assert loss.device == GPU and loss.requires_grad


@pytest.mark.filterwarnings("ignore:.*reference is not registered")
@pytest.mark.parametrize("live", [False, True])
def test_a_step_of_distillation(live: bool) -> None:
    teacher = small_teacher()
    module = DistillModule(student(), DistillPart(), teacher)
    with pretended(module, teacher.sam):
        image = torch.empty(2, 3, 28, 28, device=GPU)
        target = torch.empty(2, *teacher.entry_shape, device=GPU).half()
        shown = {"teacher_image": torch.empty(2, 3, 32, 32, device=GPU)} if live else {"target": target}
        loss = module.training_step({"image": image, **shown}, 0)
        assert loss.device == GPU and loss.requires_grad


@pytest.mark.parametrize("wrong", [
    lambda x: x.sum().item(), lambda x: float(x.sum()), lambda x: x[x > 0], lambda x: x.cpu(),
    lambda x: x + torch.zeros(3), lambda x: bool((x > 0).any()),
])  # fmt: skip
def test_what_waits_is_seen(wrong: Callable[[Tensor], Any]) -> None:
    errors = (DataDependentOutputException, DynamicOutputShapeException, AssertionError, RuntimeError)
    with pretended(), pytest.raises(errors):
        wrong(torch.empty(3, device=GPU))
