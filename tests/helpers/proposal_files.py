"""Files of proposals as the programs of the field write them."""

import csv
import json
import pickle

import h5py
import numpy as np
import scipy.io
from pycocotools import mask as coco_mask

# Of an image 60 wide and 40 high: its left upper corner, and one box elsewhere.
BOXES = {"a": np.array([[0, 0, 5, 6], [10, 20, 60, 40]], np.float32), "COCO_val2014_000000000007": np.ones((0, 4))}
SCORES = np.array([0.25, 0.5], np.float32)
# The same two boxes as each program writes them.
AS_WRITTEN = {
    "yxyx from 1": [[1, 1, 6, 5], [21, 11, 40, 60]],
    "xyxy from 1": [[1, 1, 5, 6], [11, 21, 60, 40]],
    "xyxy from 0, last included": [[0, 0, 4, 5], [10, 20, 59, 39]],
    "xyxy": [[0, 0, 5, 6], [10, 20, 60, 40]],
    "xywh": [[0, 0, 5, 6], [10, 20, 50, 20]],
}
A, B = BOXES


def cells(*items):
    array = np.empty((1, len(items)), dtype=object)
    for number, item in enumerate(items):
        array[0, number] = item
    return array


def boxes(written: str, dtype: type = np.uint16) -> np.ndarray:
    return np.array(AS_WRITTEN[written], dtype)


def voc_mat(path):
    scipy.io.savemat(path, {"boxes": cells(boxes("yxyx from 1"), np.zeros((0, 0))), "images": cells(A, B).T})


def v7_3(path, **variables):
    """As MATLAB's save -v7.3 does: columns first, cells as references, an empty array as its size."""
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")

        def put(group, name, value):
            if isinstance(value, str):
                item = group.create_dataset(name, data=np.array([[ord(letter)] for letter in value], np.uint16))
                item.attrs["MATLAB_class"] = np.bytes_("char")
            elif value.dtype == object:
                inner = [put(refs, f"{name}_{number}", part).ref for number, part in enumerate(value.ravel())]
                data = np.array(inner, dtype=h5py.ref_dtype).reshape(value.T.shape)
                item = group.create_dataset(name, data=data)
                item.attrs["MATLAB_class"] = np.bytes_("cell")
            else:
                item = group.create_dataset(name, data=value.T if value.size else np.array([0, 0], np.uint64))
                item.attrs["MATLAB_class"] = np.bytes_(value.dtype.name)
                if not value.size:
                    item.attrs["MATLAB_empty"] = np.uint8(1)
            return item

        for name, value in variables.items():
            put(file, name, value)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def voc_mat_v7_3(path):
    v7_3(path, boxes=cells(boxes("yxyx from 1"), np.zeros((0, 0))), images=cells(A, B).T)


def mat_folder(written, suffix="", folders="", **more):
    def write(path):
        for image_id, content in ((A, boxes(written, np.float64)), (B, np.zeros((0, 4)))):
            (path / folders).mkdir(parents=True, exist_ok=True)
            extra = {name: value[: len(content), None] for name, value in more.items()}
            scipy.io.savemat(path / folders / f"{image_id}{suffix}.mat", {"boxes": content, **extra})

    return write


def mcg_v7_3(path):
    path.mkdir()
    v7_3(path / f"{A}.mat", boxes=boxes("yxyx from 1", np.float64), scores=SCORES[:, None])
    v7_3(path / f"{B}.mat", boxes=np.zeros((0, 0)), scores=np.zeros((0, 0)))


def npz(path):
    with open(path, "wb") as file:
        np.savez(file, **{A: np.column_stack([boxes("xyxy", np.float32), SCORES]), B: np.zeros((0, 5))})


def npz_from_1(path):
    with open(path, "wb") as file:
        np.savez(file, **{A: boxes("yxyx from 1"), B: np.zeros((0, 4))})


def csv_named(path):
    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["score", "y1", "x1", "y2", "x2", "image_id"])
        lines.writerows([[score, y1, x1, y2, x2, A] for (x1, y1, x2, y2), score in zip(BOXES[A], SCORES, strict=True)])


def csv_unnamed(path):
    path.write_text("".join(f"{A},{','.join(map(str, row))}\n" for row in AS_WRITTEN["yxyx from 1"]))


def coco_json(path):
    rows = zip(AS_WRITTEN["xywh"], SCORES.tolist(), strict=True)
    path.write_text(json.dumps([{"image_id": A, "category_id": 3, "bbox": b, "score": s} for b, s in rows]))


def pickled(make):
    return lambda path: path.write_bytes(pickle.dumps(make()))


def detectron():
    both = [boxes("xyxy from 0, last included", np.float32), np.zeros((0, 4))]
    return {"boxes": both, "scores": [SCORES, np.zeros(0)], "indexes": [A, B]}


def detectron2(written="xyxy", mode=0):
    both = [boxes(written, np.float32), np.zeros((0, 4))]
    return {"boxes": both, "objectness_logits": [SCORES, np.zeros(0)], "ids": [A, B], "bbox_mode": mode}


def mmdetection():
    rows = np.column_stack([boxes("xyxy", np.float32), SCORES])
    return {f"train/{A}.jpg": rows, f"train/{B}.png": {"bboxes": np.zeros((0, 4)), "scores": np.zeros(0)}}


