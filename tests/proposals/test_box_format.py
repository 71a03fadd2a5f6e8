import numpy as np
import pytest
import scipy.io

from detector.data.dataset import DetectionDataset
from detector.data.formats.voc import read_voc
from detector.errors import InputError
from detector.proposals.box_format import OtherOrder, measure_match, require_box_format
from detector.proposals.convert import WRITERS, convert
from detector.proposals.formats.records import BoxFormat, ImageProposals, RawProposals
from detector.proposals.generate import proposals_for
from detector.proposals.store import ProposalStore, open_proposals

HW = (40, 60)  # of make_voc's images


@pytest.fixture
def dataset(make_voc) -> DetectionDataset:
    """Eight images with three objects each, some at the borders."""
    random = np.random.default_rng(0)
    images = {}
    for number in range(8):
        x1, y1 = random.integers(1, 35, 3), random.integers(1, 20, 3)
        x2, y2 = x1 + random.integers(8, 25, 3), y1 + random.integers(8, 20, 3)
        images[f"i{number}"] = [("cat", *map(int, box)) for box in np.stack([x1, y1, x2, y2], axis=1)]
    return read_voc(make_voc({"train": images}), "train")


@pytest.fixture
def boxes(dataset) -> dict[str, np.ndarray]:
    """Proposals as they come from segments: the objects, and boxes that end at borders."""
    random, found = np.random.default_rng(1), {}
    for index, image_id in enumerate(dataset.image_ids):
        low = random.integers(0, 30, (40, 2)) * (random.random((40, 2)) < 0.8)
        high = np.minimum(low + random.integers(5, 40, (40, 2)), [60, 40])
        found[image_id] = np.concatenate([dataset.ground_truth(index).boxes, np.concatenate([low, high], axis=1)])
    return {image_id: item.astype(np.float32) for image_id, item in found.items()}


def raw_file(boxes, box_format):
    return RawProposals("p.x", box_format, {image_id: box_format.from_boxes(item) for image_id, item in boxes.items()})


ALL = [BoxFormat(order, origin) for order in ("xyxy", "yxyx", "xywh") for origin in ("0", "1")] + [
    BoxFormat("xyxy", "0-inclusive")
]


@pytest.mark.parametrize("true", ALL, ids=str)
def test_the_right_layout_fits_and_no_other(dataset, boxes, true):
    raw = raw_file(boxes, true)
    for declared in ALL:
        if declared == true:
            require_box_format(raw, dataset, [HW] * 8, declared)
            continue
        with pytest.raises(InputError) as error:
            require_box_format(raw, dataset, [HW] * 8, declared)
        message = str(error.value)
        assert f"p.x: its boxes were taken for {declared}, but fit images and objects better as {true}" in message
        assert f"convert them with --order {true.order} --base {true.pixel_origin}" in message
        table = message.splitlines()[2:]
        assert table[0].startswith(f"  --order {true.order} --base {true.pixel_origin} ")
        assert len(table) == 8


def test_what_was_not_declared_is_asked_for_with_the_scores(dataset, boxes):
    with pytest.raises(
        InputError, match=r"neither their order nor base\); say it with --order yxyx --base 1 if(.|\n)*score"
    ):
        require_box_format(raw_file(boxes, BoxFormat("yxyx", "1")), dataset, [HW] * 8, None)


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.1, 2])
def test_boxes_made_on_images_of_another_size(dataset, boxes, scale):
    raw = raw_file({image_id: item * scale for image_id, item in boxes.items()}, BoxFormat("xyxy", "0"))
    with pytest.raises(InputError, match=r"generated on images of another size(.|\n)*--base 0, stretched  "):
        require_box_format(raw, dataset, [HW] * 8, BoxFormat("xyxy", "0"))


