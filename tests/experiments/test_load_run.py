"""What a finished run is for: its network in Python, as a program, and on other images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.image_files import bars, write

import dctps
from dctps.cli import main
from dctps.data import DataError, load_dataset
from dctps.experiments import RunConfig
from dctps.experiments.exporting import export_network
from dctps.experiments.run import run
from dctps.experiments.trained import predict

NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module", params=["colour", "grey"])
def trained(request, tmp_path_factory):
    """A folder of images, and a run on it that has learned them."""
    root = tmp_path_factory.mktemp(request.param)
    for part, seed in (("train", 0), ("test", 1)):
        for index, (image, label) in enumerate(zip(*bars(seed=seed), strict=True)):
            shown = image if request.param == "grey" else np.stack([image, image // 2, 255 - image], -1)
            write(root / "data" / part / NAMES[label] / f"{index:02}.png", shown)
    config = RunConfig(
        dataset="folder", method="sdctps", density=0.05, epochs=6, batch_size=4, augment=False, alpha="match"
    )
    run(config, out=root / "run", data_dir=root / "data", threads=1)
    return root


def summary_of(root):
    return json.loads((root / "run" / "summary.json").read_text())


def test_its_predictions_have_the_accuracy_of_the_run(trained):
    model = dctps.load_run(trained / "run")
    found = list(predict(model, [trained / "data" / "test"], top=3))
    right = [one.classes[0] == one.file.parent.name for one in found]
    assert len(right) == 60 and sum(right) / 60 == summary_of(trained)["last_test_accuracy"] > 0.9
    assert all(set(one.classes) == set(NAMES) for one in found)
    assert all(sum(one.probabilities) == pytest.approx(1, abs=1e-5) for one in found)


def test_it_is_the_network_that_the_run_tested(trained):
    facts = (model := dctps.load_run(trained / "run", which="best")).preprocessing
    data = load_dataset("folder", trained / "data")
    assert not model.training
    assert facts.class_names == NAMES and facts.mean == pytest.approx(data.mean)
    with torch.no_grad():
        outputs = model(facts(data.test.images))
    right = (outputs.argmax(1) == data.test.labels).float().mean()
    assert float(right) == pytest.approx(summary_of(trained)["best_test_accuracy"])
    loss = torch.nn.functional.cross_entropy(outputs, data.test.labels)
    assert float(loss) < 1
    with pytest.raises(ValueError, match="the run's images are torch.uint8 of shape"):
        facts(data.test.images.float())


def test_images_of_another_size_and_kind_are_made_like_the_runs(trained, tmp_path):
    model = dctps.load_run(trained / "run")
    file = sorted((trained / "data" / "test").rglob("*.png"))[0]
    with Image.open(file) as image:
        wide = Image.new(image.mode, (96, 64))
        wide.paste(image.resize((64, 64), Image.Resampling.NEAREST), (16, 0))
        wide.save(tmp_path / "wide.png")
        image.convert("RGBA").save(tmp_path / "rgba.png")
    one, two = predict(model, [tmp_path / "rgba.png", tmp_path / "wide.png"])
    assert one.probabilities == next(predict(model, [file])).probabilities
    assert one.classes == two.classes == (file.parent.name,)
    (tmp_path / "no.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for bad, message in (("no.png", "cannot read the image"), ("empty", "no image"), ("x", "there is no")):
        with pytest.raises(DataError, match=message):
            list(predict(model, [tmp_path / bad]))


@pytest.mark.parametrize("merge", [False, True])
def test_as_onnx_it_takes_any_number_of_images(trained, tmp_path, merge):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    flags = ["export", str(trained / "run"), "--output", str(tmp_path / "net.onnx")]
    assert main([*flags, *["--merge"] * merge]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    images = load_dataset("folder", trained / "data").test.images
    model = dctps.load_run(trained / "run")
    for some in (images[:1], images[:7], images):
        (found,) = session.run(["logits"], {"images": some.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(model.preprocessing(some)))
    facts = json.loads(session.get_modelmeta().custom_metadata_map["dctps"])
    assert tuple(facts["class_names"]) == NAMES and facts["mean"] == list(model.preprocessing.mean)


def test_as_a_program_it_takes_any_number_of_images(trained, capfd):
    assert main(["export", str(trained / "run"), "--format", "program"]) == 0
    file = trained / "run" / "model.pt2"
    assert capfd.readouterr().out.startswith(f"{file}: {file.stat().st_size:,} bytes, outputs within ")
    extra = {"dctps": ""}
    program = torch.export.load(file, extra_files=extra).module()
    images = load_dataset("folder", trained / "data").test.images
    model = dctps.load_run(trained / "run")
    for some in (images[:1], images):
        with torch.no_grad():
            torch.testing.assert_close(program(some), model(model.preprocessing(some)))
    assert tuple(json.loads(extra["dctps"])["class_names"]) == NAMES
    # The run stays a finished one.
    assert main(["evaluate", str(trained / "run"), "--data-dir", str(trained / "data")]) == 0


def test_a_program_with_other_outputs_is_not_written(trained, tmp_path, monkeypatch):
    model = dctps.load_run(trained / "run")
    wrong = dctps.load_run(trained / "run")
    with torch.no_grad():
        next(wrong.parameters()).add_(1.0)
    monkeypatch.setattr(dctps.experiments.exporting, "merge_", lambda _: wrong)
    with pytest.raises(ValueError, match=r"outputs differ from the network's by .* not written"):
        export_network(model, tmp_path / "net.pt2", kind="program", merge=True)
    assert not list(tmp_path.iterdir())


def test_a_hyperplane_is_exported_as_the_plain_network(tmp_path):
    config = RunConfig(method="hyperplane", density=0.002, epochs=1, train_images=64, eval_images=50)
    run(config, out=tmp_path / "run", threads=1)
    model = dctps.load_run(tmp_path / "run")
    assert export_network(model, tmp_path / "net.pt2", kind="program") < 1e-5
    program = torch.export.load(tmp_path / "net.pt2").module()
    images = load_dataset("digits").test.images[:9]
    with torch.no_grad():
        torch.testing.assert_close(program(images), model(model.preprocessing(images)))


def test_mistakes_are_one_line(trained, tmp_path, capfd):
    unwritable = tmp_path / "no" / "net.pt2"
    lines = {
        f"export {tmp_path}": "holds no run",
        f"export {trained / 'run'} --format program --output {unwritable}": "No such file",
        f"predict {trained / 'run'}": "give image files, or a folder of them",
        f"predict {trained / 'run'} {trained / 'data'} --top 4": "top must be from 1 to the 3 classes, got 4",
        f"predict {tmp_path} {trained / 'data'}": "holds no run",
    }
    for line, message in lines.items():
        assert main(line.split()) == 2
        err = capfd.readouterr().err
        assert err.startswith("dctps: error: ") and err.count("\n") == 1 and message in err
