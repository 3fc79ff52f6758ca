"""`fsdino evaluate` on any method: folds, tables, sheets, resuming, refusals."""

import multiprocessing
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from fsdino.base import registry, storage
from fsdino.cli import main
from fsdino.data.catalog import open_data_set
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.evaluation import baseline, method_choice
from fsdino.evaluation.command import measure_folds
from fsdino.evaluation.episode_choice import EpisodeChoice
from fsdino.evaluation.measure import EvaluateModule, add_rows
from fsdino.evaluation.method_choice import MethodChoice, encoder_weights, identity
from fsdino.evaluation.sheet import picked_episodes
from fsdino.evaluation.tables import read_episodes
from fsdino.evaluation.work import Work
from fsdino.metrics.few_shot import FewShotIoU
from tests.data.small import shared_data
from tests.data.trees import davis_tree, fss_tree, label_folder_tree, lvis_tree
from tests.evaluation.small import COUNTS, run_evaluate
from tests.small import METHOD_ARGS, refuses, small_segmenter


class TestCounts:
    def test_two_processes_workers_and_batches_change_no_count(self, tmp_path, model, folder, reference) -> None:
        options = ("--strips", "0", "--devices", "2", "--num-workers=1", "--batch-size=2", "--batch=3")
        rows = run_evaluate(tmp_path, model, folder, *options)
        assert len(list((tmp_path / "fold0").glob("rows.*.csv"))) == 2
        pd.testing.assert_frame_equal(rows[COUNTS], reference[COUNTS])

    def test_killed_outright_it_goes_on_without_repeating(self, tmp_path, model, folder, reference) -> None:
        arguments = (tmp_path, model, folder, "--strips", "0")
        running = multiprocessing.get_context("fork").Process(target=run_evaluate, args=arguments)
        running.start()
        second = tmp_path / "fold1" / "rows.0.csv"
        while running.is_alive() and not (second.is_file() and second.stat().st_size):
            time.sleep(0.001)
        running.kill()
        running.join()
        assert running.exitcode == -signal.SIGKILL
        before = {path: path.read_text() for path in tmp_path.glob("fold*/rows.0.csv")}
        assert before
        rows = run_evaluate(tmp_path, model, folder, "--strips", "0", "--devices", "2")
        assert all(path.read_text().startswith(text[: text.rfind("\n") + 1]) for path, text in before.items())
        written = sum(len(path.read_text().splitlines()) for path in tmp_path.glob("fold*/rows.*.csv"))
        assert written == len(rows) == 12
        pd.testing.assert_frame_equal(rows[COUNTS], reference[COUNTS])