def test_boxes_of_other_images_under_the_same_names(dataset, boxes):
    few = {image_id: np.array([[0, 0, 3, 4], [50, 30, 60, 40]], np.float32) for image_id in boxes}
    with pytest.raises(InputError, match="hardly any object has a proposal(.|\n)*0 of 24"):
        require_box_format(raw_file(few, BoxFormat("xyxy", "0")), dataset, [HW] * 8, BoxFormat("xyxy", "0"))


def test_the_parts_of_a_fit():
    boxes = np.array([[0, 0, 30, 20], [-5, 10, 60, 30], [20, 10, 10, 40]], np.float32)
    match = measure_match([boxes], [np.array([[0, 0, 30, 18], [40, 0, 60, 10]], np.float32)], [HW])
    assert (match.inside, match.valid, match.found, match.objects, match.touching) == (2 / 3, 2 / 3, 1, 2, (2, 2))
    assert match.score == pytest.approx((2 / 3 + 2 / 3 + 1 / 12 + 2 / 12) / 4)
    assert match.recall == 0.5


def test_converting_with_a_data_set_tries_the_declaration(dataset, boxes, tmp_path):
    images = [ImageProposals(id, item) for id, item in boxes.items()]
    WRITERS["voc-mat"](tmp_path / "p.mat", images)
    WRITERS["npz"](tmp_path / "p.npz", images)
    out = tmp_path / "p.safetensors"
    with pytest.raises(InputError, match="fit images and objects better as y1 x1 y2 x2, from 1"):
        convert(tmp_path / "p.mat", "voc-mat", out, "store", order="xyxy", dataset=dataset)
    with pytest.raises(InputError, match=r"does not say what its numbers mean(.|\n)*with --order xyxy --base 0"):
        convert(tmp_path / "p.npz", "npz", out, "store", dataset=dataset)
    assert convert(tmp_path / "p.mat", "voc-mat", out, "store", dataset=dataset)[0] == 8
    store = ProposalStore(out)
    assert store.image_hw("i3") == HW
    assert store["i3"].tolist() == boxes["i3"].tolist()


@pytest.mark.parametrize("format", ["voc-mat", "npz"])
def test_proposals_of_another_split_are_named_as_such(format, dataset, boxes, make_voc, tmp_path):
    WRITERS[format](tmp_path / "p", [ImageProposals(id, item) for id, item in boxes.items()])
    other = read_voc(make_voc({"val": {"i1": [("cat", 1, 1, 9, 9)], "j1": [], "j2": []}}, "other"), "val")
    with pytest.raises(InputError, match=r"no proposals for 2 of the 3 images of other-val: j1, j2\. .* another split"):
        convert(tmp_path / "p", format, tmp_path / "out.npz", "npz", dataset=other)
    assert not (tmp_path / "out.npz").exists()


def test_training_refuses_a_mat_that_does_not_fit(dataset, boxes, tmp_path):
    cells, ids = np.empty(8, dtype=object), np.empty(8, dtype=object)

    def write(box_format, scale=1.0):
        for number, (image_id, item) in enumerate(boxes.items()):
            cells[number], ids[number] = box_format.from_boxes(item * scale), image_id
        scipy.io.savemat(tmp_path / "p.mat", {"boxes": cells, "images": ids})

    def use():
        return proposals_for(dataset, [HW] * 8, str(tmp_path / "p.mat"), "fast", tmp_path)

    write(BoxFormat("yxyx", "1"))
    assert use()["i1"].tolist() == boxes["i1"].tolist()
    for box_format in (BoxFormat("xyxy", "1"), BoxFormat("yxyx", "0"), BoxFormat("xywh", "1")):
        write(box_format)
        with pytest.raises(InputError, match=rf"p\.mat: .* fit images and objects better as {box_format}"):
            use()
    write(BoxFormat("yxyx", "1"), scale=0.5)
    with pytest.raises(InputError, match=r"p\.mat: .* images of another size"):
        use()


