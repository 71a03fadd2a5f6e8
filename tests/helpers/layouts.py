"""Folders of annotated images as labelling programs export them, and as people publish them."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

HEIGHT, WIDTH = 48, 64
CLASSES = ["cat", "dog"]
Objects = list[tuple[str, int, int, int, int]]  # class, and x1 y1 x2 y2 in continuous pixels

# Ten images: `cat` and `dog` in turns, some with both, and one without any object.
SCENES: dict[str, Objects] = {
    f"img {number}": [] if number == 9 else [
        (CLASSES[number % 2], number, 2, number + 20, 30), *([("dog", 30, 10, 60, 40)] if number % 3 == 0 else [])
    ]
    for number in range(10)
}  # fmt: skip


def picture(name: str) -> Image.Image:
    """Blobs of random colours, others for each name."""
    seed = np.random.default_rng([*name.encode()])
    small = Image.fromarray(seed.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def put_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(path.stem).save(path, quality=90)
    return path


def put_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def xml(name: str, objects: Objects, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """A VOC annotation as labelImg writes it, with the folder of another machine."""
    lines = [
        f"<annotation><folder>me</folder><filename>{name}.jpg</filename><path>C:\\me\\{name}.jpg</path>",
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>",
    ]
    for cls, x1, y1, x2, y2 in objects:
        box = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        lines.append(f"<object><name>{cls}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>")
    return "\n".join([*lines, "</annotation>"])


def yolo(objects: Objects) -> str:
    lines = [
        f"{CLASSES.index(cls)} {(x1 + x2) / 2 / WIDTH:.6f} {(y1 + y2) / 2 / HEIGHT:.6f} "
        f"{(x2 - x1) / WIDTH:.6f} {(y2 - y1) / HEIGHT:.6f}"
        for cls, x1, y1, x2, y2 in objects
    ]
    return "".join(f"{line}\n" for line in lines)


def coco(scenes: dict[str, Objects], file_name: str = "{}.jpg", first_category: int = 0) -> str:
    """A COCO file; the first category is a group without objects, as Roboflow has it."""
    content: dict = {"info": {}, "images": [], "annotations": []}
    content["categories"] = [{"id": first_category, "name": "animals", "supercategory": "none"}]
    content["categories"] += [{"id": first_category + 1 + i, "name": name} for i, name in enumerate(CLASSES)]
    for image_id, (name, objects) in enumerate(scenes.items()):
        content["images"].append(
            {"id": image_id, "file_name": file_name.format(name), "height": HEIGHT, "width": WIDTH}
        )
        for cls, x1, y1, x2, y2 in objects:
            content["annotations"].append(
                {"id": len(content["annotations"]), "image_id": image_id, "iscrowd": 0,
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": first_category + 1 + CLASSES.index(cls)}
            )  # fmt: skip
    return json.dumps(content)


def labelme(name: str, objects: Objects) -> str:
    shapes = [
        {"label": cls, "points": [[x2, y2], [x1, y1]], "shape_type": "rectangle", "group_id": None}
        for cls, x1, y1, x2, y2 in objects
    ]
    content = {"version": "5.1", "flags": {}, "shapes": shapes, "imagePath": f"..\\{name}.jpg", "imageData": None}
    return json.dumps(content | {"imageHeight": HEIGHT, "imageWidth": WIDTH})


def put_csv(path: Path, scenes: dict[str, Objects], header: Sequence[str] | None, folder: str = "") -> None:
    """Boxes as rows: file, size, class, corners with a header of eight columns, else file, corners, class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(header)
        for name, objects in scenes.items():
            image = f"{folder}{name}.jpg"
            for cls, *corners in objects:
                writer.writerow([image, WIDTH, HEIGHT, cls, *corners] if header else [image, *corners, cls])
            if not objects:
                writer.writerow([image, WIDTH, HEIGHT, *[""] * 5] if header else [image, *[""] * 5])


TENSORFLOW = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")


def of_split(split: str) -> dict[str, Objects]:
    """The scenes of a split: 6 in train, 2 in valid, 2 in test."""
    names = [*SCENES]
    chosen = {"train": names[:6], "valid": names[6:8], "test": names[8:]}[split]
    return {name: SCENES[name] for name in chosen}


def labelimg_xml(root: Path) -> None:
    """labelImg: XML beside each image."""
    for name, objects in SCENES.items():
        put_image(root / f"{name}.jpg")
        put_text(root / f"{name}.xml", xml(name, objects))


