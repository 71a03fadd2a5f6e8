"""RoI pooling for the GPU of Apple silicon: on the CPU, which shares its memory. The argmax stays on the CPU."""

from torch import Tensor

from detector.roi_pool import cpu


def forward(
    features: Tensor, rois: Tensor, pooled_hw: tuple[int, int], spatial_scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """Pool (B,C,H,W) features as `cpu.forward` does; the GPU lacks uint16, which the argmax may have."""
    pooled, argmax = cpu.forward(features.cpu(), rois.cpu(), pooled_hw, spatial_scale, with_argmax)
    return pooled.to(features.device), argmax


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, batch_size: int, height: int, width: int) -> Tensor:
    """The gradient (B,C,H,W) of `cpu.backward`, on the device of `grad`."""
    return cpu.backward(grad.cpu(), rois.cpu(), argmax.cpu(), batch_size, height, width).to(grad.device)
