"""Grids of runs behind the README's tables: `python benchmarks/experiments.py GRID [--only SUBSTRING]`.

Every grid writes `benchmarks/results/GRID.csv`, one row a run; rows that are there are kept, so an interrupted grid
goes on. Choices are judged by `val_miou` (held-out base classes); `novel_miou` is reported and decides nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from provenance import provenance

from fsdino.base.method import FewShotMethod
from fsdino.base.storage import load
from fsdino.cache.cache import EmbeddingCache, FrozenTaps
from fsdino.cache.image_list import ImageList
from fsdino.data.catalog import open_data_set
from fsdino.data.class_index import CombinedIndex
from fsdino.data.episodes.episode import EpisodeData
from fsdino.data.splits import TestSet, open_test
from fsdino.evaluation.baseline import choose_prototype
from fsdino.evaluation.measure import Evaluation, evaluate
from fsdino.evaluation.method_choice import identity
from fsdino.methods.prototype import AllForeground
from fsdino.models.encoder import FeatureEncoder
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.pipeline.recipe import Recipe, read_recipe
from fsdino.pipeline.run import Job
from fsdino.training.episode_data import CachedEpisodes
from fsdino.training.optim import count_parameters

RESULTS, ROOT = Path(__file__).parent / "results", Path("runs/experiments")
Run = tuple[str, list[str]]  # a name and the overrides of the recipe


def tiny_seeds() -> Iterator[Run]:
    """The main table: compact and full, three seeds."""
    for seed in range(3):
        for variant in ("compact", "full"):
            yield f"{variant}-seed{seed}", [f"--model.variant={variant}", f"--seed={seed}"]


def distillation_curve() -> Iterator[Run]:
    """Distilled against undistilled, five seeds, over the number of annotated base images.

    Undistilled: a new adapter that learns with the episodes, for a quarter more of them (what distillation costs).
    Both start from the teacher's decoder.
    """
    for seed in range(5):
        for count in (10, 30, 100, 300, None):
            some = [] if count is None else [f"--data.max_train_images={count}"]
            name = f"{count or 'all'}-seed{seed}"
            short = ["--train.epochs=4", "--train.epoch_length=640", f"--seed={seed}", "--model.variant=full", *some]
            short += ["--trainer.check_val_every_n_epoch=2"]
            longer = ["--train.epoch_length=800", "--distill.epochs=0", "--model.freeze_adapter=false"]
            yield f"distilled-{name}", short
            yield f"undistilled-{name}", [*short, *longer]


def choices() -> Iterator[Run]:
    """What the paper leaves open; decided by held-out base classes, three seeds."""
    options: dict[str, list[str]] = {
        "default": [],
        "not-mirrored": ["--cache.hflip=false"],
        "no-channel-match": ["--model.channel_match=false"],
        "muon": ["--train.optimizer=muon"],
        "reader-dim-64": ["--model.reader_dim=64"],
        "muon-reader-dim-64": ["--train.optimizer=muon", "--model.reader_dim=64"],
        "adapter-learns": ["--model.freeze_adapter=false"],
        "adapter-heads-2": ["--model.adapter_heads=2"],
        "adapter-tap-1": ["--model.adapter_tap=1"],
        "taps-5": ["--model.reader_taps=[5]"],
        "taps-1-3-4-5": ["--model.reader_taps=[1,3,4,5]"],
        "pivot-reader": ["--model.reader=pivot"],
        "no-self-correlation": ["--model.self_correlation=false"],
        "no-skip": ["--model.skip=false"],
        "no-sparse": ["--model.sparse=false"],
        "cosine-distillation": ["--distill.loss=cosine_smooth_l1"],
        "mask-distillation": ["--distill.mask_weight=0.2"],
        "dice-3": ["--train.dice_weight=3"],
    }
    for seed in range(3):
        for name, overrides in options.items():
            short = ["--train.epochs=4", "--train.epoch_length=640", f"--seed={seed}", "--model.variant=full"]
            yield f"{name}-seed{seed}", [*short, *overrides]


def ablation() -> Iterator[Run]:
    """The paper's ablation on the embedded world, three seeds."""
    steps: dict[str, list[str]] = {
        "compact-undistilled": ["--model.variant=compact", "--distill.epochs=0", "--model.freeze_adapter=false"],
        "compact-no-sparse": ["--model.variant=compact", "--model.sparse=false"],
        "compact": ["--model.variant=compact"],
        "compact-frozen": ["--model.variant=compact_frozen"],
        "full-no-contrast": ["--model.variant=full", "--model.contrastive=false"],
        "full": ["--model.variant=full"],
    }
    for seed in range(3):
        for name, overrides in steps.items():
            yield f"{name}-seed{seed}", ["--train.epochs=4", "--train.epoch_length=640", f"--seed={seed}", *overrides]


