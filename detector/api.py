"""The Python interface: load a trained detector, and detect objects in images.

    import detector

    model = detector.load("runs/mine/checkpoints/best.pt")
    result = model.detect("photo.jpg")
    result.boxes, result.names, result.scores
    result.draw("out.jpg")

docs/api.md has more examples. scripts/detect.py is this interface on the command line. An exported .onnx runs without
torch, so torch is imported only when `load` needs it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, overload

import numpy as np
from PIL import Image

from detector.data.image import image_options
from detector.data.proposal_selection import Selection, select_proposals, selection_of
from detector.data.transforms import Resize, scored_side_px
from detector.errors import InputError
from detector.inference import inputs
from detector.inference.inputs import BoxesAndScores, ImageLike, Images, ProposalInput
from detector.inference.stream import MOST_AT_ONCE, detect_stream, share_cores
from detector.inference.tiles import Tiles, Window, given_inside, merge
from detector.proposals.search import search_image
from detector.runtime.files import write_atomically
from detector.runtime.ranks import cores
from detector.settings import CommonSettings, Detect
from detector.structures import Detections, GroundTruth, Sample
from detector.visualization.drawing import draw_detections

SCORE_THRESHOLD = 0.3  # of detections to look at; scoring them needs those with low scores too

Output = TypeVar("Output")


class Options(TypedDict, total=False):
    """The options of `Detector.stream`, which describes them."""

    proposals: ProposalInput | None
    score_threshold: float
    nms_iou: float | None
    max_detections: int | None
    max_proposals: int | None
    tiles: Tiles | None


class Network(Protocol):
    """What runs the network: `TorchNetwork`, or `OnnxNetwork` of an exported file."""

    def limit_threads(self, threads: int) -> None:
        """Limit the cores that the calling thread uses."""

    def detect(self, sample: Sample, limits: Detect) -> Detections:
        """Detections, in the original frame, of a sample in the network frame."""
        ...

    def roi_features(self, sample: Sample) -> np.ndarray:
        """Features (P, C) float32 of the proposals of a sample in the network frame."""
        ...


@dataclass(frozen=True)
class Result:
    """The N detections of one image, highest score first."""

    image: np.ndarray  # (H, W, 3) uint8 RGB, upright
    detections: Detections
    classes: tuple[str, ...]  # of the network: label 1 is classes[0]

    @property
    def image_id(self) -> str:
        """The file's name, or the number of the image in its list."""
        return self.detections.image_id

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) float32: x1, y1, x2, y2 in continuous pixels of `image`, counted from 0."""
        return self.detections.boxes

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 in 1..K, as everywhere in this program; 0 is background, which is never detected."""
        return self.detections.labels

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes[label - 1] for label in self.labels]

    @property
    def scores(self) -> np.ndarray:
        """(N,) float32: the probability of the class."""
        return self.detections.scores

    def __len__(self) -> int:
        return len(self.scores)

    def only(self, classes: Collection[str]) -> Result:
        """The detections of these classes. Raises InputError for a name that the network does not know."""
        keep = np.isin(self.labels, [label_of(name, self.classes) for name in classes])
        found = self.detections
        kept = Detections(found.image_id, found.boxes[keep], found.labels[keep], found.scores[keep])
        return replace(self, detections=kept)

    def draw(self, path: str | Path | None = None, truth: GroundTruth | None = None) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB with the detections drawn on it, which is also saved as `path` if given.

        `truth` is drawn too, in white.
        """
        if truth is None:
            none = np.zeros(0, dtype=bool)
            truth = GroundTruth(self.image_id, np.zeros((0, 4), np.float32), none.astype(np.int64), none, none, none)
        picture = draw_detections(self.image, truth, self.detections, self.classes, score_threshold=0.0)
        if path is not None:
            _save(picture, Path(path))
        return picture

    def to_supervision(self) -> Any:
        """The detections as `supervision.Detections`, whose class ids count from 0: label - 1."""
        try:
            import supervision
        except ImportError:
            raise InputError("to_supervision needs the package supervision: uv pip install supervision") from None
        return supervision.Detections(
            xyxy=self.boxes, confidence=self.scores, class_id=self.labels - 1, data={"class_name": np.array(self.names)}
        )


def load(path: str | Path, device: str = "auto", mode: str | None = None) -> Detector:
    """Load a trained detector.

    Args:
        path: RUN/checkpoints/best.pt, exported weights (.safetensors with its .json), or an exported .onnx.
        device: auto (an NVIDIA GPU if there is one), cpu, cuda, cuda:N or mps. An .onnx runs on the CPU.
        mode: the mode of selective search, which generates proposals if none are given; by default that of training.

    Raises:
        InputError: if the file is missing, damaged or not a detector, or the device is not available.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        from detector.inference.onnx_network import load_onnx

        if device not in ("auto", "cpu"):
            raise InputError(f"device: '{device}': an .onnx runs on the CPU: use auto or cpu")
        onnx_network, settings, classes = load_onnx(path)
        return Detector(onnx_network, _with_mode(settings, mode), classes)
    from detector.boxes import BoxCoder
    from detector.builders.network import build_compute, build_trained_model
    from detector.inference.network import TorchNetwork
    from detector.inference.prepare import prepare
    from detector.training.checkpoint import load_checkpoint, trained_settings

    checkpoint = load_checkpoint(path)
    settings = _with_mode(trained_settings(checkpoint), mode).with_values(device=device)
    classes = tuple(checkpoint["classes"])
    compute = build_compute(settings)
    model = build_trained_model(settings.model, checkpoint["model"], len(classes))
    return Detector(TorchNetwork(prepare(model, compute), BoxCoder(settings.roi.delta_std), compute), settings, classes)


