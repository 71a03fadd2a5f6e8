import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.boxes import BoxCoder, box_iou
from detector.data.formats.voc import read_voc
from detector.data.loader import TransformedDataset
from detector.data.transforms import Resize
from detector.proposals.store import ProposalStore
from detector.runtime.device import Compute
from detector.settings import RoISampling
from detector.structures import Batch, RoiTargets
from detector.training.engine import TrainingConfig, training_steps
from detector.training.losses import PAPER
from detector.training.targets import all_targets, delta_statistics, make_targets, sample_rois, with_hardest_rois
from tests.helpers.batches import random_boxes, train_batch

COMPUTE = Compute(torch.device("cpu"), torch.float32)
CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
GT = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 70.0, 70.0]])
LABELS = torch.tensor([3, 1])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_literal_thresholds():
    proposals = torch.tensor(
        [
            [0.0, 0.0, 10.0, 5.0],  # IoU 0.5 with the first object: foreground
            [0.0, 0.0, 10.0, 4.9],  # 0.49: background
            [0.0, 0.0, 10.0, 1.0],  # 0.1: background
            [0.0, 0.0, 10.0, 0.9],  # 0.09: neither
            [20.0, 20.0, 30.0, 30.0],  # 0: neither
        ]
    )
    sampling = RoISampling(rois_per_image=100, foreground_fraction=1.0, background_iou_low=0.1)
    boxes, labels, matched = sample_rois(proposals, GT, LABELS, sampling, generator())
    found = {tuple(box): label for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)}
    f = [tuple(row) for row in proposals.tolist()]
    assert found == {f[0]: 3, f[1]: 0, f[2]: 0, tuple(GT[0].tolist()): 3, tuple(GT[1].tolist()): 1}
    assert matched[boxes.tolist().index(list(f[0]))].tolist() == GT[0].tolist()


@given(st.integers(0, 500), st.integers(0, 60), st.integers(0, 4))
def test_invariants(seed, num_proposals, num_objects):
    proposals, gt_boxes = random_boxes(num_proposals, seed), random_boxes(num_objects, seed + 1)
    gt_labels = torch.arange(1, num_objects + 1)
    sampling = RoISampling(rois_per_image=16, balance_objects=seed % 2 == 0)
    boxes, labels, matched = sample_rois(proposals, gt_boxes, gt_labels, sampling, generator(seed))
    assert len(boxes) == len(labels) == len(matched) <= 16
    assert (labels > 0).sum() <= 4
    assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)  # without replacement
    if num_objects and len(boxes):
        best = box_iou(boxes, gt_boxes).amax(dim=1)
        assert (best[labels > 0] >= 0.5).all()
        assert (best[labels == 0] < 0.5).all()
        assert torch.equal(gt_boxes[labels[labels > 0] - 1], matched[labels > 0])


def test_objects_have_equal_shares_of_the_foreground():
    """40 proposals of the first object, 5 of the second, 1 of the third, beside the objects themselves."""
    gt_boxes = torch.cat([GT, torch.tensor([[100.0, 0.0, 110.0, 10.0]])])
    proposals = torch.cat(
        [
            gt_boxes[index : index + 1].repeat(count, 1) + torch.rand(count, 1) * 0.1
            for index, count in enumerate([40, 5, 1])
        ]
    )
    sampling = RoISampling(rois_per_image=64, balance_objects=True)  # at most 16 are foreground
    arguments = (proposals, gt_boxes, torch.tensor([1, 2, 3]))
    _, labels, _ = sample_rois(*arguments, sampling, generator())
    assert labels.bincount(minlength=4)[1:].tolist() == [8, 6, 2]  # the second and third have no more
    few = sampling.with_values(foreground_fraction=0.1)
    assert sample_rois(*arguments, few, generator())[1].bincount()[1:].tolist() == [2, 2, 2]
    drawn = {tuple(sample_rois(*arguments, few, generator(seed))[0][0].tolist()) for seed in range(9)}
    assert len(drawn) > 3  # at random within an object
    _, labels, _ = sample_rois(*arguments, sampling.with_values(balance_objects=False), generator())
    assert labels.bincount(minlength=4)[1] > 10


def test_many_objects_have_equal_chances_of_the_foreground():
    """32 objects for 16 places; half of them have 40 proposals, half one."""
    gt_boxes = torch.arange(32.0)[:, None] * 100 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    near = gt_boxes.repeat_interleave(torch.tensor([40, 1] * 16), dim=0)
    arguments = (near + torch.rand(len(near), 1) * 0.1, gt_boxes, torch.arange(32) % 2 + 1)
    sampling, counts = RoISampling(rois_per_image=64, balance_objects=True), torch.zeros(3)
    for seed in range(100):
        counts += sample_rois(*arguments, sampling, generator(seed))[1].bincount(minlength=3)
    assert counts[1:].sum() == 1600
    assert 0.45 < counts[1] / counts[1:].sum() < 0.55


