"""The settings: type, valid range, unit, meaning and policy of each, once. docs/settings.md is generated from it.

It imports nothing slow: invalid settings are reported before torch is imported.

The default of a new setting is what the program did before the setting existed, so that earlier checkpoints keep their
meaning. A different default for new runs is in configs/.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from detector.schema import AS_TRAINED, FIXED, LAYOUT, MACHINE, PER_INVOCATION, Settings, Valid, nullable, valid_values

T = TypeVar("T")
Tuple = Annotated[tuple[T, ...], Field(strict=False)]  # a list in a file

PositiveInt = Annotated[int, Field(ge=1, le=2**63 - 1), Valid("an integer above 0")]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**63 - 1), Valid("an integer, 0 or more")]
PositiveFloat = Annotated[float, Field(gt=0), Valid("a number above 0")]
NonNegativeFloat = Annotated[float, Field(ge=0), Valid("a number, 0 or more")]
Ratio = Annotated[float, Field(ge=0, le=1), Valid("a number from 0 to 1")]
OpenRatio = Annotated[float, Field(gt=0, lt=1), Valid("a number between 0 and 1")]
Decay = Annotated[float, Field(ge=0, lt=1), Valid("a number from 0 to below 1")]
# A checkpoint may be untrusted: the limits of sizes bound the memory that it can ask for.
SidePx = Annotated[int, Field(ge=1, le=20_000), Valid("an integer from 1 to 20000")]
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]*$"), Valid("a string")]
Names = Annotated[Tuple[Text], Field(max_length=10_000), Valid("a list of names, such as [cat,dog]")]
PartFiles = Annotated[Tuple[Text | None], Valid("a list of files, or null, one for each dataset that is joined")]
ProposalFiles = Annotated[Text | PartFiles | None, Valid(f"null, the name of a file, or {valid_values(PartFiles)}")]
Units = Annotated[int, Field(ge=1, le=65_536), Valid("an integer from 1 to 65536")]
SearchMode = Literal["single", "fast", "quality"]  # of selective search
BackboneName = Literal[
    "alexnet", "zf", "vgg_cnn_m", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn",
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnet18_fpn", "resnet34_fpn", "resnet50_fpn", "resnet101_fpn", "resnet152_fpn",
    "resnet50_dc5", "resnet101_dc5", "resnet152_dc5",
]  # fmt: skip
TimmName = Annotated[
    str, StringConstraints(pattern=r"^timm/[a-z0-9_]+$"), Valid("timm/NAME, such as timm/convnext_tiny")
]
Fold = Annotated[str, StringConstraints(pattern=r"^\d{1,4}/\d{1,4}$"), Valid("K/N, such as 1/5")]
Workers = Annotated[Annotated[int, Field(ge=0, le=1000)] | Literal["auto"], Valid("auto or an integer from 0 to 1000")]
FileName = Annotated[Text, Valid("the name of a file")]
FolderName = Annotated[Text, Valid("the name of a folder")]


class Data(Settings):
    """The dataset, its proposals, and how images are read and scaled."""

    reader: Annotated[
        str,
        StringConstraints(pattern=r"^[a-z0-9_]+$"),
        Valid("voc, coco, folder or shapes: give data=voc data.root=DIR"),
    ]
    """The layout of the dataset, such as voc, coco or folder: the module of detector/data/formats/ that reads it."""
    root: Annotated[FolderName | None, MACHINE]
    """Folder of the dataset; null in exported weights."""
    train_split: Annotated[Text | None, LAYOUT] = None
    """VOC layout: the file ImageSets/Main/SPLIT.txt lists the images to train on. Folder: train, or another split."""
    val_split: Annotated[Text | None, LAYOUT] = None
    """VOC layout: the file ImageSets/Main/SPLIT.txt lists the images to validate on. Folder: val, test, all, ..."""
    train_json: Annotated[Text | None, LAYOUT] = None
    """COCO layout: annotation file to train on, relative to the root."""
    val_json: Annotated[Text | None, LAYOUT] = None
    """COCO layout: annotation file to validate on, relative to the root."""
    train_images: Annotated[Text | None, LAYOUT] = None
    """COCO layout: folder of the images, relative to the root; null: the root."""
    val_images: Annotated[Text | None, LAYOUT] = None
    """COCO layout: folder of the images to validate on, relative to the root; null: the root."""
    drop_empty_boxes: Annotated[bool | None, LAYOUT] = None
    """COCO layout: true ignores boxes without width or height."""
    format: Annotated[
        Literal["voc", "yolo", "coco", "labelme", "label_studio", "createml", "cvat", "csv"] | None, LAYOUT, AS_TRAINED
    ] = None
    """Folder: the format of the annotations to use; null: the one that is found."""
    val_fraction: Annotated[OpenRatio | None, LAYOUT, AS_TRAINED] = None
    """Folder: make a new split with this fraction of the images in val; null: the folder's own split, else 0.2."""
    fold: Annotated[Fold | None, LAYOUT, AS_TRAINED] = None
    """Folder: K/N makes a new split into N parts, of which the K-th is val, for cross-validation."""
    split_seed: Annotated[NonNegativeInt | None, LAYOUT, AS_TRAINED] = None
    """Folder: seed of the new split; null: 0."""
    parts: Annotated[
        Annotated[tuple[dict[str, bool | Text | None], ...], Field(strict=False)] | None,
        Valid("null or a list of datasets, such as [{root: /data/a}, {root: /data/b}]"),
    ] = None
    """Datasets to join; each may have its own reader, root and splits, and takes the other settings from here."""
    classes: Annotated[Names, Field(min_length=1)] | None = None
    """Class names in this order; null: all names in the annotations, sorted."""
    exclude_classes: Names | None = None
    """Objects of these classes are ignored in training and scoring; their images are kept."""
    max_images: PositiveInt | None = None
    """Use only the first images of training and of validation, this many of each; null: all."""
    exif: Annotated[Literal["apply", "ignore"], AS_TRAINED] = "apply"
    """apply: turn images upright by their EXIF orientation; ignore: use them as stored, if they were annotated so."""
    max_image_pixels: Annotated[PositiveInt, AS_TRAINED] = 178_956_970
    """A larger image is rejected before it is decoded."""
    max_bad_fraction: Ratio = 0.01
    """Up to this fraction of the training images may be unusable and is skipped; evaluation accepts none."""
    train_proposals: Annotated[ProposalFiles, MACHINE] = None
    """A .safetensors store or a release's .mat (docs/proposals.md); null: selective search, run once."""
    val_proposals: Annotated[ProposalFiles, MACHINE] = None
    """Proposals of the images to validate on, as data.train_proposals."""
    released_proposals: Annotated[FolderName | None, MACHINE] = None
    """Folder of the paper's released proposals: voc_2007_trainval.mat, and so on for each split of VOC, is used if it
    exists and no other file is given."""
    proposals_by_score: Annotated[bool, AS_TRAINED] = False
    """true: highest score first, if the file has scores; false: the order of the file."""
    min_proposal_px: Annotated[float, Field(ge=0), Valid("a number of pixels, 0 or more"), AS_TRAINED] = 0.0
    """Proposals with a shorter side than this, in the original image, are removed."""
    unique_proposals: Annotated[bool, AS_TRAINED] = True
    """true: of identical proposals of an image, only the first is used."""
    train_max_proposals: PositiveInt = 2000
    """Maximum number of proposals per training image, the first ones; generated ones are sorted, best first."""
    val_max_proposals: Annotated[PositiveInt, AS_TRAINED] = 4000
    """As data.train_max_proposals, for validation images. More raise recall: fast selective search gives about 3000."""
    use_difficult: bool = True
    """true: objects marked difficult are trained on."""
    repeat_rare: Annotated[Annotated[float, Field(gt=0, le=1), Valid("a number above 0, up to 1")] | None, FIXED] = None
    """Images with a class that is in less than this fraction of the training images are repeated in an epoch, by the
    square root of the ratio (LVIS: 0.001); null: each image once."""
    group_by_aspect: Annotated[bool, FIXED] = False
    """true: the images of a training batch are all portrait or all landscape, except at the ends of an epoch,
    which saves padding."""
    short_side_px: Annotated[
        SidePx | Annotated[Tuple[SidePx], Field(min_length=1, max_length=100)],
        Valid("an integer from 1 to 20000, or a list of them"),
        AS_TRAINED,
    ] = 600
    """Images are scaled so that the short side has this length. With a list, each training image gets a random one of
    its lengths, and images that are scored the middle one."""
    max_side_px: Annotated[SidePx, AS_TRAINED] = 1000
    """Maximum length of the long side: larger images are scaled down further."""


