"""Folders with one thing wrong in each: what the one error says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.data.check import check_data, require_all_valid
from detector.data.formats.folder import read_folder
from detector.errors import InputError
from tests.helpers import layouts
from tests.helpers.layouts import put_image, put_text, xml


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Replace a part of a file's text."""

    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Write a file, or write over it."""
    data = content if isinstance(content, bytes) else content.encode()

    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)

    return change


def remove(*names: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name in names:
            shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()

    return change


def copy(source: str, target: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / source, root / target)

    return change


def one_outside(root: Path) -> None:
    put_image(root / "more/x.jpg")
    put_text(root / "more/x.xml", xml("x", []))


def two_voc_layouts(root: Path) -> None:
    for name in "ab":
        put_image(root / name / f"JPEGImages/{name}.jpg")
        put_text(root / name / f"Annotations/{name}.xml", xml(name, []))
        put_text(root / name / "ImageSets/Main/train.txt", name)


def only_copies(root: Path) -> None:
    for number in range(1, 10):
        shutil.copy(root / "img 0.jpg", root / f"img {number}.jpg")


def all_of(pattern: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """Change the text of each such file but the one with the names of classes."""

    def apply(root: Path) -> None:
        for path in [path for path in root.rglob(pattern) if path.name != "classes.txt"]:
            path.write_text(change(path.read_text()))

    return apply


def json_key(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        content = json.loads((root / name).read_text())
        change(content)
        (root / name).write_text(json.dumps(content))

    return apply


def json_task(change: Callable[[dict], object], number: int = 0) -> Callable[[Path], None]:
    """Change an entry of the JSON list in the root."""

    def apply(root: Path) -> None:
        (path,) = root.glob("*.json")
        content = json.loads(path.read_text())
        change(content[number])
        path.write_text(json.dumps(content))

    return apply


def of_box(task: dict) -> dict:
    """The first result of a task of Label Studio that is a box."""
    return task["annotations"][1]["result"][1]


CVAT = "annotations.xml"
LIST = "ImageSets/Main/train.txt"
XML, YOLO, COCO, ME, CSV = "img 0.xml", "labels/img 0.txt", "result.json", "img 0.json", "boxes.csv"
V, Y, C = layouts.labelimg_xml, layouts.label_studio_yolo, layouts.label_studio_coco
S, L, STUDIO = layouts.label_studio_json, layouts.labelimg_createml, "project.json"
M, T, R, F = layouts.labelme_json, layouts.csv_table, layouts.raccoon, layouts.roboflow_voc
# A layout, what is wrong with it, a part of the error, and, where it matters, the split that is read.
CASES: dict[str, tuple] = {
    "xml-broken": (V, replace(XML, "</annotation>", ""), r"misannotated: .*img 0\.xml: broken XML"),
    "xml-swapped": (V, replace(XML, "<xmin>1<", "<xmin>50<"), r"img 0\.xml: object 1 has its corners sw"),
    "xml-word": (V, replace(XML, "<xmax>20<", "<xmax>wide<"), r"object 1: <xmax> must be .*'wide'"),
    "xml-no-class": (V, replace(XML, "<name>cat<", "<name> <"), r"img 0\.xml: object 1 has no <name>"),
    "xml-size": (V, replace(XML, "<width>64<", "<width>640<"), r"is for an image of 640x48, but .* 64x48"),
    "xml-outside": (V, write(XML, xml("", [("cat", 70, 1, 90, 9)])), r"box 1 .* lies outside its image"),
    "xml-of-html": (V, write(XML, "<html></html>"), r"img 0\.xml: its root is <html>, not <annotation>"),
    "xml-not-utf8": (V, write(XML, b"<annotation>\xff</annotation>"), r"img 0\.xml: broken XML: not well-"),
    "image-missing": (V, remove("img 0.jpg"), r"missing: .*img 0\.xml: there is no image 'img 0' for it"),
    "image-broken": (V, write("img 0.jpg", b"x"), r"corrupt: .*img 0\.jpg: not an image"),
    "image-twice": (layouts.labelimg_yolo, copy("img 0.JPG", "img 0.png"), r"'img 0' matches 2 images: .*JPG, .*png"),
    "two-xml": (R, copy("annotations/img 0.xml", "old/img 0.xml"), r"img 0\.jpg: it is annotated more than once"),
    "no-pair": (R, remove("images"), r"none of the 10 annotations in VOC XML has its image: .*there is no image"),
    "nothing": (R, remove("annotations", "data"), r"there is no annotation in it\. Seen: 10 \.jpg, 1 \.md\. Supp"),
    "no-folder": (R, remove("."), r"data\.root: there is no folder .* \(current directory: "),
    "two-formats": (V, write("boxes.csv", "file,x1,y1,x2,y2,class\nimg 0.jpg,1,2,3,4,cow\n"),
                    r"10 images with VOC XML and 1 images with CSV, which differ: img 0\.jpg has cat, dog and cow"),
    "other-format": (V, lambda root: None, r"there is no COCO JSON \(data\.format=coco\) in it", "coco"),
    "outside": (F, one_outside, r"by folder .* 1 images are in none of them: x\. Move them", None, "train"),
    "only-test": (F, remove("train", "valid"), r"splits by .*: test 2, and none to train on", None, "train"),
    "no-split": (F, remove("test"), r"no split 'test' in it; there is train 6, val 2\.", None, "test"),
    "only-copies": (V, only_copies, "only 1 of 10 images are distinct, too few for a split", None, "train"),
    "two-lists": (F, two_voc_layouts, r"has 2 datasets in VOC layout, .* 'data\.parts=\[{root: a}, {root: b}\]'"),
    "list": (layouts.cvat_voc, write(LIST, "img 0\nimg 77\n"), r"train\.txt: there is no image 'img 77'"),
    "createml-nameless": (L, write("phone.json", '[{"image": "", "annotations": []}]'), r"entry 1 names no image"),
    "createml-huge": (L, replace("phone.json", '"x": 10.0', f'"x": {10**400}'), r"object 1 has .*\[10000.* below 1e"),
    "createml-true": (L, replace("phone.json", '"x": 10.0', '"x": true'), r"object 1 has .*\[True, .* they m"),
    "list-twice": (layouts.cvat_voc, write(LIST, "img 0\nimg 0\n"), r"train\.txt: image ids are liste"),
    "yolo-names": (Y, remove("classes.txt"), r"img 0\.txt: YOLO text has class numbers, whose names ar"),
    "yolo-class": (Y, write(YOLO, "7 .5 .5 .1 .1"), r"object 1 has class 7, and 2 classes have names"),
    "yolo-pixels": (Y, write(YOLO, "0 30 20 9 9"), r"object 1 has values that are not fractions of the i"),
    "yolo-short": (Y, write(YOLO, "0 .5 .5 .1"), r"object 1 has 3 numbers after the class"),
    "yolo-scores": (Y, write(YOLO, "0 .5 .5 .1 .1 .9"), r"object 1 has 5 numbers after the class"),
    "yolo-text": (Y, write(YOLO, "cat .5 .5 .1 .1"), r"object 1 is not `class x y width height`: 'cat"),
    "yolo-negative": (Y, write(YOLO, "0 .5 .5 -0.005 .1"), r"object 1 has a negative size"),
    "yolo-two-lists": (Y, write("data.yaml", "names: [dog, cat]"), r"names dog, cat, but another file"),
    "yolo-yaml": (layouts.roboflow_yolo, write("data.yaml", "names: [cat"), r"data\.yaml: broken YAML: while parsing"),
    "yolo-tag": (layouts.roboflow_yolo, write("data.yaml", "names: !!python/name:os.system"), r"broken YAML: could"),
    "yolo-yaml-names": (layouts.roboflow_yolo, write("data.yaml", "names: {1: cat}"), r"'names' is neither a li"),
    "yolo-comma": (Y, all_of("*.txt", lambda text: text.replace(".", ",")),
                   r"there is no annotation in it\. Seen: .*; img 0\.txt begins with `0 0,15"),
    "heic": (V, lambda root: (root / "img 0.jpg").rename(root / "img 0.HEIC"),
             r"missing: .* no image 'img 0' for it, only img 0\.HEIC: save it as JPEG or PNG"),
    "archive": (lambda root: root.write_bytes(b"PK"), lambda root: None, r"set is a file, not a folder .*: unpack"),
    "coco-captions": (layouts.coco_files, write("annotations/captions.json", '{"images": [], "annotations": []}'),
                      r"captions\.json: it has no list of objects 'categories', .*: data=coco data\.train_json=FILE"),
    "coco-outside": (C, replace(COCO, "images\\\\img 3.jpg", "/a/../../gone.jpg"), r"there is no image '.*gone\.jpg'"),
    "coco-broken": (C, write(COCO, "{"), r"result\.json: broken JSON: "),
    "coco-category": (C, replace(COCO, '"category_id": 1', '"category_id": 9'), r"has the category_id 9"),
    "coco-image": (C, replace(COCO, "img 3.jpg", "gone.jpg"), r"there is no image '.*gone\.jpg' for it"),
    "coco-twice": (C, copy(COCO, "copy.json"), r"more than once, in .*copy\.json, .*result\.json.*: data=coco data"),
    "coco-box": (C, replace(COCO, "[0, 2, 20, 28]", "[0, 2, 20]"), r"annotation 0 has the bbox \[0, 2, "),
    "coco-keys": (C, json_key(COCO, lambda it: it.pop("categories")), r"it has no list of objects 'cat"),
    "labelme-broken": (M, write(ME, '{"shapes": ['), r"misannotated: .*img 0\.json: broken JSON: "),
    "labelme-points": (M, replace(ME, "[20, 30]", "[20, null]"), r"shape 1 has no valid 'points', at least 2"),
    "labelme-shapes": (M, json_key(ME, lambda it: it.update(shapes=3)), r"img 0\.json: 'shapes' is not a list"),
    "labelme-label": (M, replace(ME, '"cat"', "null"), r"img 0\.json: shape 1 has no class: None"),
    "cvat-broken": (layouts.cvat_images, write(CVAT, "<annotations><image>"), r"annotations\.xml: broken XML"),
    "cvat-number": (layouts.cvat_images, replace(CVAT, 'xbr="20"', ""), r"'me/img 0\.jpg': shape 1 has no valid coor"),
    "cvat-rotated": (layouts.cvat_images, replace(CVAT, "<box ", '<box rotation="30" '), r"shape 1 is a rotated box"),
    "cvat-rotation": (layouts.cvat_images, replace(CVAT, "<box ", '<box rotation="abc" '),
                      r"shape 1 has a rotation that is not a number: 'abc'"),
    "csv-comma": (T, replace(CSV, "cat,0,2,", 'cat,"0,5",2,'), r"line 2 needs four numbers \(such as 12\.5\) as corn"),
    "csv-number": (T, replace(CSV, "cat,0,2,", "cat,0,,"), r"line 2 needs four numbers .* not \['0', '', "),
    "csv-no-file": (T, replace(CSV, "img 0.jpg", ""), r"boxes\.csv: line 2 names no image"),
    "csv-columns": (T, replace(CSV, "xmax,ymax", "w,h"), r"boxes\.csv begins with `filename,width,height,class"),
    "csv-not-utf8": (T, write(CSV, b"file,x1,y1,x2,y2,class\nimg 0.jpg,1,2,3,4,ca\xff\n"), r"boxes\.csv: not UTF-8"),
    "yolo-image": (Y, remove("images/img 0.jpg"), r"missing: .*img 0\.txt: there is no image 'img 0' for it"),
    "coco-broken-valid": (layouts.roboflow_coco, write("valid/_annotations.coco.json", "{"), r"valid/.*: broken JSON"),
    "yolo-key": (layouts.roboflow_yolo, write("data.yaml", "names:nc: 2"), r"whose names are in .*, and there is none"),
    "yolo-deep": (layouts.roboflow_yolo, write("data.yaml", "names: " + "[" * 5000), r"data\.yaml: broken YAML: "),
    "studio-broken": (S, write(STUDIO, '[{"id": 1, "data"'), r"project\.json: broken JSON"),
    "studio-address": (S, json_task(lambda it: it.update(data={"image": "http://[a.jpg"})), r"task 1 names no image"),
    "studio-image": (S, replace(STUDIO, "img%200.jpg", "gone.jpg"), r"there is no image 'gone\.jpg' for it"),
    "studio-no-image": (S, json_task(lambda it: it.update(data={})), r"project\.json: task 1 names no image"),
    "studio-result": (S, json_task(lambda it: it["annotations"][1].pop("result")), r"1: 'result' is not a list"),
    "studio-number": (S, json_task(lambda it: of_box(it)["value"].update(x=None)), r"shape 1 has .*\[None, .* they m"),
    "studio-two": (S, json_task(lambda it: it["annotations"][0].pop("was_cancelled")), r"task 1 has 2 annotations: "),
    "studio-size": (S, json_task(lambda it: of_box(it).update(original_width=640)), r"is for an image of 640x48"),
    "createml-image": (L, json_task(lambda it: it.pop("image"), 1), r"phone\.json: entry 2 names no image"),
    "createml-list": (L, json_task(lambda it: it.update(annotations=None)), r"img 0\.jpg: 'annotations' is not a list"),
    "createml-box": (L, json_task(lambda it: it["annotations"][0].pop("coordinates")), r"object 1 has no 'coord"),
    "createml-label": (L, json_task(lambda it: it["annotations"][0].pop("label")), r"object 1 has no class: None"),
    "csv-field": (T, replace(CSV, "cat,", "c" * 140_000 + ","), r"boxes\.csv: broken CSV: field larger than field lim"),
    "csv-classes": (T, write("class-descriptions.csv", "/m/0," + "c" * 140_000), r"descriptions\.csv: broken CSV: fi"),
    "csv-image": (T, replace(CSV, "img 0.jpg", "gone.jpg"), r"missing: .*there is no image 'gone\.jpg' for it"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_error_says_what_is_wrong(case, tmp_path):
    make, break_it, says, format, split = (*CASES[case], None, None)[:5]
    root = tmp_path / "set"
    make(root)
    break_it(root)
    with pytest.raises(InputError, match=says) as error:
        require_all_valid(check_data(read_folder(root, split or "all", format)))
    lines = str(error.value).splitlines()
    assert len(lines) in (1, 3)  # of one file for all images, or of one image
