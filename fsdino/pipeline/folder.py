"""The folder of a run: a new one, or that of the unfinished run of the same recipe, which then goes on."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from lightning.pytorch.utilities import rank_zero_only

from fsdino.pipeline.recipe import Recipe
from fsdino.pipeline.run import Run

# Which machines compute a run: it goes on whatever these are. All else names it.
MACHINES = ("devices", "num_nodes", "strategy")


def open_run(recipe: Recipe, trainer_options: dict[str, Any], root: str | Path = "runs") -> Run:
    """Start a run, or go on with the newest unfinished one of the same recipe; `root` is the folder of all runs."""
    # A run is known by its recipe: change a key of what is learnt, and the same command starts a new folder.
    text = yaml.safe_dump({**asdict(recipe), "trainer": trainer_options}, sort_keys=False)
    parent = Path(root) / recipe.name
    folder = _unfinished(parent, text)
    if folder is not None:
        print(f"going on with {folder}")
    elif getattr(rank_zero_only, "rank", 0) == 0:
        folder = _new_folder(parent, text)
    else:
        folder = _wait_for_first_rank(parent, text)
    return Run(recipe, trainer_options, folder)


def forget_empty(folder: Path) -> None:
    """Remove the folder of a run that ended before anything of it was kept, as one whose data is not there."""
    if getattr(rank_zero_only, "rank", 0) == 0 and [path.name for path in folder.iterdir()] == ["config.yaml"]:
        (folder / "config.yaml").unlink()
        folder.rmdir()


def _unfinished(parent: Path, text: str) -> Path | None:
    """The newest run with this configuration that is not done."""
    # Names are times, so the newest comes first.
    for folder in sorted(parent.glob("[!.]*"), reverse=True):
        config = folder / "config.yaml"
        if config.is_file() and _known_by(config.read_text()) == _known_by(text) and not (folder / "done").is_file():
            return folder
    return None


def _known_by(text: str) -> dict[str, Any] | None:
    """What of a configuration decides which run it is; None where it is no configuration."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:  # cut by a kill
        return None
    if not isinstance(found, dict) or not isinstance(found.get("trainer"), dict):
        return None
    trainer = {key: value for key, value in found["trainer"].items() if key not in MACHINES}
    return {key: value for key, value in found.items() if key != "compute"} | {"trainer": trainer}


def _wait_for_first_rank(parent: Path, text: str, seconds: float = 120) -> Path:
    """The folder that the first process of a distributed run makes."""
    # Slurm and torchrun start all processes at once, each with a clock of its own: only one may name the folder.
    end = time.monotonic() + seconds
    while (folder := _unfinished(parent, text)) is None:
        if time.monotonic() > end:
            raise TimeoutError(
                f"the first process has made no run folder in {parent} for {seconds:.0f} s; start all processes in a "
                "folder that the machines share."
            )
        time.sleep(0.2)
    return folder


def _new_folder(parent: Path, text: str) -> Path:
    """A folder named after this second, with its configuration."""
    # Made aside and moved: a start that is killed here leaves no run that nothing would go on with.
    made = parent / f".starting-{uuid4().hex}"
    made.mkdir(parents=True)
    (made / "config.yaml").write_text(text)
    start = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    for name in (start, *(f"{start}-{number}" for number in range(2, 100))):
        # To move a folder is to claim its name, in one step: of two runs that begin together one takes a number.
        try:
            made.rename(parent / name)
        except OSError:
            if not (parent / name).exists():
                raise
            continue
        return parent / name
    raise FileExistsError(f"a hundred runs of {parent} began in the same second; start them one after the other.")