SvdRanks = Annotated[
    Annotated[Tuple[PositiveInt], Field(min_length=2, max_length=2)] | None,
    Valid("null or two integers above 0, such as [1024,256]"),
]


class Model(Settings):
    """The network."""

    backbone: BackboneName | TimmName
    """Convolutional network, up to stride 16; NAME_fpn: with a feature pyramid of strides 4 to 32; NAME_dc5: with the
    ResNet's layer4, dilated; timm/NAME: of the package timm, an extra, with the weights of a local file or none."""
    norm: Literal["frozen", "batch", "group"] | None = None
    """Norm layers. frozen: batch norm with the statistics of the weights; batch: of each batch; group: group norm;
    null: frozen with weights, else batch."""
    pooling: Literal["roi_pool", "roi_align", "roi_align_v2"] = "roi_pool"
    """How RoIs are pooled. roi_pool: the paper's maximum; roi_align: means of interpolated values; roi_align_v2: with
    RoIs shifted by half a cell, and about one sample per cell (detectron2)."""
    head: Literal["fc", "res5", "4conv1fc"] = "fc"
    """fc: two fully connected layers; res5: the ResNet's layer4; 4conv1fc: four convolutions, one such layer."""
    weights: Annotated[Text | None, Valid("null, imagenet or the name of a file")] = None
    """imagenet, null (from scratch), or a file: torchvision's state dict or a checkpoint."""
    frozen_stages: NonNegativeInt | None = None
    """Number of stages that are not trained, counted from the image; null: 2 with weights, else none."""
    only_boxes: bool = False
    """true: only the box regression layer is trained, the second stage of stage-wise training (paper, table 6)."""
    pool_size: Annotated[int, Field(ge=1, le=100), Valid("an integer from 1 to 100")] | None = None
    """Height and width of a pooled RoI, in cells; null: 14 for res5, else 7."""
    hidden: Units = 1024
    """Units of each fully connected layer."""
    hidden_last: Units | None = None
    """Units of the second fully connected layer; null: model.hidden."""
    dropout: Ratio = 0.0
    """Dropout probability after each fully connected layer."""
    svd_ranks: SvdRanks = None
    """Ranks of fc6 and fc7 in a network that scripts/compress.py has written; null: none. Training needs null."""
    class_agnostic: bool = False
    """true: one box per RoI for all classes; false (the paper): one for each class."""
    delta_normalization: Literal["fixed", "per_class"] = "fixed"
    """Normalisation of box targets. fixed: by roi.delta_std; per_class (the paper): also by mean and standard deviation
    of each class over the training set, which checkpoints contain."""


