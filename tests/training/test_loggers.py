"""Numbers on disk that survive a resume, and W&B that never asks for anything."""

import csv
import socket

from lightning.pytorch.loggers import WandbLogger

from fsdino.training import loggers
from fsdino.training.loggers import LogPart, MetricsFile, log_image, log_model, make_loggers, wandb_reachable
from fsdino.visualize import write_png
from tests.small import refuses


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_file_goes_on_after_a_resume(tmp_path):
    first = MetricsFile(tmp_path)
    for step in range(4):
        first.log_metrics({"train/loss": 1.0 - step / 10}, step)
    first.log_metrics({"val/miou": 0.5}, 3)
    resumed = MetricsFile(tmp_path)
    resumed.log_metrics({"train/loss": 0.75}, 2)
    resumed.log_metrics({"train/loss": 0.65}, 3)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]
    assert [row["train/loss"] for row in rows(tmp_path)] == ["1.0", "0.9", "0.75", "0.65"]
    resumed.log_metrics({"train/lr": 1e-3})
    assert rows(tmp_path)[-1]["train/lr"] == "0.001"
    resumed.log_hyperparams({"a": 1})


def test_off_and_unknown(tmp_path, monkeypatch):
    assert [type(logger) for logger in make_loggers(tmp_path, "run", LogPart("off"))] == [MetricsFile]
    refuses("unknown wandb mode 'on'; use 'auto', 'offline' or 'off'", make_loggers, tmp_path, "run", LogPart("on"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for mode in ("auto", "offline"):
        assert [type(logger) for logger in make_loggers(tmp_path, "run", LogPart(mode))] == [MetricsFile]
    assert not list(tmp_path.iterdir())


def test_missing_package_is_no_error(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with caplog.at_level("INFO"):
        assert len(make_loggers(tmp_path, "run", LogPart())) == 1
    assert "W&B is not installed (pip install wandb)" in caplog.text


def test_reachable_needs_key_and_network(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not wandb_reachable()  # no key
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password key\n")
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    assert wandb_reachable()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not wandb_reachable()
    monkeypatch.delenv("WANDB_MODE")
    server.close()
    assert not wandb_reachable(timeout=0.5)  # a key but nobody there


def test_offline_run_with_image_and_model(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loggers, "wandb_reachable", lambda: False)
    with caplog.at_level("INFO"):
        found = make_loggers(tmp_path, "run", LogPart(), {"seed": 1})
    assert isinstance(found[1], WandbLogger)
    line = next(message for message in caplog.messages if message.startswith("W&B offline"))
    assert f"`wandb sync {tmp_path}" in line
    image = write_png(tmp_path / "a.png", [[[1, 2, 3]] * 8] * 8)
    log_image(found, "val/strips", image, step=3)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    log_model(found, tmp_path / "export", "run-model")
    found[1].experiment.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    identity = (tmp_path / "wandb-id.txt").read_text()
    assert loggers._run_id(tmp_path) == identity.strip()


def test_each_stage_is_a_run_of_its_own(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loggers, "wandb_reachable", lambda: False)
    with caplog.at_level("INFO"):
        stages = [
            make_loggers(tmp_path / stage, stage, LogPart(), group="recipe")[1]
            for stage in ("distill", "train", "train")
        ]
    runs = [stage.experiment for stage in stages]
    runs[-1].finish()
    assert {run.group for run in runs} == {"recipe"}  # so do other seeds and folds
    assert runs[0].id != runs[1].id and runs[1] is runs[2]
    assert sum(message.startswith("W&B offline") for message in caplog.messages) == 2
    assert all(list((tmp_path / stage / "wandb").glob("offline-run-*/*.wandb")) for stage in ("distill", "train"))
