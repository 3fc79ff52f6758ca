"""What `benchmarks.cost.gpu` times of the networks: encoders in every form, calls of users, steps of training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common import Row
from benchmarks.cost.gpu_timing import PRECISIONS, Bench, Case, told
from benchmarks.cost.speed import METHODS
from benchmarks.cost.subjects import bare_encoder, build, noise, reference, segmenter
from fsdino.base.method import FewShotMethod
from fsdino.models.config import preset
from fsdino.models.encoder import FeatureEncoder
from fsdino.teachers.architecture import SAM_CONFIGS, build_sam
from fsdino.teachers.sam import SamTeacher
from fsdino.training.distill import DistillModule, DistillPart
from fsdino.training.episodes import EpisodeModule, TrainPart
from fsdino.training.optim import build_optimizer

SDPA = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}  # fmt: skip
SHOWN = "FS-DINO full"


def peak(bench: Bench) -> Iterator[Row]:
    """What a large matrix product reaches: the peak that the others are held to."""
    side = 512 if bench.small else 8192
    for name, dtype, fast in (("float32", torch.float32, False), ("tf32", torch.float32, True),
                              ("bf16", torch.bfloat16, False)):  # fmt: skip
        if name == "tf32" and not bench.on_gpu:
            continue
        torch.set_float32_matmul_precision("high" if fast else "highest")
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        case = Case({"step": f"product of {side} x {side}", "precision": name}, lambda a=a, b=b: a @ b)
        for row in bench.rows({}, [case]):
            bench.peak[name] = float(row.get("tflops", 0.0))
            yield row
    torch.set_float32_matmul_precision("highest")


def encoder(bench: Bench) -> Iterator[Row]:
    """Bare encoders by precision and form; what is fastest decides what recipes should say."""
    names, batches = (("tiny",), (1, 2)) if bench.small else (("s14", "b14", "l14"), (1, 32))
    for name in names:
        net, size = vit(bench, name)
        for batch in batches:
            head = {"method": "encoder", "preset": name, "img_size": size, "batch": batch}
            cases = list(encoder_cases(bench, net, batch, size))
            yield from bench.rows(head, cases, cases[PRECISIONS.index("bf16-true")])


def vit(bench: Bench, name: str) -> tuple[nn.Module, int]:
    """The Vision Transformer of a preset, random weights, and its native size."""
    config = preset(name)
    made = FeatureEncoder(config.encoder, config.img_size, (0,), config.encoder_kwargs)
    return made.backbone.to(bench.device), config.img_size


def encoder_cases(bench: Bench, net: nn.Module, batch: int, size: int) -> Iterator[Case]:
    """Every precision, then forms of the bf16 weights: memory format, compiled blocks, kinds of attention."""
    images = torch.randn(batch, 3, size, size, device=bench.device)
    rounded, pixels = copy.deepcopy(net).to(torch.bfloat16), images.to(torch.bfloat16)
    compiled = copy.deepcopy(rounded)
    for block in compiled.blocks:  # type: ignore[union-attr]
        block.compile()
    last = copy.deepcopy(rounded).to(memory_format=torch.channels_last)

    def case(precision: str, variant: str, which: nn.Module, given: Tensor, only: SDPBackend | None = None) -> Case:
        @torch.no_grad()
        def run() -> None:
            with bench.precisely(precision):
                if only is None:
                    which.forward_features(given)  # type: ignore[operator]
                    return
                with sdpa_kernel(only):
                    which.forward_features(given)  # type: ignore[operator]

        about = {"step": "bare encoder", "precision": precision, "variant": variant}
        return Case(about, run, batch, flops=which is not compiled)

    for precision in PRECISIONS:
        yield case(precision, "eager", *((rounded, pixels) if precision == "bf16-true" else (net, images)))
    yield case("bf16-true", "channels_last", last, pixels.to(memory_format=torch.channels_last))
    if not bench.small and batch > 1:  # compiling takes as long as all else; on two cores, minutes
        yield case("bf16-true", "compiled blocks", compiled, pixels)
    for kind in ("math",) if bench.small else SDPA:
        yield case("bf16-true", f"attention {kind}", rounded, pixels, SDPA[kind])


def of_methods(bench: Bench, rows: Callable[[Bench, FewShotMethod, Row], Iterator[Row]]) -> Iterator[Row]:
    """The rows of every method in turn, on the device; one that cannot be built is a row."""
    for name, size in METHODS[bench.small]:
        head: Row = {"method": name, "preset": size}
        try:
            method = build(name, size).to(bench.device)
        except Exception as error:  # the other methods go on
            yield head | {"error": told(error)}
            continue
        yield from rows(bench, method, head | {"img_size": method.img_size})
        del method
        bench.clear()


def segment(bench: Bench) -> Iterator[Row]:
    """What users call, of every method, beside its bare encoder: from a NumPy image to a NumPy mask."""
    return of_methods(bench, segment_rows)


def segment_rows(bench: Bench, method: FewShotMethod, head: Row) -> Iterator[Row]:
    """Rows of one method in both precisions."""
    for precision in ("float32", "bf16-mixed"):
        yield from bench.rows(head, list(user_cases(bench, method, precision, full=head["method"] == SHOWN)))


def user_cases(bench: Bench, method: FewShotMethod, precision: str, full: bool) -> Iterator[Case]:
    """The bare encoder, then remember and segment; for FS-DINO also several images and ten classes at once."""
    memory, images, ten = method.remember([reference()]), [noise(seed) for seed in range(8)], []
    if full:
        ten = method.join([method.remember([reference(seed)]) for seed in range(10)])
    bare = bare_encoder(method)

    def case(step: str, run: Callable[[], Any], count: int = 1) -> Case:
        @torch.no_grad()
        def precise() -> None:
            with bench.precisely(precision):
                run()

        return Case({"step": step, "precision": precision, "batch": count}, precise, count)

    yield case("bare encoder", bare)
    yield case("remember", lambda: method.remember([reference()]))
    yield case("segment", lambda: method.segment(memory, images[0]))
    yield case("segment", lambda: method.segment_batch(memory, images), len(images))
    if full:
        yield case("ten classes", lambda: list(method.find(ten, images[0])))


def distill(bench: Bench) -> Iterator[Row]:
    """A step of stage 1 without its loader, with targets from a cache and from live teachers of SAM's sizes."""
    name, teachers, batch, sizes = ("tiny", ("tiny",), 2, (56,)) if bench.small else (
        "b14", ("vit_h", "vit_l"), 16, (126, 518))  # fmt: skip
    for kind in teachers:
        # Made on the device: the largest teacher's random weights take the CPU half a minute.
        with torch.device(bench.device):
            teacher = SamTeacher(build_sam(SAM_CONFIGS[kind]), SAM_CONFIGS[kind], kind)
        module = DistillModule(segmenter(name).to(bench.device), DistillPart(), teacher).to(bench.device)
        side = teacher.img_size
        for size in sizes:
            image = torch.rand(batch, 3, size, size, device=bench.device)
            target = torch.randn(batch, *teacher.entry_shape, device=bench.device).half()
            shown = torch.rand(batch, 3, side, side, device=bench.device)
            about = {"precision": "bf16-mixed", "batch": batch}
            bare = backbone_pass(bench, module.model.encoder, image)
            parts = {
                "bare encoder": bare,
                "cached step": training_step(bench, module, {"image": image, "target": target}),
            }
            # The teacher sees the same size whatever the student's, so once is enough.
            if size == sizes[-1]:
                parts["live step"] = training_step(bench, module, {"image": image, "teacher_image": shown})
                parts["teacher alone"] = teacher_pass(bench, teacher, shown)
            cases = [Case({"step": step} | about, run, batch) for step, run in parts.items()]
            yield from bench.rows({"method": "distillation", "preset": f"{name} from {kind}", "img_size": size}, cases)
            syncs = bench.hidden_syncs(parts["cached step"])
            yield {"method": "distillation", "preset": name, "img_size": size, "step": "hidden waits", "syncs": syncs}
        del teacher, module
        bench.clear()


