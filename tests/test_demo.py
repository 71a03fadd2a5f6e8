"""scripts/demo.py: what it shows, and its page in a real browser where gradio and a browser are installed."""

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

import detector
from scripts import _demo_page, demo


@pytest.fixture
def shown(checkpoint) -> _demo_page.Demo:
    return _demo_page.Demo(detector.load(checkpoint, device="cpu"))


@pytest.fixture
def image(small_shapes) -> np.ndarray:
    return np.array(Image.open(small_shapes / "JPEGImages/test_0.jpg"))


def test_fewer_proposals_or_a_higher_threshold_detect_less(shown, image):
    boxes = shown.propose(image)

    def found(count: int, threshold: float, nms_iou: float) -> int:
        return len(shown.detect(image, boxes[:count], threshold, nms_iou))

    assert found(2, 0.0, 0.3) < found(40, 0.0, 0.3) < found(40, 0.0, 0.9)
    assert found(40, 0.99, 0.3) == 0


def test_the_pooled_features_are_those_of_the_detection(shown, image, monkeypatch):
    result = shown.detect(image, shown.propose(image), 0.0, None)
    drawn = []
    draw = _demo_page.draw_features
    monkeypatch.setattr(_demo_page, "draw_features", lambda *given: drawn.append(given) or draw(*given))
    picture = shown.draw_pooled(result, 3)
    assert picture.ndim == 3
    [(scaled, pooled, caption)] = drawn
    assert caption == f"{result.names[3]} {result.scores[3]:.2f}"
    scale = scaled.shape[0] / image.shape[0]
    np.testing.assert_allclose(pooled.box, result.boxes[3] * scale, atol=0.5)
    assert pooled.pooled.shape[1:] == (7, 7)
    assert not shown.model.roi_pool._forward_hooks


def test_a_click_takes_the_smallest_box_around_it():
    boxes = np.array([[0, 0, 10, 10], [4, 4, 8, 8], [5, 5, 30, 30]], dtype=np.float32)
    assert [_demo_page.at_point(boxes, *point) for point in ((1, 1), (6, 6), (20, 20), (40, 1))] == [0, 1, 2, None]
    assert _demo_page.at_point(np.zeros((0, 4)), 1, 1) is None


def test_without_gradio_the_error_says_how_to_install_it(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main(["--checkpoint", str(checkpoint)]) == 2
    assert 'an optional extra: uv pip install ".[demo]"' in capsys.readouterr().err


# --- in a browser


@pytest.fixture
def address(shown, small_shapes) -> Iterator[str]:
    pytest.importorskip("gradio", reason="the demo needs an optional extra: uv pip install '.[demo]'")
    gradio = demo.import_gradio()
    examples = [small_shapes / f"JPEGImages/test_{number}.jpg" for number in (0, 1)]
    page = _demo_page.build_page(gradio, shown, examples)
    _, url, _ = page.launch(server_name=demo.HOST, prevent_thread_lock=True, quiet=True, share=False)
    yield url
    page.close()


def test_the_page_shows_proposals_detections_and_pooled_features(browser, address, shown, image, small_shapes):
    problems, hosts = [], set()
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(40_000)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.goto(address)
    score = page.get_by_label("number input for Score threshold")
    score.fill("0.1")
    score.press("Enter")
    page.locator("input[type=file]").first.set_input_files(small_shapes / "JPEGImages/test_0.jpg")
    status = page.get_by_text("Click a detection")
    status.wait_for()
    assert " proposals, 0 detections" not in status.inner_text()
    drawn = page.locator("img[src*='image.webp']")  # proposals, detections
    x1, y1, x2, y2 = shown.detect(image, shown.propose(image), 0.1, None).boxes[0].tolist()
    size, (height, width) = drawn.nth(1).bounding_box(), image.shape[:2]
    middle = {"x": (x1 + x2) / 2 / width * size["width"], "y": (y1 + y2) / 2 / height * size["height"]}
    for _ in range(10):  # a click is lost while the picture is drawn again
        drawn.nth(1).click(position=middle)
        page.wait_for_timeout(2000)
        if drawn.count() == 3:
            break
    drawn.nth(2).wait_for()
    score.fill("1")
    score.press("Enter")
    page.get_by_text(", 0 detections").wait_for()
    assert drawn.count() == 2  # the features have gone with the detection
    assert problems == []
    assert {host.split(":")[0] for host in hosts if host} == {demo.HOST}
