import pytest
import torch

from dctps.models import LeNet5, build_model, list_models, register_model


def numbers(model):
    return sum(p.numel() for p in model.parameters())


def test_lenet5_has_the_published_layer_sizes():
    shapes = [tuple(p.shape) for p in LeNet5(classes=10, in_channels=3).parameters() if p.ndim > 1]
    assert shapes == [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    assert numbers(LeNet5()) == 61_770 + 236


@pytest.mark.parametrize(("classes", "in_channels"), [(10, 3), (100, 1)])
def test_forward_shape(classes, in_channels):
    model = build_model("lenet5", classes, in_channels)
    assert model(torch.zeros(2, in_channels, 32, 32)).shape == (2, classes)


def test_builds_on_meta():
    with torch.device("meta"):
        model = build_model("lenet5", 10, 3)
    assert all(p.is_meta for p in model.parameters())


def test_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown model 'lenet': did you mean 'lenet5'"):
        build_model("lenet", 10, 3)


def test_a_registered_name_builds_and_cannot_be_taken_twice():
    name = "test-linear"
    register_model(name)(lambda classes, in_channels, image_size: torch.nn.Linear(in_channels, classes))
    assert name in list_models()
    assert build_model(name, 7, 2).weight.shape == (7, 2)
    with pytest.raises(ValueError, match="already taken"):
        register_model(name)(LeNet5)
