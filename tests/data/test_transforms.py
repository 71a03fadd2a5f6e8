import albumentations as A
import numpy as np
import pytest

from detector.builders.datasets import build_transforms
from detector.data.transforms import Augment, Resize
from detector.errors import InputError
from detector.structures import Sample


def make_sample(height: int = 40, width: int = 60, num_proposals: int = 3) -> Sample:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    proposals = np.array([[1, 2, 30, 20], [0, 0, width, height], [50, 30, 60, 40]], dtype=np.float32)[:num_proposals]
    gt_boxes = np.array([[10, 5, 30, 25], [40, 30, 60, 40]], dtype=np.float32)
    return Sample("a", image, gt_boxes, np.array([2, 1]), proposals, (height, width))


def test_flip_mirrors_image_objects_and_proposals_together():
    sample = make_sample()
    flipped = Augment([A.HorizontalFlip(p=1.0)])(sample, seed=0)
    np.testing.assert_array_equal(flipped.image, sample.image[:, ::-1])
    np.testing.assert_allclose(flipped.gt_boxes, [[30, 5, 50, 25], [0, 30, 20, 40]], atol=1e-4)
    np.testing.assert_allclose(flipped.proposals, [[30, 2, 59, 20], [0, 0, 60, 40], [0, 30, 10, 40]], atol=1e-4)
    assert flipped.gt_labels.tolist() == [2, 1]
    assert flipped.gt_boxes.dtype == flipped.proposals.dtype == np.float32


def test_boxes_cropped_away_take_their_labels_with_them():
    cropped = Augment([A.Crop(0, 0, 35, 30)])(make_sample(), seed=0)
    assert cropped.image.shape == (30, 35, 3)
    np.testing.assert_allclose(cropped.gt_boxes, [[10, 5, 30, 25]], atol=1e-4)
    assert cropped.gt_labels.tolist() == [2]
    np.testing.assert_allclose(cropped.proposals, [[1, 2, 30, 20], [0, 0, 35, 30]], atol=1e-4)


def test_an_image_without_boxes_stays_one():
    empty = Sample("a", make_sample().image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64),
                   np.zeros((0, 4), np.float32), (40, 60))  # fmt: skip
    out = Augment([A.HorizontalFlip(p=1.0)])(empty, seed=0)
    assert out.gt_boxes.shape == out.proposals.shape == (0, 4)


def test_the_seed_alone_decides():
    augment = Augment([A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=1.0)])
    sample = make_sample()
    first = [augment(sample, seed).image for seed in range(8)]
    again = [augment(sample, seed).image for seed in reversed(range(8))][::-1]
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert len({image.tobytes() for image in first}) == 8


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (A.Normalize(), r"they return a ndarray of float32 and shape \(40, 60, 3\)"),
        (A.ToGray(num_output_channels=1, p=1.0), r"they return a ndarray of uint8 and shape \(40, 60(, 1)?\)"),
        (A.ToTensorV2(), r"they return a Tensor of torch.uint8 and shape \(3, 40, 60\)"),
    ],
)
def test_what_makes_no_rgb_image_is_refused(transform, says):
    with pytest.raises(InputError, match=f"augment.transforms: {says}"):
        Augment([transform])(make_sample(), seed=0)


def test_what_a_transform_cannot_do_names_it_and_the_image():
    with pytest.raises(InputError, match=r"augment.transforms on image a of 60x40: CropSizeError: Crop .*50"):
        Augment([A.RandomCrop(50, 50, p=1.0)])(make_sample(), seed=0)
    with pytest.raises(InputError, match=r"augment.transforms on image a .*mosaic_metadata"):
        Augment([A.Mosaic(p=1.0)])(make_sample(), seed=0)


def test_transforms_inside_of_others_are_made_too():
    flip = {"_target_": "albumentations.HorizontalFlip", "p": 1.0}
    [one_of] = build_transforms([{"_target_": "albumentations.OneOf", "transforms": [flip], "p": 1.0}])
    sample = make_sample()
    np.testing.assert_array_equal(Augment([one_of])(sample, seed=0).image, sample.image[:, ::-1])


@pytest.mark.parametrize(("inside", "says"), [(5, "5"), ([5], "5 is not a transform"), ([{"p": 1}], "_target_: None")])
def test_what_is_no_transform_is_named(inside, says):
    with pytest.raises(InputError, match=says):
        Augment(build_transforms([{"_target_": "albumentations.OneOf", "transforms": inside}]))


@pytest.mark.parametrize(
    ("more", "says"), [({"q": 1}, r"Argument\(s\) 'q' are not valid"), ({"p": 5}, "less than or equal to 1")]
)
def test_a_mistyped_argument_of_a_transform_is_not_passed_over(more, says):
    with pytest.raises(InputError, match=f"albumentations.HorizontalFlip does not take (.|\n)*{says}"):
        build_transforms([{"_target_": "albumentations.HorizontalFlip", **more}])


@pytest.mark.parametrize(
    ("transform", "tolerance_px"),  # the box of a turned box is larger than that of its pixels
    [
        (A.HorizontalFlip(p=1.0), 2),
        (A.Affine(scale=(0.7, 1.3), translate_percent=(-0.1, 0.1), p=1.0), 2),
        (A.Affine(shear=(-10, 10), p=1.0), 20),
        (A.Rotate(limit=20, p=1.0), 20),
        (A.RandomCropFromBorders(0.1, 0.1, 0.1, 0.1, p=1.0), 2),
        (A.RandomScale(0.3, p=1.0), 2),
        (A.RandomRotate90(p=1.0), 2),
        (A.Perspective(p=1.0), 20),
    ],
)
def test_boxes_and_proposals_follow_each_geometric_transform(transform, tolerance_px):
    """A white rectangle: after the transform its pixels lie in its box, and reach each side."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[45:75, 60:110] = 255
    box = np.array([[60, 45, 110, 75]], np.float32)
    sample = Sample("a", image, box, np.array([2]), box.copy(), (120, 160))
    changed = 0
    for seed in range(12):
        result = Augment([transform])(sample, seed)
        changed += result.image.shape != image.shape or not np.array_equal(result.image, image)
        y, x = np.nonzero(result.image[..., 0] > 200)
        pixels = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        [found], [proposal] = result.gt_boxes, result.proposals
        np.testing.assert_array_equal(found, proposal)
        assert result.gt_labels.tolist() == [2]
        assert (found[:2] <= pixels[:2] + 2).all()
        assert (found[2:] >= pixels[2:] - 2).all()
        np.testing.assert_allclose(found, pixels, atol=tolerance_px)
    assert changed


def test_no_transforms_change_nothing():
    sample = make_sample()
    assert Augment([])(sample, seed=3) is sample


@pytest.mark.parametrize(
    ("height", "width", "new_hw"),
    [(40, 60, (80, 120)), (60, 40, (120, 80)), (20, 60, (67, 200)), (1, 300, (1, 200))],
)
def test_resize_to_the_short_side_within_the_limit_of_the_long(height, width, new_hw):
    sample = make_sample(height, width)
    resized = Resize([80], max_side_px=200)(sample)
    assert resized.image.shape == (*new_hw, 3)
    assert resized.original_hw == (height, width)
    scales = np.array([new_hw[1] / width, new_hw[0] / height] * 2)
    np.testing.assert_allclose(resized.gt_boxes, sample.gt_boxes * scales, rtol=1e-5)
    np.testing.assert_allclose(resized.proposals[1], [0, 0, new_hw[1], new_hw[0]], rtol=1e-5)
