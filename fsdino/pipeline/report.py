"""The end of a run: measure on novel classes beside the baselines, one table, one sheet of images."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsdino.base.method import FewShotMethod
from fsdino.base.storage import load
from fsdino.evaluation.baseline import choose_prototype
from fsdino.evaluation.measure import Evaluation, evaluate
from fsdino.evaluation.method_choice import identity
from fsdino.evaluation.sheet import contact_sheet
from fsdino.methods.prototype import AllForeground
from fsdino.models.encoder import FeatureEncoder
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.training.optim import count_parameters
from fsdino.visualize import write_png

TITLES = {"fsdino": "FS-DINO", "sansa": "SANSA", "fssam": "FSSAM"}  # a recipe's method -> how tables call it


@dataclass(frozen=True)
class Report:
    """What a run came to.

    Attributes:
        model: the best checkpoint.
        scores: method -> its evaluation.
        sheet: PNG of episode strips.
        title: under which name of `scores` the model stands.
        tested: what the tested classes are: "novel", or "in-domain" where they were trained on.
    """

    model: FewShotMethod
    scores: dict[str, Evaluation]
    sheet: Path
    title: str = TITLES["fsdino"]
    tested: str = "novel"

    @property
    def headline(self) -> dict[str, float | str]:
        """The model's scores, in percent."""
        own = self.scores[self.title]
        return {f"{self.tested} {name}": round(100 * value, 2)
                for name, value in (("mIoU", own.score.miou), ("FB-IoU", own.score.fb_iou))}  # fmt: skip

    def table(self, seconds: dict[str, float], total: float) -> str:
        """Parameters, scores and times as text."""
        parts = part_parameters(self.model)
        trained = count_parameters(self.model.trainable_parameters())  # type: ignore[operator]
        lines = ["", "parameters  " + "   ".join(f"{name} {count:,}" for name, count in parts.items())]
        lines.append(f"            total {sum(parts.values()):,}   trained in episodes {trained:,}")
        lines.append(f"\n{f'{self.tested} classes':<28}{'mIoU':>7}{'95 % interval':>18}{'FB-IoU':>9}")
        for name, result in self.scores.items():
            low, high = 100 * result.interval.low, 100 * result.interval.high
            interval = f"{low:.1f} to {high:.1f}"
            lines.append(f"{name:<28}{100 * result.score.miou:>7.2f}{interval:>18}{100 * result.score.fb_iou:>9.2f}")
        times = "   ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        return "\n".join([*lines, f"\ntime        {times}   whole run {total:.0f} s"])


def part_parameters(model: FewShotMethod) -> dict[str, int]:
    """Parameters of each part of the figure; of another system its named parts."""
    if not isinstance(model, FewShotSegmenter):
        return {name: count for name, part in model.named_children() if (count := count_parameters(part.parameters()))}
    prompted = {} if model.sam is None else {"SAM's prompted half": count_parameters(model.sam.parameters())}
    return {
        "encoder": count_parameters(model.encoder.parameters()),
        "adapter": count_parameters(model.adapter.parameters()),
        "prompts + reader": count_parameters(model.prompts.parameters())
        + count_parameters(model.prompt_encoder.parameters()) + count_parameters(model.presence.parameters()),
        "decoder": count_parameters(model.decoder.parameters()),
        **prompted,
    }  # fmt: skip


def measure(job: Any, checkpoint: Path) -> Report:
    """Measure a run's model, and the baselines where the recipe wants them.

    Args:
        job: the run, see `fsdino.pipeline.run.Job`.
        checkpoint: of stage 2.

    Returns:
        The report; rows and `results.csv` are in the run's folder.
    """
    model, part, folder = load(checkpoint), job.recipe.evaluate, job.folder / "evaluate"
    methods: dict[str, FewShotMethod] = {}
    if part.baselines:
        methods["all foreground"] = AllForeground(model.img_size)
        if isinstance(model, FewShotSegmenter) and job.train_set.val_episodes is not None:
            methods["prototype baseline"] = prototype_baseline(job, model)
    title = TITLES[job.recipe.method.name]
    methods[title] = model
    scores = {}
    for name, method in methods.items():
        scores[name] = evaluate(
            method,
            job.test.index,
            job.test.episodes,
            folder / name.replace(" ", "-"),
            scoring=part.scoring,
            fingerprint=identity(method),
            num_workers=job.recipe.num_workers,
            trainer=job.trainer(f"test {name}", "episodes"),
        )
    _write_results(folder / "results.csv", scores)
    tested = "in-domain" if job.recipe.data.in_domain else "novel"
    return Report(model, scores, draw_sheet(job, model, scores[title], folder / "strips.png"), title, tested)


def prototype_baseline(job: Any, model: FewShotSegmenter) -> FewShotMethod:
    """The prototype method on the run's encoder, with layer and cut chosen on held-out base classes."""
    config = model.config
    encoder = FeatureEncoder(
        config.encoder, config.img_size, range(model.encoder.depth), config.encoder_kwargs, None, config.encoder_stride
    )
    encoder.load_state_dict(model.encoder.state_dict())
    choice = choose_prototype(encoder, model.resize, job.train_set.index, job.train_set.val_episodes)
    print(f"prototype baseline: block {choice.tap}, cut {choice.cut:.2f} (chosen on base classes, {choice.miou:.3f})")
    return choice.build(encoder, model.resize)


def _write_results(path: Path, scores: dict[str, Evaluation]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "miou", "low", "high", "fb_iou", "episodes"])
        for name, result in scores.items():
            numbers = (result.score.miou, result.interval.low, result.interval.high, result.score.fb_iou)
            writer.writerow([name, *(f"{100 * n:.3f}" for n in numbers), result.score.num_episodes])


def draw_sheet(job: Any, model: FewShotMethod, result: Evaluation, path: Path) -> Path:
    """Strips of the best, the middle and the worst episodes."""
    test, count = job.test, job.recipe.evaluate.strips
    return write_png(path, contact_sheet(model, test.index, test.episodes, result.rows, count))
