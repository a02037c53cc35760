import json

import pytest
from torch import nn

from dctps.checkpoint import load_state
from dctps.experiments import RunConfig
from dctps.experiments.config import resolve
from dctps.experiments.folder import RunFolder, RunFolderError, read_config, read_summary


@pytest.fixture
def finished(tmp_path):
    folder = RunFolder(tmp_path / "run", RunConfig())
    with folder.writing():
        folder.append({"epoch": 1})
        folder.append({"epoch": 2})
        folder.save(nn.Linear(2, 1), "model.safetensors", 2)
        folder.finish({"last_epoch": 2})
    return folder


def test_what_is_written_can_be_read(finished):
    assert read_config(finished.path) == resolve(RunConfig())
    assert read_summary(finished.path) == {"last_epoch": 2}
    lines = (finished.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1}, {"epoch": 2}]
    assert load_state(nn.Linear(2, 1), finished.path / "model.safetensors")["epoch"] == 2
    assert not list(finished.path.glob("*.tmp"))


def test_a_new_folder_is_not_finished_and_looking_does_not_make_it(tmp_path):
    assert RunFolder(tmp_path / "run", RunConfig()).finished() is None
    assert not (tmp_path / "run").exists()


def test_the_same_run_is_finished_however_it_is_spelt(finished):
    assert RunFolder(finished.path, RunConfig(offset="dct", lr=6e-3)).finished() == {"last_epoch": 2}


def test_a_different_run_is_refused_and_left_alone(finished):
    other = RunFolder(finished.path, RunConfig(seed=1, epochs=3))
    with pytest.raises(RunFolderError, match=r"seed 0 there and 1 here, epochs 20 there and 3 here"):
        other.finished()
    with pytest.raises(RunFolderError, match="different run"), other.writing():
        pass
    assert read_summary(finished.path) == {"last_epoch": 2}


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(RunFolderError, match=r"no run \(thesis.tex\)"):
        RunFolder(tmp_path, RunConfig()).finished()
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unfinished_run_starts_from_the_beginning(tmp_path):
    folder = RunFolder(tmp_path / "run", RunConfig())
    with folder.writing():
        folder.append({"epoch": 1})
        folder.save(nn.Linear(2, 1), "best.safetensors", 1)
    with pytest.raises(RunFolderError, match="not finished"):
        read_summary(folder.path)
    again = RunFolder(tmp_path / "run", RunConfig())
    assert again.finished() is None
    with again.writing():
        assert sorted(file.name for file in folder.path.iterdir()) == ["config.json", "lock"]
        again.append({"epoch": 1, "seconds": 2})
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 1


def test_one_process_at_a_time(tmp_path):
    first, second = (RunFolder(tmp_path / "run", RunConfig()) for _ in range(2))
    with first.writing():
        first.append({"epoch": 1})
        with pytest.raises(RunFolderError, match="another process is writing"), second.writing():
            pass
        assert (first.path / "metrics.jsonl").exists()
    with second.writing():
        pass


def test_a_run_that_another_process_finished_meanwhile_is_left_alone(finished):
    late = RunFolder(finished.path, RunConfig())
    with pytest.raises(RunFolderError, match="just finished"), late.writing():
        pass
    assert read_summary(finished.path) == {"last_epoch": 2}


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


def test_no_run_at_all(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        read_summary(tmp_path / "nowhere")
