import subprocess
import sys
import traceback
from collections import Counter

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from detector.data.epoch_order import EpochOrder
from detector.data.formats.coco import read_coco
from detector.data.formats.voc import read_voc
from detector.data.loader import (
    TrainBatchSampler,
    TransformedDataset,
    batch_loader,
    collate,
    eval_loader,
    explain_workers,
)
from detector.data.proposal_selection import Selection
from detector.data.transforms import PADDING_RGB, Augment, Resize
from tests.conftest import REPOSITORY


class AllOver(dict):
    """The same proposals for every image."""

    def __missing__(self, image_id):
        return np.array([[-5, -5, 500, 500], [10, 10, 60, 60], [900, 900, 950, 950], [5, 5, 5, 50]], dtype=np.float32)


@pytest.fixture
def samples(small_shapes) -> TransformedDataset:
    return TransformedDataset(
        read_voc(small_shapes, "train"), AllOver(), Resize([128], 256), Augment([A.HorizontalFlip(p=0.5)]), seed=3
    )


def test_proposals_are_clipped_and_those_outside_dropped(samples):
    sample = samples.original(0)
    height, width = sample.image.shape[:2]
    assert sample.proposals.tolist() == [[0, 0, width, height], [10, 10, 60, 60]]


def test_only_the_first_proposals_are_used(samples):
    samples.selection = Selection(max_proposals=1)
    assert len(samples.original(0).proposals) == 1


def test_scores_decide_where_they_are_asked_for(samples):
    samples.proposals.scores = lambda image_id: np.array([1, 2, 3, 4], np.float32)
    samples.selection = Selection(by_score=True)
    assert samples.original(0).proposals[0].tolist() == [10, 10, 60, 60]


def test_difficult_objects_can_be_left_out(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 20, 20, 1), ("dog", 5, 5, 30, 30)]}})
    dataset = read_voc(root, "train")
    assert TransformedDataset(dataset, AllOver(), Resize([600], 1000)).original(0).gt_labels.tolist() == [1, 2]
    assert TransformedDataset(dataset, AllOver(), Resize([600], 1000), use_difficult=False).original(
        0
    ).gt_labels.tolist() == [2]


def test_crowds_and_what_lies_in_them_are_not_trained_on(make_coco):
    root = make_coco({"train": {"a": [("cat", 0, 0, 5, 5), ("cat", 10, 10, 20, 20, 1)]}})
    boxes = np.array([[10, 10, 20, 20], [6, 10, 16, 20], [7.5, 10, 17.5, 20], [0, 0, 60, 40], [9, 9, 9, 9]], np.float32)
    dataset, proposals = read_coco(root, "train.json", "images"), {"1": boxes}
    scored = TransformedDataset(dataset, proposals, Resize([600], 1000)).original(0)
    assert (scored.gt_boxes.tolist(), len(scored.proposals)) == ([[0, 0, 5, 5]], 4)
    trained = TransformedDataset(dataset, proposals, Resize([600], 1000), crowd_ioa_threshold=0.7).original(0)
    assert (trained.gt_boxes.tolist(), trained.proposals.tolist()) == ([[0, 0, 5, 5]], boxes[[1, 3]].tolist())


def test_objects_outside_the_image_are_left_out(make_voc):
    root = make_voc({"train": {"a": [("cat", 100, 1, 120, 20), ("dog", 50, 30, 90, 90)]}})
    sample = TransformedDataset(read_voc(root, "train"), AllOver(), Resize([600], 1000)).original(0)
    assert (sample.gt_labels.tolist(), sample.gt_boxes.tolist()) == ([2], [[49, 29, 60, 40]])


