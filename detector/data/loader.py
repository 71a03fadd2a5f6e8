"""Data loading: from a DetectionDataset and its proposals to batches."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from detector.box_arrays import box_areas, clip_array, intersection_areas
from detector.data.dataset import DetectionDataset
from detector.data.epoch_order import EpochOrder
from detector.data.proposal_selection import Selection, select_proposals
from detector.data.transforms import Augment, Resize, pad
from detector.errors import InputError, RunFailure
from detector.runtime.ranks import cores_per_process
from detector.runtime.seeds import Stream, seed_of
from detector.runtime.signals import leave_requests_to_parent
from detector.structures import Batch, Sample

FIRST_2000 = Selection()
MAX_AUTO_WORKERS = 8  # more workers need more memory, and are rarely faster for one GPU
# Proposals with at least this fraction of their area in a crowd are not used (py-faster-rcnn and Detectron: 0.7).
CROWD_IOA_THRESHOLD = 0.7


class Proposals(Protocol):
    """Boxes (P, 4) by image id, and scores (P,) where there are any."""

    def __getitem__(self, image_id: str) -> np.ndarray: ...
    def scores(self, image_id: str) -> np.ndarray | None: ...


@dataclass(eq=False)
class TransformedDataset(Dataset):
    """Samples in the network frame, by key (index, position).

    `position` is the sample's place in the stream of training samples; together with the seed it determines scale and
    augmentation. `selection` filters the proposals of an image. Boxes are clipped to the image; those completely
    outside are dropped, and so are difficult objects if `use_difficult` is false. Crowds are neither objects nor
    background in training: proposals with at least the fraction `crowd_ioa_threshold` of their area inside a crowd are
    dropped. With None all proposals are kept, as in evaluation.

    All errors name the image file: an InputError is raised as it is, any other error as RuntimeError.
    """

    dataset: DetectionDataset
    proposals: Proposals
    resize: Resize
    augment: Augment | None = None
    seed: int = 0
    selection: Selection = FIRST_2000
    use_difficult: bool = True
    crowd_ioa_threshold: float | None = None

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, int]:
        index, position = key
        try:
            # Before augmentation, which can change the scale.
            sample = self.resize(self.original(index), seed_of(self.seed, Stream.SCALE, position))
            if self.augment:
                sample = self.augment(sample, seed_of(self.seed, Stream.AUGMENTATION, position))
            return sample, position
        except InputError:
            raise
        except Exception as error:  # a worker can only pass on exceptions that are built from a single string
            path = self.dataset.image_path(index)
            raise RuntimeError(f"{path}: no sample can be built from it: {type(error).__name__}: {error}") from error

    def original(self, index: int) -> Sample:
        """The sample in the original frame."""
        image = self.dataset.image(index)
        gt_boxes, gt_labels, proposals = self.boxes(index, image.shape[:2])
        image_id = self.dataset.image_ids[index]
        return Sample(image_id, image, gt_boxes, gt_labels, proposals, image.shape[:2])

    def boxes(self, index: int, image_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The sample's gt_boxes, gt_labels and proposals in the original frame, for an image of this size."""
        truth = self.dataset.ground_truth(index)
        gt_boxes, inside = _cut(truth.boxes, image_hw)
        crowds = gt_boxes[inside & truth.crowd]
        inside &= ~truth.crowd
        if not self.use_difficult:
            inside &= ~truth.difficult
        scores = self.proposals.scores(truth.image_id) if self.selection.by_score else None
        proposals = select_proposals(self.proposals[truth.image_id], scores, image_hw, self.selection)
        if self.crowd_ioa_threshold is not None and len(crowds):
            proposals = proposals[_part_inside(proposals, crowds) < self.crowd_ioa_threshold]
        return gt_boxes[inside], truth.labels[inside], proposals


def _cut(boxes: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) clipped to the image, and a mask (N,) of those with an area left."""
    boxes = clip_array(boxes, shape)
    return boxes, np.all(boxes[:, 2:] > boxes[:, :2], axis=1)


def _part_inside(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The largest fraction (N,) of the area of each box (N, 4) that lies inside one of `others` (M, 4)."""
    return intersection_areas(boxes[:, None], others).max(axis=1) / box_areas(boxes)