class RoISampling(Settings):
    """How RoIs are sampled from the proposals for training (paper, section 2.3), and how boxes are encoded."""

    rois_per_image: Annotated[int, Field(ge=1, le=100_000), Valid("an integer from 1 to 100000")] = 64
    """RoIs sampled from each image."""
    foreground_fraction: Ratio = 0.25
    """Maximum fraction of the sampled RoIs that is foreground."""
    foreground_iou: Ratio = 0.5
    """Minimum IoU of a foreground RoI with an object."""
    background_iou_low: Ratio = 0.0
    """The largest IoU of a background RoI with an object is at least this (paper: 0.1); an image without such a
    proposal samples from all proposals below background_iou_high."""
    background_iou_high: Ratio = 0.5
    """The largest IoU of a background RoI with an object is below this."""
    balance_objects: bool = False
    """true: the objects of an image get equal shares of its foreground RoIs, as far as they have proposals; false (the
    paper): foreground RoIs are sampled uniformly from all foreground proposals, most of which belong to large
    objects."""
    ohem: bool = False
    """true: of all RoIs of an image, labelled as above, the rois_per_image with the highest loss are trained on (online
    hard example mining); foreground_fraction and balance_objects do not apply."""
    delta_std: Annotated[
        Tuple[PositiveFloat], Field(min_length=4, max_length=4), Valid("four numbers above 0"), FIXED
    ] = (0.1, 0.1, 0.2, 0.2)
    """Box targets (dx, dy, dw, dh) are divided by these."""

    @model_validator(mode="after")
    def _ordered(self) -> "RoISampling":
        if not self.background_iou_low < self.background_iou_high <= self.foreground_iou:
            raise ValueError(
                "roi: needs background_iou_low < background_iou_high <= foreground_iou, has "
                f"{self.background_iou_low}, {self.background_iou_high}, {self.foreground_iou}"
            )
        return self