def test_a_store_that_knows_no_sizes_is_warned_of(dataset, boxes, tmp_path, caplog):
    """It was declared once, and there must be a way to use boxes that fit badly for good reasons."""
    images = [ImageProposals(id, item[:, [1, 0, 3, 2]]) for id, item in boxes.items()]
    WRITERS["store"](tmp_path / "p.safetensors", images)
    proposals_for(dataset, [HW] * 8, str(tmp_path / "p.safetensors"), "fast", tmp_path)
    assert "fit images and objects better as y1 x1 y2 x2, from 0" in caplog.text
    caplog.clear()
    WRITERS["store"](tmp_path / "q.safetensors", [ImageProposals(i.image_id, i.boxes, None, HW) for i in images])
    proposals_for(dataset, [HW] * 8, str(tmp_path / "q.safetensors"), "fast", tmp_path)
    assert "better" not in caplog.text


@pytest.mark.parametrize("image_hw", [None, HW])
@pytest.mark.parametrize("order", ["yxyx", "xywh"])
def test_a_store_in_another_order_is_an_error_with_the_fix(dataset, tmp_path, monkeypatch, order, image_hw):
    true, wrong, fixed = BoxFormat(order, "0"), tmp_path / "p.safetensors", tmp_path / "fixed.safetensors"
    objects = {id: dataset.ground_truth(index).boxes for index, id in enumerate(dataset.image_ids)}
    numbers = {id: true.from_boxes(item).astype(np.float32) for id, item in objects.items()}
    WRITERS["store"](wrong, [ImageProposals(id, item, None, image_hw) for id, item in numbers.items()])

    def use(path):
        return proposals_for(dataset, [HW] * 8, str(path), "fast", tmp_path)

    with pytest.raises(OtherOrder, match=rf"p\.safetensors: .*convert them with --order {order} --base 0:"):
        use(wrong)
    convert(wrong, "store", fixed, "store", order=order, pixel_origin="0", dataset=dataset)
    assert use(fixed)["i1"].tolist() == objects["i1"].tolist()
    monkeypatch.setattr("detector.proposals.box_format.SURE_COUNT", 25)  # there are 24 objects
    use(wrong)


def test_boxes_in_another_order_are_not_called_another_size(make_voc):
    """Though stretched they touch the far borders and find every object too."""
    objects = [("cat", 6, 6, 50, 25), ("cat", 1, 1, 45, 20), ("cat", 9, 9, 55, 28)]
    dataset = read_voc(make_voc({"train": {f"i{number}": objects for number in range(20)}}), "train")
    boxes = {id: dataset.ground_truth(index).boxes for index, id in enumerate(dataset.image_ids)}
    raw = RawProposals("p.x", None, {id: item[:, [1, 0, 3, 2]] for id, item in boxes.items()})
    with pytest.raises(OtherOrder, match="fit images and objects better as y1 x1 y2 x2, from 0"):
        require_box_format(raw, dataset, [HW] * 20, BoxFormat("xyxy", "0"))


@pytest.mark.slow
def test_real_boxes_in_each_layout(shared):
    root = shared / "data/bccd"
    dataset = read_voc(root, "test")
    raw = open_proposals(root / "selective_search/bccd_test.mat").raw
    hws = [(480, 640)] * len(dataset)
    require_box_format(raw, dataset, hws, raw.box_format)
    for box_format in (
        BoxFormat("xyxy", "1"),
        BoxFormat("yxyx", "0"),
        BoxFormat("yxyx", "0-inclusive"),
        BoxFormat("xywh", "1"),
    ):
        with pytest.raises(InputError, match="better as y1 x1 y2 x2, from 1") as error:
            require_box_format(raw, dataset, hws, box_format)
        assert isinstance(error.value, OtherOrder) == (box_format.order != "yxyx")
    other = raw.rows[dataset.image_ids[0]]
    one_for_all = RawProposals(raw.path, raw.box_format, dict.fromkeys(dataset.image_ids, other[:100]))
    with pytest.raises(InputError, match="hardly any object"):
        require_box_format(one_for_all, dataset, hws, raw.box_format)
