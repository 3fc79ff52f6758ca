"""The scripts of `benchmarks/`: published parameter counts, columns, tables. Nothing here looks at a clock."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.scripts import BENCHMARKS, script
from tests.data.trees import label_folder_tree


class TestProvenance:
    def test_columns_say_how_a_row_was_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "speed.py"), "--csv", "a b.csv"])
        about = script("provenance").provenance(seed=3, protocol="batch 1")
        assert tuple(about) == script("provenance").COLUMNS
        assert about["command"] == "python benchmarks/speed.py --csv 'a b.csv'"
        assert about["threads"] == torch.get_num_threads() and about["machine"].endswith("cores")

    def test_a_row_keeps_its_own_seed(self) -> None:
        assert "seed" not in script("provenance").provenance()

    def test_without_git_the_commit_is_unknown(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        module = script("provenance")
        monkeypatch.setattr(module, "ROOT", tmp_path)
        assert module.commit() == "unknown"

    def test_rows_with_different_columns_are_written_and_read(self, tmp_path: Path) -> None:
        module, path = script("provenance"), tmp_path / "new" / "rows.csv"
        module.write_rows(path, [{"a": 1, "seed": 0}, {"b": 2.5, "seed": 1}])
        assert module.read_rows(path) == [{"a": "1", "b": "", "seed": "0"}, {"a": "", "b": "2.5", "seed": "1"}]
        assert list(module.read_rows(path)[0])[-1] == "seed"
        assert module.read_rows(tmp_path / "none.csv") == []


class TestParams:
    def test_every_method_and_preset_has_a_row(self) -> None:
        keys = [(entry.method, entry.preset) for entry in script("params").entries()]
        assert len(set(keys)) == len(keys)
        for variant in ("compact", "compact_frozen", "full"):
            assert {p for m, p in keys if m == f"FS-DINO {variant}"} >= {"tiny", "s14", "b14", "l14"}
        assert {m for m, _ in keys} >= {"SANSA", "FSSAM", "prototype", "PerSAM"}

    def test_the_base_model_has_the_published_size(self) -> None:
        module = script("params")
        found = module.row(module.segmenter_entry("b14", "full"))
        assert 92e6 <= found["total"] <= 94e6
        assert round(found["adapter"] / 1e6, 2) == 1.25 and round(found["decoder"] / 1e6, 2) == 4.06
        assert found["encoder"] + found["adapter"] + found["prompts"] + found["decoder"] == found["total"]
        assert 4e6 < found["trained"] < found["prompts"] + found["decoder"]  # SAM's masks 1 to 3 do not learn
        assert found["inference"] <= found["total"]
        assert round(found["gmac_encoder"]) == round(found["gmac_remember"]) == 152
        assert found["gmac"] <= 1.10 * found["gmac_encoder"]

    @pytest.mark.parametrize(("name", "millions"), [("s14", 27.9), ("l14", 311.1)])
    def test_other_sizes(self, name: str, millions: float) -> None:
        with torch.device("meta"):
            model = script("params").segmenter_entry(name, "full").build()
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions

    def test_recounted_rows_replace_the_old_ones_in_the_order_of_the_entries(self) -> None:
        old = [{"method": m, "preset": p, "total": t} for m, p, t in (("PerSAM", "vit_b", "1"), ("SANSA", "mini", "2"))]
        new = [{"method": "SANSA", "preset": "mini", "total": 3}]
        assert [row["total"] for row in script("params").merged(old, new)] == [3, "1"]

    def test_only_what_is_read_counts_as_inference(self) -> None:
        module = script("params")
        model = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(5, 7)])
        with module.Touched(model) as touched:
            model[0](torch.ones(1, 3))
        assert touched.count == 8

    def test_multiply_adds_of_a_product(self) -> None:
        a = torch.empty(10, 20, device="meta")
        assert script("params").counted(lambda: a @ a.T)[1] == pytest.approx(10 * 20 * 10 / 1e9)


class TestTiming:
    def test_ratios_are_taken_within_a_round(self) -> None:
        timings = script("timing").Timings({"base": [1.0, 2.0, 4.0], "step": [2.0, 4.0, 9.0], "more": [1.0, 1.0, 1.0]})
        assert timings.ratio("step", "base") == 2.0
        assert timings.ms("step") == 4000.0 and timings.ms("step", "more") == 5000.0

    def test_actions_take_turns_and_the_warm_up_does_not_count(self) -> None:
        calls: list[str] = []
        timings = script("timing").interleaved({n: lambda n=n: calls.append(n) for n in "ab"}, repetitions=2)
        assert calls == ["a", "b"] * 3
        assert [len(times) for times in timings.seconds.values()] == [2, 2]

    def test_peak_memory_of_another_process(self, tmp_path: Path) -> None:
        small, failing = tmp_path / "small.py", tmp_path / "failing.py"
        small.write_text(f"import sys\nsys.path.append({str(BENCHMARKS)!r})\nfrom timing import *\nprint_peak(0.0)\n")
        failing.write_text("raise SystemExit('no such case')")
        peak = script("timing").peak_mb_of(small)
        assert peak is None or 1 < peak < 200
        with pytest.raises(RuntimeError, match=r"failing.py --peak x failed: no such case"):
            script("timing").peak_mb_of(failing, "--peak", "x")


class TestSpeed:
    def test_columns_and_kept_sections(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        module, provenance, path = script("speed"), script("provenance"), tmp_path / "speed.csv"
        provenance.write_rows(path, [{"section": "reader", "step": "kept"}, {"section": "classes", "step": "old"}])
        command = ["speed.py", "--small", "--repetitions", "1", "--what", "classes", "--csv", str(path)]
        monkeypatch.setattr(sys, "argv", command)
        with torch.no_grad():
            module.main()
            torch.set_grad_enabled(True)
        rows = provenance.read_rows(path)
        assert [row["step"] for row in rows] == ["kept", "one class", "ten classes"]
        wanted = {"section", "method", "preset", "img_size", "step", "ms", "per_s", "base", "ratio", "ratio_b14",
                  "peak_mb", *provenance.COLUMNS}  # fmt: skip
        assert wanted <= set(rows[0])
        assert float(rows[1]["ratio"]) == 1.0 and float(rows[2]["ms"]) > 0

    @pytest.mark.parametrize(("value", "bar", "met"), [(0.1, "<= 0.10", "yes"), (7.9, ">= 8", "no"), (8, ">= 8", "yes"),
                                                       (501, "<= 500 ms", "no")])  # fmt: skip
    def test_bars(self, value: float, bar: str, met: str) -> None:
        assert script("speed_rows").verdict(value, bar) == {"bar": bar, "met": met}


class TestTable:
    def test_markers_are_filled_and_filling_again_changes_nothing(self, tmp_path: Path) -> None:
        module = script("table")
        (tmp_path / "numbers.csv").write_text("a,b,machine,threads\n1,x,M,2\n")
        old = "before\n<!-- table:numbers -->\nstale\n<!-- /table:numbers -->\nafter\n"
        new = module.fill(old, tmp_path)
        assert "| a | b |" in new and "| 1 | x |" in new and "stale" not in new and "M · 2 threads" in new
        assert new.startswith("before\n") and new.endswith("after\n")
        assert module.fill(new, tmp_path) == new

    def test_a_table_without_results_says_so(self, tmp_path: Path) -> None:
        new = script("table").fill("<!-- table:choices -->\n<!-- /table:choices -->", tmp_path)
        assert "There is no `benchmarks/results/choices.csv` yet." in new
        assert script("table").fill(new, tmp_path) == new

    def test_an_open_marker_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"table 'choices' is not closed; add <!-- /table:choices --> below"):
            script("table").fill("<!-- table:choices -->\n", tmp_path)

    def test_check_writes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        readme = tmp_path / "README.md"
        readme.write_text("<!-- table:choices -->\n<!-- /table:choices -->\n")
        command = ["table.py", "--documents", str(readme), "--results", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [*command, "--check"])
        with pytest.raises(SystemExit, match=r"out of date: .*README.md; run `make tables`"):
            script("table").main()
        assert "yet" not in readme.read_text()
        monkeypatch.setattr(sys, "argv", command)
        script("table").main()
        assert "yet" in readme.read_text()

    def test_plots_are_linked_from_the_documents_folder(self, tmp_path: Path) -> None:
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "ablation.png").touch()
        figure = script("table").figure
        assert "](results/ablation.png)" in figure("ablation", tmp_path / "results", tmp_path)
        assert figure("teacher", tmp_path / "results", tmp_path) == ""

    def test_bars_are_what_speed_is_held_to(self) -> None:
        rows = [{"method": "FS-DINO full", "preset": "b14", "img_size": "518", "step": "segment", "ms": "1673.2",
                 "ratio": "1.088", "base": "bare encoder", "bar": "<= 1.10", "met": "yes"},
                {"method": "FS-DINO full", "step": "bare encoder", "ms": "1500"}]  # fmt: skip
        text = script("renderers").bars(rows, BENCHMARKS)
        assert text.endswith("| FS-DINO full · b14 · 518 · segment | 1.09 × bare encoder | <= 1.10 | yes |\n")

    def test_formats(self) -> None:
        module = script("cells")
        rows, columns = [{"n": "1250432", "t": "x"}, {"t": "y"}], {"t": "T", "n": "N"}
        table = module.markdown_table(rows, columns, {"n": module.MILLIONS})
        assert table == "| T | N |\n| --- | ---: |\n| x | 1.25 |\n| y |  |\n"
        assert module.decimals(1)("92-94") == "92-94"

    def test_published_numbers_are_marked(self) -> None:
        rows = script("provenance").read_rows(BENCHMARKS / "results" / "published.csv")
        assert {row["source"] for row in rows} == {"published"}
        text = script("table").render("published", BENCHMARKS / "results")
        assert "| FS-DINO / UINO-FSS | DINOv2-B | published | 80.6 / - | 64.5 / - |" in text

    def test_distillation_is_compared_by_seed(self) -> None:
        rows = [{"run": f"{kind}-10-seed{seed}", "seed": str(seed), "novel_miou": str(30 + seed + bonus)}
                for seed in range(3) for kind, bonus in (("distilled", 2), ("undistilled", 0))]  # fmt: skip
        text = script("renderers").distillation_curve(rows, BENCHMARKS)
        assert "| 10 | 3 | 33.0 (32.0–34.0) | 31.0 (30.0–32.0) | +2.0 ± 0.0 |" in text

    def test_options_are_compared_with_the_default(self) -> None:
        rows = [{"run": f"{name}-seed{seed}", "seed": str(seed), "val_miou": str(value), "novel_miou": "40",
                 "low": "38", "high": "42"}
                for seed in range(2) for name, value in (("default", 50), ("no-skip", 49))]  # fmt: skip
        text = script("renderers").options(rows, BENCHMARKS)
        assert "| no-skip | 2 | 49.0 (49.0–49.0) | -1.0 ± 0.0 |" in text

    def test_photographs_by_fold(self) -> None:
        rows = [{"method": "FS-DINO full", "seed": str(seed), "fold": str(fold), "novel_miou": str(30 + fold),
                 "low": "28", "high": "34", "total": "6071794"} for seed in range(2) for fold in range(2)]  # fmt: skip
        text = script("renderers").photos(rows, BENCHMARKS)
        assert "| FS-DINO full | 2 | 30.0 (28.0–34.0) | 31.0 (28.0–34.0) | 30.5 |" in text


class TestFewShot:
    def test_rows_are_measured_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        module, provenance, path = script("few_shot"), script("provenance"), tmp_path / "rows.csv"
        monkeypatch.chdir(tmp_path)
        root = label_folder_tree(tmp_path / "data")
        command = ["few_shot.py", "--csv", str(path), "--data", f"folder={root}", "--folds", "0,1", "--episodes", "2",
                   "--device", "cpu", "--methods", "all_foreground:img_size=28"]  # fmt: skip
        monkeypatch.setattr(sys, "argv", command)
        module.main()
        rows = provenance.read_rows(path)
        assert [row["fold"] for row in rows] == ["0", "1", "mean"]
        assert {"method", "data", "shots", "miou", "low", "high", "fb_iou", "list", *provenance.COLUMNS} <= set(rows[0])
        assert rows[0]["method"] == "all foreground" and rows[0]["protocol"] == "fsdino, original size, 2 episodes"
        monkeypatch.setattr(sys, "argv", [*command, "prototype:encoder_weights=random,tap=0,cut=0.1,kind=fg_bg"])
        module.main()
        assert "all_foreground:img_size=28 · folder · 1 · fsdino, original size, 2 episodes: there already" in (
            capsys.readouterr().out
        )
        assert provenance.read_rows(path)[:3] == rows and len(provenance.read_rows(path)) == 6
        provenance.write_rows(tmp_path / "few_shot.csv", provenance.read_rows(path))
        text = script("table").render("few_shot", tmp_path)
        assert "| prototype, random encoder | prototype:encoder_weights=random" in text and "| fold 1 |" in text

    def test_fixed_lists_are_taken_where_there_are_any(self, tmp_path: Path) -> None:
        module = script("few_shot")
        one = module.cell("tiny", "synthetic", 5, "all", "fsdino", None)
        assert one.test.list_path.endswith("synthetic_fold{fold}_{shots}shot.json")
        assert one.key == ("tiny", "synthetic", "5", "fixed list, original size")
        (tmp_path / "episodes").mkdir()
        (tmp_path / "episodes/fold0_1shot.json").write_text("{}")
        assert module.cell("tiny", f"coco386={tmp_path}", 1, "all", "fsdino", None).test.list_path is not None
        assert module.cell("tiny", f"coco386={tmp_path}", 5, "all", "hsnet", None).protocol == "hsnet, network size"

    def test_methods_with_options(self) -> None:
        choice = script("few_shot").method_choice("sansa:size=large,weights=a.pt,threshold=0.4")
        assert choice.options == {"size": "large", "weights": "a.pt"} and choice.threshold == 0.4
        with pytest.raises(ValueError, match="option 'large' of method 'sansa:large' is not key=value"):
            script("few_shot").method_choice("sansa:large")