class TestTables:
    def test_all_folds_and_their_mean(self, tmp_path, model, folder, capsys) -> None:
        rows = run_evaluate(tmp_path, model, folder, "--strips", "3", "--table", "parquet", folds="all")
        assert sorted(rows["fold"].unique()) == [0, 1, 2, 3] and (tmp_path / "episodes.parquet").is_file()
        results = pd.read_csv(tmp_path / "results.csv")
        assert results["fold"].tolist() == ["0", "1", "2", "3", "mean"]
        assert results["miou"].iloc[-1] == pytest.approx(results["miou"].iloc[:4].mean(), abs=0.01)
        assert (results["low"] <= results["miou"]).all() and (results["miou"] <= results["high"]).all()
        assert {"method", "data", "shots", "protocol", "scoring", "list", "episodes"} <= set(results)
        classes = pd.read_csv(tmp_path / "classes.csv")
        assert classes["class_name"].tolist() == [f"class{c}" for c in range(1, 5)] and (classes["episodes"] == 6).all()
        assert len(list(tmp_path.glob("fold*.png"))) == 4
        text = capsys.readouterr()
        assert "mean " in text.out and "mIoU" in text.err  # the bar shows it as it goes

    def test_a_default_folder_is_named_after_the_settings(self, tmp_path, model, folder, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        test = EpisodeChoice("folder", folder, "0", episodes=2)
        (measured, out), (_, again) = (measure_folds(MethodChoice(model), test) for _ in range(2))
        assert out == again and out.parent == Path("runs/evaluate") and "-folder-1shot-" in out.name
        assert measure_folds(MethodChoice(model, threshold=0.3), test)[1] != out and len(measured.results) == 1

    def test_davis_is_scored_by_j_and_f(self, model, tmp_path, capsys) -> None:
        root = str(davis_tree(tmp_path / "data"))
        command = ["evaluate", model, "--data", "davis2017", "--root", root, "--out", str(tmp_path / "out")]
        assert main([*command, "--strips", "0", "--device", "cpu"]) == 0
        rows, result = read_episodes(tmp_path / "out"), pd.read_csv(tmp_path / "out" / "results.csv").iloc[0]
        assert len(rows) == 9 and rows["boundary_f"].between(0, 1).all()
        expected = [rows.groupby("class_id")[name].mean().mean() for name in ("iou", "boundary_f")]
        assert [result["j"], result["f"]] == pytest.approx([100 * value for value in expected], abs=1e-3)
        assert "J&F" in capsys.readouterr().out

    def test_outlines_are_scored_when_asked_for(self, model, folder, tmp_path, capsys) -> None:
        rows = run_evaluate(tmp_path, model, folder, "--strips", "0", "--edges", "true")
        assert (rows["inter_edge"] <= rows["union_edge"]).all() and (rows["union_edge"] <= rows["union_fg"]).all()
        result = pd.read_csv(tmp_path / "results.csv").iloc[0]
        sums = rows[rows["fold"] == 0].groupby("class_id")[["inter_edge", "union_edge"]].sum()
        assert result["boundary_iou"] == pytest.approx(100 * (sums["inter_edge"] / sums["union_edge"]).mean(), abs=1e-3)
        assert result["boundary_low"] <= result["boundary_iou"] <= result["boundary_high"]
        means = rows[rows["fold"] == 0].groupby("class_id")["boundary_f"].mean()
        assert result["boundary_f"] == pytest.approx(100 * means.mean(), abs=1e-3)
        assert "j" not in result and "boundary IoU" in capsys.readouterr().out
        # The same command goes on, one without the option must not mix its rows with these.
        again = run_evaluate(tmp_path, model, folder, "--strips", "0", "--edges", "true")
        pd.testing.assert_frame_equal(rows, again)
        options = ["--data", "folder", "--root", folder, "--episodes", "6", "--folds", "0", "--out", str(tmp_path)]
        assert main(["evaluate", model, *options, "--device", "cpu"]) != 0
        assert "edges 'true' there, None here" in capsys.readouterr().err

    def test_scoring_follows_the_protocol(self, model, folder, tmp_path) -> None:
        test = EpisodeChoice("folder", folder, "0", episodes=2, protocol="hsnet")
        measured, _ = measure_folds(MethodChoice(model), test, tmp_path)
        rows = measured.results[0].evaluation.rows
        assert measured.scoring == "network" and (rows["inter_bg"] + rows["union_fg"] <= 56 * 56).all()

    def test_the_running_metric_counts_what_was_measured_before(self, reference) -> None:
        before = reference[reference["fold"] == 0]
        module = EvaluateModule(small_segmenter(), [1], done=before)
        expected = add_rows(FewShotIoU([1]), before).compute()
        assert module.running.compute() == expected and expected.num_episodes == 6

    def test_best_median_and_worst(self) -> None:
        rows = pd.DataFrame({"episode": range(9), "inter_fg": [9, 0, 5, 7, 1, 3, 8, 2, 0], "union_fg": [10] * 8 + [0]})
        picked = picked_episodes(rows, 6)
        assert picked == {"best": [0, 6], "median": [2, 5], "worst": [1, 4]}
        assert picked_episodes(rows[:2], 6) == {"best": [0, 1]}
        assert picked_episodes(rows[8:], 6) == {}


class TestMethods:
    @pytest.mark.parametrize("name", ["all_foreground", "persam", "sansa", "fssam"])
    def test_methods_by_name(self, name, tmp_path, folder) -> None:
        test = EpisodeChoice("folder", folder, "1", episodes=1)
        measured, _ = measure_folds(MethodChoice(name, options=METHOD_ARGS[name]), test, tmp_path)
        assert measured.results[0].evaluation.score.num_episodes == 1

    def test_random_weights_are_said(self, capsys) -> None:
        MethodChoice("sansa", options=METHOD_ARGS["sansa"]).open(0, None)  # type: ignore[arg-type]
        assert "sansa: its weights are random; give --options.weights FILE." in capsys.readouterr().err

    def test_a_model_a_fold(self, tmp_path, folder) -> None:
        for fold in (0, 1):
            storage.save(small_segmenter(seed=fold), tmp_path / f"model-{fold}")
        test = EpisodeChoice("folder", folder, "0,1", episodes=2)
        choice = MethodChoice(str(tmp_path / "model-{fold}"))
        measure_folds(choice, test, tmp_path / "out")
        names = {(tmp_path / "out" / f"fold{fold}" / "measurement.json").read_text() for fold in (0, 1)}
        assert len(names) == 2

    def test_the_prototype_chooses_on_base_classes(self, tmp_path, folder, monkeypatch) -> None:
        seen = []
        original = EpisodeChoice.base

        def base(self, test):
            index, episodes = original(self, test)
            seen.append((test.episodes, index, episodes))
            return index, episodes

        monkeypatch.setattr(EpisodeChoice, "base", base)
        root = label_folder_tree(tmp_path / "data", num_classes=8)
        test = EpisodeChoice("folder", str(root), "2", episodes=3)
        choice = MethodChoice("prototype", encoder_weights="random", tap=0, kind="fg_bg")
        measured, _ = measure_folds(choice, test, tmp_path / "out")
        ((tested, index, episodes),) = seen
        assert not set(episodes.class_ids) & set(tested.class_ids)
        assert not episodes.images & tested.images and not set(index.all_images()) & tested.images
        assert measured.results[0].remark.startswith("fg_bg block 0 threshold ")

    def test_the_chain_chooses_on_images_of_base_classes(self, tmp_path, monkeypatch, capsys) -> None:
        root = label_folder_tree(tmp_path / "data", num_classes=8)
        test = EpisodeChoice("folder", str(root), "2", episodes=3)
        (tested,) = test.lists(test.open())
        opened, choose = set(), baseline.choose_chain

        def spied(encoder, resize, index, episodes, *args, **kwargs):
            load = index.load_image
            monkeypatch.setattr(index, "load_image", lambda image: opened.add(image) or load(image), raising=False)
            assert not set(episodes.class_ids) & set(tested.class_ids)
            return choose(encoder, resize, index, episodes, *args, **kwargs)

        monkeypatch.setattr(method_choice, "choose_chain", spied)
        measured, _ = measure_folds(
            MethodChoice("chain", options={**METHOD_ARGS["chain"], "taps": "auto"}), test, tmp_path / "out"
        )
        assert opened and not opened & tested.images, "means or cut were taken of a tested image"
        assert "chain: its encoder is random; give --options.encoder_weights FILE." in capsys.readouterr().err
        method = measured.method
        assert measured.results[0].remark == f"blocks {'+'.join(map(str, method.encoder.taps))} cut {method.cut:.2f}"
        assert method.means.abs().sum() > 0 and len(method.encoder.taps) > 1

    def test_what_is_given_of_the_chain_is_not_chosen(self, tmp_path) -> None:
        root = label_folder_tree(tmp_path / "data", num_classes=8)
        test = EpisodeChoice("folder", str(root), "2", episodes=1)
        options = {**METHOD_ARGS["chain"], "cut": 0.31, "own_weight": 0.5, "encoder_weights": None}
        measured, _ = measure_folds(MethodChoice("chain", options=options), test, tmp_path / "out")
        method = measured.method
        assert (method.encoder.taps, method.cut, method.own_weight) == ((1, 3), 0.31, 0.5)
        assert method.remark() == "blocks 1+3 cut 0.31 own_weight 0.5"
        options = {**METHOD_ARGS["chain"], "attention": [2]}
        measured, _ = measure_folds(MethodChoice("chain", options=options), test, tmp_path / "attention")
        assert measured.method.means.shape == (3, 32) and bool(measured.method.means.any(1).all())
        assert measured.method.remark().startswith("blocks 1+3+2a cut ")
        options |= {"means": "means.safetensors"}
        choice = MethodChoice("chain", options=options)
        refuses("means: a file has none of attention outputs", measure_folds, choice, test, tmp_path / "means")

    def test_weights_of_the_prototype(self) -> None:
        assert encoder_weights("tiny", "auto").endswith("tiny_encoder.safetensors")  # type: ignore[union-attr]
        assert encoder_weights("b14", "auto") == "timm" and encoder_weights("b14", "random") is None
        assert encoder_weights("b14", "file.pth") == "file.pth"

    def test_identity_knows_both_thresholds(self) -> None:
        args = METHOD_ARGS["prototype"]
        methods = [registry.build("prototype", **{**args, "score_threshold": value}) for value in (0.1, 0.2)]
        for method in methods:
            method.load_state_dict(methods[0].state_dict())
        assert identity(methods[0]) != identity(methods[1])
        before = identity(methods[0])
        methods[0].threshold = 0.3
        assert identity(methods[0]) != before

    def test_refusals(self, model, folder, tmp_path) -> None:
        test = EpisodeChoice("folder", folder, "0", episodes=2)
        for choice, words in (
            (MethodChoice(model, options={"size": 3}), r"is opened as it was saved, options \['size'\] do not fit"),
            (MethodChoice("prototype", preset="huge"), "preset 'huge' is unknown"),
        ):
            refuses(words, measure_folds, choice, test, tmp_path)
        refuses("threshold: expected less than 1, got 1.5", MethodChoice, model, threshold=1.5)
        with pytest.raises(FileNotFoundError, match="no model 'nothing': give a name of `fsdino models`"):
            measure_folds(MethodChoice("nothing"), test, tmp_path)


class TestLists:
    def test_the_given_lists_of_real_photographs(self) -> None:
        root = shared_data("coco386")
        test = EpisodeChoice("coco386", str(root), list=str(root / "episodes/fold{fold}_{shots}shot.json"))
        assert [(given.fold, len(given)) for given in test.lists(test.open())] == [(fold, 250) for fold in range(4)]

    def test_a_list_as_long_as_the_data_set_is_thinned_out(self, tmp_path) -> None:
        test = EpisodeChoice("fss1000", str(fss_tree(tmp_path)), episodes=4)
        (drawn,) = test.lists(test.open())
        assert [episode.query for episode in drawn] == ["cat/1", "cat/5", "dog/1", "dog/5"]

    def test_rare_classes_are_said_before_anything_is_measured(self, model, tmp_path, capsys) -> None:
        root = label_folder_tree(tmp_path / "data")
        for path in (root / "labels/0007.png", root / "images/0007.jpg"):
            path.unlink()  # leaves class 4 one image
        command = ["evaluate", model, "--data", "folder", "--root", str(root), "--episodes", "2", "--strips", "0"]
        assert main([*command, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "class 'class4' of 'folder' fold 3 has 1 image(s) with a mask, 1-shot episodes need 2" in error
        assert not (tmp_path / "out").exists()
        assert main([*command, "--out", str(tmp_path / "out"), "--folds", "0", "--skip-rare"]) == 0

    def test_a_given_list_is_measured_at_original_size(self, model, folder, tmp_path) -> None:
        index = open_data_set("folder", folder)
        for fold in (0, 1):
            EpisodeList.draw(index, fold, 1, 2).save(tmp_path / f"list{fold}.json")
        test = EpisodeChoice("folder", folder, "0,1", list=str(tmp_path / "list{fold}.json"), protocol="hsnet")
        measured, _ = measure_folds(MethodChoice(model), test, tmp_path / "out")
        assert measured.scoring == "original" and len(measured.results) == 2

    def test_refusals(self, folder, tmp_path) -> None:
        index = open_data_set("folder", folder)
        EpisodeList.draw(index, 1, 1, 2).save(tmp_path / "list.json")
        for options, words in (
            ({"folds": "one"}, "folds 'one' are not numbers; give --folds all, or for instance --folds 0,2"),
            ({"folds": "7"}, "data set 'folder' has folds 0 to 3, got fold 7"),
            ({"list": str(tmp_path / "list.json")}, r"is of fold 1, 1 shot\(s\), asked for was fold 0, 1 shot"),
            ({"protocol": "best"}, "there is no protocol 'best'"),
        ):
            with pytest.raises(ValueError, match=words):
                list(EpisodeChoice("folder", folder, **options).lists(index))
        with pytest.raises(ValueError, match=r"list 'a\{class\}.json' holds other braces than \{fold\} and \{shots\}"):
            measure_folds(MethodChoice("tiny"), EpisodeChoice("folder", folder, list="a{class}.json"))
        assert main(["evaluate", "tiny", "--data", "folder", "--root", folder, "--list", "no.json"]) == 2


class TestWork:
    def test_refusals(self) -> None:
        refuses("devices: expected greater than or equal to 1, got 0", Work, devices=0)
        with pytest.raises(ValueError, match=r"--device cuda --devices 99 was asked for, this machine has \d+ GPU"):
            Work(devices=99, device="cuda").trainer(None)  # type: ignore[arg-type]

    def test_threads_are_given_back(self, model, folder, tmp_path) -> None:
        before = torch.get_num_threads()
        measure_folds(MethodChoice(model), EpisodeChoice("folder", folder, "0", episodes=1), tmp_path)
        assert torch.get_num_threads() == before

    def test_a_data_set_without_folds(self, model, tmp_path) -> None:
        test = EpisodeChoice("lvis92i", str(lvis_tree(tmp_path, num_classes=1)), episodes=1)
        with pytest.raises(ValueError, match="has no fold with classes; check --root and --folds"):
            measure_folds(MethodChoice(model), test, tmp_path / "out")
