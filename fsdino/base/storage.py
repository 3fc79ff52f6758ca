"""Methods on disk: a folder of model.safetensors + config.json + card, or a training checkpoint; one format for all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsdino.base import registry
from fsdino.base.bundled import BUNDLED, bundled_file, bundled_folder
from fsdino.base.card import model_card
from fsdino.base.catalog import CATALOG
from fsdino.base.checkpoint import CHECKPOINT_KEY, MODEL_PREFIX, read_checkpoint
from fsdino.base.devices import device_here
from fsdino.base.digest import file_sha256, steady, told_sha256
from fsdino.base.fill import fill_
from fsdino.base.foundation import chain_on, is_encoder, unknown_model
from fsdino.base.gate import class_names
from fsdino.base.hub import download, looks_like_id
from fsdino.base.processes import write_once
from fsdino.base.texts import plain_json

Stage = Literal["trained", "distilled"]
FORMAT_VERSION = 3
WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"
_ENCODER = "encoder.backbone."  # where FS-DINO keeps its frozen encoder
# Where a run folder keeps its checkpoints, the latest stage first.
_RUN_STAGES = ("draw/checkpoints", "presence", "train/checkpoints")


def fingerprint(method: Any) -> str:
    """Name a `FewShotMethod` by its description and weights, so that memories and measurements find their model again.

    Arguments that change no memory (`silent_args`) do not count.
    """
    # The threshold does not count: it changes masks, not what a memory means, and moving it must not lose memories.
    told = {key: value for key, value in (method.arguments() or {}).items() if key not in method.silent_args}
    about = [method.name, told] + ([] if method.arithmetic == 1 else [method.arithmetic])
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(method.state_dict().items()):
        value = tensor.detach().cpu()
        # In half precision, so that a model and its half-precision copy on disk have the same fingerprint.
        value = (value.half() if value.is_floating_point() else value).contiguous()
        # The shape counts too: two weights of other shapes may hold the same bytes.
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def describe(method: Any, stage: Stage = "trained") -> dict[str, Any]:
    """What rebuilds a method apart from its weights, in plain values; a checkpoint keeps it under `CHECKPOINT_KEY`."""
    args = method.arguments()
    if args is None:
        raise ValueError(
            f"this {type(method).__name__} does not know how it was built; make it with fsdino.base.registry.build()."
        )
    told = {"method": method.name, "args": args, "threshold": method.threshold, "stage": stage}
    newer: dict[str, Any] = {} if method.arithmetic == 1 else {"arithmetic": method.arithmetic}
    if method.missed_classes is not None:
        newer["missed_classes"] = list(method.missed_classes)
    return {"format_version": FORMAT_VERSION, **told, **newer}


def save(
    method: Any,
    folder: str | Path,
    *,
    half: bool = False,
    stage: Stage = "trained",
    results: Mapping[str, float | str] | None = None,
    encoder: str | None = None,
) -> Path:
    """Write a method with all of its weights: everything that `load` needs, and a model card.

    Args:
        half: store in half precision, half the size; `load` gives float32 again.
        stage: what training the weights have had.
        results: named scores for the model card, for instance {"novel mIoU": 41.2}; None keeps those that the model was
            loaded with, as long as its weights are the same.
        encoder: name of bundled weights that hold the same encoder, which is then left out of the file.

    Raises:
        ValueError: if the method does not know how it was built, or the bundled encoder is another.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: _stored(tensor, half) for name, tensor in method.state_dict().items()}
    name = fingerprint(method)
    measured, scores = getattr(method, "recorded_results", ("", {}))
    known: Mapping[str, float | str] = scores if measured == name else {}
    info = {
        **describe(method, stage),
        "fingerprint": name,
        "dtype": "float16" if half else "float32",
        "results": dict(known if results is None else results),
    }
    if encoder is not None:
        info |= {"encoder": encoder, "encoder_sha256": file_sha256(bundled_file(encoder))}
        for key, value in _encoder_tensors(encoder).items():
            if not torch.equal(_stored(tensors.pop(key), half=True), value):
                raise ValueError(f"bundled weights {encoder!r} are another encoder than this model's (weight {key}).")
    write_once(lambda: _write(target, tensors, info, model_card(method, info)))
    return target


