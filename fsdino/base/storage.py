"""Trained segmenters on disk: a folder of model.safetensors + config.json. `load` opens these and other methods."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fsdino.base.bundled import bundled_file, bundled_folder
from fsdino.models.config import PRESETS, SegmenterConfig

if TYPE_CHECKING:
    from fsdino.base.method import FewShotMethod
    from fsdino.models.segmenter import FewShotSegmenter

Stage = Literal["trained", "distilled"]
FORMAT_VERSION = 1
WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"
CHECKPOINT_KEY = "fsdino_segmenter"  # where a Lightning checkpoint holds `describe(model)`
METHOD_KEY = "fsdino_method"  # where one of another method holds what rebuilds it, see `fsdino.base.registry`
_ENCODER = "encoder.backbone."  # where a segmenter keeps its frozen encoder
# Parts that only episode training gives; their absence marks a checkpoint of distillation.
_TRAINED_PARTS = ("decoder.", "prompts.")


def fingerprint(model: nn.Module) -> str:
    """Name a model by its configuration and weights, so that saved memories and caches find their model again.

    The weights count in half precision: a model and its half-precision copy on disk have the same fingerprint.

    Args:
        model: A segmenter, or any module; its `config`, when it has one, counts too.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if isinstance(config, SegmenterConfig):
        # Neither where the first weights came from nor the cut on the result changes what a memory means; parts that
        # may be there or not are told by their weights.
        silent = ("encoder_weights", "threshold", "promptable", "presence_statistics")
        plain = {k: v for k, v in config.to_dict().items() if k not in silent}
        digest.update(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu()
        value = (value.half() if value.is_floating_point() else value).contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def describe(model: FewShotSegmenter, stage: Stage = "trained") -> dict[str, Any]:
    """The content of config.json without the fingerprint; also what a checkpoint keeps under `CHECKPOINT_KEY`."""
    config = replace(model.config, encoder_weights=None, threshold=model.threshold)  # the file holds the weights
    return {"format_version": FORMAT_VERSION, "stage": stage, "segmenter": config.to_dict()}


def save_pretrained(
    model: FewShotSegmenter,
    folder: str | Path,
    *,
    half: bool = False,
    stage: Stage = "trained",
    results: Mapping[str, float | str] | None = None,
    encoder: str | None = None,
) -> Path:
    """Write a segmenter with its frozen encoder: everything that `load` needs, and a model card.

    Args:
        model: The segmenter.
        folder: Where to; made when missing, files of the same names are replaced.
        half: Store in half precision, half the size; `load` gives float32 again.
        stage: What training the weights have had.
        results: Named scores for the model card, for instance {"novel mIoU": 41.2}; None keeps those that the model was
            loaded with, as long as its weights are the same.
        encoder: Name of bundled weights that hold the same encoder, which is then left out of the file.

    Returns:
        The folder.

    Raises:
        ValueError: If the bundled encoder is another.
    """
    from fsdino.base.hub import model_card

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: _stored(tensor, half) for name, tensor in model.state_dict().items()}
    name = fingerprint(model)
    measured, scores = getattr(model, "recorded_results", ("", {}))
    known: Mapping[str, float | str] = scores if measured == name else {}
    info = {
        **describe(model, stage),
        "fingerprint": name,
        "dtype": "float16" if half else "float32",
        "results": dict(known if results is None else results),
    }
    if encoder is not None:
        info["encoder"] = encoder
        for key, value in _encoder_tensors(encoder).items():
            if not torch.equal(_stored(tensors.pop(key), half=True), value):
                raise ValueError(f"bundled weights {encoder!r} are another encoder than this model's (weight {key}).")
    # Both files are whole before either takes its place, under names of this process's own: a run that is killed leaves
    # the older model, several processes may write the same one, and `load` refuses what is half of each by fingerprint.
    weights, config, card = (target / f".{n}.{os.getpid()}.part" for n in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE))
    save_file(tensors, weights, metadata={"format": "pt", "fingerprint": name})
    config.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    card.write_text(model_card(model, info), encoding="utf-8")
    weights.chmod(config.stat().st_mode)  # safetensors makes files that only their owner may read
    for part, file in ((weights, WEIGHTS_FILE), (config, CONFIG_FILE), (card, CARD_FILE)):
        part.replace(target / file)
    return target


def _encoder_tensors(name: str) -> dict[str, Tensor]:
    """Bundled encoder weights, named as in a segmenter."""
    return {f"{_ENCODER}{key}": value for key, value in load_file(bundled_file(name)).items()}


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
    if half and tensor.dtype == torch.float32 and (tensor.numel() == 0 or float(tensor.abs().max()) < 65504):
        return tensor.half()
    return tensor


def load(source: str | Path, *, device: str | torch.device = "cpu", stage: Stage = "trained") -> FewShotMethod:
    """Open a model, ready to segment: FS-DINO's segmenter, or another method of the package that was saved.

    Args:
        source: A preset with bundled weights ("tiny"), a folder written by `save_pretrained` or `save_method`, its
            model.safetensors, a Lightning checkpoint (.ckpt), or a Hugging Face Hub id ("owner/name").
        device: Where the model goes.
        stage: "distilled" also opens a segmenter that has not been trained on episodes.

    Returns:
        The method in float32, in evaluation mode; `FewShotSegmenter` where the files hold one.

    Raises:
        FileNotFoundError: If nothing is there under that name.
        ValueError: If what is there is no model, or not of that stage.
    """
    name = str(source)
    path = Path(source)
    if isinstance(source, str) and name in PRESETS:
        path = bundled_folder(name)
    if path.is_dir():
        model = _load_folder(path, stage)
    elif path.is_file():
        model = _load_checkpoint(path, stage) if path.suffix == ".ckpt" else _load_weights_file(path, stage)
    elif _looks_like_hub_id(name):
        from fsdino.base.hub import download

        model = _load_folder(download(name), stage)
    else:
        raise FileNotFoundError(
            f"no model {name!r}: give a preset ({', '.join(PRESETS)}), a folder with {CONFIG_FILE}, "
            f"a {WEIGHTS_FILE} or .ckpt file, or a Hub id like owner/name."
        )
    return model.to(device).eval()