class Loss(Settings):
    """The loss of training (paper, section 2.3)."""

    cls: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Classification loss. focal: the cross entropy times (1 - probability of the label)^loss.focal_gamma."""
    focal_gamma: NonNegativeFloat = 2.0
    """The larger, the smaller the contribution of RoIs that are already classified well."""
    class_weights: (
        Annotated[dict[Text, NonNegativeFloat], Valid("weights of classes, such as {cat: 2.0, background: 0.5}")] | None
    ) = None
    """Factors on the classification loss of RoIs of these classes; the others have 1."""
    box: Literal["smooth_l1", "l1", "giou", "diou", "ciou"] = "smooth_l1"
    """Box loss of foreground RoIs. smooth_l1, l1: on the deltas; giou, diou, ciou: 1 - generalized, distance or
    complete IoU of the boxes."""
    beta: PositiveFloat = 1.0
    """Distance at which smooth_l1 changes from quadratic to linear."""
    box_weight: NonNegativeFloat = 1.0
    """Factor on the box loss, the paper's lambda; 0: classification alone."""


class Detect(Settings):
    """Which scored boxes are detections."""

    score_threshold: Ratio = 0.05
    """Boxes with a lower score are removed."""
    average_per_class: NonNegativeFloat = 0.0
    """When a dataset is scored, the score threshold of each class is raised until this many boxes per image remain on
    average before suppression (the paper's code: 40), at most 100 in one image; 0: detect.score_threshold alone."""
    nms: Literal["hard", "soft"] = "hard"
    """Non-maximum suppression, for each class. hard: a box that overlaps a higher-scored one is removed; soft: its
    score is multiplied by exp(-IoU^2 / detect.soft_nms_sigma)."""
    nms_iou: Ratio = 0.3
    """Hard suppression: IoU above which the lower-scored box is removed."""
    soft_nms_sigma: PositiveFloat = 0.5
    """Soft suppression: the smaller, the lower the scores of boxes that overlap."""
    max_detections: PositiveInt = 100
    """Maximum number of detections per image, those with the highest scores."""
    regress_boxes: bool = True
    """false: detections are the proposals themselves, without the box regression (paper, table 6)."""
    flip: bool = False
    """true: the mirrored image is scored too; scores and deltas are the means of both, in twice the time."""
    pyramid_px: Annotated[
        Tuple[SidePx], Field(max_length=20), Valid("a list of integers from 1 to 20000, such as [480,600,864]")
    ] = ()
    """Short sides to which the image is scaled; each proposal is scored at the scale where its area is closest to 224 x
    224 pixels. An empty list: at data.short_side_px alone."""


