"""What several tests need: small datasets in VOC layout, composed settings, and the shared material if it is there."""

import gc
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hypothesis import settings as hypothesis_settings
from omegaconf import OmegaConf
from PIL import Image

from detector.models import build_model
from detector.proposals.store import write_store
from detector.schema import Settings, defaults, parse
from detector.settings import EvaluateSettings, TrainSettings
from detector.structures import GroundTruth
from detector.training.checkpoint import Checkpoints

pytest.register_assert_rewrite("tests.helpers")  # so that their assertions show values too

from tests.helpers.pictures import draw_nothing  # noqa: E402
from tests.helpers.runs import write_shapes  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHARED = Path(os.environ.get("FAST_RCNN_SHARED", REPOSITORY.parent / "shared"))

# The time of an example depends on what else the machine does.
hypothesis_settings.register_profile("without deadline", deadline=None)
hypothesis_settings.load_profile("without deadline")


@pytest.fixture
def shared() -> Path:
    """Real photographs and expected values that are no part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED} with real data")
    return SHARED


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """What a program sets up for its messages ends with the test that called it."""
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield
    root.setLevel(level)
    for handler in {*root.handlers} - {*handlers}:
        root.removeHandler(handler)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process draw no figures: pytestmark = pytest.mark.usefixtures("without_pictures")."""
    draw_nothing(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing goes into the user's own folder of caches; inherited by the programs that tests start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_the_tests():
    """One that is left behind would keep the suite from ending."""
    yield
    gc.collect()
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
    assert not left


def ground_truth(image_id: str, *objects: tuple) -> GroundTruth:
    """Objects as (label, x1, y1, x2, y2[, difficult[, crowd]])."""
    boxes = np.array([o[1:5] for o in objects], dtype=np.float32).reshape(-1, 4)
    return GroundTruth(
        image_id=image_id,
        boxes=boxes,
        labels=np.array([o[0] for o in objects], dtype=np.int64),
        difficult=np.array([len(o) > 5 and o[5] for o in objects], dtype=bool),
        crowd=np.array([len(o) > 6 and o[6] for o in objects], dtype=bool),
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64),
    )