def _write(target: Path, tensors: dict[str, Tensor], info: dict[str, Any], card: str) -> None:
    # All files are whole before any takes its place, under names of this process's own: a run that is killed leaves the
    # older model, several processes may write the same one, and `load` refuses what is half of each by fingerprint.
    parts = {name: target / f".{name}.{os.getpid()}.part" for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)}
    try:
        save_file(tensors, parts[WEIGHTS_FILE], metadata={"format": "pt", "fingerprint": info["fingerprint"]})
        steady(parts[WEIGHTS_FILE])
        info = {**info, "weights_sha256": file_sha256(parts[WEIGHTS_FILE])}
        info["sha256"] = told_sha256(info)
        parts[CONFIG_FILE].write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        parts[CARD_FILE].write_text(card, encoding="utf-8")
        # safetensors makes files that only their owner reads
        parts[WEIGHTS_FILE].chmod(parts[CONFIG_FILE].stat().st_mode)
        for name, part in parts.items():
            part.replace(target / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _encoder_tensors(name: str) -> dict[str, Tensor]:
    """Bundled encoder weights, named as in FS-DINO."""
    return {f"{_ENCODER}{key}": value for key, value in load_file(bundled_file(name)).items()}


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
    if half and tensor.dtype == torch.float32 and (tensor.numel() == 0 or float(tensor.abs().max()) < 65504):
        return tensor.half()
    return tensor


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    stage: Stage = "trained",
    method: str | None = None,
    hub: Mapping[str, Any] | None = None,
    encoder_weights: str | Path | None = None,
) -> Any:
    """Open a model, ready to segment.

    Args:
        source: a preset with bundled weights ("tiny"), a frozen encoder for the training-free chain ("dinov2-b14", or
            timm's name of any Vision Transformer), a folder written by `save`, its model.safetensors, a run folder
            (its export, or else its best checkpoint), a Lightning checkpoint (.ckpt), or a Hub id ("owner/name").
        stage: "distilled" also opens an FS-DINO that has not been trained on episodes.
        method: the only method that will do, for what works with no other; None opens any.
        hub: options of a download from the Hub.
        encoder_weights: file with a frozen encoder's weights; None takes them from this disk or the Hub.

    Returns:
        The `FewShotMethod` in float32, in evaluation mode.

    Raises:
        FileNotFoundError: if nothing is there under that name.
        ValueError: if what is there is not a model, another method, or not of that stage.
    """
    if not isinstance(source, str | Path):
        raise ValueError(f"expected a model's name or path, got {type(source).__name__}; give for instance 'tiny'.")
    place_of_weights = device_here(device)
    name = str(source)
    path = bundled_folder(name) if isinstance(source, str) and name in BUNDLED else Path(source)
    # With weights of an encoder it can be nothing else, and what it is not is said there.
    if encoder_weights is not None or name in CATALOG or (not path.exists() and is_encoder(name)):
        loaded = chain_on(name, encoder_weights)
    elif path.is_file():
        loaded = _load_checkpoint(path, stage) if path.suffix == ".ckpt" else _load_weights_file(path, stage)
    elif path.is_dir():
        place = _in_run_folder(path)
        loaded = _load_folder(place, stage) if place.is_dir() else _load_checkpoint(place, stage)
    elif looks_like_id(name):
        loaded = _load_folder(download(name, [WEIGHTS_FILE, CONFIG_FILE], **(hub or {})), stage)
    else:
        raise unknown_model(name)
    if method is not None and loaded.name != method:
        wanted = registry.method_class(method).title
        raise ValueError(f"'{source}' holds {type(loaded).__name__}, expected {wanted}; give a model of that kind.")
    return loaded.to(place_of_weights).eval()


def _in_run_folder(path: Path) -> Path:
    """The model of a run folder: its export, or else the best checkpoint that is there; other folders as they are."""
    if (path / CONFIG_FILE).is_file() or not (path / "config.yaml").is_file():
        return path
    if (path / "export" / CONFIG_FILE).is_file():
        return path / "export"
    files = (path / stage / name for stage in _RUN_STAGES for name in ("best.ckpt", "last.ckpt"))
    checkpoints = [file for file in files if file.is_file()]
    if not checkpoints:
        raise FileNotFoundError(f"run folder '{path}' has no checkpoint of episode training yet; let the run go on.")
    return checkpoints[0]


