import json
import shutil

import pytest
from torch import nn

from dctps.checkpoint import load_state
from dctps.experiments import RunConfig
from dctps.experiments.config import resolve
from dctps.experiments.folder import RunFolder, RunFolderError
from dctps.experiments.records import read_config, read_data, read_summary

SUMMARY = {
    "last_epoch": 2, "last_test_accuracy": 0.5, "best_epoch": 1, "best_val_accuracy": 0.5,
    "best_test_accuracy": 0.25, "report": {"trainable": {"values": 3}},
}  # fmt: skip
DATA = {"name": "toy", "train": 3, "test": 2, "sha256": {"train": "a", "test": "b"}}


@pytest.fixture
def finished(tmp_path):
    folder = RunFolder(tmp_path / "run", RunConfig())
    with folder.writing():
        assert folder.begin(DATA) is None
        folder.save_state({"step": 7}, "after epoch 2 of 2")
        folder.save_metrics([{"epoch": 1}, {"epoch": 2}])
        folder.save_model(nn.Linear(2, 1), "model.safetensors", 2)
        folder.finish(SUMMARY)
    return folder


def test_what_is_written_can_be_read(finished):
    assert read_config(finished.path) == resolve(RunConfig())
    assert read_summary(finished.path) == SUMMARY
    lines = (finished.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1}, {"epoch": 2}]
    assert load_state(nn.Linear(2, 1), finished.path / "model.safetensors")["epoch"] == 2
    names = {file.name for file in finished.path.iterdir()}
    assert names == {"config.json", "data.json", "metrics.jsonl", "model.safetensors", "summary.json", "lock"}


def test_a_new_folder_is_not_finished_and_looking_does_not_make_it(tmp_path):
    assert RunFolder(tmp_path / "run", RunConfig()).finished() is None
    assert not (tmp_path / "run").exists()


def test_the_same_run_is_finished_however_it_is_spelt(finished):
    assert RunFolder(finished.path, RunConfig(offset="dct", lr=6e-3)).finished() == SUMMARY


def test_a_different_run_is_refused_and_left_alone(finished):
    other = RunFolder(finished.path, RunConfig(seed=1, epochs=3))
    with pytest.raises(RunFolderError, match=r"seed 0 there and 1 here, epochs 20 there and 3 here"):
        other.finished()
    assert read_summary(finished.path) == SUMMARY


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(RunFolderError, match=r"no run \(thesis.tex\)"):
        RunFolder(tmp_path, RunConfig()).finished()
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture
def unfinished(tmp_path):
    folder = RunFolder(tmp_path / "run", RunConfig())
    with folder.writing():
        folder.begin(DATA)
        folder.save_state({"step": 7}, "after epoch 1 of 20")
        folder.save_metrics([{"epoch": 1}])
    return folder


def test_an_unfinished_run_gives_its_state_back(unfinished):
    with pytest.raises(RunFolderError, match="not finished"):
        read_summary(unfinished.path)
    (unfinished.path / ".metrics.jsonl.tmp").write_text("half a li")
    again = RunFolder(unfinished.path, RunConfig())
    assert again.finished() is None
    with again.writing():
        assert again.begin(DATA)["step"] == 7
    names = {file.name for file in unfinished.path.iterdir()}
    assert names == {"config.json", "data.json", "state.safetensors", "metrics.jsonl", "lock"}


def begin_fails(folder, match):
    before = {file.name: file.read_bytes() for file in folder.path.iterdir()}
    again = RunFolder(folder.path, RunConfig())
    with pytest.raises(RunFolderError, match=match), again.writing():
        again.begin(DATA)
    assert {file.name: file.read_bytes() for file in folder.path.iterdir()} == before


