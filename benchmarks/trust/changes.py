"""Lines of the package, each with one changed that gives other numbers: what the tests must notice."""

from __future__ import annotations

from typing import NamedTuple

COUNTS = "tests/metrics/test_few_shot.py"
CURVE = "tests/metrics/test_threshold.py"
DRAWN = "tests/metrics/test_bootstrap.py"
SPLITS = "tests/data/test_splits.py"
EPISODES = "tests/data/episodes/test_episode.py"
LISTS = "tests/data/episodes/test_episode_list.py"
FILTERS = "tests/data/episodes/test_protocols.py"
LOSSES = "tests/training/test_losses.py"
MEASURED = "tests/evaluation/test_measure.py"
STORED = "tests/base/test_storage.py -k fingerprint or half or broken or follow or run_folder or shape"
OUTPUTS = "tests/predict/test_outputs.py"


class Change(NamedTuple):
    """A text of a file below `fsdino/`, found there once, what stands in its place, and the tests that must fail.

    `reason` says why no test can fail where none does.
    """

    file: str
    old: str
    new: str
    tests: str
    reason: str = ""


def of(file: str, tests: str, *pairs: tuple[str, str]) -> list[Change]:
    """Changes of one file that the same tests must notice."""
    return [Change(file, old, new, tests) for old, new in pairs]


