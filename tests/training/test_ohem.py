import torch

from detector.boxes import BoxCoder
from detector.runtime.device import Compute
from detector.settings import RoISampling
from detector.structures import Batch, RoiTargets
from detector.training.engine import TrainingConfig, training_steps
from detector.training.losses import PAPER
from detector.training.targets import all_targets, with_hardest_rois
from tests.helpers.batches import train_batch

COMPUTE = Compute(torch.device("cpu"), torch.float32)
CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


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