def write_xml(path: Path, objects: Sequence[tuple], size_hw: tuple[int, int] | None = None) -> None:
    """A VOC annotation with (name, xmin, ymin, xmax, ymax[, difficult]) as they stand in the file."""
    size = f"<size><width>{size_hw[1]}</width><height>{size_hw[0]}</height></size>" if size_hw else ""
    lines = [f"<annotation>{size}"]
    for name, x1, y1, x2, y2, *difficult in objects:
        flag = f"<difficult>{difficult[0]}</difficult>" if difficult else ""
        corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        lines.append(f"<object><name>{name}</name>{flag}<bndbox>{corners}</bndbox></object>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, "</annotation>"]))


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    """Make a dataset of gray 60x40 images: make_voc({"train": {"a": [("cat", 1, 1, 20, 20)]}}) -> root."""

    def make(splits: dict[str, dict[str, list[tuple]]], name: str = "set") -> Path:
        root = tmp_path / name
        (root / "JPEGImages").mkdir(parents=True)
        (root / "ImageSets/Main").mkdir(parents=True)
        for split, images in splits.items():
            (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{id}\n" for id in images))
            for image_id, objects in images.items():
                write_xml(root / f"Annotations/{image_id}.xml", objects, size_hw=(40, 60))
                Image.new("RGB", (60, 40), (90, 90, 90)).save(root / f"JPEGImages/{image_id}.jpg")
        return root

    return make


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """Make a dataset of gray 60x40 images in COCO layout: make_coco({"train": {"a": [("cat", x, y, w, h[, crowd])]}}).

    ROOT/train.json, ROOT/images/a.jpg; ids of images count from 1 in each file, those of categories are 10, 20, ...
    """

    def make(files: dict[str, dict[str, list[tuple]]], name: str = "coco") -> Path:
        root = tmp_path / name
        (root / "images").mkdir(parents=True)
        for file, images in files.items():
            names = sorted({item[0] for objects in images.values() for item in objects})
            content: dict = {"images": [], "annotations": []}
            content["categories"] = [{"id": 10 + 10 * number, "name": name} for number, name in enumerate(names)]
            for number, (image_id, objects) in enumerate(images.items(), start=1):
                content["images"] += [{"id": number, "file_name": f"{image_id}.jpg", "width": 60, "height": 40}]
                for class_name, x, y, width, height, *crowd in objects:
                    content["annotations"] += [
                        {"id": len(content["annotations"]) + 1, "image_id": number, "bbox": [x, y, width, height],
                         "category_id": 10 + 10 * names.index(class_name), "iscrowd": sum(crowd)}
                    ]  # fmt: skip
            (root / f"{file}.json").write_text(json.dumps(content))
            for image_id in images:
                Image.new("RGB", (60, 40), (90, 90, 90)).save(root / f"images/{image_id}.jpg")
        return root

    return make


@pytest.fixture
def make_proposals() -> Callable[..., None]:
    """Write a store of boxes by image id, made on images of 60x40."""

    def make(path: Path, boxes: dict[str, list], hw: tuple[int, int] = (40, 60)) -> None:
        write_store(path, list(boxes), [np.array(item) for item in boxes.values()], [hw] * len(boxes), {})

    return make


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_once(name, make) -> the folder that make(folder) has filled, for all processes of the tests together."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = base / name, base / f"{name}.made"
        with FileLock(base / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def small_shapes(make_once) -> Path:
    """Six training and three test scenes of the shapes dataset, in VOC layout. Not to be changed."""
    return make_once("shapes", write_shapes)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium without a window."""
    if BROWSER is None:
        pytest.skip("no chromium: apt-get install chromium")
    playwright_api = pytest.importorskip("playwright.sync_api")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """Open a page; at the end there must have been no error in its console, and no request to a server."""
    problems, contexts = [], []

    def open_it(path: Path, width: int = 1280, height: int = 900, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith("http") and problems.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def checkpoint(untrained_checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint of an untrained network, in a run of its own."""
    path = tmp_path / "run/checkpoints/last.pt"
    path.parent.mkdir(parents=True)
    shutil.copy(untrained_checkpoint, path)
    return path


SCHEMAS = {"train": TrainSettings, "evaluate": EvaluateSettings}


def compose_plain(program: str, *overrides: str) -> dict:
    """Composed plain settings of a program, not validated: compose_plain("train", "model=vgg16", "seed=1")."""
    ConfigStore.instance().store(f"{program}_settings", defaults(SCHEMAS[program]))
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return OmegaConf.to_container(compose(program, list(overrides)), resolve=True)


def compose_settings(program: str, *overrides: str) -> Settings:
    """Typed settings of a program: compose_settings("train", "model=vgg16", "seed=1")."""
    return parse(SCHEMAS[program], compose_plain(program, *overrides))


@pytest.fixture
def settings() -> Callable[..., Settings]:
    return compose_settings


@pytest.fixture(scope="session")
def untrained_checkpoint(small_shapes: Path, make_once) -> Path:
    """A checkpoint of an untrained network: it finds something everywhere. Not to be changed."""
    config = compose_settings(
        "train", "data=voc", "data.short_side_px=96", "data.max_side_px=160", "data.val_max_proposals=60",
        "proposals.mode=single", "model.hidden=32", "device=cpu", "precision=float32", f"data.root={small_shapes}",
        "data.train_split=train",
    )  # fmt: skip

    def make(folder: Path) -> None:
        classes = ["ball", "crate", "kite", "star"]
        torch.manual_seed(0)
        content = {"model": build_model(config.model, len(classes)).state_dict(), "config": config.plain()}
        Checkpoints(folder).save_last(content | {"classes": classes, "iteration": 1})

    return make_once("untrained", make) / "last.pt"


# A tiny run of train.py on `small_shapes`.
TINY = [
    "data=voc", "data.train_split=train", "data.short_side_px=96", "data.max_side_px=160",
    "data.train_max_proposals=60", "data.val_max_proposals=60",
    "proposals.mode=single", "model.hidden=32", "train.iterations=4", "train.images_per_batch=2", "train.eval_every=2",
    "train.checkpoint_every=3", "train.log_every=2", "roi.rois_per_image=16", "detect.score_threshold=0.01",
    "workers=0", "device=cpu", "precision=float32",
]  # fmt: skip


@pytest.fixture(scope="session")
def common(small_shapes: Path, make_once) -> list[str]:
    """The settings of the tiny run, with its data."""
    return [*TINY, f"data.root={small_shapes}", f"proposals.folder={make_once('proposals', lambda folder: None)}"]


@pytest.fixture(scope="session")
def run(common: list[str], make_once) -> Path:
    """The folder of a finished tiny run, which was started as a user does. Not to be changed."""

    def train(folder: Path) -> None:
        command = [sys.executable, "train.py", *common, f"run.dir={folder}"]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr

    return make_once("run", train)
