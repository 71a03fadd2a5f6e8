"""Interface of deepsense-ai's TensorFlow op, from "Region of Interest Pooling Explained"."""

from torch import Tensor

from detector.roi_pool.layer import roi_pool


def roi_pooling(feature_map: Tensor, rois: Tensor, pool_height: int, pool_width: int) -> Tensor:
    """Pool regions given in integer feature cells; for code and examples written for that op.

    Args:
        feature_map: (N, H, W, C), with channels in the last dimension.
        rois: (R, 5) integers [map index, x1, y1, x2, y2] in feature cells, both corners inclusive; no scale.
        pool_height, pool_width: size of the result.

    Returns:
        (R, C, pool_height, pool_width), with channels second, as in that op. Gradients are those of `roi_pool`; those
        of the op are wrong for more than one channel.
    """
    return roi_pool(feature_map.permute(0, 3, 1, 2), rois, (pool_height, pool_width))