@dataclass(frozen=True)
class TrainBatchSampler:
    """The images of each training batch, as lists of (index, position), from `start` to `iterations`.

    Every epoch has its own order; a batch can span two epochs. The images of iteration i are a function of (`order`,
    i). With several `processes`, each has its share of every batch, by its `rank`.
    """

    order: EpochOrder
    images_per_batch: int
    iterations: int
    start: int = 0
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return self.iterations - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order, size = -1, np.zeros(0, dtype=np.int64), self.order.size
        for iteration in range(self.start, self.iterations):
            batch = []
            for position in range(iteration * self.images_per_batch, (iteration + 1) * self.images_per_batch):
                if position // size != epoch:
                    epoch = position // size
                    order = self.order.indices(epoch)
                batch.append((int(order[position % size]), position))
            share = len(batch) // self.processes
            yield batch[self.rank * share : (self.rank + 1) * share]


def collate(items: list[tuple[Sample, int]]) -> Batch:
    """Collate samples into a batch; images are padded at the bottom and right to the largest height and width."""
    samples = [sample for sample, _ in items]
    images = torch.from_numpy(pad([sample.image for sample in samples]))
    return Batch(
        image_ids=[sample.image_id for sample in samples],
        positions=[position for _, position in items],
        images=images.permute(0, 3, 1, 2),  # channels_last memory format
        image_hws=[sample.image.shape[:2] for sample in samples],
        original_hws=[sample.original_hw for sample in samples],
        gt_boxes=[torch.from_numpy(sample.gt_boxes) for sample in samples],
        gt_labels=[torch.from_numpy(sample.gt_labels) for sample in samples],
        proposals=[torch.from_numpy(sample.proposals) for sample in samples],
    )


def batch_loader(
    samples: TransformedDataset,
    batches: TrainBatchSampler | list[list[tuple[int, int]]],
    workers: int | Literal["auto"],
    collate: Callable[[list[tuple[Sample, int]]], Any] = collate,
    pin_memory: bool = False,
) -> DataLoader:
    """These batches, made by `collate` in the workers, with `pin_memory` in page-locked memory."""
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=min(cores_per_process(), MAX_AUTO_WORKERS) if workers == "auto" else workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
    )


def eval_loader(
    samples: TransformedDataset, workers: int | Literal["auto"], rank: int = 0, processes: int = 1
) -> DataLoader:
    """Every image once, in the order of the dataset, with batch size 1: no result depends on other images.

    With n `processes`, each has every n-th image, starting at its `rank`.
    """
    indices = range(rank, len(samples.dataset), processes)
    return batch_loader(samples, [[(index, index)] for index in indices], workers)


@contextmanager
def explain_workers(last_images: list[str]) -> Iterator[None]:
    """Convert the errors of a data worker that dies or finds invalid input; other errors are raised unchanged.

    `last_images` are the images of the last batch received.
    """
    try:
        yield
    except (InputError, RunFailure) as error:
        kind = type(error)
        if not str(error).startswith(f"Caught {kind.__name__}"):
            raise
        # The error and torch's frames refer to each other, which would keep the loader and its workers alive.
        traceback.clear_frames(error.__traceback__)
        # The message from a worker holds its whole traceback, which ends with its own message.
        raise kind(str(error).rpartition(f"{kind.__module__}.{kind.__name__}: ")[2].strip()) from error
    # ConnectionError, EOFError: a batch of a dead worker cannot be read. SystemError: the RuntimeError that torch's
    # handler of SIGCHLD raises is its cause, if the signal arrives while a function in C returns.
    except (RuntimeError, SystemError, ConnectionError, EOFError) as error:
        cause = error.__cause__ if isinstance(error, SystemError) and error.__cause__ else error
        if isinstance(cause, RuntimeError | SystemError) and not str(cause).startswith("DataLoader worker (pid"):
            raise
        with suppress(RuntimeError):  # torch raises it again if SIGCHLD arrives late
            time.sleep(0.2)
        raise RunFailure(
            f"a process that reads images died ({str(cause).strip() or type(cause).__name__}). The system kills one "
            "when memory, or the shared memory in /dev/shm, runs out: use fewer workers, smaller images, or in a "
            f"container a larger --shm-size. The last images that arrived: {', '.join(last_images) or 'none'}"
        ) from error


def _init_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the worker processes already use all cores
    leave_requests_to_parent()
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def _send_error(queue: Queue, error: Exception, item: object) -> None:
    """Send an error in place of a batch that cannot be sent. multiprocessing drops it, and the reader waits forever."""
    if isinstance(item, tuple):  # (number, batch); bytes if the reader has ended
        reason = " ".join(str(error).split())
        failure = RunFailure(
            f"a data worker cannot send its batch: {reason}. It needs a socket in TMPDIR or /tmp, "
            "shared memory in /dev/shm, and file descriptors (ulimit -n): free these, or use workers=0"
        )
        queue.put((item[0], ExceptionWrapper((RunFailure, failure, None))))
