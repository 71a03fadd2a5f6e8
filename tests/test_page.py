"""docs/roi_pooling.html: its arithmetic against the operator, and its use, in a real browser where there is one."""

import base64
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.models import build_model
from detector.roi_pool import roi_pool
from detector.training.checkpoint import Checkpoints
from detector.visualization.pooling import ARTICLE_MAP
from scripts import _page_contents, build_page

PAGE = build_page.PAGE
ARTICLE = torch.from_numpy(ARTICLE_MAP)[None, None]
REGION = torch.tensor([[0.0, 0, 3, 6, 7]])


def data_of(page: Path) -> dict:
    [text] = re.findall('<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


def decoded(values: str, height: int, width: int) -> torch.Tensor:
    raw = np.frombuffer(base64.b64decode(values), "<f4").copy()
    return torch.from_numpy(raw).view(1, 1, height, width)


# --- without a browser


def test_the_committed_page_is_made_of_its_parts():
    assert build_page.render(data_of(PAGE)) == PAGE.read_text(), "run scripts/build_page.py, see make docs"


def test_the_page_is_one_small_file_without_a_network():
    text = PAGE.read_text()
    assert len(text) < 400_000
    assert not re.search(r"https?:|\ssrc=|@import|<link(?! rel=\"icon\" href=\"data:,\")", text)


def test_the_example_of_the_page_is_the_articles():
    article = data_of(PAGE)["article"]
    assert torch.equal(decoded(article["values"], article["height"], article["width"]), ARTICLE)
    assert (article["roi"], article["output"]) == (REGION[0, 1:].tolist(), [2, 2])


@pytest.fixture
def make_checkpoint(settings, small_shapes, tmp_path) -> Callable[[float], Path]:
    """An untrained network that gives everything one class, with a higher or lower score."""

    def make(bias: float, *overrides: str) -> Path:
        sizes = ["data.short_side_px=96", "data.max_side_px=160", "proposals.mode=single", "model.hidden=32"]
        config = settings("train", "data=voc", f"data.root={small_shapes}", "precision=float32", *sizes, *overrides)
        state = build_model(config.model, 2).state_dict()
        state["cls_score.bias"][2] = bias
        Checkpoints(tmp_path / "checkpoints").save_last(
            {"model": state, "config": config.plain(), "classes": ["ball", "kite"], "iteration": 1}
        )
        return tmp_path / "checkpoints/last.pt"

    return make


def build(checkpoint: Path, image: Path, out: Path) -> int:
    options = ["--checkpoint", str(checkpoint), "--image", str(image), "--out", str(out), "--counts", "1", "3"]
    return build_page.main(options)


def test_build_page_takes_its_data_from_a_detection(make_checkpoint, small_shapes, tmp_path, monkeypatch):
    seen, photograph = [], _page_contents.photograph
    monkeypatch.setattr(
        _page_contents, "photograph", lambda *given: seen.append(given[0].features) or photograph(*given)
    )
    assert build(make_checkpoint(9.0), small_shapes / "JPEGImages/test_0.jpg", tmp_path / "page.html") == 0
    data = data_of(tmp_path / "page.html")
    shown = data["photograph"]
    [features] = seen
    assert shown["depth"] == features.shape[1] == 256
    for number, values in zip(shown["channel_numbers"], shown["channels"], strict=True):
        assert torch.equal(decoded(values, shown["height"], shown["width"])[0, 0], features[0, number].float())
    assert {region["name"] for region in shown["regions"]} == {"kite"}
    assert all(region["score"] > 0.9 for region in shown["regions"])
    assert [row["regions"] for row in data["timing"]["measured"]] == [1, 3]
    assert all(min(row.values()) > 0 for row in data["timing"]["measured"])


def test_build_page_without_a_detection_writes_nothing(make_checkpoint, small_shapes, tmp_path, capsys):
    assert build(make_checkpoint(0.0), small_shapes / "JPEGImages/test_0.jpg", tmp_path / "page.html") == 2
    assert "finds nothing with a score of 0.5" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_build_page_reports_invalid_options_first(tmp_path, capsys):
    given = ["--checkpoint", "missing.pt", "--image", "missing.jpg", "--out"]
    assert build_page.main([*given, str(tmp_path / "page.html"), "--counts", "3", "0"]) == 2
    assert "--counts: 0 is not a number of regions" in capsys.readouterr().err
    assert build_page.main([*given, str(tmp_path)]) == 2
    assert f"--out: {tmp_path} is a folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert build_page.main([*given, str(tmp_path / "file/page.html")]) == 2
    assert "--out: " in capsys.readouterr().err


def test_build_page_needs_roi_pooling(make_checkpoint, small_shapes, tmp_path, capsys):
    checkpoint = make_checkpoint(9.0, "model.pooling=roi_align")
    assert build(checkpoint, small_shapes / "JPEGImages/test_0.jpg", tmp_path / "page.html") == 2
    assert "model.pooling=roi_align): give another network" in capsys.readouterr().err


def test_build_page_needs_one_scale(make_checkpoint, small_shapes, tmp_path, capsys):
    checkpoint = make_checkpoint(9.0, "detect.pyramid_px=[64,96]")
    assert build(checkpoint, small_shapes / "JPEGImages/test_0.jpg", tmp_path / "page.html") == 2
    assert "(detect.pyramid_px): there is no single feature map" in capsys.readouterr().err


# --- in a browser


@pytest.fixture
def open_page(open_page) -> Callable:
    """Open the page of this test."""
    return functools.partial(open_page, PAGE)


def random_case(generator: np.random.Generator) -> tuple[torch.Tensor, list[float], list[int], float]:
    """A map, a region (also outside the map, inverted, or with halves after scaling), an output size and a scale."""
    height, width = (int(generator.integers(1, 130 if generator.random() < 0.2 else 30)) for _ in "hw")
    values = generator.normal(size=(1, 1, height, width))
    if generator.random() < 0.3:  # equal values
        values = values.round()
    scale = float(generator.choice([1, 1 / 16, 1 / 8, 0.1, 0.7, 0.9]))
    corners = generator.uniform(-1, [width + 1, height + 1, width + 1, height + 1])
    if generator.random() < 0.6:
        corners = np.concatenate([np.minimum(corners[:2], corners[2:]), np.maximum(corners[:2], corners[2:])])
    if generator.random() < 0.5:
        corners = (2 * corners).round() / 2
    roi = (corners / scale).astype(np.float32).tolist()
    output = [int(generator.choice([1, 2, 3, 5, 6, 7, 14])) for _ in "hw"]
    return torch.from_numpy(values.astype(np.float32)), roi, output, scale


def test_1000_random_cases_equal_the_operator_bit_by_bit(open_page):
    generator = np.random.default_rng(0)
    cases = [random_case(generator) for _ in range(1000)]
    for size in (57, 114, 121):  # float32 puts the last of seven bins one cell too far
        cases.append((torch.randn(1, 1, size + 3, size + 3), [0, 0, size - 1, size - 1], [7, 7], 1.0))
    sent, inside = [], 0
    for features, roi, output, scale in cases:
        grads = torch.from_numpy(generator.integers(1, 100, (1, 1, *output))).float()
        leaf = features.clone().requires_grad_()
        pooled = roi_pool(leaf, torch.tensor([[0, *roi]]), tuple(output), scale)
        pooled.backward(grads)
        inside += bool(leaf.grad.any())
        tensors = {"values": features, "grads": grads, "pooled": pooled.detach(), "gradient": leaf.grad}
        encoded = {name: _page_contents.encode(tensor.flatten()) for name, tensor in tensors.items()}
        height, width = features.shape[2:]
        sent.append({"height": height, "width": width, "roi": roi, "output": output, "scale": scale, **encoded})
    different = open_page().evaluate(
        """(cases) => cases.filter(({height, width, roi, output, scale, values, grads, pooled, gradient}) => {
            const map = {height, width, values: decode(values)};
            const {bins} = roiPool(map, roi, output, scale, "overlapping");
            const equal = (found, wanted) =>
                found.length === wanted.length && wanted.every((value, at) => value === found[at]);
            return !equal(bins.map((bin) => bin.value), decode(pooled))
                || !equal(roiPoolBackward(map, bins, decode(grads)), decode(gradient));
        })""",
        sent,
    )
    assert inside > 800  # the others lie outside their map
    assert different == []


def test_disjoint_bins_equal_regions_of_their_own(open_page):
    generator = np.random.default_rng(1)
    page = open_page()
    for _ in range(50):
        height, width = (int(generator.integers(4, 20)) for _ in "hw")
        features = torch.from_numpy(generator.normal(size=(1, 1, height, width)).astype(np.float32))
        x1, y1 = int(generator.integers(0, width - 3)), int(generator.integers(0, height - 3))
        output = [int(generator.integers(1, 4)) for _ in "hw"]
        shape = {"height": height, "width": width, "values": features.flatten().tolist()}
        found = page.evaluate(
            "([map, roi, output]) => roiPool(map, roi, output, 1, 'disjoint')",
            [shape, [x1, y1, width - 1, height - 1], output],
        )
        assert [sum(bin["to"] - bin["from"] for bin in found[axis]) for axis in ("rows", "columns")] == [
            height - y1,
            width - x1,
        ]
        rois = [
            [0, column["from"], row["from"], column["to"] - 1, row["to"] - 1]
            for row in found["rows"]
            for column in found["columns"]
        ]
        pooled = roi_pool(features, torch.tensor(rois).float(), 1)
        assert [bin["value"] for bin in found["bins"]] == pooled.flatten().tolist()


def shown(page) -> list[str]:
    return page.locator("#output button").all_inner_texts()


def as_shown(pooled: torch.Tensor) -> list[str]:
    return [f"{value:.2f}".removeprefix("0") for value in pooled.flatten().tolist()]


def test_reader_predicts_the_output(open_page):
    page = open_page()
    inputs = page.locator("#output input")
    assert inputs.count() == 4
    inputs.nth(0).fill("0.85")
    inputs.nth(0).press("Enter")
    assert shown(page) == [".85"]
    assert "Right: .85 is the largest value in rows 3-5, columns 0-3." in page.locator("#caption").inner_text()
    inputs.nth(0).fill(".84")
    inputs.nth(0).press("Enter")
    assert "That is the answer for disjoint bins" in page.locator("#caption").inner_text()
    inputs.nth(0).fill("nine")
    inputs.nth(0).press("Enter")
    assert "is not a number" in page.locator("#caption").inner_text()
    for text in (".96", ",97", "0.96"):
        inputs.nth(0).fill(text)
        inputs.nth(0).press("Enter")
    assert shown(page) == as_shown(roi_pool(ARTICLE, REGION, 2))
    assert "You predicted the whole output." in page.locator("#caption").inner_text()
    page.get_by_role("button", name="Predict another region").click()
    assert inputs.count() == 4
    page.locator("#stages button").nth(1).click()
    page.locator("#region").focus()
    for key in ("Shift+ArrowUp", "Shift+ArrowDown"):  # one of them changes the region
        page.keyboard.press(key)
    assert inputs.count() == 4  # as the caption says, a region of the reader's own is hidden at step 2


def test_play_goes_through_all_stages(open_page):
    page = open_page(800)
    page.clock.install()
    page.get_by_role("button", name="Play").click()
    stages = []
    for _ in range(40):
        stages.append(page.locator("#stages [aria-current]").inner_text().strip("12345 \n"))
        page.clock.run_for(1000)
    assert list(dict.fromkeys(stages)) == ["Region", "Rows", "Columns", "Maxima", "Gradient"]
    assert page.get_by_role("button", name="Play").count() == 1
    assert page.locator("#layer-marks text").all_text_contents() == ["+1", "+2", "+1"]  # .85; .96 twice; .97
    page.locator("#output button").nth(1).click()
    assert page.locator("#layer-marks text").all_text_contents() == ["+1"]
    assert "The .96 came from row 5, column 6." in page.locator("#caption").inner_text()


def test_keys_and_pointer_move_the_region_as_the_operator_pools(open_page):
    page = open_page()
    page.locator("#region").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowLeft")
    assert shown(page) == as_shown(roi_pool(ARTICLE, torch.tensor([[0.0, 0, 2, 5, 7]]), 2))
    assert "columns 0-5, rows 2-7" in page.locator("#region").get_attribute("aria-label")
    page.get_by_label("article: disjoint").check()
    assert shown(page) == as_shown(
        roi_pool(ARTICLE, torch.tensor([[0.0, 0, 2, 2, 4], [0, 3, 2, 5, 4], [0, 0, 5, 2, 7], [0, 3, 5, 5, 7]]), 1)
    )
    page.get_by_label("Fast R-CNN: overlapping").check()
    page.get_by_label("Output columns").select_option("3")
    page.locator("#map").scroll_into_view_if_needed()
    area = page.locator("#region-box").bounding_box()
    cell = area["width"] / 6
    page.mouse.move(area["x"] + cell / 2, area["y"] + 2.5 * cell)
    page.mouse.down()
    page.mouse.move(area["x"] + 1.5 * cell, area["y"] + 1.5 * cell, steps=4)
    page.mouse.up()
    assert shown(page) == as_shown(roi_pool(ARTICLE, torch.tensor([[0.0, 1, 1, 6, 6]]), (2, 3)))
    corner = page.locator("#handles .grip").nth(3).bounding_box()
    page.mouse.move(corner["x"] + corner["width"] / 2 - 4, corner["y"] + corner["height"] / 2 - 4)
    page.mouse.down()
    page.mouse.move(area["x"] + 3.5 * cell, area["y"] + 2.5 * cell, steps=4)
    page.mouse.up()
    assert shown(page) == as_shown(roi_pool(ARTICLE, torch.tensor([[0.0, 1, 1, 3, 4]]), (2, 3)))


def test_a_finger_drags_the_region(open_page):
    page = open_page(360, 740, has_touch=True, is_mobile=True)
    page.locator("#map").scroll_into_view_if_needed()
    area = page.locator("#region-box").bounding_box()
    cell = area["width"] / 7
    touches = page.context.new_cdp_session(page)
    for kind, x, y in (("Start", 2.5, 2.5), ("Move", 3, 1.5), ("Move", 3.5, 0.5), ("End", 0, 0)):
        point = {"x": area["x"] + x * cell, "y": area["y"] + y * cell}
        touches.send(
            "Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": [] if kind == "End" else [point]}
        )
    page.locator("#region[aria-label*='columns 1-7, rows 1-5']").wait_for()  # pointer events wait for the next frame
    assert shown(page) == as_shown(roi_pool(ARTICLE, torch.tensor([[0.0, 1, 1, 7, 5]]), 2))


