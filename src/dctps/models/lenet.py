"""LeNet-5 for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn

from dctps.models.registry import register_model


@register_model("lenet5")
class LeNet5(nn.Module):
    """Two 5x5 convolutions (6 and 16 channels) with average pooling, then 120, 84 and `classes` units; ReLU.

    Of three channels and ten classes it has 61,770 weights and 236 biases.

    Reference: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 1998,
    section II.B; with ReLU, average pooling and a linear last layer in place of the original's units.
    """

    def __init__(self, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
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
