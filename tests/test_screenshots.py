import numpy as np
import pytest
from PIL import Image

from detector.training.tracking import Tracker
from scripts import take_screenshots
from tests.conftest import BROWSER


@pytest.fixture
def finished_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.html").write_text("<body style='background: #00ff00'>A report")
    tracker = Tracker(run)
    for iteration in (1, 2, 3):
        values = dict.fromkeys(("loss/train", "mAP/area_0.50", "roi/foreground_accuracy"), 0.1 * iteration)
        tracker.scalars(iteration, values)
    tracker.close()
    return run


@pytest.mark.slow
def test_screenshots_of_the_report_and_of_tensorboard(finished_run, tmp_path, capsys):
    if BROWSER is None:
        pytest.skip("no chromium: apt-get install chromium")
    pytest.importorskip("playwright.sync_api")
    assert take_screenshots.main([str(finished_run), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [f"{tmp_path}/report.png", f"{tmp_path}/tensorboard.png"]
    for name, size in take_screenshots.SIZES.items():
        picture = Image.open(tmp_path / f"{name}.png").convert("RGB")
        assert picture.size == size
        if name == "report":
            np.testing.assert_allclose(picture.getpixel((500, 500)), (0, 255, 0), atol=8)  # of the palette
        else:
            red, green, blue = picture.getpixel((300, 10))  # the bar of TensorBoard is orange
            assert red > green > blue


def test_without_chromium_one_line_says_so_and_the_pictures_stay(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(take_screenshots.shutil, "which", lambda name: None)
    (tmp_path / "report.png").write_bytes(b"old")
    assert take_screenshots.main([str(finished_run), "--out", str(tmp_path)]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line == f"chromium is not installed: the screenshots in {tmp_path} are not updated"
    assert (tmp_path / "report.png").read_bytes() == b"old"


def test_a_folder_without_a_report_is_an_error(tmp_path, capsys):
    assert take_screenshots.main([str(tmp_path)]) == 2
    assert f"{tmp_path}: has no report.html" in capsys.readouterr().err