def test_a_damaged_state_is_no_reason_to_begin_again(unfinished):
    state = unfinished.path / "state.safetensors"
    content = state.read_bytes()
    state.write_bytes(content[:-1])
    begin_fails(unfinished, r"state\.safetensors cannot be used .*delete the folder")
    state.unlink()
    state.mkdir()
    again = RunFolder(unfinished.path, RunConfig())
    unreadable = r"state.safetensors cannot be read \(Is a directory\): make it a readable file"
    with pytest.raises(RunFolderError, match=unreadable), again.writing():
        again.begin(DATA)
    state.rmdir()
    begin_fails(unfinished, r"has metrics\.jsonl but no state\.safetensors")


def test_a_state_of_another_run_is_refused(unfinished, tmp_path):
    other = RunFolder(tmp_path / "other", RunConfig(seed=1))
    with other.writing():
        other.begin(DATA)
        other.save_state({}, "after epoch 1 of 20")
    shutil.copy(other.path / "state.safetensors", unfinished.path)
    begin_fails(unfinished, "of a different run")


def test_other_data_are_refused_and_a_folder_from_before_they_were_noted_is_not(unfinished):
    data = unfinished.path / "data.json"
    assert read_data(unfinished.path) == DATA
    data.write_text(json.dumps(DATA | {"train": 4, "sha256": {"train": "c", "test": "b"}}))
    begin_fails(
        unfinished, "4 training and 2 test images there, 3 training and 2 test images here; data.json"
    )
    data.unlink()
    assert read_data(unfinished.path) is None
    folder = RunFolder(unfinished.path, RunConfig())
    with folder.writing():
        assert folder.begin(DATA)["step"] == 7
    assert read_data(unfinished.path) == DATA


def test_one_process_at_a_time(tmp_path):
    first, second = (RunFolder(tmp_path / "run", RunConfig()) for _ in range(2))
    refused = pytest.raises(RunFolderError, match="another process is writing")
    with first.writing(), refused, second.writing():
        pass
    with second.writing():
        pass


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_gone_or_another_is_not_written_to(unfinished, again):
    folder = RunFolder(unfinished.path, RunConfig())
    with folder.writing():
        folder.begin(DATA)
        folder.path.rename(folder.path.with_name("moved"))
        if again:
            folder.path.mkdir()
            (folder.path / "lock").touch()
        with pytest.raises(RunFolderError, match="moved or deleted while the run wrote"):
            folder.save_state({}, "after epoch 2 of 20")
        if again:
            assert [file.name for file in folder.path.iterdir()] == ["lock"]


def test_links_in_a_strangers_folder_are_not_followed(unfinished, tmp_path):
    (tmp_path / "mine").write_text("precious")
    for name in (".state.safetensors.tmp", "best.safetensors"):
        (unfinished.path / name).symlink_to(tmp_path / "mine")
    folder = RunFolder(unfinished.path, RunConfig())
    with folder.writing():
        folder.begin(DATA)
        (unfinished.path / ".state.safetensors.tmp").symlink_to(tmp_path / "mine")
        folder.save_state({}, "after epoch 2 of 20")
        folder.save_model(nn.Linear(1, 1), "best.safetensors", 2)
    (unfinished.path / "lock").unlink()
    (unfinished.path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(RunFolderError, match="cannot write to"), folder.writing():
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_path_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        folder = RunFolder(path, RunConfig())
        with pytest.raises(RunFolderError, match=r"cannot write to .*choose another --out"), folder.writing():
            pass


@pytest.mark.parametrize("content", ["", "[]", '{"epochs": "many"}', '{"colour": 1}'])
def test_a_damaged_configuration(finished, content):
    (finished.path / "config.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"config\.json"):
        read_config(finished.path)
    with pytest.raises(RunFolderError, match=r"config\.json"):
        finished.finished()


def test_a_summary_without_its_best_epoch_is_damaged(finished):
    short = {name: value for name, value in SUMMARY.items() if name != "best_epoch"}
    (finished.path / "summary.json").write_text(json.dumps(short))
    with pytest.raises(RunFolderError, match=r"summary\.json cannot be read .*no best_epoch"):
        read_summary(finished.path)


def test_no_run_at_all(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        read_summary(tmp_path / "nowhere")