class Metric(Settings):
    """How detections are scored (docs/scoring.md)."""

    iou_thresholds: Annotated[
        Tuple[Annotated[float, Field(gt=0, le=1)]],
        Field(min_length=1),
        Valid("a list of numbers above 0 and up to 1, such as [0.5,0.7]"),
        FIXED,
    ] = (0.5,)
    """IoU thresholds at which mAP is computed, beside its mean over 0.50:0.95."""
    main: Annotated[str | None, FIXED] = None
    """Metric that decides which checkpoint is best: area@0.50, coco ...; null: 11point at the first IoU threshold."""
    devkit: Annotated[bool, FIXED] = False
    """true: count exactly as the published Python evaluation."""
    coco: bool = False
    """true: compute COCO's twelve numbers too."""

    @model_validator(mode="after")
    def _consistent(self) -> "Metric":
        thresholds = self.iou_thresholds
        distinct = len({round(value * 100) for value in thresholds}) == len(thresholds)
        if not distinct or any(round(value, 2) != value for value in thresholds):
            raise ValueError(f"metric.iou_thresholds={[*thresholds]}: must differ, and have two decimals at most")
        columns = [*(f"{threshold:.2f}" for threshold in thresholds), "0.50:0.95"]
        names = [f"{name}@{column}" for column in columns for name in ("11point", "area")]
        if self.main not in (None, *names, *(["coco"] if self.coco else [])):
            raise ValueError(
                f"metric.main={self.main}: must be one of {', '.join(names)}, or coco with metric.coco=true"
            )
        return self


class ProposalSearch(Settings):
    """Selective search, for the parts of the dataset that have no file of proposals."""

    mode: SearchMode = "fast"
    """Number of segmentations: single is the fastest, quality finds the most objects."""
    folder: Annotated[FolderName | None, MACHINE] = "data/proposals"
    """Folder of generated proposals."""


class Distributed(Settings):
    """Several processes, started by torchrun or srun."""

    timeout_s: PositiveInt = 120
    """A process that does not respond for this long ends the run."""


class CommonSettings(Settings):
    """What training and evaluation have in common. A checkpoint contains these."""

    seed: Annotated[int, Field(ge=0, le=2**63 - 1), Valid("an integer from 0 to 2^63 - 1"), FIXED] = 0
    """Seed of image order, augmentation, RoI sampling, initial weights and dropout."""
    device: Annotated[str, Valid("auto, cpu, cuda, cuda:N or mps")] = "auto"
    """auto (an NVIDIA GPU if there is one), cpu, cuda, cuda:1, or mps (Apple silicon)."""
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """auto: bfloat16 where the hardware multiplies it natively; float16: with a scaled loss, for GPUs without bfloat16
    (T4, V100)."""
    workers: Workers = 2
    """Processes that read and augment images and sample RoIs, for each training process; 0: the process does it itself;
    auto: the processor cores divided by the processes of the run on this machine, at most 8."""
    data: Data
    model: Annotated[Model, FIXED]
    roi: RoISampling = RoISampling()
    loss: Loss = Loss()
    detect: Annotated[Detect, FIXED] = Detect()
    metric: Metric = Metric()
    proposals: ProposalSearch = ProposalSearch()


