"""A recipe: one flat YAML file that says what a whole run does; every stage command reads the same file.

Only what differs from the defaults stands in a recipe. `--key value` on the command line overrides the file, and
`--trainer.*` takes every flag of Lightning's Trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fsdino.base.bundled import bundled_file
from fsdino.models.config import SegmenterConfig, preset

LossName = Literal["mse", "cosine_smooth_l1"]
OptimizerName = Literal["adamw", "muon"]


@dataclass
class DataSpec:
    """A data set.

    Args:
        name: one of `fsdino.data.catalog.data_sets`, or "images" for a folder of images without masks.
        root: its folder on disk.
        options: further arguments of its reader.
        leave_out: fold -> names of classes that must not be seen in it ("*" = the whole set), for a second data set
            that has the first one's novel classes under other names.
        share: part of the training episodes drawn from this set, relative to the others' shares; None in all sets
            draws every class equally often, so that a set with many classes outweighs one with few.
    """

    name: str = "synthetic"
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    leave_out: dict[int, list[str]] = field(default_factory=dict)
    share: float | None = None


@dataclass
class DataPart:
    """What is learnt from and what is tested on.

    Args:
        train: annotated data sets; their base classes are trained on.
        images: images of distillation, used without masks; empty = the annotated ones.
        test: data set of the test episodes.
        fold: fold whose classes are novel.
        shots: references per episode.
        filter: training images: "none" (all, novel pixels ignored), "hsnet" or "pfenet".
        in_domain: also train on the tested classes, from images that no test episode shows (a generalist's test, not
            a few-shot one).
        val_by: what is held out to pick checkpoint and cut: base "classes", or "images" of all classes, for data
            with too few classes to spare one.
        val_share: part of them, in [0, 1).
        val_episodes: episodes of those.
        test_episodes: length of the test list, where it is drawn.
        test_list: a fixed test list (JSON); `{fold}` and `{shots}` are filled in.
        max_train_images: keep only so many annotated images (drawn by the seed); None = all.
    """

    train: list[DataSpec] = field(default_factory=lambda: [DataSpec()])
    images: list[DataSpec] = field(default_factory=list)
    test: DataSpec = field(default_factory=DataSpec)
    fold: int = 0
    shots: int = 1
    filter: Literal["none", "hsnet", "pfenet"] = "none"
    in_domain: bool = False
    val_by: Literal["classes", "images"] = "classes"
    val_share: float = 0.2
    val_episodes: int = 120
    test_episodes: int = 600
    test_list: str | None = None
    max_train_images: int | None = None


@dataclass
class MethodPart:
    """Which system learns; another one than FS-DINO leaves out stages 0 and 1, and `preset` and `model`.

    Args:
        name: "fsdino", "sansa" or "fssam".
        args: arguments of the other system's `build`; `bundled:NAME` names a file of `fsdino/assets`.
        loss: "bce_dice", "focal_dice" or "dice".
        schedule: "cosine" to zero or "poly".
        warmup: share of the steps spent warming up.
        horizon: length of the schedule over that of the run.
        num_targets: targets in turn of an episode, each prediction a reference for the next; SANSA alone.
        iou_weight: weight of the predicted IoU's squared error.
        tune_threshold: whether held-out base classes move the cut from 0.5.
    """

    name: Literal["fsdino", "sansa", "fssam"] = "fsdino"
    args: dict[str, Any] = field(default_factory=dict)
    loss: Literal["bce_dice", "focal_dice", "dice"] = "bce_dice"
    schedule: Literal["cosine", "poly"] = "cosine"
    warmup: float = 0.0
    horizon: float = 1.0
    num_targets: int = 1
    iou_weight: float = 0.0
    tune_threshold: bool = True


@dataclass
class TeacherPart:
    """The SAM that is distilled.

    Args:
        checkpoint: "tiny" (bundled), "own" (trained first, see `TeachPart`), vit_b, vit_l, vit_h, or a .pth or
            .safetensors file or URL in SAM's format.
        sha256: the file's digest.
    """

    checkpoint: str = "tiny"
    sha256: str | None = None


@dataclass
class TeachPart:
    """Stage 0, for `teacher.checkpoint: own`: a promptable SAM from the masks of the training data.

    Args:
        sam: fields of `fsdino.teachers.architecture.SamConfig`.
        vit: weights of a plain ViT under timm's names that its image encoder starts from; None = from nothing.
        prompting: SAM whose prompt encoder and mask decoder it starts from: "tiny" (bundled), a file, or None.
        regions: folders of class-agnostic region maps.
        objects: also learn from the masks of base classes; False makes one teacher that fits every fold.
        region_epochs: epochs on the regions alone before the others; they depend on no fold, and runs share them.
        epochs: epochs on everything.
        epoch_length: images an epoch.
        batch_size: images a step and device.
        max_objects: masks of an image.
        lr: peak learning rate.
        optimizer: "adamw" or "muon".
    """

    sam: dict[str, Any] = field(default_factory=dict)
    vit: str | None = None
    prompting: str | None = None
    regions: list[str] = field(default_factory=list)
    objects: bool = True
    region_epochs: int = 0
    epochs: int = 4
    epoch_length: int = 400
    batch_size: int = 4
    max_objects: int = 6
    lr: float = 1e-3
    optimizer: OptimizerName = "muon"


@dataclass
class CachePart:
    """Caches of frozen networks.

    Args:
        dir: where caches lie; runs with equal recipes share them.
        teacher: write the teacher's embeddings once; False asks the teacher in every step.
        features: write the frozen encoder's maps of the annotated images once, for episode training.
        hflip: also the mirrored images.
        batch_size: images a step and device.
        shard_size: images in a file.
    """

    dir: str = "runs/cache"
    teacher: bool = True
    features: bool = True
    hflip: bool = True
    batch_size: int = 16
    shard_size: int = 256


@dataclass
class DistillPart:
    """Stage 1: the adapter learns SAM's embedding, coarse to fine.

    Args:
        epochs: epochs in all; 0 leaves the stage out.
        sizes: image sides in pixels, in the order of the run.
        shares: part of the epochs of each size; None = equal.
        epoch_length: images an epoch; None = all.
        val_count: images held out to watch the error.
        batch_size: images a step and device.
        loss: "mse" (the paper's) or "cosine_smooth_l1".
        mask_weight: weight of the extra loss on the teacher's masks under random clicks.
        lr: peak learning rate.
        weight_decay: decay of matrices and kernels.
        optimizer: "adamw" or "muon".
    """

    epochs: int = 6
    sizes: list[int] = field(default_factory=lambda: [126, 252, 518])
    shares: list[float] | None = None
    epoch_length: int | None = None
    val_count: int = 64
    batch_size: int = 32
    loss: LossName = "mse"
    mask_weight: float = 0.0
    lr: float = 1e-3
    weight_decay: float = 0.05
    optimizer: OptimizerName = "adamw"


@dataclass
class TrainPart:
    """Stage 2: episodes of base classes.

    Args:
        epochs: epochs.
        epoch_length: episodes an epoch.
        batch_size: episodes a step and device.
        lr: peak learning rate.
        weight_decay: decay of matrices and kernels.
        optimizer: "adamw" or "muon".
        dice_weight: weight of Dice beside BCE.
        absent_prob: share of episodes whose query lacks the class.
        augment: random crops and colours; only without cached features.
        sam_decoder: start the decoder from the teacher's; False starts it anew.
        init_from: a trained segmenter to adapt: what `fsdino.load` opens; its configuration holds, and neither teacher
            nor distillation is asked for. None trains a new one.
    """

    epochs: int = 10
    epoch_length: int = 1000
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.05
    optimizer: OptimizerName = "adamw"
    dice_weight: float = 1.0
    absent_prob: float = 0.0
    augment: bool = False
    sam_decoder: bool = True
    init_from: str | None = None


@dataclass
class PresencePart:
    """Stage 3: the presence head learns from queries that lack the class, all else frozen, and is calibrated.

    Args:
        episodes: to train on, half of them without the object; half as many calibrate. 0 leaves the stage out.
    """

    episodes: int = 1600


@dataclass
class EvaluatePart:
    """Measuring on novel classes.

    Args:
        scoring: "original" (the image's own size) or "network" (the network's).
        baselines: also measure the prototype baseline and all-foreground.
        strips: episodes drawn on the contact sheet.
    """

    scoring: Literal["original", "network"] = "original"
    baselines: bool = True
    strips: int = 12


@dataclass
class LogPart:
    """Where runs are followed.

    Args:
        wandb: "auto" (online with a key and a network, else offline), "offline" or "off".
        project: W&B project.
    """

    wandb: Literal["auto", "offline", "off"] = "auto"
    project: str = "fsdino"


@dataclass
class Recipe:
    """Everything that a run needs.

    Args:
        name: names the run's folder; where it is empty the file's name, after its folder's where that is the system's.
        preset: the model's starting point, one of `fsdino.models.config.PRESETS`.
        model: fields of `SegmenterConfig` that differ from the preset.
        method: another system in its place.
        data: what is learnt from and tested on.
        teacher: what is distilled.
        teach: stage 0, where the teacher is the run's own.
        cache: caches of frozen networks.
        distill: stage 1.
        train: stage 2.
        presence: stage 3.
        evaluate: the measurement.
        log: W&B.
        num_workers: loader processes.
        seed: of weights, orders and draws.
    """

    name: str = ""
    preset: str = "tiny"
    model: dict[str, Any] = field(default_factory=dict)
    method: MethodPart = field(default_factory=MethodPart)
    data: DataPart = field(default_factory=DataPart)
    teacher: TeacherPart = field(default_factory=TeacherPart)
    teach: TeachPart = field(default_factory=TeachPart)
    cache: CachePart = field(default_factory=CachePart)
    distill: DistillPart = field(default_factory=DistillPart)
    train: TrainPart = field(default_factory=TrainPart)
    presence: PresencePart = field(default_factory=PresencePart)
    evaluate: EvaluatePart = field(default_factory=EvaluatePart)
    log: LogPart = field(default_factory=LogPart)
    num_workers: int = 0
    seed: int = 0

    def segmenter(self) -> SegmenterConfig:
        """The model's configuration; `encoder_weights: bundled:NAME` names a file of `fsdino/assets`."""
        config = preset(self.preset, **self.model)
        if (config.encoder_weights or "").startswith("bundled:"):
            config.encoder_weights = str(bundled_file(str(config.encoder_weights)[len("bundled:") :]))
        return config

    def method_args(self) -> dict[str, Any]:
        """Arguments for `build_method`, with the files of bundled weights in place of their names."""
        args = dict(self.method.args)
        for key, value in args.items():
            if isinstance(value, str) and value.startswith("bundled:"):
                args[key] = str(bundled_file(value[len("bundled:") :]))
        return args


def recipe_parser() -> Any:
    """The parser of recipe files and their overrides: `--config FILE`, the recipe's keys, `--trainer.*`."""
    from lightning import Trainer
    from lightning.pytorch.cli import LightningArgumentParser

    about = {"prog": "fsdino", "description": "Run a recipe or one of its stages."}
    parser = LightningArgumentParser(**about, exit_on_error=False)  # type: ignore[arg-type]
    parser.add_argument("--config", action="config", help="recipe file (YAML); may be given several times")
    parser.add_class_arguments(Recipe, instantiate=False)
    parser.add_lightning_class_args(Trainer, "trainer")
    return parser


def read_recipe(arguments: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """Read a recipe with overrides.

    Args:
        arguments: command line, for instance ["--config", "recipes/fsdino/tiny.yaml", "--seed", "1"].

    Returns:
        The recipe and the keyword arguments for Lightning's Trainer that were asked for.
    """
    parser = recipe_parser()
    chosen = parser.parse_args(list(arguments))
    given = parser.parse_args(list(arguments), defaults=False).get("trainer")
    explicit = {} if given is None else {key: chosen.trainer.as_dict()[key] for key in given.as_dict()}
    values = parser.instantiate_classes(chosen)
    names = Recipe.__dataclass_fields__
    recipe = Recipe(**{key: values[key] for key in names})
    if not recipe.name:
        file = Path(str((chosen.get("config") or ["run"])[-1]))
        system = recipe.method.name
        recipe.name = f"{system}-{file.stem}" if file.parent.name == system else file.stem
    return recipe, explicit
