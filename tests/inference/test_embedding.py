import copy

import numpy as np
import pytest
import torch

from detector.data.formats.voc import read_voc
from detector.data.loader import TransformedDataset
from detector.data.transforms import Resize
from detector.inference import embedding
from detector.inference.embedding import embed_objects, principal_components
from detector.models import build_model
from detector.runtime.device import Compute
from detector.settings import Model

COMPUTE = Compute(torch.device("cpu"), torch.float32)


class NoProposals:
    def __getitem__(self, image_id: str) -> np.ndarray:
        return np.zeros((0, 4), dtype=np.float32)

    def scores(self, image_id: str) -> None:
        return None


@pytest.fixture(scope="module")
def samples(small_shapes) -> TransformedDataset:
    return TransformedDataset(read_voc(small_shapes, "train"), NoProposals(), Resize((96,), 160))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(Model(backbone="resnet18", pool_size=2, hidden=8), num_classes=4)


def test_every_object_has_features_class_image_and_crop(samples, model):
    objects, truths = embed_objects(model, samples, COMPUTE), [samples.dataset.ground_truth(i) for i in range(6)]
    assert objects.labels.tolist() == [label for truth in truths for label in truth.labels]
    assert objects.image_ids == [truth.image_id for truth in truths for _ in truth.labels]
    assert objects.features.shape == (len(objects.labels), 8)
    sample, _ = samples[0, 0]
    x1, y1, x2, y2 = sample.gt_boxes[0].round().astype(int)
    mean = sample.image[y1:y2, x1:x2].mean(axis=(0, 1))
    np.testing.assert_allclose(objects.crops[0].mean(axis=(0, 1)), mean, atol=8)


def test_the_number_of_images_and_objects_is_bounded(samples, model, monkeypatch):
    per_image = [len(samples.dataset.ground_truth(index).labels) for index in range(6)]
    monkeypatch.setattr(embedding, "MAX_IMAGES", 3)
    assert set(embed_objects(model, samples, COMPUTE).image_ids) == {"train_0", "train_2", "train_4"}
    monkeypatch.setattr(embedding, "MAX_OBJECTS", per_image[0] + 1)
    assert embed_objects(model, samples, COMPUTE).image_ids == ["train_0"] * per_image[0] + ["train_2"]


def test_a_dataset_without_objects_gives_none(samples, model):
    nothing = TransformedDataset(samples.dataset.subset([]), samples.proposals, samples.resize)
    objects = embed_objects(model, nothing, COMPUTE)
    assert (len(objects.features), len(objects.labels), len(objects.crops)) == (0, 0, 0)


def test_objects_without_finite_features_are_left_out(samples, model):
    whole = embed_objects(model, samples, COMPUTE)

    class Diverged(torch.nn.Module):
        def __init__(self, every):
            super().__init__()
            self.every = every

        def forward(self, features):
            features = features.clone()
            features[:: self.every] = float("nan")
            return features

    for every in (2, 1):
        diverged = copy.deepcopy(model)
        diverged.head = torch.nn.Sequential(diverged.head, Diverged(every))
        diverged.head.out_features = model.head.out_features
        objects = embed_objects(diverged, samples, COMPUTE)
        sizes = {len(objects.features), len(objects.labels), len(objects.image_ids), len(objects.crops)}
        assert len(sizes) == 1
        assert np.isfinite(objects.features).all()
        assert (0 < len(objects.labels) < len(whole.labels)) if every == 2 else not len(objects.labels)


def test_principal_components_keep_the_distances():
    features = torch.randn(5, 200, generator=torch.Generator().manual_seed(0))
    reduced = principal_components(features)
    assert reduced.shape == (5, 5)
    torch.testing.assert_close(torch.cdist(reduced, reduced), torch.cdist(features, features), atol=1e-3, rtol=0)
    assert principal_components(torch.randn(90, 80)).shape == (90, embedding.MAX_COMPONENTS)
