"""Grids of runs behind the tables: `python -m benchmarks.accuracy.experiments GRID`.

Every grid writes `benchmarks/results/GRID.csv`, one row a run; rows that are there are kept, so an interrupted grid
goes on. Choices are judged by `val_miou` (held-out base classes); `novel_miou` is reported and decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from benchmarks.accuracy.chain import RememberedEncoder
from benchmarks.accuracy.grids import EQUAL, GRIDS, LONG, ON_SAME
from benchmarks.accuracy.pairs import folder_name
from benchmarks.common import RESULTS, Row, provenance, read_rows, run_script, update_rows
from benchmarks.cost.timing import interleaved
from fsdino.base.method import FewShotMethod
from fsdino.base.storage import load
from fsdino.cache.image_list import ImageList
from fsdino.data.catalog import open_data_set
from fsdino.data.class_index import CombinedIndex
from fsdino.data.episodes.episode import EpisodeData
from fsdino.data.splits import base_episodes
from fsdino.evaluation.baseline import choose_prototype
from fsdino.evaluation.measure import evaluate
from fsdino.evaluation.method_choice import identity
from fsdino.methods.chain import ChainMethod, default_taps
from fsdino.methods.prototype import AllForeground
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.pipeline.recipe import Recipe, read_recipe
from fsdino.pipeline.run import Run
from fsdino.training.episode_data import CachedMaps, EpisodesWithMaps
from fsdino.training.optim import count_parameters

RUNS = Path("runs/experiments")
RECIPES = {"photos": "recipes/fsdino/photos.yaml"}  # of grids that do not use the tiny recipe


def run_once(grid: str, name: str, overrides: list[str], runs: Path = RUNS) -> Row:
    """Train and measure one run."""
    started = time.perf_counter()
    resumed = (runs / grid / name / "train").is_dir()
    job, trained = trained_run(grid, name, overrides, runs)
    model, seconds, recipe = load(trained, method="fsdino"), time.perf_counter() - started, job.recipe
    measured = measure(job, name, model)
    method = {"equal": EQUAL, "long": LONG}.get(name.split("-")[0], f"FS-DINO {model.config.variant}")
    head = {"run": name, "seed": recipe.seed, "fold": recipe.data.fold, "shots": recipe.data.shots,
            "method": method, "val_miou": best_val_miou(trained)}  # fmt: skip
    tail = {"train_images": len(job.train_set.index.all_images()),
            "precision": job.trainer_options.get("precision", "float32"),
            "seconds": "" if resumed else round(seconds)}  # fmt: skip
    cost = {"time": beside_full(model)} if grid == "ablation" else {}
    return head | measured | sizes(model) | cost | tail


def trained_run(grid: str, name: str, overrides: list[str], runs: Path = RUNS) -> tuple[Run, Path]:
    """A run of a grid and its checkpoint; what was trained before is not trained again."""
    common = ["--config", recipe_of(grid), "--log.wandb=off", "--presence.episodes=0", "--draw.epochs=0"]
    recipe, options = read_recipe([*common, *overrides])
    job = Run(recipe, options, runs / grid / name, shared_maps(recipe, options, runs) if grid == "photos" else None)
    job.teacher = shared_teacher(recipe, options, runs)
    return job, job.train(shared_distillation(recipe, options, job, runs))


@torch.no_grad()
def beside_full(model: FewShotSegmenter) -> float:
    """What an image costs after the encoder, by the cost in the tiny model with all parts, in turn in one process."""
    actions = {}
    whole = FewShotSegmenter.build("tiny", own_prototypes=True, similar_blocks=None)
    for name, one in (("full", whole.eval()), ("this", model.eval())):
        feats = one.encoder(torch.rand(1, 3, one.img_size, one.img_size))
        memory = one.encode_support_feats(feats, torch.rand(1, 1, one.img_size, one.img_size))
        actions[name] = partial(one.decode_query_feats, memory, feats)
    return round(interleaved(actions, 15, 3).ratio(("this",), "full"), 2)


def recipe_of(grid: str) -> str:
    """The file that a grid's runs vary."""
    return RECIPES.get(grid, "recipes/fsdino/tiny.yaml")


def best_val_miou(checkpoint: Path) -> float | str:
    """In percent, of the checkpoint that held-out base classes picked; empty where none are held out."""
    states = torch.load(checkpoint, weights_only=True)["callbacks"]
    picked = next((state["best_model_score"] for name, state in states.items() if "val/miou" in name), None)
    return "" if picked is None else round(100 * float(picked), 3)