def labelimg_yolo(root: Path) -> None:
    """labelImg's YOLO text beside each image, with classes.txt."""
    put_text(root / "classes.txt", "cat\ndog\n")
    for name, objects in SCENES.items():
        put_image(root / f"{name}.JPG")
        put_text(root / f"{name}.txt", yolo(objects))


def raccoon(root: Path) -> None:
    """images/ and annotations/ apart, and the same boxes as CSV for another program."""
    for name, objects in SCENES.items():
        put_image(root / "images" / f"{name}.jpg")
        put_text(root / "annotations" / f"{name}.xml", xml(name, objects))
    shown = {name: objects for name, objects in SCENES.items() if objects}
    put_csv(root / "data/raccoon_labels.csv", shown, TENSORFLOW)
    put_csv(root / "data/train_labels.csv", dict([*shown.items()][:7]), TENSORFLOW)
    put_text(root / "README.md", "# raccoons\n")


def fruit(root: Path) -> None:
    """XML beside each JPEG in train/ and test/, without sizes; one truncated JPEG, and one image twice."""
    for split, parts in (("train", ("train",)), ("test", ("valid", "test"))):
        for name, objects in {name: item for part in parts for name, item in of_split(part).items()}.items():
            put_image(root / split / f"{name}.jpg")
            put_text(root / split / f"{name}.xml", xml(name, objects, size=(0, 0)))
    for ending in ("jpg", "xml"):
        shutil.copy(root / f"train/img 0.{ending}", root / f"train/img 0 (1).{ending}")
        shutil.copy(root / f"train/img 1.{ending}", root / f"train/broken.{ending}")
    whole = (root / "train/broken.jpg").read_bytes()
    (root / "train/broken.jpg").write_bytes(whole[: len(whole) // 2])


def roboflow_voc(root: Path) -> None:
    """Roboflow's Pascal VOC: train/, valid/ and test/ with XML beside each image."""
    for split in ("train", "valid", "test"):
        for name, objects in of_split(split).items():
            put_image(root / split / f"{name}.jpg")
            put_text(root / split / f"{name}.xml", xml(name, objects))
    put_text(root / "README.roboflow.txt", "exported\n")


def roboflow_coco(root: Path) -> None:
    """Roboflow's COCO: one _annotations.coco.json in each split's folder, with image ids from 0 in each."""
    for split in ("train", "valid", "test"):
        for name in of_split(split):
            put_image(root / split / f"{name}.jpg")
        put_text(root / split / "_annotations.coco.json", coco(of_split(split)))


def roboflow_yolo(root: Path) -> None:
    """Roboflow's YOLO: images/ and labels/ in each split's folder, and a data.yaml with paths that lead elsewhere."""
    for split in ("train", "valid", "test"):
        for name, objects in of_split(split).items():
            put_image(root / split / "images" / f"{name}.jpg")
            put_text(root / split / "labels" / f"{name}.txt", yolo(objects))
    paths = {"train": "../train/images", "val": "../valid/images", "test": "../test/images"}
    put_text(root / "data.yaml", yaml.safe_dump(paths | {"nc": 2, "names": CLASSES}))


def ultralytics(root: Path) -> None:
    """images/ and labels/ with a folder for each split below, and names as a map in a yaml of any name."""
    for split in ("train", "valid", "test"):
        for name, objects in of_split(split).items():
            put_image(root / "images" / f"{split}2024" / f"{name}.png")
            put_text(root / "labels" / f"{split}2024" / f"{name}.txt", yolo(objects))
    paths = {f"{split}": f"images/{folder}2024" for split, folder in (("train", "train"), ("val", "valid"))}
    content = paths | {"path": "../datasets/animals", "test": "images/test2024", "names": dict(enumerate(CLASSES))}
    put_text(root / "animals.yaml", yaml.safe_dump(content))


def cvat_voc(root: Path) -> None:
    """CVAT's Pascal VOC 1.1."""
    for name, objects in SCENES.items():
        put_image(root / "JPEGImages" / f"{name}.jpg")
        put_image(root / "SegmentationClass" / f"{name}.png")
        put_text(root / "Annotations" / f"{name}.xml", xml(name, objects))
    put_text(root / "ImageSets/Main/default.txt", "".join(f"{name}\n" for name in SCENES))
    put_text(root / "labelmap.txt", "# label:color_rgb:parts:actions\ncat:1,2,3::\n")


def cvat_yolo(root: Path) -> None:
    """CVAT's YOLO 1.1: text beside the images of obj_SPLIT_data/, lists of images with the paths of darknet."""
    lists = {}
    for split, folder in (("train", "train"), ("valid", "valid"), ("test", "test")):
        for name, objects in of_split(split).items():
            put_image(root / f"obj_{folder}_data" / f"{name}.jpg")
            put_text(root / f"obj_{folder}_data" / f"{name}.txt", yolo(objects))
        lists[split] = "".join(f"data/obj_{folder}_data/{name}.jpg\n" for name in of_split(split))
        put_text(root / f"{split}.txt", lists[split])
    put_text(root / "obj.names", "cat\ndog\n")
    put_text(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")


def cvat_coco(root: Path) -> None:
    """CVAT's COCO 1.0."""
    for name in SCENES:
        put_image(root / "images" / f"{name}.jpg")
    put_text(root / "annotations/instances_default.json", coco(SCENES, first_category=1))


def cvat_images(root: Path) -> None:
    """CVAT for images 1.1: annotations.xml for all images."""
    lines = ["<?xml version='1.0' encoding='utf-8'?>", "<annotations><version>1.1</version><meta><task/></meta>"]
    for number, (name, objects) in enumerate(SCENES.items()):
        put_image(root / "images" / f"{name}.jpg")
        lines.append(f'<image id="{number}" name="me/{name}.jpg" width="{WIDTH}" height="{HEIGHT}">')
        for cls, x1, y1, x2, y2 in objects:
            lines.append(f'<box label="{cls}" occluded="0" xtl="{x1}.00" ytl="{y1}.00" xbr="{x2}" ybr="{y2}"></box>')
        lines.append('<tag label="seen"></tag></image>')
    put_text(root / "annotations.xml", "\n".join([*lines, "</annotations>"]))


def label_studio_voc(root: Path) -> None:
    """Label Studio's Pascal VOC: images/ and Annotations/."""
    for name, objects in SCENES.items():
        put_image(root / "images" / f"{name}.jpg")
        put_text(root / "Annotations" / f"{name}.xml", xml(name, objects))


def label_studio_yolo(root: Path) -> None:
    """Label Studio's YOLO: images/, labels/, classes.txt, notes.json."""
    for name, objects in SCENES.items():
        put_image(root / "images" / f"{name}.jpg")
        put_text(root / "labels" / f"{name}.txt", yolo(objects))
    put_text(root / "classes.txt", "cat\ndog\n")
    put_text(root / "notes.json", json.dumps({"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2024}}))


def label_studio_coco(root: Path) -> None:
    """Label Studio's COCO: images/ and result.json, made on Windows."""
    for name in SCENES:
        put_image(root / "images" / f"{name}.jpg")
    put_text(root / "result.json", coco(SCENES, "images\\{}.jpg"))


def labelme_json(root: Path) -> None:
    """LabelMe: JSON beside each image."""
    for name, objects in SCENES.items():
        put_image(root / f"{name}.jpg")
        put_text(root / f"{name}.json", labelme(name, objects))


def csv_table(root: Path) -> None:
    """Images and one table of boxes."""
    for name in SCENES:
        put_image(root / "images" / f"{name}.jpg")
    put_csv(root / "boxes.csv", SCENES, TENSORFLOW)


def csv_retinanet(root: Path) -> None:
    """A table for each split, without header, with paths."""
    for split in ("train", "valid", "test"):
        for name in of_split(split):
            put_image(root / "photos" / f"{name}.jpg")
        put_csv(root / f"{split}.csv", of_split(split), None, folder="/home/me/photos/")


def coco_files(root: Path) -> None:
    """A COCO file for each split, and the images in one folder."""
    for split in ("train", "valid", "test"):
        for name in of_split(split):
            put_image(root / "images" / f"{name}.jpg")
        put_text(root / f"annotations/instances_{split}2017.json", coco(of_split(split)))


def roboflow_darknet(root: Path) -> None:
    """Roboflow's YOLO Darknet: text beside each image, with _darknet.labels in the folder of each split."""
    for split in ("train", "valid", "test"):
        put_text(root / split / "_darknet.labels", "cat\ndog\n")
        for name, objects in of_split(split).items():
            put_image(root / split / f"{name}.jpg")
            put_text(root / split / f"{name}.txt", yolo(objects))
    put_text(root / "README.dataset.txt", "animals > 2024-01-01\n")


def roboflow_csv(root: Path) -> None:
    """Roboflow's Tensorflow CSV: _annotations.csv in the folder of each split."""
    for split in ("train", "valid", "test"):
        for name in of_split(split):
            put_image(root / split / f"{name}.jpg")
        put_csv(root / split / "_annotations.csv", of_split(split), TENSORFLOW)


def roboflow_createml(root: Path) -> None:
    """Roboflow's CreateML: _annotations.createml.json in the folder of each split."""
    for split in ("train", "valid", "test"):
        for name in of_split(split):
            put_image(root / split / f"{name}.jpg")
        put_text(root / split / "_annotations.createml.json", createml(of_split(split)))


def cvat_ultralytics(root: Path) -> None:
    """CVAT's Ultralytics YOLO: images/ and labels/ by split, and lists of images that data.yaml names."""
    lists = {}
    for split, folder in (("train", "Train"), ("valid", "Validation"), ("test", "Test")):
        for name, objects in of_split(split).items():
            put_image(root / f"images/{folder}" / f"{name}.jpg")
            put_text(root / f"labels/{folder}" / f"{name}.txt", yolo(objects))
        put_text(root / f"{folder}.txt", "".join(f"data/images/{folder}/{name}.jpg\n" for name in of_split(split)))
        lists["val" if split == "valid" else split] = f"{folder}.txt"
    put_text(root / "data.yaml", yaml.safe_dump({"names": dict(enumerate(CLASSES)), "path": "."} | lists))


def labelimg_createml(root: Path) -> None:
    """labelImg's CreateML: one JSON for all images of the folder."""
    for name in SCENES:
        put_image(root / f"{name}.jpg")
    put_text(root / "phone.json", createml(SCENES))


def label_studio_json(root: Path) -> None:
    """Label Studio's own JSON, beside the images as they were before they were uploaded."""
    for name in SCENES:
        put_image(root / "photos" / f"{name}.jpg")
    cancelled = {"id": 1, "was_cancelled": True, "result": []}
    tasks = [
        {"id": number, "data": {"note": "seen", "image": f"/data/upload/1/0a1b2c3d-{name.replace(' ', '%20')}.jpg"},
         "annotations": [cancelled, {"id": 2, "was_cancelled": False, "result": _results(objects)}], "predictions": []}
        for number, (name, objects) in enumerate(SCENES.items(), start=1)
    ]  # fmt: skip
    tasks.append({"id": 99, "data": {"image": "/data/upload/1/later.jpg"}, "annotations": [cancelled]})
    put_text(root / "project.json", json.dumps(tasks))


def label_studio_json_min(root: Path) -> None:
    """Label Studio's JSON-MIN of local files."""
    tasks = []
    for number, (name, objects) in enumerate(SCENES.items(), start=1):
        put_image(root / "photos" / f"{name}.jpg")
        found = [item["value"] | {"original_width": WIDTH, "original_height": HEIGHT} for item in _results(objects)[1:]]
        address = f"/data/local-files/?d=my/photos/{name.replace(' ', '%20')}.jpg"
        tasks.append({"image": address, "id": number, "annotator": 1, "annotation_id": number})
        tasks[-1] |= {"label": found} if found else {}
    put_text(root / "project-1.json", json.dumps(tasks))


def createml(scenes: dict[str, Objects]) -> str:
    return json.dumps([
        {"image": f"{name}.jpg", "annotations": [
            {"label": cls,
             "coordinates": {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1}}
            for cls, x1, y1, x2, y2 in objects
        ]}
        for name, objects in scenes.items()
    ])  # fmt: skip


def _results(objects: Objects) -> list[dict]:
    """A choice for the whole image, and objects as results of Label Studio, with positions as percentages."""
    found: list[dict] = [{"from_name": "seen", "type": "choices", "value": {"choices": ["yes"]}}]
    for number, (cls, x1, y1, x2, y2) in enumerate(objects):
        value = {"x": 100 * x1 / WIDTH, "y": 100 * y1 / HEIGHT, "width": 100 * (x2 - x1) / WIDTH,
                 "height": 100 * (y2 - y1) / HEIGHT, "rotation": 0, "rectanglelabels": [cls]}  # fmt: skip
        about = {"id": f"r{number}", "type": "rectanglelabels", "original_width": WIDTH, "original_height": HEIGHT}
        found.append(about | {"value": value})
    return found


WITH_SPLITS: list[Callable[[Path], None]] = [
    roboflow_voc, roboflow_coco, roboflow_yolo, ultralytics, cvat_yolo, csv_retinanet, coco_files,
    roboflow_darknet, roboflow_csv, roboflow_createml, cvat_ultralytics,
]  # fmt: skip
WITHOUT_SPLITS: list[Callable[[Path], None]] = [
    labelimg_xml, labelimg_yolo, raccoon, cvat_voc, cvat_coco, cvat_images, label_studio_voc, label_studio_yolo,
    label_studio_coco, labelme_json, csv_table, labelimg_createml, label_studio_json, label_studio_json_min,
]  # fmt: skip
