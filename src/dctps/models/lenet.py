"""LeNet-5 for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn

from dctps.models.registry import register_model


@register_model("lenet5")
class LeNet5(nn.Module):
    """Two 5x5 convolutions (6 and 16 channels) with average pooling, then 120, 84 and `classes` units; ReLU.

    Of three channels and ten classes it has 61,770 weights and 236 biases.

    Args:
        classes: outputs.
        in_channels: of the images.
        image_size: 32, nothing else: the first linear layer sees every pixel.

    Raises:
        ValueError: another image size.

    Reference: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 1998,
    section II.B; with ReLU, average pooling and a linear last layer in place of the original's units.
    """

    def __init__(self, classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        if image_size != 32:
            raise ValueError(
                f"lenet5 takes images of 32 x 32 pixels, not {image_size} x {image_size}: "
                "resize them, or take a network that averages over the pixels, such as resnet20"
            )
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(),
            nn.Linear(120, 84), nn.ReLU(),
            nn.Linear(84, classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, in_channels, 32, 32)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