def sizes(model: FewShotMethod) -> dict[str, int]:
    """Parameters that learn from episodes, and all."""
    trained = count_parameters(model.trainable_parameters())
    return {"trained": trained, "total": count_parameters(model.parameters())}


# ---- what runs share


def shared_teacher(recipe: Recipe, options: dict[str, Any], runs: Path) -> Any:
    """The teacher; one of the recipe's own is trained once a fold, whatever the variant and seed."""
    folder = runs / "teach" / (f"{recipe.name}-fold{recipe.data.fold}" if recipe.teach.objects else recipe.name)
    return Run(replace(recipe, seed=0), options, folder).teacher


def shared_maps(recipe: Recipe, options: dict[str, Any], runs: Path) -> CachedMaps:
    """Maps of all photographs, once for all folds; a frozen encoder learns nothing from seeing a test image."""
    members = [open_data_set(spec.name, spec.root, **spec.options) for spec in recipe.data.train]
    whole = CombinedIndex(members)
    images = ImageList("photographs", tuple(whole.all_images()), whole.load_image)
    job = Run(recipe, options, runs / "features")
    found = job.maps(job.build(), images)
    assert found is not None  # the recipe caches them
    if len(members) == 1 or recipe.data.fold == 0:  # a fold with one data set left has no prefixes
        return without_prefix(found, members[0].name)
    return found


def without_prefix(maps: CachedMaps, name: str) -> CachedMaps:
    """The same maps under the names that one data set has for its images."""
    ids = tuple(image.removeprefix(f"{name}:") for image in maps.images.ids)
    return replace(maps, images=replace(maps.images, ids=ids))


def shared_distillation(recipe: Recipe, options: dict[str, Any], job: Run, runs: Path) -> Path | None:
    """The distilled checkpoint; runs that differ only in stage 2 share it."""
    if recipe.distill.epochs == 0:
        return None
    model: Any = job.build()
    named = ("encoder", "encoder_kwargs", "img_size", "resize_mode", "adapter_tap", "adapter_heads")
    adapter = {name: getattr(model.config, name) for name in named} | {"hflip": recipe.cache.hflip, "trainer": options}
    if recipe.cache.grid is not None:
        adapter["grid"] = recipe.cache.grid
    adapter["weights"] = model.frozen_maps().fingerprint
    own_objects = recipe.teacher.checkpoint == "own" and recipe.teach.objects
    fold = recipe.data.fold if own_objects or not recipe.data.images else None
    seen = [asdict(spec) for spec in recipe.data.images or recipe.data.train]
    parts = [recipe.name, adapter, asdict(recipe.distill), seen, fold, recipe.seed, job.teacher.fingerprint]
    key = json.dumps(parts, sort_keys=True, default=str)
    folder = runs / "distill" / hashlib.sha256(key.encode()).hexdigest()[:12]
    other = Run(replace(recipe, data=replace(recipe.data, max_train_images=None)), options, folder)
    other.teacher = job.teacher
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # another process may be at it for a run of its own
        return other.distill()


def measure(job: Run, name: str, method: FewShotMethod) -> dict[str, float]:
    """Novel mIoU with its interval, FB-IoU (in percent) and the threshold, on the job's test set.

    FS-DINO reads the frozen encoder's maps; what else is measured sees the images.
    """
    test, data = job.test, None
    if method.name == "fsdino":
        if job.given_maps is not None:
            maps: CachedMaps | None = without_prefix(job.given_maps, test.index.name)
        else:
            ids = tuple(sorted(test.episodes.images))
            maps = job.maps(method, ImageList(f"{test.index.name}-test", ids, test.index.load_image))
        if maps is not None:
            data = EpisodesWithMaps(EpisodeData(test.index, test.episodes, method.resize), maps)
    found = evaluate(
        method,
        test.index,
        test.episodes,
        job.folder / "evaluate" / name,
        fingerprint=identity(method),
        data=data,
        trainer=job.fitter.trainer(f"test {name}", "episodes"),
    )
    interval, score = found.interval, found.score
    shares = {"novel_miou": score.miou, "low": interval.low, "high": interval.high, "novel_fb_iou": score.fb_iou}
    return {key: round(100 * share, 3) for key, share in shares.items()} | {"threshold": method.threshold}


