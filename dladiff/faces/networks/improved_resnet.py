"""Improved residual networks for 112 px faces (ArcFace's IR; Deng et al. 2019), in two published layouts.

`ir_se`: facexlib's IR-SE50, with squeeze and excite (Hu et al. 2018). `ir`: TFace's IR-101, CurricularFace's backbone.
Names of the modules are those of the published tensors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dladiff.faces.networks.state import State, numbered

REDUCTION = 16
"""Channels of a block for each channel of its squeeze."""


class Squeeze(nn.Module):
    """Weights channels by their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // REDUCTION)
        self.fc1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.fc2 = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `b c h w` with weighted channels."""
        weights: Tensor = self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x * weights


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, squeezed: bool) -> None:
        super().__init__()
        first = [nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)]
        between = [nn.PReLU(outputs)] if squeezed else [nn.BatchNorm2d(outputs), nn.PReLU(outputs)]
        last = [nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.res_layer = nn.Sequential(*first, *between, *last, *([Squeeze(outputs)] if squeezed else []))
        if inputs == outputs:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return out


class ImprovedResnet(nn.Module):
    """A recognition network for crops `b 3 112 112` in [-1, 1]."""

    def __init__(self, state: State, squeezed: bool) -> None:
        """`state`: published tensors, whose shapes give widths and depth. Raises KeyError: other tensors."""
        super().__init__()
        width = state["input_layer.0.weight"].shape[0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)
        )
        blocks, self.stage_ends = [], list[int]()
        for i in range(numbered(state, "body")):
            outputs, inputs = state[f"body.{i}.res_layer.1.weight"].shape[:2]
            begins = i == 0 or inputs != outputs  # each stage but the first widens
            if begins and i:
                self.stage_ends.append(i - 1)
            blocks.append(Block(inputs, outputs, 2 if begins else 1, squeezed))
        self.stage_ends.append(len(blocks) - 1)
        self.body = nn.Sequential(*blocks)
        length, cells = state["output_layer.3.weight"].shape
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(outputs),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(cells, length),
            nn.BatchNorm1d(length, affine="output_layer.4.weight" in state),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings `b d`, not normalised."""
        out: Tensor = self.output_layer(self.body(self.input_layer(x)))
        return out

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps `b c h w` at the end of each stage."""
        maps, x = [], self.input_layer(x)
        for i, block in enumerate(self.body):
            x = block(x)
            if i in self.stage_ends:
                maps.append(x)
        return maps


def structure_and_identity(maps: list[Tensor], side: int = 16) -> list[Tensor]:
    """Return UniPortrait's tokens `b t c` of feature maps: the last one's cells, and the others resized and stacked."""
    resized = [functional.interpolate(x, (side, side), mode="bilinear", align_corners=False) for x in maps[:-1]]
    return [_cells(maps[-1]), _cells(torch.cat(resized, 1))]


def _cells(maps: Tensor) -> Tensor:
    """Return the cells `b t c` of maps `b c h w`.

    The gradient is made contiguous: with the strides of a transposed one and a batch of 1, batch normalisation in
    evaluation mode returns a wrong gradient (torch 2.13, CPU).
    """
    if maps.requires_grad:
        maps.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
    return maps.flatten(2).transpose(1, 2)