def sam_folder(path):
    """As the automatic mask generator: bbox from the first to the last pixel, in no order."""
    path.mkdir()
    masks = [
        {"bbox": [x1, y1, x2 - x1 - 1, y2 - y1 - 1], "predicted_iou": score, "stability_score": 1.0, "area": 9,
         "segmentation": {"size": [40, 60], "counts": "x"}}
        for (x1, y1, x2, y2), score in zip(AS_WRITTEN["xyxy"], SCORES.tolist(), strict=True)
    ]  # fmt: skip
    (path / f"{A}.json").write_text(json.dumps(masks))
    (path / f"{B}.json").write_text("[]")


def sam_of_all(path):
    """By image, and without bbox: the box of an RLE, as lists of counts, and of a polygon."""
    first = {"segmentation": [[0, 0, 5, 0, 5, 6]], "score": 0.25}
    height, width = 40, 60
    mask = np.zeros((height, width), bool)
    mask[20:, 10:] = True
    flat = mask.ravel(order="F")
    columns = np.diff(np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1], [True]]))).tolist()
    second = {"segmentation": {"size": [height, width], "counts": columns}, "score": 0.5}
    path.write_text(json.dumps({f"{A}.jpg": [first, second], f"{B}.jpg": []}))


def sa_1b(path):
    """As in the data set SA-1B, with compressed RLE and without scores."""
    path.mkdir()
    for image_id in (A, B):
        masks = []
        for x1, y1, x2, y2 in BOXES[image_id].astype(int).tolist():
            mask = np.zeros((40, 60), np.uint8, order="F")
            mask[y1:y2, x1:x2] = 1
            masks.append(
                {"segmentation": {**coco_mask.encode(mask), "counts": coco_mask.encode(mask)["counts"].decode()}}
            )
        about = {"image_id": 7, "file_name": f"{image_id}.jpg", "width": 60, "height": 40}
        (path / f"x{image_id}.json").write_text(json.dumps({"image": about, "annotations": masks}))


def edge_boxes(path):
    path.mkdir()
    rows = np.array([[x + 1, y + 1, w, h] for x, y, w, h in AS_WRITTEN["xywh"]], np.float64)
    scipy.io.savemat(path / f"{A}.mat", {"bbs": np.column_stack([rows, SCORES])})
    (path / f"{B}.txt").write_text("")


def edge_boxes_of_all(path):
    rows = np.array([[x + 1, y + 1, w, h] for x, y, w, h in AS_WRITTEN["xywh"]], np.float64)
    content = {"bbs": cells(np.column_stack([rows, SCORES]), np.zeros((0, 5))), "images": cells(f"{A}.jpg", f"{B}.jpg")}
    scipy.io.savemat(path, content, appendmat=False)


def edge_boxes_of_opencv(path):
    path.mkdir()
    rows = zip(AS_WRITTEN["xywh"], SCORES.tolist(), strict=True)
    (path / f"{A}.txt").write_text("".join(f"{x}, {y}, {w}, {h}, {score}\n" for (x, y, w, h), score in rows))
    (path / f"{B}.txt").write_text("\n")


# format, how a file of it comes about, what has to be declared, and whether it has scores
FILES = {
    "voc-mat": ("voc-mat", voc_mat, {}, False),
    "voc-mat v7.3": ("voc-mat", voc_mat_v7_3, {}, False),
    "ijcv-mat": ("ijcv-mat", mat_folder("xyxy from 1"), {}, False),
    "demo-mat": ("demo-mat", mat_folder("xyxy from 0, last included", "_boxes"), {}, False),
    "mcg-mat": ("mcg-mat", mat_folder("yxyx from 1", folders="COCO_val2014_0/x", scores=SCORES), {}, True),
    "mcg-mat v7.3": ("mcg-mat", mcg_v7_3, {}, True),
    "hosang-mat": ("hosang-mat", mat_folder("xyxy from 1"), {}, False),
    "npz": ("npz", npz, {"order": "xyxy", "pixel_origin": "0"}, True),
    "npz from 1": ("npz", npz_from_1, {"order": "yxyx", "pixel_origin": "1"}, False),
    "csv": ("csv", csv_named, {"pixel_origin": "0"}, True),
    "csv unnamed": ("csv", csv_unnamed, {"order": "yxyx", "pixel_origin": "1"}, False),
    "coco-json": ("coco-json", coco_json, {}, True),
    "sam-json": ("sam-json", sam_folder, {}, True),
    "sam-json of all images": ("sam-json", sam_of_all, {}, True),
    "sam-json SA-1B": ("sam-json", sa_1b, {}, False),
    "edge-boxes": ("edge-boxes", edge_boxes, {}, True),
    "edge-boxes cells": ("edge-boxes", edge_boxes_of_all, {}, True),
    "edge-boxes of OpenCV": ("edge-boxes", edge_boxes_of_opencv, {"pixel_origin": "0"}, True),
    "detectron": ("detectron", pickled(detectron), {"trusted": True}, True),
    "detectron2": ("detectron2", pickled(detectron2), {"trusted": True}, True),
    "detectron2 xywh": ("detectron2", pickled(lambda: detectron2("xywh", 1)), {"trusted": True}, True),
    "mmdetection": ("mmdetection", pickled(mmdetection), {"trusted": True}, True),
}  # fmt: skip