def test_foreground_has_its_fraction_and_background_the_rest():
    many = GT[:1].repeat(50, 1) + torch.rand(50, 1) * 0.1
    background = torch.tensor([[0.0, 0.0, 10.0, 3.0]]).repeat(100, 1) + torch.rand(100, 1) * 0.1
    _, labels, _ = sample_rois(torch.cat([many, background]), GT, LABELS, RoISampling(rois_per_image=64), generator())
    assert ((labels > 0).sum().item(), len(labels)) == (16, 64)


@pytest.mark.parametrize("gt_boxes", [GT, torch.zeros(0, 4)])
def test_without_a_proposal_in_range_background_is_from_below(gt_boxes):
    far = torch.tensor([[20.0, 20.0, 30.0, 30.0]]).repeat(9, 1)
    boxes, labels, _ = sample_rois(
        far, gt_boxes, LABELS[: len(gt_boxes)], RoISampling(background_iou_low=0.1), generator()
    )
    assert ((labels == 0).sum().item(), (labels > 0).sum().item()) == (9, len(gt_boxes))
    low = RoISampling(background_iou_low=0.0)
    assert len(sample_rois(far, gt_boxes, LABELS[: len(gt_boxes)], low, generator())[0]) == len(boxes)


def test_an_image_without_any_box_gives_no_roi():
    boxes, labels, matched = sample_rois(torch.zeros(0, 4), torch.zeros(0, 4), LABELS[:0], RoISampling(), generator())
    assert boxes.shape == matched.shape == (0, 4)
    assert labels.shape == (0,)


def make_batch(positions: list[int]) -> Batch:
    count = len(positions)
    return Batch(
        image_ids=[str(p) for p in positions],
        positions=positions,
        images=torch.zeros(count, 3, 100, 100, dtype=torch.uint8),
        image_hws=[(100, 100)] * count,
        original_hws=[(100, 100)] * count,
        gt_boxes=[GT] * count,
        gt_labels=[LABELS] * count,
        proposals=[torch.cat([random_boxes(300, 5), GT + 1])] * count,
    )


def test_the_draw_depends_on_seed_and_position_alone():
    coder, sampling = CODER, RoISampling()
    together = make_targets(make_batch([7, 8]), sampling, coder, seed=1)
    alone = make_targets(make_batch([8]), sampling, coder, seed=1)
    second = together.rois[:, 0] == 1
    assert torch.equal(together.rois[second, 1:], alone.rois[:, 1:])
    assert torch.equal(together.labels[second], alone.labels)
    other_seed = make_targets(make_batch([8]), sampling, coder, seed=2)
    assert not torch.equal(other_seed.rois, alone.rois)
    assert not torch.equal(together.rois[~second, 1:], alone.rois[:, 1:])


def test_deltas_lead_from_rois_to_their_objects():
    coder = CODER
    targets = make_targets(make_batch([3]), RoISampling(), coder, seed=0)
    foreground = targets.labels > 0
    assert foreground.any()
    decoded = coder.decode(targets.deltas[foreground][:, None], targets.rois[foreground, 1:])[:, 0]
    expected = torch.stack([GT[LABELS.tolist().index(label)] for label in targets.labels[foreground].tolist()])
    torch.testing.assert_close(decoded, expected, atol=1e-3, rtol=1e-4)
    assert not targets.deltas[~foreground].any()


@pytest.fixture
def boxes_of_two_classes(make_voc, make_proposals, tmp_path) -> TransformedDataset:
    """An ant of 20x20 pixels with four proposals, two of them with an IoU below 0.5, and a lonely cat."""
    root = make_voc({"train": {"a": [("ant", 11, 11, 30, 30)], "b": [("cat", 1, 1, 20, 20)], "c": []}})
    ants = [[14, 10, 34, 30], [10, 10, 30, 40], [22, 10, 42, 30], [40, 0, 60, 10]]
    make_proposals(tmp_path / "p.safetensors", {"a": ants, "b": [], "c": []})
    dataset = read_voc(root, "train").with_classes(["ant", "cat", "dog"])
    return TransformedDataset(dataset, ProposalStore(tmp_path / "p.safetensors"), Resize((40,), 60))


