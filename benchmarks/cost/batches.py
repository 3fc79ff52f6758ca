"""Whether images and episodes pay in batches: `python -m benchmarks.cost.batches`.

Torch and onnxruntime segment the same images one at a time and several in one pass (`fsdino predict --batch`), and
torch the same one-shot episodes (`fsdino evaluate --batch`, without loading and counting), in turn in one process. A
row holds the time an image or episode of each size of batch over that of single ones, and by how much probabilities
differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from benchmarks.cost.subjects import noise, reference
from benchmarks.cost.timing import interleaved
from fsdino.base import storage
from fsdino.base.method import FewShotMethod
from fsdino.data.episodes.episode import EpisodeData, collate_episodes
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.world.index import SyntheticWorld
from fsdino.evaluation.measure import predict_some
from fsdino.export.command import export
from fsdino.predict.engines import Engine
from fsdino.predict.engines.choice import EngineChoice, Runtime

Of = Literal["images", "episodes"]
KEY = ("of", "model", "runtime", "device", "batch")


def found(engine: Engine, joined: Any, images: list[np.ndarray], batch: int) -> list[np.ndarray]:
    """Probabilities of one class in every image, `batch` images at a time."""
    if batch == 1:
        return [next(engine.find(joined, image)).probs for image in images]
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    return [next(one).probs for part in parts for one in engine.find_batch(joined, part)]


def predicted(method: FewShotMethod, episodes: dict[str, Any], batch: int) -> list[np.ndarray]:
    """Probabilities of every episode, `batch` episodes at a time."""
    starts = range(0, len(episodes["class_id"]), batch)
    parts = (predict_some(method, episodes, start, start + batch) for start in starts)
    return [logits.sigmoid().cpu().numpy() for part in parts for logits, _, _ in part]


def of_images(engine: Engine, number: int) -> Callable[[int], list[np.ndarray]]:
    """What an engine finds in so many images, by size of batch."""
    images = [noise(seed, (90 + seed, 120)) for seed in range(number)]
    return partial(found, engine, engine.join([engine.remember([reference(0)])]), images)


def of_episodes(method: FewShotMethod, number: int) -> Callable[[int], list[np.ndarray]]:
    """What a method predicts in so many one-shot episodes of the embedded world, by size of batch."""
    world = SyntheticWorld("novel", 3)
    data = EpisodeData(world, EpisodeList.draw(world, 0, 1, number), method.resize)
    loaded = collate_episodes([data[i] for i in range(number)]).items()
    episodes = {name: value.to(method.device) for name, value in loaded if isinstance(value, torch.Tensor)}
    return partial(predicted, method.eval(), episodes)


def rows(find: Callable[[int], list[np.ndarray]], batches: tuple[int, ...], repetitions: int) -> list[Row]:
    """A row for each size of batch, the first of which is 1."""
    timings, alone = interleaved({str(batch): partial(find, batch) for batch in batches}, repetitions), find(1)
    result = []
    for batch in batches:
        several = find(batch)
        largest = max(float(np.abs(a - b).max()) for a, b in zip(alone, several))
        ratio = round(timings.ratio((str(batch),), "1"), 3)
        result.append({"batch": batch, "time of one, ratio": ratio, "largest difference": f"{largest:.1e}"})
    return result


def main(
    model: str = "tiny",
    batches: tuple[int, ...] = (1, 2, 4, 8),
    number: int = 8,
    repetitions: int = 5,
    runtimes: tuple[Runtime, ...] = ("torch", "onnx"),
    of: tuple[Of, ...] = ("images", "episodes"),
    device: str = "cpu",
    csv: Path = RESULTS / "batches.csv",
) -> None:
    """Time batches and update the CSV; episodes by torch alone."""
    about = provenance(protocol=f"{number} images or episodes, one class, medians of {repetitions} rounds in turn")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for kind, runtime in [*(("images", one) for one in runtimes), ("episodes", "torch")]:
            if kind not in of:
                continue
            if kind == "episodes":
                find = of_episodes(storage.load(model).to(device), number)
            else:
                if runtime != "torch":
                    with torch.enable_grad():  # the exporter's own checks switch it off
                        export(model, folder, ("onnx",))
                choice = EngineChoice(folder if runtime != "torch" else model, runtime, device)
                find = of_images(choice.open(), number)
            head = {"of": kind, "model": model, "runtime": runtime, "device": device}
            for row in rows(find, batches, repetitions):
                update_rows(csv, [head | row | about], KEY)
                print(kind, runtime, *row.values())


if __name__ == "__main__":
    run_script(main)
