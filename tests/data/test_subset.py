from detector.data.subset import Subset
from detector.data.voc import VocDataset


def test_a_subset_is_a_data_set_of_those_images_in_that_order(make_voc):
    root = make_voc({"train": {id: [(id, 1, 1, 20, 20)] for id in ("ant", "bee", "cow")}})
    whole = VocDataset(root, "train")
    part = Subset(whole, [2, 0]).with_classes(["cow", "bee", "ant"])
    assert len(part) == 2
    assert part.image_ids == ["cow", "ant"]
    assert part.name == whole.name
    assert [part.ground_truth(index).image_id for index in range(2)] == ["cow", "ant"]
    assert [part.ground_truth(index).labels.tolist() for index in range(2)] == [[1], [3]]
    assert part.image_path(0).name == "cow.jpg"
    assert part.annotation_path(1).name == "ant.xml"
    assert part.image(0).shape == (40, 60, 3)
