"""Fast R-CNN (Girshick, 2015): one pass of the backbone, RoI pooling, two heads, one loss."""