def test_every_epoch_is_a_new_permutation():
    order = TrainBatchSampler(EpochOrder(7, 0), 2, 14)
    stream = [key for batch in order for key in batch]
    assert [position for _, position in stream] == list(range(28))
    epochs = [[index for index, _ in stream[start : start + 7]] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert list(TrainBatchSampler(EpochOrder(7, 1), 2, 14)) != list(order)


def test_the_order_can_be_resumed_anywhere():
    whole = list(TrainBatchSampler(EpochOrder(5, 4), 3, 20))
    later = TrainBatchSampler(EpochOrder(5, 4), 3, 20, start=13)
    assert list(later) == whole[13:]
    assert len(later) == 7


def test_a_batch_larger_than_the_data_set():
    batch = next(iter(TrainBatchSampler(EpochOrder(2, 0), 5, 1)))
    assert Counter(index for index, _ in batch).most_common()[0][1] == 3


def test_collate_pads_with_the_mean_colour_at_bottom_and_right(samples):
    items = [samples[index, index] for index in range(4)]
    batch = collate(items)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.dtype == torch.uint8
    for index, (sample, _) in enumerate(items):
        height, width = batch.image_hws[index]
        assert sample.image.shape[:2] == (height, width)
        np.testing.assert_array_equal(batch.images[index, :, :height, :width].permute(1, 2, 0), sample.image)
        outside = torch.cat(
            [batch.images[index, :, height:].flatten(1), batch.images[index, :, :, width:].flatten(1)], 1
        )
        assert (outside == torch.tensor(PADDING_RGB)[:, None]).all()
    assert batch.positions == [0, 1, 2, 3]


def test_the_thinnest_image_leaves_a_feature_cell(make_voc):
    root = make_voc({"train": {"a": []}})
    Image.new("RGB", (300, 2)).save(root / "JPEGImages/a.jpg")
    (root / "Annotations/a.xml").write_text("<annotation></annotation>")
    samples = TransformedDataset(read_voc(root, "train"), AllOver(), Resize([64], 100))
    batch = collate([samples[0, 0]])
    assert batch.images.shape == (1, 3, 32, 100)
    assert batch.image_hws == [(1, 100)]


def contents(loader):
    return [(batch.image_ids, batch.images.numpy().tobytes(), torch.cat(batch.gt_boxes).tolist()) for batch in loader]


def test_batches_do_not_depend_on_the_number_of_workers(samples):
    """albumentations 2.0.8 by itself repeats the same draws in each worker and epoch."""
    order = TrainBatchSampler(EpochOrder(len(samples.dataset), 3), 2, 9)
    alone, together = contents(batch_loader(samples, order, 0)), contents(batch_loader(samples, order, 2))
    assert alone == together
    by_image = {}
    for ids, image, _ in contents(batch_loader(samples, TrainBatchSampler(EpochOrder(6, 3), 1, 60), 0)):
        by_image.setdefault(ids[0], set()).add(image)
    assert {len(versions) for versions in by_image.values()} == {2}  # flipped, and not


def test_the_number_of_workers_can_follow_from_the_machine(samples, monkeypatch):
    def workers(cores: int, **variables: str) -> list[int]:
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(cores))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        order = TrainBatchSampler(EpochOrder(6, 0), 2, 1)
        return [batch_loader(samples, order, "auto").num_workers, eval_loader(samples, "auto").num_workers]

    assert (workers(1), workers(6), workers(64)) == ([1, 1], [6, 6], [8, 8])
    assert workers(16, RANK="0", WORLD_SIZE="4") == [4, 4]
    assert workers(16, RANK="0", WORLD_SIZE="16", LOCAL_WORLD_SIZE="8") == [2, 2]  # on two machines
    assert workers(2, RANK="0", WORLD_SIZE="16", LOCAL_WORLD_SIZE="8") == [1, 1]
    assert batch_loader(samples, TrainBatchSampler(EpochOrder(6, 0), 2, 1), 1).num_workers == 1


def test_scale_jitter_is_not_undone_by_resizing(small_shapes):
    halve = Augment([A.RandomScale(scale_limit=(-0.5, -0.5), p=1.0)])
    dataset = read_voc(small_shapes, "train")
    sample, _ = TransformedDataset(dataset, AllOver(), Resize([128], 256), halve)[0, 0]
    whole, _ = TransformedDataset(dataset, AllOver(), Resize([128], 256))[0, 0]
    assert min(sample.image.shape[:2]) == 64
    np.testing.assert_allclose(sample.gt_boxes, whole.gt_boxes / 2, atol=0.5)
    np.testing.assert_allclose(sample.proposals, whole.proposals / 2, atol=0.5)


def test_a_random_short_side_is_a_function_of_seed_and_position(small_shapes):
    def sides(seed: int) -> list[int]:
        samples = TransformedDataset(read_voc(small_shapes, "train"), AllOver(), Resize((64, 96, 128), 999), seed=seed)
        return [min(samples[0, position][0].image.shape[:2]) for position in range(40)]

    assert {*sides(1)} == {64, 96, 128}
    assert sides(1) == sides(1) != sides(2)


def test_evaluation_sees_every_image_once_in_order(samples):
    assert [ids for ids, _, _ in contents(eval_loader(samples, 0))] == [[f"train_{n}"] for n in range(6)]


class Raises:
    """In place of a step of a sample."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_):
        raise self.error


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("what"), "RuntimeError: what"),
        (EOFError("ends here"), "EOFError: ends here"),
        (UnicodeDecodeError("ascii", b"\xff", 0, 1, "why"), "UnicodeDecodeError: 'ascii' codec can't decode byte 0xff"),
    ],
)
def test_case_51_an_unexpected_error_names_the_image(samples, workers, error, says):
    samples.augment = Raises(error)
    with pytest.raises(RuntimeError) as caught, explain_workers([]):
        list(eval_loader(samples, workers))
    assert f"JPEGImages/train_0.jpg: no sample can be built from it: {says}" in str(caught.value)
    traceback.clear_frames(caught.tb)  # they hold the loader, whose worker would end only late


def test_a_program_that_ends_while_workers_wait_does_end(small_shapes):
    """As it does after an error in the middle of the data, which keeps the loader alive in its traceback."""
    program = f"""
import gc
import numpy as np
from detector.data.formats.voc import read_voc
from detector.data.epoch_order import EpochOrder
from detector.data.loader import TransformedDataset, eval_loader
from detector.data.transforms import Resize
dataset = read_voc({str(small_shapes)!r}, "train")
proposals = dict.fromkeys(dataset.image_ids, np.array([[10, 10, 60, 60]], np.float32))
unfinished = iter(eval_loader(TransformedDataset(dataset, proposals, Resize([40], 60)), workers=1))
print(next(unfinished).image_ids)
unfinished.keeps_itself = unfinished
gc.disable()
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert (ended.stdout, ended.returncode) == ("['train_0']\n", 0), ended.stderr
