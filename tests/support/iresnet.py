"""IResNet as arcface_torch defines it (Duta et al. 2020; He et al. 2016), any width, random weights, saved as ONNX."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

LAYERS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


class Block(nn.Module):
    """BN, conv, BN, PReLU, conv of the stride, BN; the shortcut is a convolution where the size changes."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.Conv2d(inputs, planes, 3, 1, 1, bias=False),
            nn.BatchNorm2d(planes), nn.PReLU(planes),
            nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes),
        )  # fmt: skip
        self.short = nn.Identity() if stride == 1 and inputs == planes else nn.Sequential(
            nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.short(x)


class IResNet(nn.Module):
    """`width` is 64 in the published networks; the embedding has 512 numbers."""

    def __init__(self, depth: int, width: int = 64, embedding: int = 512) -> None:
        super().__init__()
        planes = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = [
            Block(planes[i] if j == 0 else planes[i + 1], planes[i + 1], 2 if j == 0 else 1)
            for i, count in enumerate(LAYERS[depth])
            for j in range(count)
        ]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.BatchNorm2d(planes[4]), nn.Dropout(0.4), nn.Flatten(), nn.Linear(planes[4] * 49, embedding),
            nn.BatchNorm1d(embedding),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def random_iresnet(depth: int, width: int = 64) -> IResNet:
    """Random weights, statistics and slopes, so that no layer is the identity; in evaluation mode."""
    torch.manual_seed(depth)
    network = IResNet(depth, width)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.1, 0.4)
    return network.eval()


def export(network: IResNet, path: Path) -> Path:
    """Write it as arcface_torch does: one file, opset 11, batch free."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter is old, and so is what wrote InsightFace's files
        torch.onnx.export(
            network, (torch.zeros(1, 3, 112, 112),), str(path), dynamo=False, opset_version=11,
            input_names=["input.1"], dynamic_axes={"input.1": {0: "N"}},
        )  # fmt: skip
    return path