class Optimizer(Settings):
    """An optimizer of torch.optim; a class other than those below takes its arguments as extra settings."""

    lr: PositiveFloat | None = None
    """Base learning rate; null: for SGD proportional to the batch size, for AdamW to its square root
    (docs/recipes.md)."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay."""
    bias_lr_factor: PositiveFloat = 1.0
    """The learning rate of biases is multiplied by this."""
    bias_decay_factor: Annotated[NonNegativeFloat, FIXED] = 0.0
    """The weight decay of biases is multiplied by this; 0: none, as in the paper's code; 1: as in its text."""
    norm_decay_factor: Annotated[NonNegativeFloat, FIXED] = 1.0
    """The weight decay of the weights of norm layers is multiplied by this; 0: none."""
    max_grad_norm: PositiveFloat | None = None
    """Maximum norm of the gradient of all parameters; a larger gradient is scaled down to it. null: no limit."""


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum."""

    target: Annotated[Literal["torch.optim.SGD"], FIXED] = Field(alias="_target_")
    momentum: Decay = 0.0
    """Fraction of the last update that is added to the next."""
    nesterov: bool = False
    """true: Nesterov momentum."""
    fused: bool | None = None
    """Update in one pass over the weights."""


class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    target: Annotated[Literal["torch.optim.AdamW"], FIXED] = Field(alias="_target_")
    betas: Annotated[Tuple[Decay], Field(min_length=2, max_length=2), Valid("two numbers from 0 to below 1")] = (
        0.9,
        0.999,
    )
    """Decay of the running means of the gradient and of its square."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean square."""
    fused: bool | None = None
    """Update in one pass over the weights."""


class OtherOptimizer(Optimizer, extra="allow"):
    """Another class of torch.optim; further settings are its arguments."""

    target: Annotated[Text, FIXED] = Field(alias="_target_")


class Schedule(Settings):
    """Linear warm-up of the learning rate, then the schedule."""

    warmup_iterations: NonNegativeInt = 0
    """Iterations during which the rate rises linearly."""
    warmup_factor: Ratio = 1.0
    """The rate begins at this fraction of the base rate."""


class Cosine(Schedule):
    """Half a cosine down to 0 at the last iteration."""

    target: Literal["detector.training.schedules.Cosine"] = Field(alias="_target_")


class Step(Schedule):
    """The rate is multiplied by a factor at each step: the paper's schedule."""

    target: Literal["detector.training.schedules.Step"] = Field(alias="_target_")
    steps: Annotated[Tuple[Ratio], Valid("a list of fractions of the run, such as [0.75]")]
    """Fractions of the run at which the rate drops."""
    gamma: PositiveFloat
    """Factor at each step."""


class OtherSchedule(Schedule, extra="allow"):
    """Another class of detector/training/schedules.py; further settings are its arguments."""

    target: Text = Field(alias="_target_")


class Augment(Settings):
    """Random changes of training images."""

    transforms: Annotated[
        Annotated[tuple[dict[str, Any], ...], Field(strict=False)],
        Valid("a list of transforms, each with its _target_"),
    ] = ()
    """Classes of albumentations with their arguments, applied to image, objects and proposals together."""


class Run(Settings):
    """Where a run is stored."""

    dir: Annotated[FolderName | None, MACHINE] = None
    """Folder of all files of the run; null: runs/DATE_TIME."""


class Training(Settings):
    """Length of a run, and intervals between evaluations, checkpoints and log entries."""

    iterations: PositiveInt = 500
    """Optimizer steps."""
    images_per_batch: Annotated[int, Field(ge=1, le=10_000), Valid("an integer from 1 to 10000"), FIXED] = 4
    """Images per optimizer step, in all processes together."""
    accumulate: PositiveInt = 1
    """Each process splits its images of a step into this many parts, one after the other in memory; their gradients add
    up to that of the whole batch, except with model.norm=batch, where each part has its own statistics."""
    eval_every: PositiveInt = 250
    """Iterations between evaluations; there is also one at the end."""
    patience: PositiveInt | None = None
    """The run ends early after this many evaluations in a row without a better one; null: never."""
    checkpoint_every: PositiveInt = 250
    """Iterations between checkpoints; one is also written at the end and when a signal stops the run."""
    log_every: PositiveInt = 10
    """Iterations between the lines of metrics.jsonl and points in TensorBoard."""
    ema: Annotated[OpenRatio | None, FIXED] = None
    """Decay, such as 0.99, of a moving average of the weights, which evaluation, best.pt and exports then use."""


