"""Find objects in images with a trained network.

    python scripts/detect.py --checkpoint runs/mine/checkpoints/best.pt --input photographs --out found

Writes to the folder OUT, which must be new or empty:

    pictures/NAME.jpg     each image with its detections
    detections.json       COCO's result form: image_id (the file's name), category_id (1 for the first class of the
                          network), bbox [x, y, width, height] in pixels counted from 0, score, and category_name
    annotations/NAME.xml  with --voc-xml: each image's detections as a VOC annotation, to correct by hand

Proposals are made by selective search unless a file is given.

Exit status: 0 all images are done; 1 some could not be, they are listed, and the others are done, or a full
disk ended it; 2 wrong input, nothing is done; 130 interrupted.
"""

import argparse
import itertools
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detector import builders
from detector.data.image_files import ImageFiles, find_files
from detector.data.loader import TransformedDataset, collate
from detector.data.voc import annotation_xml
from detector.errors import FAILED, InputError, run_script
from detector.evaluation.results import write_coco_results
from detector.inference.predict import detect
from detector.proposals.generate import search_image
from detector.proposals.store import open_proposals, require_exif, require_images
from detector.runtime.files import write_atomically
from detector.selective_search import MODES
from detector.settings import validate
from detector.structures import Batch, Detections
from detector.training.checkpoint import load_checkpoint
from detector.training.run_folder import require_new
from detector.visualization.drawing import draw_detections


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the network: RUN/checkpoints/best.pt")
    parser.add_argument(
        "--input",
        required=True,
        help="an image, a folder (every file in it), or a pattern: 'photos/**/*.jpg'",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write to, new or empty")
    parser.add_argument(
        "--proposals", type=Path, help="file of proposals; its ids are the files' names, with or without suffix"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, help="of detections (default: %(default)s; 0.05 to score them)"
    )
    parser.add_argument("--max-detections", type=int, help="of an image (default: as in training)")
    parser.add_argument("--mode", choices=list(MODES), help="of selective search (default: as in training)")
    parser.add_argument("--voc-xml", action="store_true", help="write VOC annotations too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    arguments = parser.parse_args(command_line)
    return run_script(lambda: run(arguments), "there is no detections.json")


def run(arguments: argparse.Namespace) -> int:
    """Write what was found; returns the exit status, 1 if an image could not be used."""
    files = find_files(arguments.input)
    require_new("--out", arguments.out)
    checkpoint = load_checkpoint(arguments.checkpoint)
    config = settings(checkpoint["config"], arguments)
    reader = ImageFiles(files, checkpoint["classes"], builders.image_options(config["data"]))
    cores = os.cpu_count() or 1
    mode, threads = config["proposals"]["mode"], max(cores // len(reader), 1)
    proposals = Given(arguments.proposals, reader) if arguments.proposals else Searched(reader, mode, threads)
    samples = builders.transformed_dataset_with(config, reader, proposals, "val")
    compute, detector_config = builders.build_compute(config), builders.build_detector_config(config)
    model = builders.build_trained_model(config, checkpoint["model"], len(reader.classes))
    compute.place(model)

    bad, found = [], []
    arguments.out.mkdir(parents=True, exist_ok=True)
    stems = output_stems(reader.image_ids)
    progress = tqdm(prepared(samples, cores), total=len(reader), unit="image", desc="detect", disable=None)
    for index, batch in enumerate(progress):
        if isinstance(batch, InputError):
            bad.append(" ".join(str(batch).split()))  # on one line
            continue
        (detections,) = detect(model, batch, detector_config, compute)
        found.append(detections)
        write_picture(arguments.out / "pictures" / f"{stems[index]}.jpg", reader, index, detections)
        if arguments.voc_xml:
            write_xml(arguments.out / "annotations" / f"{stems[index]}.xml", reader, index, batch, detections)
    category_ids = {name: number for number, name in enumerate(reader.classes, start=1)}
    write_coco_results(arguments.out / "detections.json", found, reader.classes, category_ids)
    count = sum(len(item.scores) for item in found)
    print(f"{count} detections in {len(found)} of {len(reader)} images -> {arguments.out}")
    for line in bad:
        print(line, file=sys.stderr)
    return FAILED if bad else 0


def settings(trained: dict, arguments: argparse.Namespace) -> dict:
    """Those of training, with what was given."""
    detection, proposals = dict(trained["detect"]), dict(trained["proposals"])
    detection["score_threshold"] = arguments.score_threshold
    if arguments.max_detections is not None:
        detection["max_detections"] = arguments.max_detections
    proposals["mode"] = arguments.mode or proposals.get("mode")
    # No data set is read here, nor its proposals, and exported weights name no place of either.
    data, proposals["folder"] = trained["data"] | {"root": "."}, "."
    config = trained | {"device": arguments.device, "data": data, "detect": detection, "proposals": proposals}
    validate(config)
    return config


class Searched:
    """Proposals by image id, made by selective search when they are asked for."""

    def __init__(self, reader: ImageFiles, mode: str, threads: int) -> None:
        self.reader, self.mode, self.threads = reader, mode, threads
        self._index = {image_id: index for index, image_id in enumerate(reader.image_ids)}

    def __getitem__(self, image_id: str) -> np.ndarray:
        image = self.reader.image(self._index[image_id])
        return search_image(image, self.mode, self.threads)[0]

    def scores(self, image_id: str) -> None:
        """None: they come best first."""


class Given:
    """Proposals by image id, from a file that knows the images by their names, with or without suffix."""

    def __init__(self, path: Path, reader: ImageFiles) -> None:
        self.path, self.reader, self.proposals = path, reader, open_proposals(path)
        require_exif(self.proposals, reader.image_options.exif)
        self._index = {image_id: index for index, image_id in enumerate(reader.image_ids)}
        if not any(self.own_id(image_id) in self.proposals for image_id in reader.image_ids):
            raise InputError(f"--proposals: {path} has none of these images; it must have {reader.image_ids[0]}, ...")

    def own_id(self, image_id: str) -> str:
        return image_id if image_id in self.proposals else str(Path(image_id).with_suffix(""))

    def __getitem__(self, image_id: str) -> np.ndarray:
        own_id, index = self.own_id(image_id), self._index[image_id]
        if own_id not in self.proposals:
            raise InputError(f"{self.reader.image_path(index)}: {self.path} has no proposals for it")
        require_images(self.proposals, [own_id], [self.reader.image(index).shape[:2]])
        return self.proposals[own_id]

    def scores(self, image_id: str) -> np.ndarray | None:
        return self.proposals.scores(self.own_id(image_id))


def prepared(samples: TransformedDataset, threads: int) -> Iterator[Batch | InputError]:
    """Each image as a batch of its own, or what is wrong with it; the next ones are made meanwhile."""

    def prepare(index: int) -> Batch | InputError:
        try:
            return collate([samples[index, index]])
        except InputError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future] = deque()
        try:
            for index in range(len(samples.reader)):
                waiting.append(pool.submit(prepare, index))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def output_stems(image_ids: Sequence[str]) -> list[str]:
    """For each image a name without suffix; where two have the same, the second keeps its suffix: `a`, `a.png`."""
    stems: list[str] = []
    taken: set[str] = set()
    for image_id in image_ids:
        numbered = (f"{image_id}-{number}" for number in itertools.count(2))
        names = itertools.chain([str(Path(image_id).with_suffix("")), image_id], numbered)
        stems.append(next(name for name in names if name.lower() not in taken))
        taken.add(stems[-1].lower())
    return stems


def write_picture(path: Path, reader: ImageFiles, index: int, detections: Detections) -> None:
    picture = draw_detections(
        reader.image(index), reader.ground_truth(index), detections, reader.classes, score_threshold=0.0
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=95, subsampling=0)  # thin coloured lines stay sharp


def write_xml(path: Path, reader: ImageFiles, index: int, batch: Batch, detections: Detections) -> None:
    objects = []
    height, width = batch.original_hws[0]
    for (x1, y1, x2, y2), label in zip(detections.boxes.round().astype(int).tolist(), detections.labels, strict=True):
        x1, y1 = min(x1, width - 1), min(y1, height - 1)  # a pixel at least, and in the image
        box = (x1, y1, max(x2, x1 + 1), max(y2, y1 + 1))
        objects.append({"name": reader.classes[label - 1], "box": box, "difficult": False})
    text = annotation_xml(reader.image_path(index).name, batch.original_hws[0], objects)
    write_atomically(path, text.encode())


if __name__ == "__main__":
    sys.exit(main())
