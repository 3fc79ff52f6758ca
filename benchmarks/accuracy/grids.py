"""Grids of runs behind the tables, as data: which runs a grid has, and which of them are compared."""

from __future__ import annotations

from collections.abc import Iterator

Run = tuple[str, list[str]]  # a name and the overrides of the recipe
_WORLD = "{name: synthetic, options: {%s}}"
_BASE, _PRETRAIN = _WORLD % "images_per_class: 20", _WORLD % "split: pretrain, images_per_class: %d"
_TWO_VIEWS = ["--cache.hflip=true", "--distill.epochs=9"]  # as the recipe was when these rows were made
# What SANSA and FSSAM learn from; for as many episodes as the recipe, and as they.
LONG_TERMS = [f"--data.train=[{_BASE}]", *_TWO_VIEWS]
EQUAL_TERMS = [*LONG_TERMS, "--train.epoch_length=960"]
# Parts are judged in short runs on base classes, all there at first: also those that the tiny preset leaves out since.
SHORT = [
    "--train.epochs=4", "--train.epoch_length=640", f"--data.train=[{_BASE}]",
    f"--data.images=[{_BASE}, {_PRETRAIN % 2}]", "--model.own_prototypes=true", "--model.similar_blocks=null",
    *_TWO_VIEWS,
]  # fmt: skip
UNDISTILLED = ["--distill.epochs=0", "--model.freeze_adapter=false"]  # a new adapter learns with the episodes
# Parts of the method (and of its training), each by what leaves it out.
PARTS: dict[str, list[str]] = {
    "correlation": ["--model.variant=compact"],
    "distillation": UNDISTILLED,
    "own-prototypes": ["--model.own_prototypes=false"],
    "channel-match": ["--model.channel_match=false"],
    "sparse": ["--model.sparse=false"],
    "skip": ["--model.skip=false"],
    "mirrored": ["--cache.hflip=false"],
}
ALONE = ("correlation", "distillation", "own-prototypes", "channel-match", "sparse")  # also alone, on nothing else
# What was tried beside the defaults, and what would be cheaper.
CHANGES: dict[str, list[str]] = {
    "adapter-learns": ["--model.freeze_adapter=false"],
    "reader-dim-64": ["--model.reader_dim=64"],
    "cosine-distillation": ["--distill.loss=cosine_smooth_l1"],
    "mask-distillation": ["--distill.mask_weight=0.2"],
    "dice-3": ["--train.dice_weight=3"],
    "twice-the-images": [f"--data.train=[{_WORLD % 'images_per_class: 40'}]"],
    "three-times-the-classes": [f"--data.train=[{_BASE}, {_PRETRAIN % 10}]"],
    "taps-5": ["--model.reader_taps=[5]"],
    "support-stride-2": ["--model.support_stride=2"],
    "similar-blocks-1": ["--model.similar_blocks=1"],
}


def _levers() -> Iterator[tuple[str, str, list[str]]]:
    """Variant, the variant that it is compared with (itself: it is the base), and its overrides."""
    yield "full", "full", []
    for part, without in PARTS.items():
        yield f"without-{part}", "full", without
    # Neither trains decoder nor adapter, as the paper's lightest form.
    yield "without-correlation-frozen", "without-correlation", ["--model.variant=compact_frozen"]
    for name, overrides in CHANGES.items():
        yield name, "full", overrides
    for kept in ("", *ALONE):
        bare = [option for part in ALONE if part != kept for option in PARTS[part]]
        yield f"only-{kept}" if kept else "bare", "bare", bare


BASES = {variant: base for variant, base, _ in _levers()}  # of the ablation
ON_SAME = "chain, same maps"  # centred by the same training images; where attention outputs are compared
EQUAL = "FS-DINO full, base classes"  # as long as SANSA and FSSAM, on what they learn from
LONG = "FS-DINO full, base classes, twice the episodes"  # as long as the recipe
_METHODS = (
    ("reader", "FS-DINO full", "FS-DINO compact"),
    ("training", "FS-DINO full", "prototype"),
    ("training", "FS-DINO compact", "prototype"),
    ("training", "FS-DINO full", "chain"),
    ("training", "FS-DINO compact", "chain"),
    ("training", "FS-DINO full", ON_SAME),
    ("maps", ON_SAME, "chain"),
    ("chain", "chain", "prototype"),
)
# Grid -> (what is added, the run with it, the run without it).
COMPARISONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "ablation": tuple((variant, variant, base) for variant, base in BASES.items() if variant != base),
    "photos": _METHODS,
    "tiny_seeds": (
        *_METHODS,
        ("classes, episodes", "FS-DINO full", EQUAL),
        ("classes", "FS-DINO full", LONG),
        ("episodes", LONG, EQUAL),
    ),
}


def tiny_seeds() -> Iterator[Run]:
    """The main table: compact and full, and full on base classes alone, for fewer or as many episodes; three seeds."""
    for seed in range(3):
        for variant in ("compact", "full"):
            yield f"{variant}-seed{seed}", [f"--model.variant={variant}", f"--seed={seed}"]
        yield f"equal-seed{seed}", [f"--seed={seed}", *EQUAL_TERMS]
        yield f"long-seed{seed}", [f"--seed={seed}", *LONG_TERMS]


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


def ablation() -> Iterator[Run]:
    """Every part left out of the whole and alone, and what else was tried, on the embedded world; three seeds."""
    for seed in range(3):
        for name, _, overrides in _levers():
            yield f"{name}-seed{seed}", [*SHORT, f"--seed={seed}", *overrides]


def photos() -> Iterator[Run]:
    """Real photographs: four folds, two seeds of the full model, one of the compact one."""
    for variant, seed in (("full", 0), ("full", 1), ("compact", 0)):
        for fold in range(4):
            overrides = [f"--model.variant={variant}", f"--seed={seed}", f"--data.fold={fold}"]
            yield f"{variant}-fold{fold}-seed{seed}", overrides


GRIDS = {f.__name__: f for f in (tiny_seeds, distillation_curve, ablation, photos)}