def photos() -> Iterator[Run]:
    """Real photographs: four folds, two seeds of the full model, one of the compact one."""
    for variant, seed in (("full", 0), ("full", 1), ("compact", 0)):
        for fold in range(4):
            overrides = [f"--model.variant={variant}", f"--seed={seed}", f"--data.fold={fold}"]
            yield f"{variant}-fold{fold}-seed{seed}", overrides


GRIDS = {f.__name__: f for f in (tiny_seeds, distillation_curve, choices, ablation, photos)}
RECIPES = {"photos": "recipes/photos.yaml"}
SHOTS = {"ablation": (1, 5)}  # references of the measurement, where it is not the recipe's number alone


def run_once(grid: str, name: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Train and measure one run; a row for each number of shots."""
    common = ["--config", RECIPES.get(grid, "recipes/tiny.yaml"), "--log.wandb=off", "--presence.episodes=0"]
    recipe, options = read_recipe([*common, *overrides])
    started = time.perf_counter()
    job = Job(recipe, options, ROOT / grid / name, shared_features(recipe, options) if grid == "photos" else None)
    resumed = (job.folder / "train").is_dir()
    job._teacher = shared_teacher(recipe, options)
    trained = job.train(shared_distillation(recipe, options, job))
    model = load(trained)
    seconds = time.perf_counter() - started
    val = float(torch.load(trained, weights_only=True)["callbacks"][best_key(trained)]["best_model_score"])
    head = {"run": name, "seed": recipe.seed, "fold": recipe.data.fold}
    tail = {"cut": model.threshold, "trained": count_parameters(model.trainable_parameters()),
            "total": count_parameters(model.parameters()), "train_images": len(job.train_set.index.all_images()),
            "precision": options.get("precision", "float32"), "seconds": "" if resumed else round(seconds)}  # fmt: skip
    rows = []
    for shots in SHOTS.get(grid, (recipe.data.shots,)):
        folder = f"{name}-{shots}shot" if grid in SHOTS else name
        result = measure(job, folder, model, open_test(replace(recipe.data, shots=shots)))
        row = {"shots": shots, "method": f"FS-DINO {recipe.segmenter().variant}", "val_miou": round(100 * val, 3)}
        rows.append(head | row | scores(result) | tail)
    return rows


def best_key(checkpoint: Path) -> str:
    """Under which name the checkpoint keeps the state of the callback that picked it."""
    names = torch.load(checkpoint, weights_only=True)["callbacks"]
    return next(name for name in names if "val/miou" in name)


def shared_teacher(recipe: Recipe, options: dict[str, Any]) -> Any:
    """The teacher; one of the recipe's own is trained once a fold, whatever the variant and seed."""
    folder = ROOT / "teach" / (f"{recipe.name}-fold{recipe.data.fold}" if recipe.teach.objects else recipe.name)
    return Job(replace(recipe, seed=0), options, folder).teacher


def shared_features(recipe: Recipe, options: dict[str, Any]) -> tuple[EmbeddingCache, ImageList]:
    """Maps of all photographs, once for all folds; a frozen encoder learns nothing from seeing a test image."""
    members = [open_data_set(spec.name, spec.root, **spec.options) for spec in recipe.data.train]
    whole = CombinedIndex(members)
    images = ImageList("photographs", tuple(whole.all_images()), whole.load_image)
    cache = Job(recipe, options, ROOT / "features").feature_cache(images)
    plain = tuple(name.removeprefix(f"{members[0].name}:") for name in images.ids)
    alone = len(members) == 1 or recipe.data.fold == 0  # a fold with one data set left has no prefixes
    return cache, ImageList("photographs", plain if alone else images.ids, whole.load_image)


def shared_distillation(recipe: Recipe, options: dict[str, Any], job: Job) -> Path | None:
    """The distilled checkpoint; runs that differ only in stage 2 share it."""
    if recipe.distill.epochs == 0:
        return None
    model = recipe.segmenter()
    named = ("encoder", "encoder_kwargs", "img_size", "resize_mode", "adapter_tap", "adapter_heads")
    adapter = {name: getattr(model, name) for name in named} | {"hflip": recipe.cache.hflip, "trainer": options}
    adapter["weights"] = FrozenTaps(FewShotSegmenter(model).encoder).fingerprint
    own_objects = recipe.teacher.checkpoint == "own" and recipe.teach.objects
    fold = recipe.data.fold if own_objects or not recipe.data.images else None
    parts = [recipe.name, adapter, asdict(recipe.distill), fold, recipe.seed, job.teacher.fingerprint]
    key = json.dumps(parts, sort_keys=True, default=str)
    folder = ROOT / "distill" / hashlib.sha256(key.encode()).hexdigest()[:12]
    plain = replace(recipe, data=replace(recipe.data, max_train_images=None))
    other = Job(plain, options, folder)
    other._teacher = job.teacher
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # another process may be at it for a run of its own
        return other.distill()


def measure(job: Job, name: str, method: FewShotMethod, test: TestSet | None = None) -> Evaluation:
    """Novel classes of the job's test set or another, from the frozen encoder's maps where the method can read them."""
    test, data = test or job.test, None
    if isinstance(method, FewShotSegmenter):
        if job.features is not None:
            cache = job.features[0]
            prefix = f"{test.index.name}:"
            images = replace(job.features[1], ids=tuple(i.removeprefix(prefix) for i in job.features[1].ids))
        else:
            ids = tuple(sorted(test.episodes.images))
            images = ImageList(f"{test.index.name}-test", ids, test.index.load_image)
            cache = job.feature_cache(images)
        data = CachedEpisodes(EpisodeData(test.index, test.episodes, method.resize), cache, images)
    folder = job.folder / "evaluate" / name
    return evaluate(
        method, test.index, test.episodes, folder, fingerprint=identity(method), data=data,
        trainer=job.trainer(f"test {name}", "episodes"),
    )  # fmt: skip


def scores(result: Evaluation) -> dict[str, float]:
    """mIoU with its interval and FB-IoU, in percent."""
    interval = result.interval
    return {"novel_miou": round(100 * result.score.miou, 3), "low": round(100 * interval.low, 3),
            "high": round(100 * interval.high, 3), "novel_fb_iou": round(100 * result.score.fb_iou, 3)}  # fmt: skip


def baselines(grid: str, overrides: list[str], fold: int) -> list[dict[str, Any]]:
    """Prototype on the encoder, on the embedded world also on a random one, and all-foreground."""
    path = RECIPES.get(grid, "recipes/tiny.yaml")
    recipe, options = read_recipe(["--config", path, "--log.wandb=off", "--teacher.checkpoint=tiny", *overrides])
    job = Job(recipe, options, ROOT / grid / f"baselines-fold{fold}")
    config, rows = recipe.segmenter(), []
    head = {"run": f"baselines-fold{fold}", "seed": 0, "fold": fold, "shots": recipe.data.shots}
    encoders = {"prototype": config.encoder_weights, "prototype, random encoder": None}
    if grid == "photos":
        del encoders["prototype, random encoder"]  # says something where the encoder is the project's own
    for label, weights in encoders.items():
        torch.manual_seed(0)
        deepest = FeatureEncoder(
            config.encoder, config.img_size, (0,), config.encoder_kwargs, None, config.encoder_stride
        )
        encoder = FeatureEncoder(
            config.encoder, config.img_size, range(deepest.depth), config.encoder_kwargs, weights, config.encoder_stride
        )
        resize = FewShotSegmenter(config, load_encoder=False).resize
        choice = choose_prototype(
            encoder, resize, job.train_set.index, job.train_set.val_episodes, ("fg_bg", "softmax")
        )
        result = measure(job, label.replace(", ", "-").replace(" ", "-"), choice.build(encoder, resize))
        detail = {
            "val_miou": round(100 * choice.miou, 3),
            "cut": choice.cut,
            "choice": f"{choice.kind} block {choice.tap}",
        }
        rows.append(head | {"method": label} | detail | scores(result))
    rows.append(
        head | {"method": "all foreground"} | scores(measure(job, "all-foreground", AllForeground(config.img_size)))
    )
    return rows


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV, widening its header where needed."""
    old = list(csv.DictReader(path.open(encoding="utf-8"))) if path.is_file() else []
    columns = list(dict.fromkeys(key for row in [*old, *rows] for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows([*old, *rows])


def main() -> None:
    """Run a grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid", choices=sorted(GRIDS))
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--part", default="", help="suffix of the CSV, so that two processes share a grid")
    parser.add_argument("--baselines", action="store_true", help="measure the baselines instead of the runs")
    chosen = parser.parse_args()
    path = RESULTS / f"{chosen.grid}{chosen.part}.csv"
    about = provenance()
    if chosen.baselines:
        for fold in range(4) if chosen.grid == "photos" else (0,):
            append(path, [row | about for row in baselines(chosen.grid, [f"--data.fold={fold}"], fold)])
        return
    done = {row["run"] for row in csv.DictReader(path.open(encoding="utf-8"))} if path.is_file() else set()
    for name, overrides in GRIDS[chosen.grid]():
        if chosen.only in name and name not in done:
            append(path, [row | (about | row) for row in run_once(chosen.grid, name, overrides)])
            print(f"{chosen.grid}: {name} done", flush=True)


if __name__ == "__main__":
    main()
