"""RoI pooling: cut each region out of one feature map and max-pool it to a fixed size (Fast R-CNN, 2.1).

`roi_pool` and `RoIPool` are the layer. Behind them lie `reference.py` (the specification in a few lines of
torch, for any device), `cpu.py` (numba) and `cuda.py` (Triton), joined in `ops.py` as one torch operator.
`deepsense.py` offers the interface of the TensorFlow op behind "Region of Interest Pooling Explained", and
that article's example is this one: an 8x8 map, one region (columns 0 to 6, rows 3 to 7), pooled to 2x2.

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

The article's drawing shows 0.84 at the top right, because it cuts the 5 rows into 2 + 3 and the 7 columns
into 3 + 4. The layer that everyone ships takes each bin from floor to ceil, so that neighbours share a row or
column where the sizes do not divide: rows 3-5 and 5-7, columns 0-3 and 3-6. The upper right bin thus reaches
the 0.96.
"""

from detector.roi_pool.layer import RoIPool, roi_pool

__all__ = ["RoIPool", "roi_pool"]
