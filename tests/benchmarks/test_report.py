"""Tables, plots and images, from made rows and from the recorded ones."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from benchmarks.accuracy import chain, pairs
from benchmarks.accuracy.grids import EQUAL
from benchmarks.common import RESULTS, ROOT, read_rows, write_rows
from benchmarks.report import cost_tables, figures, gallery, markdown, photo_tables, strip, table, world_sheet
from fsdino.evaluation.measure import read_rows as read_episodes
from fsdino.evaluation.measure import summarise
from tests.benchmarks.small import row, texts, write_episodes
from tests.small import small_segmenter

VARIANTS = ("without-correlation-frozen", "without-correlation", "without-distillation", "full", "bare", "only-sparse")


class TestDocuments:
    def test_markers_are_filled_and_filling_again_changes_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "numbers.csv").write_text("a,b,machine,threads\n1,x,M,2\n")
        old = "before\n<!-- table:numbers -->\nstale\n<!-- /table:numbers -->\nafter\n"
        new = table.fill(old, tmp_path)
        assert "| a | b |" in new and "| 1 | x |" in new and "stale" not in new and "M · 2 threads" in new
        assert new.startswith("before\n") and new.endswith("after\n")
        assert table.fill(new, tmp_path) == new
        with pytest.raises(ValueError, match=r"table 'tiles' is not closed; add <!-- /table:tiles --> below"):
            table.fill("<!-- table:tiles -->\n", tmp_path)

    def test_check_writes_nothing(self, tmp_path: Path) -> None:
        readme = tmp_path / "README.md"
        readme.write_text("<!-- table:tiles -->\n<!-- /table:tiles -->\n")
        with pytest.raises(SystemExit, match=r"out of date: .*README.md; run `make tables`"):
            table.main([readme], tmp_path, check=True)
        assert "yet" not in readme.read_text()
        table.main([readme], tmp_path)
        assert "There is no `benchmarks/results/tiles.csv` yet." in readme.read_text()

    def test_the_documents_of_the_repository_are_up_to_date(self) -> None:
        table.main(check=True)

    def test_a_number_in_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "sizes.csv").write_text("method,total\nFS-DINO full,92970000\nother,1\n")
        said = "<!-- number:sizes.total method='FS-DINO full' as=millions -->"
        new = table.fill(f"It has {said}stale<!-- /number --> M.", tmp_path)
        assert new == f"It has {said}93.0<!-- /number --> M." and table.fill(new, tmp_path) == new
        with pytest.raises(ValueError, match=r"'sizes.total as=one' is in 2 rows of sizes.csv; name exactly one"):
            table.number("sizes.total as=one", tmp_path)

    def test_plots_are_linked_from_the_documents_folder(self, tmp_path: Path) -> None:
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "ablation.png").touch()
        assert "](results/ablation.png)" in table.figure("ablation", tmp_path / "results", tmp_path)
        assert table.figure("teacher", tmp_path / "results", tmp_path) == ""


class TestCells:
    def test_columns_and_missing_values(self) -> None:
        rows = pd.DataFrame([{"n": "1250432", "t": "x"}, {"n": "92-94", "t": ""}])
        columns = [markdown.text("t", "T"), markdown.number("n", "N", 2, markdown.MILLIONS), markdown.text("gone")]
        text = markdown.markdown_table(markdown.each(rows), columns)
        assert text == "| T | N | gone |\n| --- | ---: | --- |\n| x | 1.25 |  |\n|  | 92-94 |  |\n"

    def test_differences_are_paired_by_seed_with_students_interval(self) -> None:
        a = texts([row("a", "m", value, seed=seed) for seed, value in enumerate((41, 43, 50))])
        b = texts([row("b", "m", value, seed=seed) for seed, value in enumerate((40, 40))])
        assert markdown.paired(a, b, "novel_miou") == "+2.0 ± 12.7"  # differences 1 and 3
        assert markdown.paired(a, b.iloc[:1], "novel_miou") == "+1.0"
        assert markdown.half_width([1.0, 3.0]) == pytest.approx(12.706, abs=1e-3)


class TestTables:
    def test_every_published_result_has_a_regime_and_a_source(self) -> None:
        rows = read_rows(RESULTS / "published.csv")
        scored = rows[rows.filter(regex=r"_\d$").ne("").any(axis=1)]
        assert set(scored["regime"]) <= {"strict", "training-free", "trained on the test classes"}
        assert set(rows["source"]) == {"published", "self-reported"}
        regimes = dict(zip(rows["system"], rows["regime"]))
        for name in ("PerSAM", "Matcher", "GF-SAM", "INSID3", "FoRIS", "FSS-SAM3"):
            assert regimes[name] == "training-free"
        text = table.render("published", RESULTS)
        assert "| FS-DINO / UINO-FSS | DINOv2-B | strict | published | 80.6 / - | 64.5 / - |" in text

    def test_bars_are_what_speed_is_held_to(self) -> None:
        rows = [{"method": "FS-DINO full", "preset": "b14", "img_size": "518", "step": "segment", "ms": "1673.2",
                 "ratio": "1.088", "base": "bare encoder", "bar": "<= 1.10", "met": "yes"},
                {"method": "FS-DINO full", "step": "bare encoder", "ms": "1500", "bar": ""}]  # fmt: skip
        text = cost_tables.bars(pd.DataFrame(rows), RESULTS)
        assert text.endswith("| FS-DINO full · b14 · 518 · segment | 1.09 × bare encoder | <= 1.10 | yes |\n")

    def test_methods_are_joined_with_seeds_and_times(self, tmp_path: Path) -> None:
        ours = [row("a", "FS-DINO full", 48), row("c", EQUAL, 46)]  # one network, timed once
        write_rows(tmp_path / "tiny_seeds.csv", [*ours, row("b", "all foreground", 6)])
        sansa = [row(f"sansa-{seed}", "SANSA", 18 + 2 * seed, seed=seed) for seed in range(2)]
        write_rows(tmp_path / "methods.csv", sansa)
        times = {"remember_ms": 10.04, "segment_ms": 12, "trained": 290000, "total": 3300000}
        write_rows(tmp_path / "methods_times.csv", [{"method": name} | times for name in ("FS-DINO full", "SANSA")])
        lines = table.render("methods", tmp_path).splitlines()
        assert lines[3] == "| FS-DINO full | 1 | 52.0 | 48.0 | 45.5–50.5 | 60.0 | 3.30 | 0.29 | 10.0 | 12.0 |"
        assert lines[4].startswith(f"| {EQUAL} | 1 | 50.0 | 46.0 |")
        assert lines[4].endswith("| 3.30 | 0.29 | 10.0 | 12.0 |")
        assert lines[5].startswith("| SANSA | 2 | 23.0 (22.0–24.0) | 19.0 (18.0–20.0) | 16.5–21.5 |") and not lines[6]

    def test_photographs_by_fold(self, tmp_path: Path) -> None:
        rows = [row(f"full-fold{fold}-seed{seed}", "FS-DINO full", 30 + fold, seed=seed, fold=fold)
                for seed in range(2) for fold in range(2)]  # fmt: skip
        text = photo_tables.photos(texts(rows), tmp_path)
        assert "| FS-DINO full | 2 | 30.0 (27.5–32.5) | 31.0 (28.5–33.5) | 30.5 |" in text


class TestChain:
    def test_folds_their_mean_and_the_pair(self, tmp_path: Path) -> None:
        folds: dict[int, dict[str, chain.Measured]] = {0: {}, 1: {}}
        for fold, some in folds.items():
            for name, hits in (("prototype", 30), ("chain", 40)):
                write_episodes(tmp_path / f"{name}{fold}", hits + fold, seed=fold)
                found = summarise(read_episodes(tmp_path / f"{name}{fold}"), range(4))
                some[name] = chain.Measured(f"{name} {fold}", 33.0, found)
        rows = chain.score_rows(folds, {"list": "fixed", "shots": 1})
        whole = [r for r in rows if r["fold"] == "mean"]
        assert [r["method"] for r in whole] == ["prototype", "chain", "chain − prototype"]
        assert whole[2]["value"] == pytest.approx(whole[1]["value"] - whole[0]["value"], abs=2e-3)
        assert 8 < whole[2]["low"] < whole[2]["high"] < 12  # paired: hard episodes are hard for both
        rows.append({"part": "time", "method": "chain", "ratio": 1.08})
        rows.append({"part": "tried", "method": "4 steps", "base_miou": 33.71, "choice": 0.42})
        write_rows(tmp_path / "chain.csv", rows)
        text = table.render("chain", tmp_path)
        assert f"| fixed | 1 | chain − prototype |  | +{rows[2]['value']:.1f} |" in text
        assert "An image costs 1.08 of what the bare encoder takes" in text and "| 4 steps | 33.7 | 0.42 |" in text


class TestAblation:
    def test_pairs_table_and_figure(self, tmp_path: Path) -> None:
        results, runs, rows = tmp_path / "results", tmp_path / "runs", []
        for seed in range(3):
            for i, name in enumerate(VARIANTS):
                hits, run = 38 + 2 * i + 0.5 * seed, f"{name}-seed{seed}"
                write_episodes(runs / "ablation" / run / "evaluate" / run, hits, seed + 10 * i)
                rows.append(row(run, "FS-DINO full", hits, seed=seed))
        write_rows(results / "ablation.csv", rows)
        pairs.main("ablation", results, runs)
        found = read_rows(results / "paired_ablation.csv").to_dict("records")
        reader = next(r for r in found if r["part"] == "without-correlation")
        assert reader["b"] == "full" and reader["seeds"] == "3" and reader["episodes"] == "40"
        assert -6 < float(reader["low"]) < float(reader["difference"]) < float(reader["high"]) < -2
        assert abs(float(reader["difference"]) + 4) < 1  # paired: hard episodes are hard for both
        text = table.render("ablation", results)
        lines = {line.split(" | ")[0]: line for line in text.splitlines()}
        low, high = float(reader["low"]), float(reader["high"])
        gain = f"{float(reader['difference']):+.1f} ({low:+.1f} to {high:+.1f})"
        assert (
            f"| 3 | full | 44.5 (44.0–45.0) | -4.0 ± 0.0 | 40.5 (40.0–41.0) | {gain} |"
            in lines["| without-correlation"]
        )
        assert "| 3 | bare |" in lines["| only-sparse"] and "| 3 |  |" in lines["| full"]
        figures.main(["ablation"], results)
        assert Image.open(results / "ablation.png").width > 800
        first = (results / "ablation.svg").read_bytes()
        figures.main(results=results)
        assert b"</svg>" in first and (results / "ablation.svg").read_bytes() == first

    def test_one_seed_without_episodes_still_makes_a_table_and_a_figure(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"there is no '.*ablation.csv'; run `python -m benchmarks"):
            figures.draw("ablation", tmp_path)
        write_rows(tmp_path / "ablation.csv", [row("full-seed0", "FS-DINO full", 40)])
        text = table.render("ablation", tmp_path)
        assert "| full | 1 |  | 44.0 |  | 40.0 |  | 0.20 |  |" in text
        assert all(path.stat().st_size for path in figures.draw("ablation", tmp_path))


def test_the_curve_is_compared_by_seed(tmp_path: Path) -> None:
    rows = [row(f"{kind}-{count}-seed{seed}", "FS-DINO full", 20 + count / 50 + bonus + seed, seed=seed,
                train_images=count)
            for seed in range(3) for count in (10, 100, 1200)
            for kind, bonus in (("distilled", 2), ("undistilled", 0))]  # fmt: skip
    write_rows(tmp_path / "distillation_curve.csv", rows)
    text = table.render("distillation_curve", tmp_path)
    assert "| 100 | 3 | 25.0 (24.0–26.0) | 23.0 (22.0–24.0) | +2.0 ± 0.0 |" in text
    assert all(path.stat().st_size for path in figures.draw("distillation_curve", tmp_path))


def test_the_gallery_takes_every_so_many_episodes() -> None:
    drawn = gallery.strips(small_segmenter(), 300, 60)
    assert len(drawn) == 2 and all(strip.shape[1] == 4 * 60 + 5 * 4 for strip in drawn)


def test_a_row_of_the_strip() -> None:
    panels = strip.row(small_segmenter(), ROOT / "docs" / "photos" / "dogs")
    assert [panel.size for panel in panels] == [strip.PANEL] * 3


def test_the_world_is_drawn(tmp_path: Path) -> None:
    world_sheet.main(tmp_path / "world.png")
    assert Image.open(tmp_path / "world.png").width > 1000