CHANGES = [
    *of(
        "metrics/few_shot.py",
        COUNTS,
        ("valid = truth != IGNORE", "valid = truth >= 0"),
        ("pred = (pred != 0) & valid", "pred = pred != 0"),
        ("either = (pred | positive).sum()", "either = pred.sum() + positive.sum()"),
        ("torch.stack([total - either, both])", "torch.stack([total - both, both])"),
        ("torch.stack([total - both, either])", "torch.stack([total - either, either])"),
        ("counted = union[:, 1] > 0", "counted = union[:, 1] >= 0"),
        ("iou = intersection[:, 1] /", "iou = intersection[:, 0] /"),
        ("miou=float(iou[counted].mean())", "miou=float(iou.mean())"),
        ("fb_iou=float(pooled.mean())", "fb_iou=float(pooled[1])"),
        ("self.union[row] += union", "self.union[row] = union"),
        ("self.episodes[row] += 1", "self.episodes[row] = 1"),
        ("self._computed = None", "pass"),
        ("dtype=torch.int64), dist_reduce_fx", "dtype=torch.float32), dist_reduce_fx"),
        ('dist_reduce_fx="sum"', 'dist_reduce_fx="max"'),
        ("if len(self._row) != len(self.class_ids):", "if False:"),
    ),
    *of(
        "metrics/threshold.py",
        CURVE,
        ("bucketize(one.double(), self.thresholds)", "bucketize(one.double(), self.thresholds, right=True)"),
        ("((self.hits, mask == 1)", "((self.hits, mask != 0)"),
        ("(self.predicted, (mask == 1) | (mask == 0))", "(self.predicted, mask >= 0)"),
        ("self.pixels[row] += ((mask == 1) | (mask == 0)).sum()", "self.pixels[row] += mask.numel()"),
        ("self.positives + self.predicted - self.hits", "self.positives + self.predicted"),
        ("counted = self.positives[:, 0] > 0", "counted = self.positives[:, 0] >= 0"),
        ("curve >= curve.max() - 1e-9", "curve >= curve.max() - 1e-2"),
        ("top[len(top) // 2]", "top[0]"),
        ("[counted].mean(0)", "[counted].amax(0)"),
        ("(foreground + background) / 2]", "foreground]"),
        ("dtype=torch.float64), persistent=False", "dtype=torch.float32), persistent=False"),
    ),
    *of(
        "metrics/bootstrap.py",
        DRAWN,
        ("[(1 - level) / 2, (1 + level) / 2]", "[1 - level, level]"),
        ("np.nanquantile(values[1:]", "np.nanquantile(values[:20]"),
        ("np.nansum(iou, axis=1) / np.maximum(counted, 1)", "np.nansum(iou, axis=1) / len(classes)"),
        ("rng = np.random.default_rng(seed)", "rng = np.random.default_rng()"),
        ("size=num_resamples)[:, group]", "size=num_resamples)[:, group] > 0"),
        ("names, group = np.unique(groups[members]", "names, group = np.unique(np.arange(len(members))"),
    ),
    *of(
        "metrics/edges.py",
        "tests/metrics/test_edges.py",
        ("round(width *", "int(width *"),
        ("core == 0", "core == 1"),
    ),
    *of(
        "metrics/davis.py",
        "tests/metrics/test_davis.py",
        ("int(np.ceil(tolerance", "int(np.floor(tolerance"),
        ("2 * precision * recall /", "precision * recall /"),
    ),
    *of(
        "data/splits.py",
        SPLITS,
        ("return SubsetIndex.without_images(index, test.episodes.images)", "return index"),
        ("if _is_tested(index, spec, part, test) and not part.in_domain:", "if False:"),
        ("if _coco_number(p) in tested]", "if p in tested]"),
        ("len(whole.images(c)) > part.shots]", "len(whole.images(c)) >= 1]"),
        ("classes = [c for c in usable if c not in set(val)]", "classes = list(usable)"),
        ("barred += _left_out(index, spec, part.fold)", "_left_out(index, spec, part.fold)"),
        ("np.random.default_rng(seed).permutation(len(classes))", "np.arange(len(classes))"),
        ("count = max(1, round(share * len(classes)))", "count = round(share * len(classes))"),
        ("None if root is None else Path(root).resolve()", "None if root is None else Path(root)"),
        ("c: share / len(classes) for", "c: share for"),
        ("view, seen = SubsetIndex.without_images(whole, held_out), Sub", "view, seen = whole, Sub"),
        ("order[c][2 * k : 2 * k + 2]", "order[c][k : k + 1]"),
    ),
    *of(
        "data/episodes/filters.py",
        FILTERS,
        ("if not index.classes_in(image) & novel:", "if True:"),
        (">= PFENET_MIN_PIXELS", "> 0"),
        ('[] if rule == "hsnet" else', '[] if rule != "hsnet" else'),
    ),
    *of(
        "data/episodes/episode_list.py",
        LISTS,
        ("if value < limit:", "if True:"),
        ("(query,) if replacement else (query, *support)", "(query,)"),
        ("if raw.get(\"sha256\", found.content_hash) != found.content_hash:", "if False:"),
        ("if episode.query in episode.support:", "if False:"),
        ("if image not in taken and self.usable(class_id, image):", "if self.usable(class_id, image):"),
        ('"episodes", index.name, fold, shots, seed)', '"episodes", index.name, fold, shots)'),
    ),
    *of(
        "data/episodes/episode.py",
        EPISODES,
        ("!= 0, IGNORE, mask)", "!= 0, 0, mask)"),
        ("(m == 1).astype(np.float32)", "(m != 0).astype(np.float32)"),
        ("np.random.SeedSequence([self.seed, self.epoch, i])", "np.random.SeedSequence([self.seed, i])"),
        ("taken = {query_id, *support_ids}", "taken = set(support_ids)"),
        ("if image_id in taken or (absent and class_id in self.index.classes_in(image_id)):", "if image_id in taken:"),
        ("if absent or (mask == 1).any():", "if True:"),
    ),
    *of(
        "training/losses.py",
        LOSSES,
        ("(weight * cross * valid).sum", "(weight * cross).sum"),
        ("probs = logits.sigmoid() * valid", "probs = logits.sigmoid()"),
        ("return (cross * valid).sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)", "return cross.mean((-2, -1))"),
    ),
    *of(
        "training/episodes.py",
        "tests/training/test_episodes.py -k ignored or absent or once",
        ("valid = F.adaptive_avg_pool2d((truth != 255)", "valid = F.adaptive_avg_pool2d((truth >= 0)"),
        ("/ valid.clamp(min=1e-6)", ""),
        ("if part.presence_weight == 0:", "if True:"),
        ("truth[own], batch[\"class_id\"][own])", "truth[own], batch[\"class_id\"][own].flip(0))"),
        ("own = own_items(batch[\"episode_index\"], self.trainer.global_rank, self.trainer.world_size)",
         "own = batch[\"episode_index\"] >= 0"),
    ),
    *of(
        "base/storage.py",
        STORED,
        ("digest.update(value.numpy().tobytes())", "pass"),
        ("if found != info.get(\"fingerprint\"):", "if False:"),
        ("if info.get(\"weights_sha256\") !=", "if False and info.get(\"weights_sha256\") !="),
        ("if info.get(\"sha256\") != told_sha256(info):", "if False:"),
        ("digest.update(f\"{name}{tuple(value.shape)}\".encode())", "digest.update(name.encode())"),
        ("known: Mapping[str, float | str] = scores if measured == name else {}",
         "known: Mapping[str, float | str] = scores"),
        ("value = (value.half() if value.is_floating_point() else value)", "value = (value)"),
        ("\"presence\", \"train/checkpoints\")", "\"train/checkpoints\", \"presence\")"),
    ),
    *of(
        "evaluation/measure.py",
        MEASURED,
        ("rest = [i for i in range(len(episodes)) if i not in done]", "rest = list(range(len(episodes)))"),
        ("whole = text[: text.rfind(\"\\n\") + 1]", "whole = text"),
        ("return table.drop_duplicates(\"episode\")", "return table"),
        ("if len(rows) != len(episodes):", "if False:"),
        ("if (value := wanted.get(key)) != found.get(key):", "if (value := wanted.get(key)) is None:"),
        ("part = {key: value[start:stop] for", "part = {key: value for"),
        ("if self.scoring == \"network\":", "if False:"),
    ),
    *of(
        "evaluation/method_choice.py",
        "tests/evaluation/test_command.py -k identity",
        ("method.resize.mode, method.threshold, method.arguments()", "method.resize.mode, method.arguments()"),
    ),
    *of(
        "evaluation/compare.py",
        "tests/evaluation/test_compare.py",
        ("if (pixels[0] != pixels[1]).any():", "if False:"),
        ("counts[0], counts[1], folds", "counts[1], counts[0], folds"),
    ),
    *of(
        "predict/record.py",
        OUTPUTS,
        (".split(\"\\n\")[:-1]]", ".split(\"\\n\") if line]"),
        ("if older.get(key) != settings.get(key):", "if False:"),
        ("partial.replace(path)", "pass"),
    ),
    *of(
        "training/callbacks.py",
        "tests/training/test_callbacks.py -k seeded",
        ("[self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]", "[self.seed, trainer.global_rank]"),
        ("torch.manual_seed(int(key.generate_state(1)[0]))", "pass"),
    ),
    *of(
        "training/fit.py",
        "tests/test_stops.py -k epoch",
        ("ckpt_path=start", "ckpt_path=None"),
    ),
    *of(
        "pipeline/folder.py",
        "tests/pipeline/test_folder.py",
        ("and not (folder / \"done\").is_file():", ":"),
        ("and _known_by(config.read_text()) == _known_by(text)", ""),
        ("sorted(parent.glob(\"[!.]*\"), reverse=True)", "sorted(parent.glob(\"[!.]*\"))"),
        ("parent.glob(\"[!.]*\")", "parent.glob(\"*\")"),
    ),
]  # fmt: skip