def _save(picture: np.ndarray, path: Path) -> None:
    """Write an image file atomically; its suffix determines the format."""
    formats = Image.registered_extensions()
    if path.suffix.lower() not in formats:
        raise InputError(f"{path}: its suffix is not one of an image format: use .jpg or .png")
    encoded = io.BytesIO()
    # JPEG: keeps thin coloured lines sharp
    Image.fromarray(picture).save(encoded, formats[path.suffix.lower()], quality=95, subsampling=0)
    write_atomically(path, encoded.getbuffer())


def _with_mode(settings: CommonSettings, mode: str | None) -> CommonSettings:
    return settings.with_values(proposals=settings.proposals.plain() | {"mode": mode}) if mode else settings


class Detector:
    """A trained network with the settings that it was trained with. Several threads may use one at the same time."""

    def __init__(self, network: Network, settings: CommonSettings, classes: tuple[str, ...]) -> None:
        self.network = network
        self.settings = settings
        self.classes = classes
        self._options = image_options(settings.data)
        self._resize = Resize((scored_side_px(settings.data),), settings.data.max_side_px)

    @overload
    def detect(self, images: np.ndarray | Image.Image, **options: Unpack[Options]) -> Result: ...
    @overload
    def detect(self, images: str | Path, **options: Unpack[Options]) -> Any: ...
    @overload
    def detect(self, images: Sequence[ImageLike], **options: Unpack[Options]) -> list[Result]: ...

    def detect(self, images: Any, **options: Unpack[Options]) -> Any:
        """Detect objects: returns a `Result` for one image, and a list of them for a list, a folder or a pattern.

        Args:
            images: an image, or a list of images; a folder or a pattern ('photos/**/*.jpg') stands for its files. An
                image is a path, a uint8 numpy array (H, W, 3) RGB or (H, W) gray, or a PIL image.
            options: those of `stream`.

        Raises:
            InputError: for the first image that cannot be used, and for invalid options.
        """
        results = []
        for result in self.stream(images, **options):
            if isinstance(result, InputError):
                raise result
            results.append(result)
        return results[0] if inputs.is_single(images) else results

    @overload
    def stream(self, images: Images, **options: Unpack[Options]) -> Iterator[Result | InputError]: ...
    @overload
    def stream(
        self, images: Images, *, then: Callable[[Result], Output], **options: Unpack[Options]
    ) -> Iterator[Output | InputError]: ...

    def stream(
        self,
        images: Images,
        *,
        then: Callable[[Result], Any] | None = None,
        proposals: ProposalInput | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        nms_iou: float | None = None,
        max_detections: int | None = None,
        max_proposals: int | None = None,
        tiles: Tiles | None = None,
    ) -> Iterator[Any]:
        """Yield the results one by one, in order, while the next images are processed: for many images, or for a video.

        Each image is processed on its own thread; there is one per core, at most eight. For an image that cannot be
        used, the InputError is yielded in place of a result.

        Args:
            images: those of `detect`, or any iterable of images, such as the frames of a video; a mapping gives them
                their ids.
            then: called with each result on the image's thread, for example to draw it; what it returns is yielded in
                place of the result. Its exceptions end the stream.
            proposals: boxes (P, 4) as x1, y1, x2, y2 in pixels of the image; for several images a list of such arrays,
                or a file of proposals whose ids are the names of the images, with or without suffix. By default they
                are generated by selective search.
            score_threshold: detections have a higher score.
            nms_iou: IoU threshold of NMS; by default as in training. With detect.nms=soft only accepted with `tiles`.
            max_detections: maximum per image; by default as in training.
            max_proposals: maximum per image or tile, those of the highest rank; by default as in training.
            tiles: cuts large images into overlapping tiles, and merges the detections by hard NMS.

        Raises:
            InputError: for invalid options, before the first result.
        """
        if nms_iou is not None and self.settings.detect.nms == "soft" and tiles is None:
            raise InputError(
                "nms_iou: this network was trained with detect.nms=soft, which has no IoU threshold: leave it out"
            )
        limits = self._limits(score_threshold=score_threshold, nms_iou=nms_iou, max_detections=max_detections)
        selection = self._selection(max_proposals)
        named = inputs.named_images(images)
        source = None if proposals is None else inputs.given_proposals(proposals, named, self._options)
        at_once, threads = share_cores(cores(), len(named) if isinstance(named, Sized) else MOST_AT_ONCE)

        def detect(item: tuple[int, tuple[str, ImageLike]]) -> Any:
            index, (image_id, image) = item
            try:
                pixels = inputs.pixels_of(image, self._options)
                given = source and source(index, image_id, pixels)
                windows, samples = self._samples(image_id, pixels, tiles, threads, given, selection)
            except InputError as error:
                where = str(image) if isinstance(image, str | Path) else f"image {image_id}"
                return error if str(error).startswith(where) else InputError(f"{where}: {error}")
            parts = [self.network.detect(sample, limits) for sample in samples]
            found = parts[0] if len(parts) == 1 else merge(windows, parts, limits)
            result = Result(pixels, found, self.classes)
            return then(result) if then else result

        items = enumerate(named.items() if isinstance(named, Mapping) else named)
        return detect_stream(detect, items, at_once, partial(self.network.limit_threads, threads))

    def _limits(self, **given: float | None) -> Detect:
        """The detection settings of training; given ones replace them."""
        chosen = self.settings.detect.plain() | {key: value for key, value in given.items() if value is not None}
        return self.settings.with_values(detect=chosen).detect

    def _selection(self, max_proposals: int | None) -> Selection:
        data = self.settings.data.plain()
        if max_proposals is not None:
            data["val_max_proposals"] = max_proposals
        return selection_of(self.settings.with_values(data=data).data, "val")

    def roi_features(self, image: ImageLike, boxes: np.ndarray) -> np.ndarray:
        """Features (N, C) float32 of any boxes of an image: the output of the head, from which the output layers
        predict.

        Use them to compare objects, for retrieval, tracking, or another classifier. C is `model.hidden` with
        `model.head=fc` (`model.hidden_last` if set) and 4conv1fc, and the channels of the last stage with res5.

        Args:
            image: as in `detect`.
            boxes: (N, 4) as x1, y1, x2, y2 in pixels of the image, with an area.

        Raises:
            InputError: for an image or a box that cannot be used.
        """
        pixels = inputs.pixels_of(image, self._options)
        rois = inputs.box_array(boxes, "boxes")
        bad = np.flatnonzero(~(np.isfinite(rois).all(axis=1) & (rois[:, 2:] > rois[:, :2]).all(axis=1)))
        if len(bad):
            raise InputError(f"boxes: number {bad[0]} is {rois[bad[0]].tolist()}: it needs x2 > x1 and y2 > y1")
        return self.network.roi_features(self._resize(_sample("image", pixels, rois)))

    def _samples(
        self,
        image_id: str,
        image: np.ndarray,
        tiles: Tiles | None,
        threads: int,
        given: BoxesAndScores | None,
        selection: Selection,
    ) -> tuple[list[Window], list[Sample]]:
        """The tiles of an image (or the whole image as the only one), and a sample of each in the network frame."""
        height, width = image.shape[:2]
        windows = [(0, 0, width, height)] if tiles is None else tiles.windows((height, width))
        samples = []
        for window in windows:
            x1, y1, x2, y2 = window
            view = image[y1:y2, x1:x2]
            if given is None:
                boxes, scores = search_image(view, self.settings.proposals.mode, threads)[0], None
            elif tiles is None:
                boxes, scores = given
            else:
                boxes, scores = given_inside(*given, window)
            chosen = select_proposals(boxes, scores, view.shape[:2], selection)
            samples.append(self._resize(_sample(image_id, view, chosen)))
        return windows, samples


def _sample(image_id: str, image: np.ndarray, boxes: np.ndarray) -> Sample:
    height, width = image.shape[:2]
    return Sample(image_id, image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), boxes, (height, width))


def label_of(name: str, classes: tuple[str, ...]) -> int:
    """The label 1..K of a class. Raises InputError for a name that is not among the classes of the network."""
    if name not in classes:
        raise InputError(f"class '{name}' is not known to this network, which finds {', '.join(classes)}")
    return classes.index(name) + 1
