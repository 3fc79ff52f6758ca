"""Where a run's numbers go: always `metrics.csv`, and W&B where it is installed, online or offline by itself."""

from __future__ import annotations

import csv
import os
import socket
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

WandbMode = Literal["auto", "offline", "off"]


@dataclass
class LogPart:
    """Where runs are followed.

    Args:
        wandb: "auto" (online with a key and a network, else offline), "offline" or "off"; `WANDB_MODE=disabled` in the
            environment turns it off too.
        project: W&B project.
    """

    wandb: WandbMode = "auto"
    project: str = "fsdino"


class MetricsFile(Logger):
    """Writes `metrics.csv`, one row per logged step; a resumed run goes on in the same file."""

    def __init__(self, folder: str | Path, filename: str = "metrics.csv") -> None:
        super().__init__()
        self.path = Path(folder) / filename
        self._rows: list[dict[str, Any]] = []
        self._columns = ["step"]
        self._started = False

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """There is one version per folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's folder has its config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes one row; without an optimiser step it counts as the one after the last row."""
        # Only the first row says at which step an earlier run is taken up.
        if not self._started:
            self._resume(step)
        number = len(self._rows) if step is None else step
        row = {"step": number, **{key: float(value) for key, value in metrics.items()}}
        self._rows.append(row)
        if row.keys() <= set(self._columns) and self.path.is_file():
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, fieldnames=self._columns).writerow(row)
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        """Writes all rows under a header of all columns, in one step."""
        self._columns = ["step", *sorted({key for row in self._rows for key in row} - {"step"})]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self.path)

    def _resume(self, step: int | None) -> None:
        self._started = True
        # Lightning's CSVLogger deletes the file of an earlier start. Here rows from the resumed step on are replaced,
        # so that the file reads as if the run had never stopped.
        if self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._rows = [row for row in rows if step is None or int(row["step"]) < step]
            self._rewrite()


def make_loggers(
    folder: str | Path, name: str, log: LogPart, config: dict[str, Any] | None = None, *, group: str | None = None
) -> list[Logger]:
    """The loggers of a run: `MetricsFile`, then W&B's unless it is off or not installed.

    Runs of one `group`, for instance the seeds and folds of a recipe, stand together in W&B; `WANDB_RUN_GROUP` in the
    environment names another.

    Raises:
        ValueError: for an unknown mode.
    """
    wandb = log.wandb
    if wandb not in ("auto", "offline", "off"):
        raise ValueError(f"unknown wandb mode {wandb!r}; use 'auto', 'offline' or 'off'.")
    loggers: list[Logger] = [MetricsFile(folder)]
    if wandb == "off" or os.environ.get("WANDB_MODE") == "disabled":
        return loggers
    try:
        import wandb as client
    except ImportError:
        rank_zero_info(f"W&B is not installed (pip install wandb); numbers and images are in {folder}.")
        return loggers
    # Asked before W&B starts, which without a network waits long before it fails.
    offline = wandb == "offline" or not wandb_reachable()
    run_id = _run_id(Path(folder))
    running = client.run if client.run is not None and client.run.id == run_id else None
    # What still runs is an earlier stage's: each stage is a run of its own.
    if client.run is not None and running is None:
        client.finish()
    logger = WandbLogger(
        name=name,
        save_dir=str(folder),
        id=run_id,
        experiment=running,
        project=log.project,
        group=os.environ.get("WANDB_RUN_GROUP", group),
        offline=offline,
        settings=client.Settings(silent=True),
        resume=None if offline else "allow",
    )
    Path(folder).mkdir(parents=True, exist_ok=True)
    if config is not None:
        logger.log_hyperparams(config)
    if running is None:
        rank_zero_info(wandb_notice(logger, folder, offline))
    return [*loggers, logger]


def wandb_reachable(timeout: float = 2.0) -> bool:
    """Whether W&B has a key and its server answers in so many seconds, so that a run can be online."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(url).hostname or "api.wandb.ai"
    if not (os.environ.get("WANDB_API_KEY") or _has_netrc_key(host)):
        return False
    port = urlparse(url).port or (80 if url.startswith("http://") else 443)
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except OSError:  # without a network the run goes offline
        return False


def wandb_notice(logger: WandbLogger, folder: str | Path, offline: bool) -> str:
    """One line that says where the W&B run is."""
    run = logger.experiment
    if not offline:
        return f"W&B: {getattr(run, 'url', None) or 'online'}"
    where = Path(str(getattr(run, "dir", folder))).parent
    return f"W&B offline: the run is in {where}; upload it with `wandb sync {where}`."


def log_image(loggers: list[Logger], key: str, path: str | Path, step: int | None = None) -> None:
    """Shows an image that lies on disk in W&B, where W&B follows the run; the step is recorded beside it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            values: dict[str, Any] = {key: wandb.Image(str(path))}
            if step is not None:
                values["trainer/global_step"] = step
            logger.experiment.log(values)


def log_model(loggers: list[Logger], folder: str | Path, name: str) -> None:
    """Adds an exported model's folder to the W&B run as an artifact."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            artifact = wandb.Artifact(name, type="model")
            artifact.add_dir(str(folder))
            logger.experiment.log_artifact(artifact)


def _run_id(folder: Path) -> str:
    """The run's id, the same at every start in one folder."""
    # Kept in a file, so that W&B shows a resumed run as one run.
    path = folder / "wandb-id.txt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(os.urandom(4).hex() + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _has_netrc_key(host: str) -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.is_file() and host in path.read_text(encoding="utf-8", errors="replace")
