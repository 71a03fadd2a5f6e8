"""Building a Fast R-CNN from its settings."""

from torch import nn

from detector.errors import InputError
from detector.models.backbones import Backbone, build_backbone, split_name
from detector.models.fast_rcnn import FastRCNN
from detector.models.heads import ConvFcHead, FcHead, Head, Res5Head
from detector.models.pooling import POOLINGS, PyramidPooling
from detector.settings import Model


def build_model(model: Model, num_classes: int) -> FastRCNN:
    """Build the untrained network for K classes.

    With `model.weights`, which are loaded next, batch norm is frozen unless `norm` is given, and so are the first two
    stages unless `frozen_stages` is given (VGG16: conv1 and conv2, as in section 4.5 of the paper; ResNet: stem,
    layer1).
    """
    norm = model.norm or ("batch" if model.weights is None else "frozen")
    if norm == "frozen" and model.weights is None:
        raise InputError("model.norm=frozen: without model.weights there are no statistics to keep")
    pool_size = model.pool_size or (14 if model.head == "res5" else 7)
    body = build_backbone(model.backbone, norm)
    if model.norm is not None and not any(isinstance(module, body.norm_layers) for module in body.modules()):
        raise InputError(f"model.norm={norm}: {model.backbone} has no norm layers; vgg16_bn and the ResNets have")
    head = _build_head(model, body, pool_size, norm)
    pools = [POOLINGS[model.pooling](pool_size, 1 / (body.stride * 2**level)) for level in range(body.levels)]
    pooling = pools[0] if body.levels == 1 else PyramidPooling(pools)
    normalize = model.delta_normalization == "per_class"
    network = FastRCNN(body, pooling, head, num_classes, model.class_agnostic, normalize)
    _freeze(network, model)
    return network


def _build_head(model: Model, body: Backbone, pool_size: int, norm: str) -> Head:
    if model.head != "fc" and (model.hidden_last is not None or model.dropout or model.svd_ranks is not None):
        raise InputError(
            f"model.head={model.head} has no second fully connected layer and no dropout: it needs "
            "model.hidden_last=null model.dropout=0 model.svd_ranks=null"
        )
    if model.head == "res5":
        if not model.backbone.startswith("resnet") or split_name(model.backbone)[1]:
            raise InputError(f"model.head=res5 is the last stage of a ResNet; {model.backbone} takes fc or 4conv1fc")
        return Res5Head(model.backbone, norm)
    if model.head == "4conv1fc":
        return ConvFcHead(body.out_channels, pool_size, model.hidden, grouped=norm == "group")
    return FcHead(body.out_channels, pool_size, model.hidden, model.dropout, model.hidden_last, model.svd_ranks)


def _freeze(network: FastRCNN, model: Model) -> None:
    stages, count = network.backbone.stages, model.frozen_stages
    if count is None:
        count = 0 if model.weights is None else 2
    if count and model.weights is None:
        raise InputError(f"model.frozen_stages={count}: stages can be frozen only with model.weights")
    if count > len(stages):
        raise InputError(f"model.frozen_stages={count}: {model.backbone} has {len(stages)} stages")
    frozen: list[nn.Module] = stages[:count]
    if model.only_boxes:
        if model.weights is None:
            raise InputError("model.only_boxes=true: needs the model.weights of a network that classifies")
        frozen = [network.backbone, network.head, network.cls_score]
    for module in frozen:
        module.requires_grad_(False)
