import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.errors import InputError
from detector.evaluation.error_analysis import KINDS
from detector.evaluation.matching import HIT, MISS, match
from detector.evaluation.pages.pictures import draw_errors
from detector.evaluation.pages.report_page import report_page
from detector.evaluation.report import score_detections, write_report
from detector.evaluation.tables import ap_table, summary
from detector.settings import Metric
from detector.structures import Detections
from tests.conftest import ground_truth
from tests.helpers.scoring import CLASSES, EVIL, FOUND, TRUTHS, dataset_of, embedded, found


def report(folder, dataset, detections, metric, origin, page=True) -> dict:
    return write_report(folder, dataset, score_detections(dataset, detections, metric), origin, page)


@pytest.fixture
def gray(tmp_path) -> Path:
    Image.new("RGB", (100, 80), (128, 128, 128)).save(tmp_path / "gray.png")
    return tmp_path / "gray.png"


def test_metrics_and_plots(tmp_path):
    dataset, metric = dataset_of(TRUTHS, CLASSES), Metric(iou_thresholds=(0.5, 0.9), coco=True)
    origin = {"loss": {"cls": 1.0}, "source": {"iteration": 7}}
    metrics = report(tmp_path, dataset, FOUND, metric, origin, page=False)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["main"] == {"metric": "11point@0.50", "value": metrics["voc"]["11point@0.50"]["mAP"]}
    assert metrics["voc"]["area@0.50"]["AP"] == {EVIL: 0.5, "dog": 0.0, "unicorn": None}
    assert metrics["voc"]["area@0.90"]["mAP"] == 0.0
    assert metrics["loss"] == {"cls": 1.0}
    assert metrics["source"] == {"iteration": 7, "data": "set", "images": 2}
    assert {kind: metrics["errors"][kind]["count"] for kind in KINDS} == {
        "duplicate": 1, "localisation": 1, "confusion": 1, "both": 0, "background": 1, "missed": 1,
    }  # fmt: skip
    assert [metrics["sizes"][size]["objects"] for size in ("small", "medium", "large")] == [2, 2, 0]
    plots = [tmp_path / "errors.png", *sorted((tmp_path / "precision_recall").iterdir())]
    assert [path.name for path in plots] == ["errors.png", "dog.png", f"{EVIL}.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("main", ["area@0.75", "11point@0.50:0.95", "coco"])
def test_the_main_metric(tmp_path, main):
    truths, detections = [ground_truth("a", (1, 0, 0, 10, 10))], [found("a", (1, 0.9, 0, 0, 10, 8))]
    metric = Metric(iou_thresholds=(0.75,), main=main, coco=True)
    metrics = report(tmp_path, dataset_of(truths, ["cat"]), detections, metric, {}, page=False)
    assert metrics["main"] == {"metric": main, "value": pytest.approx(1.0 if main == "area@0.75" else 0.7)}


def test_the_tables(tmp_path):
    metrics = report(tmp_path, dataset_of(TRUTHS, CLASSES), FOUND, Metric(coco=True), {}, page=False)
    head, *rows, mean = [line.split("  ") for line in ap_table(metrics).splitlines()]
    assert [cell for cell in head if cell.strip()][-1].strip() == "coco"
    assert (rows[-1][0], rows[-1][-1].strip()) == ("unicorn", "no object")
    assert mean[-1].strip() == f"{metrics['coco']['AP']:.4f}"
    assert re.search(r"small +2 +0\.\d{4}", summary(metrics))
    assert re.search(r"confusion +1 +0\.\d{4}", summary(metrics))
    assert "AR100" in summary(metrics)


class Page(HTMLParser):
    """Counts the tags, and keeps what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]


def test_the_page_holds_all_and_asks_for_nothing(tmp_path, gray):
    report(tmp_path, dataset_of(TRUTHS, CLASSES, "<set>", gray), FOUND, Metric(coco=True), {})
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 2  # the data and page.js
    assert "<a>: traffic light" not in text
    assert "&lt;a&gt;: traffic light &lt;script&gt;&amp;" + "ж" * 38 + " 0.80, IoU 1.00 with dog" in text
    assert "&lt;set&gt;" in text
    listed = (tmp_path / "label_errors.csv").read_text().splitlines()
    suspects = len(listed) - 1
    assert listed[1].startswith(f'<a>,class,0.8000,dog,"{EVIL}",' if "," in EVIL else f"<a>,class,0.8000,dog,{EVIL},")
    assert suspects > 1
    assert page.tags.count("img") == 5 + suspects + 1  # five errors (none of kind `both`), one hit
    assert page.tags.count("figure") == 5 + suspects + 1 + 2  # two classes have a curve
    assert all(re.match("data:(image/jpeg;base64)?,|#", link) for link in page.links)
    assert "http" not in text
    assert "@import" not in text


def test_embedded_counts_are_those_of_the_matching(tmp_path):
    dataset = dataset_of(TRUTHS, CLASSES)
    report(tmp_path, dataset, FOUND, Metric(), {})
    data = embedded(tmp_path / "report.html")
    matches = match(TRUTHS, FOUND, len(CLASSES))
    judged = matches.judge(0.5)
    assert (data["classes"], data["objects"]) == (CLASSES, [2, 2, 0])
    for step in range(101):
        for label in (1, 2, 3):
            at_least = (matches.labels == label) & (matches.scores >= step / 100 - 1e-6)
            counted = data["hits"][label - 1][step], data["misses"][label - 1][step]
            assert counted == ((judged[at_least] == HIT).sum(), (judged[at_least] == MISS).sum())


def test_pictures_show_the_proposals_of_the_detections(tmp_path, gray):
    moved = [replace(item, proposals=item.boxes + np.float32(2)) for item in FOUND]
    dataset = dataset_of(TRUTHS, CLASSES, image=gray)
    scores = score_detections(dataset, moved, Metric())
    [picture] = draw_errors(scores.matches, scores.errors, dataset)["confusion"]
    roles = {mark.role: mark.box for mark in picture.marks}
    assert [*roles] == ["object", "proposal", "detection"]
    scale = (roles["object"][2] - roles["object"][0]) / 40  # the object is 40 pixels wide
    assert (roles["proposal"] - roles["detection"]).tolist() == pytest.approx([2 * scale] * 4)
    report(tmp_path, dataset, moved, Metric(), {})
    assert (tmp_path / "report.html").read_text().count('class="line proposal"') > 5


def test_page_of_many_detections_and_classes_stays_small(gray):
    generator = np.random.default_rng(0)
    classes = [f"class {number}" for number in range(60)]
    truths = [ground_truth(str(image), *[(label, 0, 0, 50, 40) for label in range(1, 61)]) for image in range(20)]
    detections = []
    for image in range(20):
        corner = generator.uniform(0, 30, (3000, 2))
        boxes = np.hstack([corner, corner + generator.uniform(20, 50, (3000, 2))]).astype(np.float32)
        scores = np.sort(generator.random(3000).astype(np.float32))[::-1]
        detections.append(Detections(str(image), boxes, generator.integers(1, 61, 3000), scores))
    dataset = dataset_of(truths, classes, image=gray)
    scores = score_detections(dataset, detections, Metric())
    pictures = draw_errors(scores.matches, scores.errors, dataset)
    pictures["suspects"] = []
    text = report_page("many", scores.metrics, scores.curves, scores.counts, scores.confusion, pictures)
    assert len(text) < 1_000_000
    assert "most frequent" in text


def test_scores_need_no_images(tmp_path):
    gone = InputError("no <image>")
    report(tmp_path, dataset_of(TRUTHS, CLASSES, image=gone), FOUND, Metric(), {})
    text = (tmp_path / "report.html").read_text()
    assert "img" not in Page(text).tags
    assert "0.80, IoU 1.00 with dog (no &lt;image&gt;)" in text
