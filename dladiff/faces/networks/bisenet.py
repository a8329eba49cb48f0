"""Face parsing by BiSeNet (Yu et al. 2018), in facexlib's layout: a class for each pixel of an aligned face.

Names of the modules are those of the published tensors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dladiff.faces.networks.state import State

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation of its input, RGB in [0, 1]."""
BACKGROUND = (0, 7, 8, 9, 14, 15, 16, 18)
"""Classes that PuLID paints white: background, ears and earring, neck and necklace, clothes, hat."""


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, 1, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return `b c h w`."""
        out: Tensor = self.bn(self.conv(x)).relu()
        return out


class ResidualBlock(nn.Module):
    """Basic block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return `b c h w`."""
        short = self.downsample(x) if hasattr(self, "downsample") else x
        out: Tensor = (short + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return out


class Resnet18(nn.Module):
    """ResNet-18 without its classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        stages = ((width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 8 * width, 2))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(ResidualBlock(inputs, outputs, stride), ResidualBlock(outputs, outputs, 1))
            for inputs, outputs, stride in stages
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps at an eighth, a 16th and a 32nd of the input's side."""
        x = functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        eighth = self.layer2(self.layer1(x))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class Refinement(nn.Module):
    """Convolution, weighted by an attention over channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvNorm(inputs, outputs)
        self.conv_atten, self.bn_atten = nn.Conv2d(outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return `b c h w`."""
        x = self.conv(x)
        out: Tensor = x * self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))).sigmoid()
        return out


class ContextPath(nn.Module):
    """Features with a wide field of view, at an eighth of the side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnet = Resnet18(width)
        self.arm16, self.arm32 = Refinement(4 * width, 2 * width), Refinement(8 * width, 2 * width)
        self.conv_head32, self.conv_head16 = ConvNorm(2 * width, 2 * width), ConvNorm(2 * width, 2 * width)
        self.conv_avg = ConvNorm(8 * width, 2 * width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the detailed and the wide features at an eighth of the side."""
        eighth, sixteenth, last = self.resnet(x)
        wide = self.arm32(last) + self.conv_avg(last.mean((2, 3), keepdim=True))
        wide = self.conv_head32(functional.interpolate(wide, sixteenth.shape[2:], mode="nearest"))
        wide = self.arm16(sixteenth) + wide
        return eighth, self.conv_head16(functional.interpolate(wide, eighth.shape[2:], mode="nearest"))


class Fusion(nn.Module):
    """Joins both kinds of features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convblk = ConvNorm(channels, channels, 1)
        self.conv1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, detailed: Tensor, wide: Tensor) -> Tensor:
        """Return `b c h w`."""
        x = self.convblk(torch.cat([detailed, wide], 1))
        out: Tensor = x * (1 + self.conv2(self.conv1(x.mean((2, 3), keepdim=True)).relu()).sigmoid())
        return out


class _Output(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels)
        self.conv_out = nn.Conv2d(channels, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_out(self.conv(x))
        return out


class FaceParsing(nn.Module):
    """The network; it has no use for the published heads of the coarser features."""

    def __init__(self, state: State) -> None:
        """`state`: published tensors. Raises KeyError: other tensors."""
        super().__init__()
        width = state["cp.resnet.conv1.weight"].shape[0]
        self.cp, self.ffm = ContextPath(width), Fusion(4 * width)
        self.conv_out = _Output(4 * width, state["conv_out.conv_out.weight"].shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes `b n h w` for RGB faces `b 3 h w` in [0, 1]."""
        mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        scores = self.conv_out(self.ffm(*self.cp((x - mean) / std)))
        return functional.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=True)

    def background(self, x: Tensor) -> Tensor:
        """Return where the background is, `b 1 h w`, without a gradient."""
        with torch.no_grad():
            classes = self(x).argmax(1, keepdim=True)
            return torch.isin(classes, torch.tensor(BACKGROUND, device=x.device))
