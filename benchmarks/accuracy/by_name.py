"""What a model by the name of its encoder reaches untouched: `python -m benchmarks.accuracy.by_name`.

The chain as `fsdino predict --model ENCODER` runs it, with no block and no cut chosen on any data, on the photographs'
fixed lists; once as it is, once with features centred by the mean of the photographs themselves, as a run on a folder
could take it. What the difference is worth decides whether the package has to carry means at all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.accuracy.chain import ROOT, WEIGHTS, RememberedEncoder, ends, samples
from benchmarks.common import RESULTS, provenance, run_script, write_rows
from fsdino.base.foundation import timm_name
from fsdino.evaluation.episode_choice import EpisodeChoice
from fsdino.evaluation.measure import Evaluation, evaluate
from fsdino.evaluation.method_choice import identity
from fsdino.methods.chain import ChainMethod, default_taps

MEAN_IMAGES = 64
FORMS = ("as it is", "centred")


def main(
    encoder: str = "vit_tiny_patch16_224",
    weights: Path = WEIGHTS,
    root: Path = ROOT,
    folds: str = "all",
    episodes: int | None = None,
    csv: Path = RESULTS / "by_name.csv",
    runs: Path = Path("runs/by_name"),
) -> None:
    """Measure both forms and write the CSV.

    Args:
        encoder: timm's name.
        weights: of the encoder.
        root: folder of coco386.
        folds: all, or numbers with commas.
        episodes: of each fold, drawn in place of the fixed lists, to try the script.
        csv: where to write.
        runs: folder for the counts, from which an interrupted run goes on.
    """
    name, side = timm_name(encoder)
    reader = RememberedEncoder(name, side, str(weights), runs / "maps")
    taps = default_taps(reader.depth)
    fixed = str(root / "episodes" / "fold{fold}_{shots}shot.json") if episodes is None else None
    test = EpisodeChoice("coco386", str(root), folds, list=fixed, episodes=episodes, skip_rare=True)
    index, found = test.open(), {form: list[tuple[int, Evaluation]]() for form in FORMS}
    for form, measured in found.items():
        method = ChainMethod(reader.reading(taps)).eval()
        if form == "centred":
            images = index.all_images()
            method.fit_means(index.load_image(image) for image in images[:: -(-len(images) // MEAN_IMAGES)])
        for some in test.lists(index):
            folder = runs / f"{form}-fold{some.fold}-{identity(method)}"
            measured.append((some.fold, evaluate(method, index, some, folder, fingerprint=identity(method))))
            print(f"{form}, fold {some.fold}: {100 * measured[-1][1].score.miou:.2f}", flush=True)
    about = provenance(protocol="1000 bootstrap samples of the query images, both forms drawn alike")
    head = {"encoder": encoder, "img_size": side, "blocks": "+".join(map(str, taps))}
    rows = []
    for fold in (*(fold for fold, _ in found[FORMS[0]]), "mean"):
        plain, centred = (samples([pair for pair in found[form] if fold in (pair[0], "mean")]) for form in FORMS)
        drawn: dict[str, np.ndarray] = {**dict(zip(FORMS, (plain, centred))), "centred − as it is": centred - plain}
        rows += [{**head, "fold": fold, "form": form, **ends(values), **about} for form, values in drawn.items()]
    write_rows(csv, rows)
    for row in rows:
        print("  ".join(str(row[key]) for key in ("fold", "form", "value", "low", "high")))


if __name__ == "__main__":
    run_script(main)