def test_map_of_a_network_is_pooled_as_by_the_operator(open_page):
    page = open_page()
    page.get_by_label("A network's map").check()
    shape = data_of(PAGE)["photograph"]
    x1, y1, x2, y2 = shape["regions"][0]["box"]
    page.locator("#region").focus()
    page.keyboard.press("ArrowLeft")
    page.locator("#channels input").nth(1).check()
    features = decoded(shape["channels"][1], shape["height"], shape["width"])
    step = min(shape["stride"] // 4, x1)
    pooled = roi_pool(features, torch.tensor([[0.0, x1 - step, y1, x2 - step, y2]]), 7, 1 / shape["stride"])
    assert [float(text) for text in shown(page)] == pytest.approx(pooled.flatten().tolist(), abs=0.051)
    exact = page.evaluate("result.bins.map((bin) => bin.value)")
    assert exact == pooled.flatten().tolist()


def test_time_is_that_of_the_measurement(open_page):
    page = open_page()
    page.locator("#regions").fill("0")
    first = data_of(PAGE)["timing"]["measured"][0]
    assert page.locator("#fast-sentence").inner_text().startswith(f"{first['regions']} region: ")
    page.locator("#regions").press("End")
    last = data_of(PAGE)["timing"]["measured"][-1]
    text = page.locator("#fast-sentence").inner_text()
    assert text.startswith(f"{last['regions']} regions: ")
    ratio = last["separate_s"] / (last["backbone_s"] + last["pooling_s"])
    assert ratio > 10
    assert text.endswith(f"{ratio:.0f} times as long.")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "dark"), (360, "light")])
def test_page_fits_its_window(open_page, width, scheme):
    page = open_page(width, 800, color_scheme=scheme, has_touch=width == 360)
    for name in ("article", "photograph"):
        page.locator(f"[name=map][value={name}]").check()
        for stage in page.locator("#stages button").all():
            stage.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("#map").bounding_box()["width"] > 0.4 * min(width, 700)
