"""The adaptive score threshold, compared with the loop of the paper's code."""

import heapq
from dataclasses import replace

import pytest
import torch

from detector.boxes import BoxCoder
from detector.inference import adaptive_threshold
from detector.inference.adaptive_threshold import above, best_of_each_class, class_thresholds
from detector.inference.postprocess import Candidates
from detector.inference.predict import DetectorConfig, evaluate
from detector.runtime.device import Compute
from detector.settings import Detect
from detector.structures import Batch, RoiTargets


def candidates(*scored: tuple[int, float]) -> Candidates:
    """Boxes of (label, score)."""
    labels, scores = zip(*scored, strict=True) if scored else ((), ())
    count = len(scored)
    boxes = torch.zeros(count, 4)
    return Candidates(torch.arange(count), torch.tensor(labels, dtype=torch.int64), torch.tensor(scores), boxes, boxes)


def of_class(found: list[Candidates], label: int) -> list[list[float]]:
    return [[round(score, 3) for score in item.scores[item.labels == label].tolist()] for item in found]


def test_literal_thresholds():
    """1.5 boxes of a class in each of two images are three: the third best of class 1 has 0.4, not above itself."""
    images = [candidates((1, 0.9), (1, 0.1), (2, 0.3), (1, 0.4)), candidates((1, 0.5), (2, 0.2))]
    thresholds = class_thresholds(images, average=1.5)
    assert thresholds.tolist() == pytest.approx([-torch.inf, 0.4, -torch.inf])
    kept = [above(item, thresholds) for item in images]
    assert of_class(kept, 1) == [[0.9], [0.5]]
    assert of_class(kept, 2) == [[0.3], [0.2]]
    assert above(candidates(), class_thresholds([candidates()], 1.5)).scores.tolist() == []


def test_an_image_has_at_most_so_many_boxes_of_a_class(monkeypatch):
    monkeypatch.setattr(adaptive_threshold, "MAX_PER_CLASS", 2)
    found = best_of_each_class(candidates((2, 0.1), (1, 0.2), (2, 0.4), (2, 0.3), (1, 0.6)))
    assert list(zip(found.rows.tolist(), found.labels.tolist(), strict=True)) == [(1, 1), (2, 2), (3, 2), (4, 1)]


def heap_of_the_paper(images: list[Candidates], average: int, num_classes: int, per_image: int) -> list[list[float]]:
    """test_net of the paper's code, in its order: the scores that reach NMS, by class and image."""
    result = []
    for label in range(1, num_classes + 1):
        threshold, heap, kept = -torch.inf, [], []
        for item in images:
            scores = sorted((s for s in item.scores[item.labels == label].tolist() if s > threshold), reverse=True)
            kept.append(scores[:per_image])
            for score in kept[-1]:
                heapq.heappush(heap, score)
            while len(heap) > average * len(images):
                heapq.heappop(heap)
                threshold = heap[0]
        result += [[score for score in scores if score > threshold] for scores in kept]
    return result


def test_the_boxes_are_those_of_the_heap_of_the_paper_s_code(monkeypatch):
    monkeypatch.setattr(adaptive_threshold, "MAX_PER_CLASS", 6)
    generator = torch.Generator().manual_seed(0)
    images = []
    for count in (0, 40, 3, 25, 60, 9):
        scores = torch.rand(count, generator=generator)
        labels = torch.randint(1, 4, (count,), generator=generator)
        boxes = torch.zeros(count, 4)
        images.append(Candidates(torch.arange(count), labels, scores, boxes, boxes))
    best = [best_of_each_class(item) for item in images]
    thresholds = class_thresholds(best, 3)
    found = [above(item, thresholds) for item in best]
    ours = [sorted(item.scores[item.labels == label].tolist(), reverse=True) for label in (1, 2, 3) for item in found]
    assert ours == heap_of_the_paper(images, 3, 3, 6)
    assert 3 * 6 * 2 < sum(map(len, ours)) < 3 * 6 * 3  # the threshold applies


class Fixed(torch.nn.Module):
    """Scores RoIs by their first coordinate."""

    def forward(self, images, rois):
        return torch.stack([torch.zeros(len(rois)), rois[:, 1] / 10], dim=1), torch.zeros(len(rois), 1, 4)


@pytest.mark.parametrize(("average", "found"), [(0.0, [3, 1]), (1.0, [1, 0]), (100.0, [3, 1])])
def test_an_evaluation_uses_it_before_suppression(average, found):
    """Of the boxes at 50, 40 and 0 pixels, and at 20, two are allowed, and only the best is above the second best."""
    boxes = [torch.tensor([[50.0, 0, 60, 10], [40, 0, 48, 10], [0, 0, 9, 9]]), torch.tensor([[20.0, 0, 30, 10]])]
    one = Batch(["a"], [0], torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [(64, 64)], [(64, 64)], [], [], [])
    batches = [replace(one, proposals=[item]) for item in boxes]
    nothing = RoiTargets.pack(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    settings = Detect(score_threshold=0.0, average_per_class=average)
    detections, _ = evaluate(
        Fixed(), batches, DetectorConfig(BoxCoder((1, 1, 1, 1)), settings), Compute(torch.device("cpu"), torch.float32),
        lambda _: nothing, lambda *_: {"cls": torch.zeros(()), "box": torch.zeros(())},
    )  # fmt: skip
    assert [len(item.scores) for item in detections] == found
