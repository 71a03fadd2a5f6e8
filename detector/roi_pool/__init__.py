"""RoI pooling: max-pool each region of a feature map to a fixed size (Fast R-CNN, 2.1).

`roi_pool` and `RoIPool` are the layer. The implementations are `reference.py` (the specification in a few lines of
torch, for any device), `cpu.py` (numba), `mps.py` (which calls `cpu.py`) and `cuda.py` (Triton), registered in
`layer.py` as one torch operator.

The example below is from "Region of Interest Pooling Explained" (docs/roi_pooling.md has the interface of the
TensorFlow op behind it): an 8x8 map, one region (columns 0 to 6, rows 3 to 7), pooled to 2x2.

>>> import torch
>>> features = torch.tensor([[[
...     [.88, .44, .14, .16, .37, .77, .96, .27],
...     [.19, .45, .57, .16, .63, .29, .71, .70],
...     [.66, .26, .82, .64, .54, .73, .59, .26],
...     [.85, .34, .76, .84, .29, .75, .62, .25],
...     [.32, .74, .21, .39, .34, .03, .33, .48],
...     [.20, .14, .16, .13, .73, .65, .96, .32],
...     [.19, .69, .09, .86, .88, .07, .01, .48],
...     [.83, .24, .97, .04, .24, .35, .50, .91]]]])
>>> rois = torch.tensor([[0, 0, 3, 6, 7.]])  # batch index, x1, y1, x2, y2
>>> roi_pool(features, rois, output_size=2)
tensor([[[[0.8500, 0.9600],
          [0.9700, 0.9600]]]])

The figure in the article shows 0.84 at the top right, because it splits the 5 rows into 2 + 3 and the 7 columns into
3 + 4. All published layers extend each bin from floor to ceil, so that neighbouring bins share a row or column if the
size is not divisible: rows 3-5 and 5-7, columns 0-3 and 3-6. So the upper right bin includes the 0.96.
"""

from detector.roi_pool.layer import RoIPool, distinct_rois, roi_pool

__all__ = ["RoIPool", "distinct_rois", "roi_pool"]
