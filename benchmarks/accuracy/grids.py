"""Grids of runs behind the tables, as data: which runs a grid has, and which of them are compared."""

from __future__ import annotations

from collections.abc import Iterator

Run = tuple[str, list[str]]  # a name and the overrides of the recipe
SHORT = ["--train.epochs=4", "--train.epoch_length=640"]
UNDISTILLED = ["--distill.epochs=0", "--model.freeze_adapter=false"]  # a new adapter learns with the episodes
# What the paper leaves open, each beside the default. The recorded grid also has a "pivot-reader", which showed no
# difference and was taken out of the package.
OPTIONS: dict[str, list[str]] = {
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
    "no-own-prototypes": ["--model.own_prototypes=false"],
    "no-skip": ["--model.skip=false"],
    "no-sparse": ["--model.sparse=false"],
    "support-stride-2": ["--model.support_stride=2"],
    "similar-blocks-1": ["--model.similar_blocks=1"],
    "no-guess-loss": ["--train.guess_weight=0"],
    "cosine-distillation": ["--distill.loss=cosine_smooth_l1"],
    "mask-distillation": ["--distill.mask_weight=0.2"],
    "dice-3": ["--train.dice_weight=3"],
}
# The paper's ablation, one part after the other.
STEPS: dict[str, list[str]] = {
    "compact-undistilled": ["--model.variant=compact", *UNDISTILLED],
    "compact-no-sparse": ["--model.variant=compact", "--model.sparse=false"],
    "compact": ["--model.variant=compact"],
    "compact-frozen": ["--model.variant=compact_frozen"],
    "full": ["--model.variant=full"],
}
_METHODS = (
    ("reader", "FS-DINO full", "FS-DINO compact"),
    ("training", "FS-DINO full", "prototype"),
    ("training", "FS-DINO compact", "prototype"),
    ("training", "FS-DINO full", "chain"),
    ("training", "FS-DINO compact", "chain"),
    ("chain", "chain", "prototype"),
)
# Grid -> (what is added, the run with it, the run without it).
COMPARISONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "ablation": (
        ("distillation", "compact", "compact-undistilled"),
        ("sparse prompt", "compact", "compact-no-sparse"),
        ("trained decoder", "compact", "compact-frozen"),
        ("4D correlation", "full", "compact"),
    ),
    "photos": _METHODS,
    "tiny_seeds": _METHODS,
}


def tiny_seeds() -> Iterator[Run]:
    """The main table: compact and full, three seeds."""
    for seed in range(3):
        for variant in ("compact", "full"):
            yield f"{variant}-seed{seed}", [f"--model.variant={variant}", f"--seed={seed}"]


def distillation_curve() -> Iterator[Run]:
    """Distilled against undistilled, five seeds, over the number of annotated base images.

    Undistilled runs learn for a quarter more episodes: what distillation costs. Both start from the teacher's decoder.
    """
    for seed in range(5):
        for count in (10, 30, 100, 300, None):
            some = [] if count is None else [f"--data.max_train_images={count}"]
            short = [*SHORT, f"--seed={seed}", "--model.variant=full", *some, "--trainer.check_val_every_n_epoch=2"]
            yield f"distilled-{count or 'all'}-seed{seed}", short
            yield f"undistilled-{count or 'all'}-seed{seed}", [*short, "--train.epoch_length=800", *UNDISTILLED]


def choices() -> Iterator[Run]:
    """What the paper leaves open; decided by held-out base classes, three seeds."""
    for seed in range(3):
        for name, overrides in OPTIONS.items():
            yield f"{name}-seed{seed}", [*SHORT, f"--seed={seed}", "--model.variant=full", *overrides]


def ablation() -> Iterator[Run]:
    """The paper's ablation on the embedded world, three seeds."""
    for seed in range(3):
        for name, overrides in STEPS.items():
            yield f"{name}-seed{seed}", [*SHORT, f"--seed={seed}", *overrides]


def photos() -> Iterator[Run]:
    """Real photographs: four folds, two seeds of the full model, one of the compact one."""
    for variant, seed in (("full", 0), ("full", 1), ("compact", 0)):
        for fold in range(4):
            overrides = [f"--model.variant={variant}", f"--seed={seed}", f"--data.fold={fold}"]
            yield f"{variant}-fold{fold}-seed{seed}", overrides


GRIDS = {f.__name__: f for f in (tiny_seeds, distillation_curve, choices, ablation, photos)}
