"""A recipe: one flat YAML file that says what a whole run does, put together from the parts of what takes them.

Only what differs from the defaults stands in a recipe. `--key value` on the command line overrides the file, and
`--trainer.*` takes every flag of Lightning's Trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from fsdino.base.bundled import bundled_file, bundled_recipes
from fsdino.base.ranges import Ahead, Seed, Workers, check_fields
from fsdino.base.texts import plain_yaml
from fsdino.data.part import DataPart
from fsdino.evaluation.measure import EvaluatePart
from fsdino.models.config import preset
from fsdino.training.cache_writer import CachePart
from fsdino.training.compute import ComputePart
from fsdino.training.distill import DistillPart
from fsdino.training.drawing import DrawPart
from fsdino.training.episodes import TrainPart
from fsdino.training.loggers import LogPart
from fsdino.training.presence import PresencePart
from fsdino.training.teacher import TeacherPart, TeachPart

STAGES = ("cache", "distill", "train", "evaluate", "export")


@dataclass
class MethodPart:
    """Which system learns; another one than FS-DINO leaves out stages 0, 1, 3 and 4, and `preset` and `model`.

    Args:
        name: a method of `fsdino.base.registry.METHODS` that learns: "fsdino", "sansa", "fssam".
        args: arguments of the other system's `build`; `bundled:NAME` names a file of `fsdino/assets`.
    """

    name: str = "fsdino"
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Recipe:
    """Everything that a run needs.

    Args:
        name: names the run's folder; where it is empty the file's name, after its folder's where that is the system's.
        preset: the model's starting point, one of `fsdino.models.config.PRESETS`.
        model: fields of `SegmenterConfig` that differ from the preset.
        method: which system learns; another one than FS-DINO stands in place of `preset` and `model`.
        data: what is learnt from and tested on.
        teacher: what is distilled.
        teach: stage 0, where the teacher is the run's own.
        cache: caches of frozen networks.
        distill: stage 1.
        train: stage 2.
        presence: stage 3.
        draw: stage 4.
        evaluate: the measurement.
        compute: how training is computed; a run goes on whatever is set here.
        log: W&B.
        num_workers: loader processes, per device.
        prefetch: batches that each of them makes ahead.
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
    draw: DrawPart = field(default_factory=DrawPart)
    evaluate: EvaluatePart = field(default_factory=EvaluatePart)
    compute: ComputePart = field(default_factory=ComputePart)
    log: LogPart = field(default_factory=LogPart)
    num_workers: Workers = 0
    prefetch: Ahead = 2
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.cache.teacher and self.cache.grid is not None and self.distill.mask_weight > 0:
            raise ValueError(
                f"cache.grid {self.cache.grid}: the mask loss needs the teacher's own grid; leave it out, or set "
                "distill.mask_weight to 0."
            )

    @property
    def distills(self) -> bool:
        """Whether there is a stage 1: FS-DINO from new weights, not from a trained model."""
        return self.method.name == "fsdino" and self.distill.epochs > 0 and self.train.init_from is None

    @property
    def draws(self) -> bool:
        """Whether there is a stage 4: a promptable FS-DINO from new weights."""
        # A model that is adapted draws as it did: the prompted half knows no classes, and few images teach it nothing.
        new = self.method.name == "fsdino" and self.train.init_from is None
        return new and self.draw.epochs > 0 and preset(self.preset, **self.model).promptable

    def arguments(self) -> dict[str, Any]:
        """What the method is built from; `bundled:NAME` has become the path of a file of `fsdino/assets`."""
        own = {"preset": self.preset, **self.model} if self.method.name == "fsdino" else self.method.args
        return {key: _found(value) for key, value in own.items()}


def _found(value: Any) -> Any:
    is_bundled = isinstance(value, str) and value.startswith("bundled:")
    return str(bundled_file(value.removeprefix("bundled:"))) if is_bundled else value


@cache
def recipe_parser() -> Any:
    """The parser of recipe files and their overrides: `--config FILE`, `--stages`, the recipe's keys, `--trainer.*`."""
    parser = LightningArgumentParser(  # type: ignore[arg-type]
        prog="fsdino run", description="Run a recipe or some of its stages.", exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="recipe: a YAML file, or a name as tiny or sansa/tiny")
    parser.add_argument("--stages", type=str, default=",".join(STAGES), help="which, with commas")
    parser.add_class_arguments(Recipe, instantiate=False)
    parser.add_lightning_class_args(Trainer, "trainer")
    return parser


def recipe_file(name: str) -> Path:
    """The file of a recipe, by its path or by the name of one that comes with the package: "tiny", "sansa/tiny".

    Raises:
        FileNotFoundError: if there is none.
    """
    if Path(name).is_file():
        return Path(name)
    known = bundled_recipes()
    wanted = name.removeprefix("recipes/").removesuffix(".yaml")
    # A plain name is the method's own recipe before another system's.
    for key in (wanted, f"fsdino/{wanted}", *(key for key in known if key.endswith(f"/{wanted}"))):
        if key in known:
            return known[key]
    raise FileNotFoundError(f"there is no recipe '{name}'; give a YAML file, or one of {', '.join(known)}.")


def checked_file(name: str) -> Path:
    """The file of a recipe, once it is known to be plain YAML that fits into memory."""
    file = recipe_file(name)
    try:
        plain_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"recipe '{file}' is not plain YAML ({error}); repair it.") from error
    return file


def _with_files(arguments: Sequence[str]) -> list[str]:
    """The arguments with every recipe after `--config` as a file."""
    given = list(arguments)
    for i, part in enumerate(given):
        option, equals, value = part.partition("=")
        if option == "--config" and equals:
            given[i] = f"--config={checked_file(value)}"
        elif option == "--config" and i + 1 < len(given):
            given[i + 1] = str(checked_file(given[i + 1]))
    return given


def read_recipe(arguments: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a command line, and the keyword arguments for Lightning's Trainer that were asked for."""
    return read_run(arguments)[:2]


def read_run(arguments: Sequence[str]) -> tuple[Recipe, dict[str, Any], tuple[str, ...]]:
    """As `read_recipe`, and the stages that were asked for.

    Raises:
        ValueError: for an unknown stage, or a name that is no folder's.
        FileNotFoundError: for a recipe that is not there.
    """
    parser = recipe_parser()
    arguments = _with_files(arguments)
    chosen = parser.parse_args(arguments)
    # Lightning's own defaults would override those of a stage, so only flags that were written are handed on.
    given = parser.parse_args(arguments, defaults=False).get("trainer")
    explicit = {} if given is None else {key: chosen.trainer.as_dict()[key] for key in given.as_dict()}
    stages = tuple(chosen.stages.split(","))
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ValueError(f"there is no stage {unknown[0]!r}; use {', '.join(STAGES)}, with commas between several.")
    values = parser.instantiate(chosen)
    recipe = Recipe(**{key: values[key] for key in Recipe.__dataclass_fields__})
    # With its system, because several have a tiny.yaml, and runs of one name share a folder.
    if not recipe.name:
        file = Path(str((chosen.get("config") or ["run"])[-1]))
        system = recipe.method.name
        recipe.name = f"{system}-{file.stem}" if file.parent.name == system else file.stem
    # It becomes a folder below `runs`, and must not lead out of it.
    if recipe.name in (".", "..") or any(char in recipe.name for char in "/\\\0"):
        raise ValueError(f"name {recipe.name!r} is no plain name of a folder; leave out '/', '\\' and dots alone.")
    return recipe, explicit, stages