def test_statistics_of_the_targets_of_each_class(boxes_of_two_classes):
    """The ant's: one proposal is 4 pixels, 0.2 of its width, too far right; one 10 too high; one is the object."""
    mean, std = delta_statistics(boxes_of_two_classes, [(40, 60)] * 3, CODER, 0.5, boxes_per_roi=3)
    taller = math.log(20 / 30) / 0.2
    shift = -5 / 30 / 0.1
    # dx is -2, 0, 0, and with the mirror images 2, 0, 0.
    assert mean[0].tolist() == pytest.approx([0, shift / 3, 0, taller / 3])
    deviation = math.sqrt(2 / 9)  # of the numbers 1, 0, 0
    assert std[0].tolist() == pytest.approx(
        [math.sqrt(4 / 3), -shift * deviation, 1, -taller * deviation], rel=1e-5
    )  # no proposal has another width
    assert mean[1:].tolist() == [[0.0] * 4] * 2  # of a single RoI, and of none
    assert std[1:].tolist() == [[1.0] * 4] * 2


def test_statistics_of_class_agnostic_targets(boxes_of_two_classes):
    mean, std = delta_statistics(boxes_of_two_classes, [(40, 60)] * 3, CODER, 0.5, boxes_per_roi=1)
    assert mean.shape == std.shape == (1, 4)
    assert mean[0, 1].item() == pytest.approx(-5 / 30 / 0.1 / 4)  # the cat is one more RoI without a shift


# --- online hard example mining


class Guesses(torch.nn.Module):
    """Logits of one class that are the x1 of each RoI: the larger, the worse for background."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, images, rois):
        logits = torch.stack([torch.zeros(len(rois)), rois[:, 1] * self.factor], dim=1)
        return logits, torch.zeros(len(rois), 1, 4) * self.factor


def rois(*boxes: tuple) -> torch.Tensor:
    return torch.tensor([(image, x, 0.0, x + size, 10.0) for image, x, size in boxes])


def hardest(targets: RoiTargets, rois_per_image: int) -> RoiTargets:
    kept = with_hardest_rois(Guesses(), train_batch(IMAGES, targets), rois_per_image, COMPUTE, PAPER)
    assert sum(kept.roi_counts) == len(kept.targets.rois)
    return kept.targets


def test_the_hardest_of_each_image_are_kept():
    boxes = rois((0, 30, 10), (0, 10, 10), (0, 50, 10), (1, 20, 10), (1, 70, 10), (1, 1, 10))
    targets = RoiTargets.pack(boxes, torch.zeros(6, dtype=torch.int64), torch.zeros(6, 4))
    kept = hardest(targets, 2)
    assert kept.rois[:, :2].tolist() == [[0, 50], [0, 30], [1, 70], [1, 20]]
    assert len(kept.labels) == len(kept.deltas) == 4


def test_of_rois_with_nearly_the_same_box_one_is_kept():
    boxes = rois((0, 50, 10), (0, 50.5, 10), (0, 10, 10))
    targets = RoiTargets.pack(boxes, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4))
    kept = hardest(targets, 2)
    assert kept.rois[:, 1].tolist() == [50.5, 10]


def test_the_box_loss_counts_too():
    boxes = rois((0, 0, 10), (0, 20, 10))
    targets = RoiTargets.pack(boxes, torch.tensor([1, 0]), torch.tensor([[0.0, 0, 0, 90], [0, 0, 0, 0]]))
    assert hardest(targets, 1).labels.tolist() == [1]


def batch() -> Batch:
    proposals = [rois(*((0, 10.0 * x, 9) for x in range(40)))[:, 1:] for _ in range(2)]
    objects = [torch.tensor([[0.0, 0.0, 9.0, 10.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)]
    sizes = [(10, 400)] * 2
    return Batch(["a", "b"], [0, 1], IMAGES, sizes, sizes, objects, labels, proposals)


def test_candidates_are_all_rois_within_the_thresholds():
    targets = all_targets(batch(), RoISampling(rois_per_image=4), CODER, 0)
    assert targets.rois[:, 0].long().bincount().tolist() == [41, 40]  # the object itself is one
    assert targets.labels.sum() == 2


def test_the_setting_decides_on_which_rois_a_step_trains():
    def step(ohem: bool) -> RoiTargets:
        model = Guesses()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        config = TrainingConfig(RoISampling(rois_per_image=4, ohem=ohem), CODER, seed=0)
        [done] = training_steps(model, [config.with_rois(batch())], optimizer, lambda iteration: 1.0, config, COMPUTE)
        return done.batch.targets

    assert sorted(step(True).rois[:, 1].tolist()) == sorted([390, 380, 370, 360] * 2)
    assert step(False).labels.tolist().count(1) == 1