def _load_folder(folder: Path, stage: Stage) -> Any:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"folder '{folder}' has no {file}; a model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}."
            )
    try:
        info = plain_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{folder / CONFIG_FILE}' is not JSON ({error}); copy the folder again.") from error
    if not isinstance(info, dict) or not {"method", "segmenter"} & set(info):
        raise ValueError(
            f"'{folder / CONFIG_FILE}' describes another kind of model; give a folder made by `fsdino export`."
        )
    _check_version(info, str(folder))
    if info.get("sha256") != told_sha256(info):
        raise ValueError(
            f"'{folder / CONFIG_FILE}' was changed after it was written (its sha256 is another); copy the folder "
            "again, or change the model in code and save it."
        )
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"'{folder / WEIGHTS_FILE}' is cut or damaged ({error}); copy it again.") from error
    if "encoder" in info and info.get("encoder_sha256") != file_sha256(bundled_file(info["encoder"])):
        raise ValueError(
            f"'{folder}' stands on other bundled weights {info['encoder']!r} than those of this fsdino; install the "
            "version that it was saved with, or export it again."
        )
    if "encoder" in info:
        tensors |= _encoder_tensors(info["encoder"])
    model = _rebuild(info, tensors, str(folder), stage)
    # The two files are copied one by one, so they may come from two exports of equal sizes.
    found = fingerprint(model)
    if found != info.get("fingerprint"):
        raise ValueError(
            f"'{folder}' mixes two models: {CONFIG_FILE} says fingerprint {info.get('fingerprint')}, the weights have "
            f"{found}; copy both files from one export."
        )
    # The fingerprint is over halves, so that a half-precision copy has the same: it does not see a float's last bits.
    if info.get("weights_sha256") != file_sha256(folder / WEIGHTS_FILE):
        raise ValueError(f"'{folder / WEIGHTS_FILE}' was changed (its sha256 is another); copy the folder again.")
    model.recorded_results = (found, info.get("results", {}))
    return model


def _load_weights_file(path: Path, stage: Stage) -> Any:
    if path.name != WEIGHTS_FILE:
        hint = {
            ".onnx": " Exported graphs run with `fsdino predict --runtime onnx`.",
            ".fsmem": " It is a saved memory.",
        }
        raise ValueError(
            f"'{path}' is not a model: expected {WEIGHTS_FILE} or a .ckpt file.{hint.get(path.suffix, '')}"
        )
    return _load_folder(path.parent, stage)


def _load_checkpoint(path: Path, stage: Stage) -> Any:
    checkpoint = read_checkpoint(path)
    tensors = {
        k.removeprefix(MODEL_PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(MODEL_PREFIX)
    }
    return _rebuild(checkpoint[CHECKPOINT_KEY], tensors, str(path), stage)


def rewrite_checkpoint(method: Any, source: Path, target: Path) -> None:
    """Write a checkpoint again with a method's weights and description in place of its own, whole or not at all."""
    checkpoint = read_checkpoint(source)
    others = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith(MODEL_PREFIX)}
    checkpoint["state_dict"] = others | {f"{MODEL_PREFIX}{k}": v for k, v in method.state_dict().items()}
    checkpoint[CHECKPOINT_KEY] = describe(method)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    torch.save(checkpoint, partial)
    partial.replace(target)


def _check_version(info: Mapping[str, Any], where: str) -> None:
    version = info.get("format_version", 0)
    if version != FORMAT_VERSION:
        is_newer = isinstance(version, int) and version > FORMAT_VERSION
        advice = "update fsdino" if is_newer else "export it again from its training with this version"
        raise ValueError(f"'{where}' has format version {version}, this fsdino reads {FORMAT_VERSION}; {advice}.")


def _rebuild(info: Mapping[str, Any], tensors: dict[str, Tensor], where: str, stage: Stage) -> Any:
    """Construct the method that `info` describes and fill it, every weight once and of the right shape."""
    _check_version(info, where)
    kind = registry.method_class(info["method"])
    made, known = info.get("arithmetic", 1), kind.arithmetic
    if made != known:
        advice = "update fsdino" if made > known else "train it again with this version"
        raise ValueError(
            f"'{where}' was made for arithmetic {made} of {kind.title}, and this fsdino computes {known}, which gives "
            f"other masks; {advice}."
        )
    if stage == "trained" and info.get("stage") != "trained":
        raise ValueError(
            f"'{where}' is a distill checkpoint: its decoder and prompts are not trained. Run the train stage "
            "of the same recipe and give the checkpoint that it writes."
        )
    if not isinstance(info.get("args"), dict) or not isinstance(info.get("threshold"), float | int):
        raise ValueError(f"'{where}' describes no model: expected a table of args and a threshold; export it again.")
    with torch.random.fork_rng(devices=[]):  # weights drawn here are replaced; the caller's numbers stay
        method = registry.build(info["method"], **info["args"])
    fill_(method, tensors, where)
    method.threshold = float(info["threshold"])
    method.missed_classes = class_names(info.get("missed_classes"), where)
    return method
