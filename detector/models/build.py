"""Building a Fast R-CNN from its settings."""

from detector.errors import InputError
from detector.models.backbones import Backbone, ResNetBody, VGG16Body
from detector.models.fast_rcnn import FastRCNN
from detector.models.heads import FcHead, Head, Res5Head
from detector.roi_pool import RoIPool
from detector.settings import Model


def build_model(model: Model, num_classes: int) -> FastRCNN:
    """Build the untrained network for K classes.

    With `model.weights`, which are loaded next, batch norm is frozen, and so are the first two stages unless
    `frozen_stages` is given (VGG16: conv1 and conv2, as in section 4.5 of the paper; ResNet: stem, layer1).
    """
    backbone, pretrained, frozen_stages = model.backbone, model.weights is not None, model.frozen_stages
    is_resnet = backbone.startswith("resnet")
    if model.head == "res5" and not is_resnet:
        raise InputError(f"model.head=res5 is the last stage of a ResNet; {backbone} takes model.head=fc")
    body: Backbone = ResNetBody(backbone, frozen_norm=pretrained) if is_resnet else VGG16Body()
    if frozen_stages is None:
        frozen_stages = 2 if pretrained else 0
    if frozen_stages and not pretrained:
        raise InputError(f"model.frozen_stages={frozen_stages}: without model.weights there is nothing worth freezing")
    if frozen_stages > len(body.stages):
        raise InputError(f"model.frozen_stages={frozen_stages}: {backbone} has {len(body.stages)} stages")
    for stage in body.stages[:frozen_stages]:
        stage.requires_grad_(False)
    if model.head == "res5":
        top: Head = Res5Head(backbone, frozen_norm=pretrained)
    else:
        top = FcHead(body.out_channels, model.pool_size, model.hidden, model.dropout)
    pooling = RoIPool(model.pool_size, spatial_scale=1 / body.stride)
    return FastRCNN(body, pooling, top, num_classes, model.class_agnostic)
