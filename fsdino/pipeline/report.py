"""The end of a run: measure on novel classes beside the baselines, one table, one sheet of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fsdino.base.method import FewShotMethod
from fsdino.base.storage import load
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.evaluation.baseline import choose_prototype
from fsdino.evaluation.measure import Evaluation, evaluate
from fsdino.evaluation.method_choice import identity
from fsdino.evaluation.sheet import contact_sheet
from fsdino.evaluation.tables import write_table
from fsdino.methods.prototype import AllForeground
from fsdino.pipeline.run import Run
from fsdino.training.optim import count_parameters
from fsdino.visualize import write_png


@dataclass(frozen=True)
class Report:
    """What a run came to: its model, each method's evaluation (the model's under its title) and a PNG of strips."""

    model: FewShotMethod
    scores: dict[str, Evaluation]
    sheet: Path
    tested: str = "novel"

    @property
    def headline(self) -> dict[str, float | str]:
        """The model's scores, in percent."""
        own = self.scores[self.model.title].score
        return {f"{self.tested} {name}": round(100 * x, 2) for name, x in (("mIoU", own.miou), ("FB-IoU", own.fb_iou))}

    def table(self, seconds: dict[str, float], total: float) -> str:
        """Parameters, scores and times as text."""
        parts, trained = self.model.part_sizes(), count_parameters(self.model.trainable_parameters())
        lines = ["", "parameters  " + "   ".join(f"{name} {count:,}" for name, count in parts.items())]
        lines.append(f"            total {sum(parts.values()):,}   trained in episodes {trained:,}")
        lines.append(f"\n{f'{self.tested} classes':<28}{'mIoU':>7}{'95 % interval':>18}{'FB-IoU':>9}")
        for name, result in self.scores.items():
            low, high = 100 * result.interval.low, 100 * result.interval.high
            interval = f"{low:.1f} to {high:.1f}"
            lines.append(f"{name:<28}{100 * result.score.miou:>7.2f}{interval:>18}{100 * result.score.fb_iou:>9.2f}")
        times = "   ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        return "\n".join([*lines, f"\ntime        {times}   whole run {total:.0f} s"])


def measure(run: Run, checkpoint: Path) -> Report:
    """Measure a run's model, and the baselines where the recipe wants them; all files go into the run's folder."""
    model, part, folder = load(checkpoint), run.recipe.evaluate, run.folder / "evaluate"
    methods: dict[str, FewShotMethod] = {}
    if part.baselines:
        methods["all foreground"] = AllForeground(model.img_size)
        if model.shared_encoder() is not None and run.train_set.val_episodes is not None:
            methods["prototype baseline"] = prototype_baseline(model, run.train_set.index, run.train_set.val_episodes)
    methods[model.title] = model
    scores = {}
    for name, method in methods.items():
        trainer = run.fitter.trainer(stage := f"test {name}", "episodes")
        with run.fitter.hearing(stage, trainer):
            scores[name] = evaluate(
                method,
                run.test.index,
                run.test.episodes,
                folder / name.replace(" ", "-"),
                scoring=part.scoring,
                fingerprint=identity(method),
                num_workers=run.recipe.num_workers,
                trainer=trainer,
            )
    write_table(pd.DataFrame([_result(name, result) for name, result in scores.items()]), folder / "results", "csv")
    sheet = contact_sheet(model, run.test.index, run.test.episodes, scores[model.title].rows, part.strips)
    tested = "in-domain" if run.recipe.data.in_domain else "novel"
    return Report(model, scores, write_png(folder / "strips.png", sheet), tested)


def prototype_baseline(model: FewShotMethod, index: ClassIndex, episodes: EpisodeList) -> FewShotMethod:
    """The prototype method on a model's own encoder, with layer and threshold chosen on base classes."""
    encoder = model.shared_encoder().reading()
    choice = choose_prototype(encoder, model.resize, index, episodes)
    print(
        f"prototype baseline: block {choice.tap}, threshold {choice.threshold:.2f} "
        f"(chosen on base classes, {choice.miou:.3f})"
    )
    return choice.build(encoder, model.resize)


def _result(name: str, result: Evaluation) -> dict[str, str | int]:
    numbers = {"miou": result.score.miou, "low": result.interval.low, "high": result.interval.high}
    numbers["fb_iou"] = result.score.fb_iou
    percent = {key: f"{100 * value:.3f}" for key, value in numbers.items()}
    return {"method": name, **percent, "episodes": result.score.num_episodes}
