import numpy as np
import pytest

from detector.data.check import check_data
from detector.data.formats.voc import read_voc
from detector.visualization.dataset import choose_objects, collect_objects, draw_contact_sheet, draw_statistics


def test_objects_and_statistics_are_those_of_the_annotations(make_voc):
    # VOC counts pixels from 1 and includes the last one: (1, 1, 20, 20) is a box of 20 x 20 at the border.
    root = make_voc({"train": {
        "a": [("cat", 1, 1, 20, 20), ("dog", 5, 1, 24, 20), ("dog", 30, 5, 39, 10)], "b": [("dog", 10, 10, 29, 29)],
        "c": [],
    }})  # fmt: skip
    checked = check_data(read_voc(root, "train"))
    dataset = checked.dataset
    objects = collect_objects(dataset, checked.image_hws)
    assert objects.at_border.tolist() == [True, True, False, False]
    assert objects.overlap == pytest.approx([2 / 3, 2 / 3, 0, 0])  # 16 of 24 columns
    chosen = {title: indices.tolist() for title, indices in choose_objects(objects, dataset.classes).items()}
    assert chosen["Smallest objects"][0] == 2
    assert chosen["Objects that overlap others most"] == [0, 1]
    assert sorted(chosen["Objects at the border of the image"]) == [0, 1]
    assert chosen["Class: cat (1)"] == [0]
    assert chosen["Class: dog (3)"] == [1, 2, 3]
    figure, counts = draw_statistics(objects, dataset.classes, len(dataset))
    assert counts == [(3, 2), (1, 1)]
    assert [text.get_text() for text in figure.axes[0].texts] == ["3", "1", "2", "1"]
    assert figure.axes[1].get_title(loc="left") == "4 objects in 3 images"
    sheet = draw_contact_sheet(dataset, objects, np.array([0, 3]))
    assert sheet.shape == (150, 260, 3)
