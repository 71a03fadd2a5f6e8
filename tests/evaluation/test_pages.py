"""The pages in a real browser, where there is one."""

import pytest
from PIL import Image

from detector.evaluation.report import score_detections, write_report
from detector.settings import Metric
from tests.helpers.scoring import CLASSES, FOUND, TRUTHS, dataset_of, embedded


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    Image.new("RGB", (100, 80), (128, 128, 128)).save(folder / "gray.png")
    dataset = dataset_of(TRUTHS, CLASSES, image=folder / "gray.png")
    write_report(folder, dataset, score_detections(dataset, FOUND, Metric()), {})
    return folder / "report.html"


def table(page, selector: str) -> list[list[str]]:
    return page.evaluate(
        "(s) => [...document.querySelectorAll(`${s} tr`)].map((row) => [...row.cells].map((c) => c.textContent))",
        selector,
    )


def test_slider_shows_the_counts_at_its_score(open_page, report):
    page, data = open_page(report), embedded(report)
    for step in (0, 50, 70, 71, 100):
        page.locator("#slider").evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", step)
        assert page.locator("#score").inner_text() == f"{step / 100:.2f}"
        rows = table(page, "#counts tbody")
        hits, misses = ([column[step] for column in data[name]] for name in ("hits", "misses"))
        found = [[int(cell) for cell in row[1:5]] for row in rows]
        assert found == [
            [objects, hit, objects - hit, miss]
            for objects, hit, miss in zip(data["objects"], hits, misses, strict=True)
        ]
        [total] = table(page, "#counts tfoot")
        assert [int(cell) for cell in total[1:5]] == [4, sum(hits), 4 - sum(hits), sum(misses)]
        assert page.locator("#total-hits").inner_text() == str(sum(hits))
        assert page.locator("#total-false").inner_text() == str(sum(misses))
    page.locator("#slider").press("Home")  # by keyboard
    assert page.locator("#score").inner_text() == "0.00"
    assert page.locator(".marker.m0").get_attribute("cx") == f"{300 * data['hits'][0][0] / 2:g}"


def test_tables_are_sorted_by_keyboard(open_page, report):
    page = open_page(report)
    header = page.locator("#counts thead th").nth(4)
    header.locator("button").press("Enter")
    page.locator("#slider").press("Home")
    header.locator("button").press("Enter")  # ascending
    header.locator("button").press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    misses = [int(row[4]) for row in table(page, "#counts tbody")]
    assert misses == sorted(misses, reverse=True)
    assert misses != sorted(misses)
    assert table(page, "#counts tfoot")[0][0] == "all classes"
    page.locator("#counts thead th button").first.press("Enter")
    names = [row[0] for row in table(page, "#counts tbody")]
    assert names == sorted(names)


def test_pictures_open_larger(open_page, report):
    page = open_page(report)
    small = page.locator(".picture").first
    width = small.bounding_box()["width"]
    small.press("Enter")
    stage = page.locator("#viewer .stage")
    assert stage.bounding_box()["width"] > 1.5 * width
    first = page.locator("#viewer .caption").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer .caption").inner_text() != first
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "dark"), (360, "light")])
def test_report_fits_its_window(open_page, report, width, scheme):
    page = open_page(report, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".picture").first.click()
    assert page.locator("#viewer").bounding_box()["width"] <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 384) == (scheme == "dark")