def backbone_pass(bench: Bench, net: FeatureEncoder, images: Tensor) -> Callable[[], None]:
    """All blocks on some images, in bf16-mixed."""

    @torch.no_grad()
    def run() -> None:
        with bench.precisely("bf16-mixed"):
            net.backbone.forward_features(images)

    return run


def teacher_pass(bench: Bench, teacher: SamTeacher, images: Tensor) -> Callable[[], None]:
    """The teacher's embedding, as a cache is filled, in bf16-mixed."""

    def run() -> None:
        with bench.precisely("bf16-mixed"):
            teacher.embed(images)

    return run


def training_step(
    bench: Bench, module: DistillModule | EpisodeModule, batch: dict[str, Tensor], precision: str = "bf16-mixed"
) -> Callable[[], None]:
    """The module's own step, backwards and the optimiser's, as Lightning takes them; without loggers."""
    optimizer = build_optimizer(module.model)

    def run() -> None:
        optimizer.zero_grad()
        with bench.precisely(precision):
            loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()

    return run


def episodes(bench: Bench) -> Iterator[Row]:
    """A training step of every method that learns: pixels, and where there are any, cached maps."""
    return of_methods(bench, episode_rows)


def episode_rows(bench: Bench, method: FewShotMethod, head: Row) -> Iterator[Row]:
    """Rows of one method, none where nothing learns; an image of a row is one of the episode's, which are two."""
    if not method.trainable_parameters():
        return
    batch = 2 if bench.small else 8
    module = EpisodeModule(method, part=TrainPart()).to(bench.device).train()
    given = made_episodes(bench, method, batch)
    about = {"batch": batch}
    bare = bare_encoder(method, 2 * batch)
    cases = []
    for precision in ("float32", "bf16-mixed"):
        step = training_step(bench, module, given, precision)
        cases.append(Case({"step": "episode step", "precision": precision} | about, step, 2 * batch))
    maps = method.frozen_maps()
    if maps is not None:
        feats = maps.embed(torch.cat([given["query_image"], given["support_images"][:, 0]])).half()
        cached = given | {"query_feats": feats[:batch], "support_feats": feats[batch:, None]}
        if maps.in_place_of_images:
            cached = {key: value for key, value in cached.items() if key not in ("query_image", "support_images")}
        step = training_step(bench, module, cached)
        cases.append(Case({"step": "episode step, cached maps", "precision": "bf16-mixed"} | about, step, 2 * batch))

    @torch.no_grad()
    def encode() -> None:
        with bench.precisely("bf16-mixed"):
            bare()

    base = Case({"step": "bare encoder", "precision": "bf16-mixed"} | about, encode, 2 * batch)
    yield from bench.rows(head, [base, *cases], base)
    yield head | {"step": "hidden waits", "syncs": bench.hidden_syncs(cases[-1].run)}


def made_episodes(bench: Bench, method: FewShotMethod, batch: int) -> dict[str, Tensor]:
    """A batch of one-shot episodes of noise with a box for an object, on the device."""
    size, device = method.img_size, bench.device
    query, support = (torch.rand(batch, *more, 3, size, size, device=device) for more in ((), (1,)))
    truth = torch.zeros(batch, size, size, dtype=torch.long, device=device)
    truth[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    return {
        "query_image": query,
        "support_images": support,
        "support_masks": truth[:, None].float(),
        "query_mask": truth,
        "support_truths": truth[:, None].to(torch.uint8),
        "class_id": torch.arange(batch, device=device),
        "episode_index": torch.arange(batch, device=device),
    }
