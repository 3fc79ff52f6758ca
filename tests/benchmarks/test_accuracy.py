"""What the accuracy scripts compute and keep: pairs, presence, simulated users, methods as they are typed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.accuracy import few_shot, lists, methods, pairs, presence, prompts, references, runtimes
from benchmarks.accuracy.grids import EQUAL_TERMS
from benchmarks.common import ROOT
from fsdino.data import splits
from fsdino.data.episodes.episode_list import EpisodeList, EpisodeSpec
from fsdino.data.world.index import SyntheticWorld
from fsdino.evaluation.measure import read_rows as read_episodes
from fsdino.pipeline.recipe import read_recipe
from tests.benchmarks.small import row, texts, write_episodes
from tests.small import refuses, small_segmenter


class TestPairs:
    @pytest.fixture
    def photos(self, tmp_path: Path) -> list[dict[str, Any]]:
        """Rows of four folds: full with two seeds, compact with one, and the baseline."""
        rows = []
        for fold in range(4):
            for variant, seed, hits in (("full", 0, 40), ("full", 1, 41), ("compact", 0, 36)):
                run = f"{variant}-fold{fold}-seed{seed}"
                write_episodes(tmp_path / "photos" / run / "evaluate" / run, hits + fold, seed)
                rows.append(row(run, f"FS-DINO {variant}", hits + fold, seed=seed, fold=fold))
            run = f"baselines-fold{fold}"
            write_episodes(tmp_path / "photos" / run / "evaluate" / "prototype", 30 + fold, 7)
            rows.append(row(run, "prototype", 30 + fold, fold=fold))
        return rows

    def test_folds_are_joined_and_a_baseline_stands_beside_every_seed(self, tmp_path: Path, photos) -> None:
        rows = {(r["a"], r["b"]): r for r in pairs.paired_rows("photos", texts(photos), tmp_path)}
        against = rows["FS-DINO full", "prototype"]
        assert against["seeds"] == 2 and against["episodes"] == 160 and 8 < against["low"] < 12
        assert rows["FS-DINO full", "FS-DINO compact"]["seeds"] == 1

    def test_seeds_and_methods_without_every_fold_are_left_out(self, tmp_path: Path, photos) -> None:
        kept = [r for r in photos if (r["run"], r["fold"]) != ("full-fold3-seed1", 3)]
        rows = pairs.paired_rows("photos", texts(kept), tmp_path)
        assert [r["seeds"] for r in rows if r["a"] == "FS-DINO full"] == [1, 1, 1]
        rows = pairs.paired_rows("photos", texts(photos[:-1]), tmp_path)
        assert "prototype" not in {r["b"] for r in rows}

    def test_a_run_whose_episodes_are_gone(self, tmp_path: Path) -> None:
        rows = texts([row("full-seed1", "FS-DINO full", 40)])
        with pytest.raises(FileNotFoundError, match=r"no rows in '.*full-seed1'; run `python -m benchmarks"):
            pairs.paired_rows("ablation", rows, tmp_path)


class TestLists:
    def test_another_list_asks_for_what_the_fixed_one_shows(self) -> None:
        world = SyntheticWorld("novel", 4)
        specs = tuple(EpisodeSpec(c, f"{c:03d}/000{k}", (f"{c:03d}/000{k + 1}",)) for c in range(5) for k in (0, 1))
        test = splits.TestSet(world, EpisodeList(world.name, 0, 1, 0, specs))
        assert lists.redrawn(test, 0, 4).episodes.episodes == specs[:4]
        drawn = [lists.redrawn(test, seed).episodes for seed in (1, 2)]
        assert all(len(one) == 10 and one.images <= test.episodes.images for one in drawn)
        assert {(e.class_id, e.query) for one in drawn for e in one} <= {
            (c, f"{c:03d}/000{k}") for c in range(5) for k in range(3)
        }
        assert drawn[0].content_hash != drawn[1].content_hash

    def test_seeds_are_averaged_before_the_difference(self, tmp_path: Path) -> None:
        found: lists.Counts = {}
        for method, seed, hits in (("FS-DINO full", 0, 40), ("FS-DINO full", 1, 44), ("chain", 0, 36)):
            write_episodes(tmp_path / f"{method}{seed}", hits, seed=3)
            found[method, seed] = [read_episodes(tmp_path / f"{method}{seed}").assign(fold=0)]
        full, chain, gain = lists.rows_of(2, found)
        assert (full["seeds"], chain["seeds"], gain["seeds"]) == (2, 1, 2)
        assert gain["value"] == pytest.approx(full["value"] - chain["value"], abs=2e-3) and 4 < gain["low"] < 8


class TestReferences:
    def test_a_crop_shows_the_object_at_twice_its_side(self) -> None:
        mask = torch.zeros(112, 112)
        mask[40:56, 30:62] = 1
        image, cut = references.crop(mask.expand(3, -1, -1), mask)
        assert image.shape == (3, 112, 112) and torch.equal(image[0], cut)
        rows, columns = torch.where(cut > 0.5)
        assert int(columns.max() - columns.min()) in range(54, 59), "half of the side"
        assert int(rows.max() - rows.min()) in range(26, 31)
        assert references.crop(image, torch.zeros(112, 112))[0] is image, "nothing to cut around"

    def test_a_reference_that_disagrees_weighs_less(self) -> None:
        model = small_segmenter()
        torch.manual_seed(0)
        alike, other = torch.rand(3, model.img_size, model.img_size), torch.rand(3, model.img_size, model.img_size)
        images = torch.stack([alike, alike, 1 - other])
        masks = torch.zeros(3, model.img_size, model.img_size)
        masks[:, :14], masks[0, 14:21] = 1, 1
        with torch.no_grad():
            equal, agreed = (references.remember(model, images, masks, way) for way in ("equal", "agreement"))
        for memory in (equal, agreed):
            assert memory.fg is not None and 0 < float(memory.fg.max()) <= 1
        totals = equal.fg.unflatten(1, (3, -1)).sum(-1)[0]
        assert torch.allclose(totals, totals[:1].expand(3)), "whatever its area"
        shares = agreed.fg.unflatten(1, (3, -1)).sum(-1)[0]
        assert float(shares[2]) < float(shares[:2].min())


class TestPresence:
    def test_absent_queries_lack_the_class(self) -> None:
        world = SyntheticWorld("novel", 2)
        specs = tuple(EpisodeSpec(c, f"{c:03d}/0000", (f"{c:03d}/0001",)) for c in range(6))
        whole = presence.with_absent(world, EpisodeList(world.name, 0, 1, 0, specs))
        assert len(whole) == 12 and whole.episodes[:6] == specs
        for before, after in zip(specs, whole.episodes[6:]):
            assert before.support == after.support and before.class_id not in world.classes_in(after.query)

    def test_gate_and_answers_are_counted(self) -> None:
        present = torch.tensor([1.0, 1.0, 0.0, 0.0])
        right, fair, wrong, nothing = [[9, 5], [10, 5]], [[8, 4], [10, 5]], [[5, 0], [10, 5]], [[10, 0], [10, 0]]
        counts = torch.tensor([right, fair, wrong, wrong])
        gated = torch.tensor([right, [[5, 0], [10, 5]], nothing, wrong])
        signals = {"presence head": torch.tensor([2.0, -1.0, -2.0, 1.0]), "predicted IoU": torch.tensor([5, 6, 5, 6])}
        head, other = presence.report(presence.Answers(present, signals, counts, gated, [3, 3, 3, 3]))
        assert (head["auroc"], head["error"], head["missed"], head["false_alarms"]) == (75.0, 50.0, 50.0, 50.0)
        assert other["auroc"] == 50.0 and "error" not in other
        assert (head["rank"], other["rank"]) == (100.0, -100.0), "of the two that are there, the first is drawn better"
        assert (head["miou_there"], head["miou_there_gated"]) == (90.0, 50.0)
        assert (head["miou_all"], head["miou_all_gated"]) == (45.0, round(100 * 5 / 15, 2))


def test_simulated_users_point_at_the_object() -> None:
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[10:20, 5:50] = True
    given: dict[str, Any] = dict(prompts.prompts(mask, torch.Generator().manual_seed(0)))
    assert tuple(given) == prompts.KINDS
    for x, y in np.concatenate([given["one click"]["points"], given["three clicks"]["points"]]):
        assert bool(mask[int(y), int(x)])
    assert np.allclose(given["box"]["box"], (5, 10, 49, 19), atol=0.01)
    rows, cols = np.nonzero(given["scribble"]["scribble"])
    assert bool(mask[rows, cols].all()) and cols.max() - cols.min() > 30 and len(np.unique(rows)) <= 2
    two = mask.clone()
    two[30:33, 50:53] = True
    assert torch.equal(prompts.largest_part(two), mask)


def test_forms_are_compared_with_float32_on_the_same_episodes() -> None:
    rows = runtimes.measure({"torch float32": small_segmenter(), "other": small_segmenter(seed=1)}, 3)
    assert [r["form"] for r in rows] == ["torch float32", "other"] and rows[0]["lost"] == "+0.00"
    lost = float(rows[0]["novel mIoU"]) - float(rows[1]["novel mIoU"])
    assert float(rows[1]["lost"]) == pytest.approx(lost, abs=0.011) and rows[0]["met"] == "yes"


class TestMethods:
    def test_every_system_learns_from_as_many_episodes(self) -> None:
        counts = set()
        for system in ("fsdino", *methods.TRAINED):
            own = EQUAL_TERMS if system == "fsdino" else []
            recipe, _ = read_recipe(["--config", str(ROOT / "recipes" / system / "tiny.yaml"), *own])
            train, data = recipe.train, recipe.data
            counts.add((train.epochs * train.epoch_length, str(data.train), data.test_list, data.val_episodes))
        assert len(counts) == 1

    def test_rows_that_are_there_are_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ran: list[str] = []

        def run_once(name: str, *_: Any) -> dict[str, Any]:
            ran.append(name)
            return {"run": name, "novel_miou": 1.0}

        monkeypatch.setattr(methods, "run_once", run_once)
        for _ in range(2):
            methods.main(only="fssam", csv=tmp_path / "methods.csv")
        assert ran == ["fssam-seed0", "fssam-seed1", "fssam-seed2"]
        assert len((tmp_path / "methods.csv").read_text().splitlines()) == 4


class TestFewShot:
    def test_rows_are_measured_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            few_shot.main(tmp_path / "rows.csv", ["all_foreground:img_size=28"], episodes=2, device="cpu")
        kept = "all_foreground:img_size=28 · synthetic · 1 · fsdino, original size, 2 episodes: there already"
        assert kept in capsys.readouterr().out
        assert len((tmp_path / "rows.csv").read_text().splitlines()) == 2

    def test_fixed_lists_are_taken_where_there_are_any(self, tmp_path: Path) -> None:
        one = few_shot.cell("tiny", "synthetic", 5, "all", "fsdino", None)
        assert one.test.list.endswith("synthetic_fold{fold}_{shots}shot.json")
        assert one.key == ("tiny", "synthetic", "5", "fixed list, original size")
        (tmp_path / "episodes").mkdir()
        (tmp_path / "episodes/fold0_1shot.json").write_text("{}")
        assert few_shot.cell("tiny", f"coco386={tmp_path}", 1, "all", "fsdino", None).test.list is not None
        assert few_shot.cell("tiny", f"coco386={tmp_path}", 5, "all", "hsnet", None).protocol == "hsnet, network size"

    def test_methods_with_options(self) -> None:
        choice = few_shot.method_choice("sansa:size=large,weights=a.pt,threshold=0.4")
        assert choice.options == {"size": "large", "weights": "a.pt"} and choice.threshold == 0.4
        refuses("option 'large' of method 'sansa:large' is not key=value", few_shot.method_choice, "sansa:large")