def _class_name(value: Any) -> str:
    """The name of the class in `_target_`, if it has settings of its own here."""
    target = value.get("_target_") if isinstance(value, Mapping) else getattr(value, "target", None)
    typed = (
        "torch.optim.SGD",
        "torch.optim.AdamW",
        "detector.training.schedules.Cosine",
        "detector.training.schedules.Step",
    )
    return str(target).rpartition(".")[2] if target in typed else "other"


AnyOptimizer = Annotated[
    Annotated[Sgd, Tag("SGD")] | Annotated[AdamW, Tag("AdamW")] | Annotated[OtherOptimizer, Tag("other")],
    Discriminator(_class_name),
]
AnySchedule = Annotated[
    Annotated[Cosine, Tag("Cosine")] | Annotated[Step, Tag("Step")] | Annotated[OtherSchedule, Tag("other")],
    Discriminator(_class_name),
]


class TrainSettings(CommonSettings):
    """The settings of train.py."""

    resume: Annotated[str | None, Valid("null, auto, RUN or a file RUN/checkpoints/*.pt"), PER_INVOCATION, MACHINE] = (
        None
    )
    """auto: resume the run in run.dir, or begin it; RUN, a folder: resume it with the settings saved there; or a file
    RUN/checkpoints/*.pt."""
    run: Annotated[Run, PER_INVOCATION] = Run()
    compile: bool = False
    """true: torch.compile compiles backbone and head for training. The first step takes a minute or more longer, and a
    C++ compiler is needed. On a CPU, steps do not become faster."""
    deterministic: bool = False
    """true: two runs on one GPU are bitwise identical, with slower steps; an operation without a deterministic form is
    an error. On a CPU, runs are always bitwise identical."""
    distributed: Distributed = Distributed()
    train: Training = Training()
    optimizer: AnyOptimizer
    schedule: AnySchedule
    augment: Augment = Augment()


if TYPE_CHECKING:
    GivenData = Data
    GivenDetect = Detect
    GivenSearch = ProposalSearch
else:  # null: not given
    GivenData = nullable(Data, "GivenData")
    GivenDetect = nullable(Detect, "GivenDetect")
    GivenSearch = nullable(ProposalSearch, "GivenSearch")


class EvaluateSettings(Settings):
    """The settings of evaluate.py. Null takes the value of training where there is one."""

    checkpoint: FileName | None = None
    """The checkpoint to score."""
    detections: FileName | None = None
    """Saved detections to score: a folder of result files in the devkit's form, or a .json file of COCO results."""
    svd_ranks: SvdRanks = None
    """Ranks of the truncated SVD of fc6 and fc7 (paper, section 3.1), which makes large layers faster; null: none."""
    submission: bool = False
    """true: write the files of VOC's evaluation server instead of scores, as for a split without annotations."""
    out: FolderName | None = None
    """New folder for report, numbers, detections and curves; null: RUN/evaluate-DATA (-2, -3 ...)."""
    distributed: Distributed = Distributed()
    device: Annotated[str, Valid("auto, cpu, cuda, cuda:N or mps")] = "auto"
    """auto (an NVIDIA GPU if there is one), cpu, cuda, cuda:1, or mps (Apple silicon)."""
    precision: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    """auto: bfloat16 where the hardware multiplies it natively; float16: for GPUs without bfloat16 (T4, V100); null: as
    in training."""
    workers: Workers = 2
    """Processes that read images; 0: the process does it itself; auto: as in training."""
    data: GivenData = GivenData.model_construct()
    """The dataset of training, or another. Null: as in training."""
    detect: GivenDetect = GivenDetect()
    """Null: as in training; for saved detections, null skips a step."""
    metric: Metric = Metric(coco=True)
    proposals: GivenSearch = GivenSearch(folder="data/proposals")
    """For new proposals. Those of training are read from their folder, but nothing is written there."""