def load_segmenter(
    source: str | Path, *, device: str | torch.device = "cpu", stage: Stage = "trained"
) -> FewShotSegmenter:
    """Open FS-DINO's own segmenter, for what works with no other method (export, the Hub, stages of training).

    Args:
        source, device, stage: As for `load`.

    Returns:
        The segmenter.

    Raises:
        FileNotFoundError: If nothing is there under that name.
        ValueError: If what is there is another method, or not of that stage.
    """
    from fsdino.models.segmenter import FewShotSegmenter

    model = load(source, device=device, stage=stage)
    if not isinstance(model, FewShotSegmenter):
        raise ValueError(f"'{source}' holds {type(model).__name__}, expected an FS-DINO segmenter; give one of those.")
    return model


def _looks_like_hub_id(name: str) -> bool:
    owner, slash, repository = name.partition("/")
    return bool(slash and owner and repository) and "/" not in repository and not name.startswith((".", "~"))


def _load_folder(folder: Path, stage: Stage) -> FewShotMethod:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"folder '{folder}' has no {file}; a model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}."
            )
    try:
        info = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{folder / CONFIG_FILE}' is not JSON ({error}); copy the folder again.") from error
    if isinstance(info, dict) and "method" in info:
        from fsdino.base.registry import load_method

        return load_method(folder)
    if not isinstance(info, dict) or "segmenter" not in info:
        raise ValueError(
            f"'{folder / CONFIG_FILE}' describes another kind of model; give a folder made by `fsdino export`."
        )
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"'{folder / WEIGHTS_FILE}' is cut or damaged ({error}); copy it again.") from error
    if "encoder" in info:
        tensors |= _encoder_tensors(info["encoder"])
    model = _build(info, tensors, str(folder), stage)
    found = fingerprint(model)
    if found != info.get("fingerprint"):
        raise ValueError(
            f"'{folder}' mixes two models: {CONFIG_FILE} says fingerprint {info.get('fingerprint')}, the weights have "
            f"{found}; copy both files from one export."
        )
    model.recorded_results = (found, info.get("results", {}))  # type: ignore[assignment]
    return model


def _load_weights_file(path: Path, stage: Stage) -> FewShotMethod:
    if path.name != WEIGHTS_FILE:
        hint = {
            ".onnx": " Exported graphs run with `fsdino predict --runtime onnx`.",
            ".fsmem": " It is a saved memory.",
        }
        raise ValueError(f"'{path}' is no model: expected {WEIGHTS_FILE} or a .ckpt file.{hint.get(path.suffix, '')}")
    return _load_folder(path.parent, stage)


def _load_checkpoint(path: Path, stage: Stage) -> FewShotMethod:
    try:
        with torch.serialization.safe_globals([SegmenterConfig]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is cut or not its own
        raise ValueError(
            f"checkpoint '{path}' cannot be read ({str(error).splitlines()[0]}); copy it again."
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"'{path}' is no Lightning checkpoint: it has no state_dict.")
    if METHOD_KEY in checkpoint:
        from fsdino.base.registry import load_method

        return load_method(path)
    if CHECKPOINT_KEY not in checkpoint:
        raise ValueError(
            f"checkpoint '{path}' has no {CHECKPOINT_KEY!r} entry: it was not written by `fsdino train` or `distill`."
        )
    tensors = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
    return _build(checkpoint[CHECKPOINT_KEY], tensors, str(path), stage)


def _build(info: dict[str, Any], tensors: dict[str, Tensor], where: str, stage: Stage) -> FewShotSegmenter:
    """Construct the segmenter that `info` describes and fill it, every weight once and of the right shape."""
    from fsdino.models.segmenter import FewShotSegmenter

    if info.get("format_version", 0) > FORMAT_VERSION:
        raise ValueError(
            f"'{where}' has format version {info['format_version']}, this fsdino reads up to {FORMAT_VERSION}; "
            "update fsdino."
        )
    if stage == "trained" and info.get("stage") != "trained":
        raise ValueError(
            f"'{where}' is a distill checkpoint: its decoder and prompts are not trained. Run `fsdino train` "
            "with the same recipe and give the checkpoint that it writes."
        )
    model = FewShotSegmenter(SegmenterConfig.from_dict(info["segmenter"]), load_encoder=False)
    wanted = model.state_dict()
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(
            f"'{where}' does not fit its configuration:{_named('missing', missing)}{_named('unknown', unknown)}."
        )
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"'{where}': weight {name} has shape {tuple(tensors[name].shape)}, its configuration needs "
                f"{tuple(tensor.shape)}; the files do not belong together."
            )
    model.load_state_dict(tensors)  # copies into float32 parameters, whatever the stored precision
    return model


def _named(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    return f" {len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