def baselines(grid: str, fold: int, overrides: list[str], runs: Path = RUNS, only: str = "") -> list[Row]:
    """Prototype and chain on the encoder, on the embedded world also on a random one, and all-foreground.

    `only` measures those whose name holds it.
    """
    common = ["--config", recipe_of(grid), "--log.wandb=off", "--teacher.checkpoint=tiny", f"--data.fold={fold}"]
    recipe, options = read_recipe([*common, *overrides])
    job, rows = Run(recipe, options, runs / grid / f"baselines-fold{fold}"), []
    model, held_out = job.build(), job.train_set.val_episodes
    # Where no base class is held out, all of them choose the prototype's block and threshold.
    choosing = base_episodes(recipe.data.test, job.test) if held_out is None else (job.train_set.index, held_out)
    config, encoder = model.config, model.shared_encoder()
    if grid == "photos":  # its images come back in every fold
        encoder = RememberedEncoder(config.encoder, config.img_size, config.encoder_weights, runs / "maps")
    encoders = {"prototype": encoder}
    if grid == "tiny_seeds":  # a random encoder says something where the other one is the project's own
        plain = replace(recipe, model={**recipe.model, "encoder_weights": None}, seed=0)
        encoders["prototype, random encoder"] = Run(plain, options, job.folder).build().shared_encoder()
    head = {"run": f"baselines-fold{fold}", "seed": 0, "fold": fold, "shots": recipe.data.shots}
    for label, one in encoders.items():
        if only not in label:
            continue
        reader = one.reading()
        choice = choose_prototype(reader, model.resize, *choosing, ("fg_bg", "softmax"))
        found = measure(job, folder_name(label), choice.build(reader, model.resize))
        chosen = {"val_miou": round(100 * choice.miou, 3), "choice": f"{choice.kind} block {choice.tap}"}
        rows.append(head | {"method": label} | chosen | found | {"threshold": choice.threshold})
    if only in "chain":
        # As it is without any choice, which is how `fsdino predict` runs it.
        method = ChainMethod(encoder.reading(default_taps(encoder.depth)), resize_mode=model.resize.mode).eval()
        about = {"method": "chain", "choice": method.remark()}
        rows.append(head | about | measure(job, "chain", method) | {"threshold": method.cut})
    if only in ON_SAME and config.attention_taps:
        reader = model.shared_encoder().reading(config.reader_taps, config.attention_taps)
        method = ChainMethod(reader, resize_mode=model.resize.mode).eval()
        method.means.copy_(reader.mean_features(job.centring(model)))
        about = {"method": ON_SAME, "choice": method.remark()}
        rows.append(head | about | measure(job, folder_name(ON_SAME), method) | {"threshold": method.cut})
    if only in "all foreground":
        found = measure(job, "all-foreground", AllForeground(model.img_size))
        rows.append(head | {"method": "all foreground"} | found | {"threshold": ""})
    return rows


def main(
    grid: str,
    only: str = "",
    part: str = "",
    baseline: bool = False,
    results: Path = RESULTS,
    runs: Path = RUNS,
    overrides: list[str] | None = None,
) -> None:
    """Run a grid.

    Args:
        grid: tiny_seeds, distillation_curve, ablation or photos.
        only: runs (or baselines) whose name holds this.
        part: suffix of the CSV, so that two processes share a grid.
        baseline: measure the baselines instead of the runs.
        results: folder of the CSV.
        runs: folder of the runs and of what they share.
        overrides: of the recipe, after those of the run.
    """
    if grid not in GRIDS:
        raise ValueError(f"there is no grid '{grid}'; there are {', '.join(GRIDS)}.")
    path, about = results / f"{grid}{part}.csv", provenance()
    if baseline:
        for fold in range(4) if grid == "photos" else (0,):
            found = baselines(grid, fold, overrides or [], runs, only)
            update_rows(path, [row | about for row in found], ("run", "method"))
        return
    old = read_rows(path)
    done = set(old["run"]) if len(old) else set()
    for name, own in GRIDS[grid]():
        if only in name and name not in done:
            row = run_once(grid, name, [*own, *(overrides or [])], runs)
            update_rows(path, [row | (about | row)], ("run",))
            print(f"{grid}: {name} done", flush=True)


if __name__ == "__main__":
    run_script(main)
