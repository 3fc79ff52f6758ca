"""Published parameter counts, multiply-adds, and how times are put together. Nothing here looks at a clock."""

import os

import pytest
import torch

from benchmarks.common import read_rows, write_rows
from benchmarks.cost import batches, params, speed, timing
from fsdino.base.storage import save
from tests.small import refuses, small_segmenter


class TestParams:
    def test_every_method_and_preset_has_a_row(self) -> None:
        keys = [(entry.method, entry.preset) for entry in params.entries()]
        assert len(set(keys)) == len(keys)
        for variant in ("compact", "compact_frozen", "full"):
            assert {p for m, p in keys if m == f"FS-DINO {variant}"} >= {"tiny", "s14", "b14", "l14"}
        assert {m for m, _ in keys} >= {"SANSA", "FSSAM", "prototype", "PerSAM"}

    def test_the_base_model_has_the_published_size(self) -> None:
        entry = next(e for e in params.entries() if (e.method, e.preset) == ("FS-DINO full", "b14"))
        found = params.row(entry)
        assert 92e6 <= found["total"] <= 94e6
        assert round(found["adapter"] / 1e6, 2) == 1.25 and round(found["decoder"] / 1e6, 2) == 4.06
        assert found["encoder"] + found["adapter"] + found["prompts"] + found["decoder"] == found["total"]
        assert 4e6 < found["trained"] < found["prompts"] + found["decoder"]  # SAM's masks 1 to 3 do not learn
        assert found["inference"] <= found["total"]
        assert round(found["gmac_encoder"]) == round(found["gmac_remember"]) == 152
        assert found["gmac"] <= 1.10 * found["gmac_encoder"]

    @pytest.mark.parametrize("name", ["FS-DINO full tiny", "SANSA mini", "FSSAM mini + tiny", "prototype tiny",
                                      "PerSAM vit_b"])  # fmt: skip
    def test_every_method_is_counted(self, name: str) -> None:
        (entry,) = [e for e in params.entries() if f"{e.method} {e.preset}" == name]
        found = params.row(entry)
        assert 0 < found["inference"] <= found["total"] and found["gmac"] > 0

    @pytest.mark.parametrize(("name", "millions"), [("s14", 28.2), ("l14", 311.4)])
    def test_other_sizes(self, name: str, millions: float) -> None:
        with torch.device("meta"):
            assert round(params.count(params.segmenter(name).parameters()) / 1e6, 1) == millions

    def test_recounted_rows_replace_the_old_ones_in_the_order_of_the_entries(self, tmp_path) -> None:
        path, old = tmp_path / "params.csv", [("PerSAM", "vit_b"), ("SANSA", "mini"), ("gone", "vit_b")]
        write_rows(path, [{"method": method, "preset": name, "total": 1} for method, name in old])
        params.main(path, only="SANSA mini")
        rows = read_rows(path)
        assert rows["method"].tolist() == ["SANSA", "PerSAM"] and rows["total"].tolist() == ["1245548", "1"]

    def test_only_what_is_read_counts_as_inference(self) -> None:
        model = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(5, 7)])
        with params.Touched(model) as touched:
            model[0](torch.ones(1, 3))
        assert touched.count == 8

    def test_multiply_adds_of_a_product(self) -> None:
        a = torch.empty(10, 20, device="meta")
        assert params.counted(lambda: a @ a.T)[1] == pytest.approx(10 * 20 * 10 / 1e9)

    def test_masks_without_numbers_pick_everywhere(self) -> None:
        with torch.device("meta"):
            clicks, mask = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool)

        def picked() -> torch.Tensor:
            clicks[mask] += torch.ones(5, device="meta")
            return clicks[mask] @ torch.ones(5, 7, device="meta")

        assert params.counted(picked)[1] == pytest.approx(2 * 3 * 5 * 7 / 1e9)


class TestTiming:
    def test_ratios_are_taken_within_a_round(self) -> None:
        timings = timing.Timings({"m|base": [1.0, 2.0, 4.0], "m|step": [2.0, 4.0, 9.0], "more": [1.0, 1.0, 1.0]})
        assert timings.ratio(("m|step",), "m|base") == 2.0
        assert timings.ms("m|step") == 4000.0 and timings.ms("m|step", "more") == 5000.0
        row = timings.row("m|step", "m|base", "<= 1.50")
        assert row == {"step": "step", "ms": 4000.0, "per_s": 0.25, "base": "base", "ratio": 2.0, "bar": "<= 1.50",
                       "met": "no"}  # fmt: skip

    def test_actions_take_turns_and_the_warm_up_does_not_count(self) -> None:
        calls: list[str] = []
        timings = timing.interleaved({n: lambda n=n: calls.append(n) for n in "ab"}, repetitions=2)
        assert calls == ["a", "b"] * 3
        assert [len(times) for times in timings.seconds.values()] == [2, 2]

    def test_another_process(self) -> None:
        assert timing.apart(os.getpid) != os.getpid()
        refuses("invalid literal", timing.apart, int, "no number")
        assert (timing.resident_mb() or 1) > 0

    @pytest.mark.parametrize(("value", "bar", "met"), [(0.1, "<= 0.10", "yes"), (7.9, ">= 8", "no"), (8, ">= 8", "yes"),
                                                       (501, "<= 500 ms", "no")])  # fmt: skip
    def test_bars(self, value: float, bar: str, met: str) -> None:
        assert timing.verdict(value, bar) == {"bar": bar, "met": met}

    def test_sections_that_are_not_run_are_kept(self, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "speed.csv"
        write_rows(path, [{"section": "reader", "step": "kept"}, {"section": "classes", "step": "old"}])
        monkeypatch.setitem(speed.SECTIONS, "classes", lambda small, repetitions: [{"step": "new", "ms": 1.5}])
        speed.main(["classes"], csv=path)
        rows = read_rows(path)
        assert rows["step"].tolist() == ["kept", "new"] and set(speed.ORDER) <= set(rows)


def test_batches_find_what_single_images_and_episodes_find(tmp_path) -> None:
    method = save(small_segmenter(), tmp_path / "model")
    batches.main(str(method), (1, 3), 4, 1, ("torch",), csv=tmp_path / "batches.csv")
    rows = read_rows(tmp_path / "batches.csv")
    assert rows["batch"].tolist() == ["1", "3"] * 2 and rows["of"].tolist() == ["images"] * 2 + ["episodes"] * 2
    assert (rows["largest difference"].astype(float)[rows["batch"] == "1"] == 0).all()
    assert rows["largest difference"].astype(float).max() < 1e-4
