"""The network of the paper: one backbone pass per image, RoI pooling, a head, and two sibling output layers."""

import torch
from torch import Tensor, nn

from detector.models.backbones import Backbone
from detector.models.heads import Head


class FastRCNN(nn.Module):
    """Class logits and box deltas for any number of RoIs on a batch of images (Fast R-CNN, section 2, figure 1)."""

    mean: Tensor
    std: Tensor
    delta_mean: Tensor | None  # (K, 4), or (1, 4) for class-agnostic boxes: of the targets, in units of the BoxCoder
    delta_std: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        roi_pool: nn.Module,
        head: Head,
        num_classes: int,
        class_agnostic: bool = False,
        normalize_deltas: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.roi_pool = roi_pool  # (features, rois) -> (R, C, h, w)
        self.head = head
        self.cls_score = nn.Linear(head.out_features, num_classes + 1)
        boxes = 1 if class_agnostic else num_classes
        self.bbox_pred = nn.Linear(head.out_features, boxes * 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):  # section 2.3
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.tensor(backbone.pixel_mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(backbone.pixel_std).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("delta_mean", torch.zeros(boxes, 4) if normalize_deltas else None)
        self.register_buffer("delta_std", torch.ones(boxes, 4) if normalize_deltas else None)

    def forward(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) uint8, rois (R, 5) in their frame -> class_logits (R, K+1), deltas (R, K, 4).

        Class-agnostic deltas are the same for all classes: one row, expanded without a copy.
        """
        hidden = self.roi_features(images, rois)
        deltas = self.bbox_pred(hidden).unflatten(1, (-1, 4))
        if self.delta_std is not None:
            deltas = deltas * self.delta_std + self.delta_mean
        return self.cls_score(hidden), deltas.expand(-1, self.num_classes, -1)

    def roi_features(self, images: Tensor, rois: Tensor) -> Tensor:
        """The head's features (R, out_features) of the RoIs, from which both output layers predict."""
        features = self.backbone((images - self.mean) / self.std)  # (B, C, H/stride, W/stride)
        pooled = self.roi_pool(features, rois)  # (R, C, h, w)
        return self.head(pooled)

    @torch.no_grad()
    def set_delta_statistics(self, mean: Tensor, std: Tensor, keep_outputs: bool) -> None:
        """Set the mean and the standard deviation of the targets: `delta_mean` and `delta_std`.

        With `keep_outputs` the weights of the box regression change so that the network predicts the same deltas as
        before, for a trained network without statistics.
        """
        assert self.delta_mean is not None
        assert self.delta_std is not None
        self.delta_mean.copy_(mean)
        self.delta_std.copy_(std)
        if keep_outputs:
            self.bbox_pred.weight /= self.delta_std.reshape(-1, 1)
            self.bbox_pred.bias.copy_((self.bbox_pred.bias - self.delta_mean.flatten()) / self.delta_std.flatten())
