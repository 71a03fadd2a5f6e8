"""Take the screenshots in docs/images of a run: its report, and its pages in TensorBoard.

    python scripts/take_screenshots.py RUN

Needs chromium, which Playwright starts without a window. Without it, the program says so and changes nothing. Exit
status: 0 done, or no chromium; 1 a page did not load or a write failed; 2 invalid input; 130 or 143 interrupted.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detector.errors import InputError, RunFailure
from detector.runtime.exits import exit_status
from detector.runtime.files import require_writable

IMAGES = Path(__file__).resolve().parents[1] / "docs/images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZES = {"report": (1100, 900), "tensorboard": (1480, 575)}  # width and height in pixels
TIMEOUT_MS = 60_000
COLOURS = 128


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the pictures (default: docs/images)")
    arguments = parser.parse_args(command_line)
    return exit_status(lambda: run(arguments), "screenshots may be missing")


def run(arguments: argparse.Namespace) -> None:
    if not (arguments.run / "report.html").is_file():
        raise InputError(f"{arguments.run}: has no report.html: give the folder of a finished run")
    require_writable("--out", arguments.out)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"chromium is not installed: the screenshots in {arguments.out} are not updated")
        return
    try:
        from playwright import sync_api
    except ImportError:
        print(f"playwright is not installed: the screenshots in {arguments.out} are not updated")
        return
    with sync_api.sync_playwright() as playwright, serve_tensorboard(arguments.run) as url:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        try:
            pictures = {"report": report(chromium, arguments.run), "tensorboard": custom_scalars(chromium, url)}
        except sync_api.Error as error:
            raise RunFailure(f"{browser}: {error.message.splitlines()[0]}") from error
        finally:
            chromium.close()
    from detector.visualization.style import save_picture

    for name, picture in pictures.items():
        path = arguments.out / f"{name}.png"
        save_picture(path, np.array(Image.open(io.BytesIO(picture)).convert("RGB")), COLOURS)
        print(path)


def report(chromium: Any, run: Path) -> bytes:
    """PNG of the first screen of report.html."""
    page = new_page(chromium, "report")
    page.goto((run / "report.html").resolve().as_uri())
    return page.screenshot()


def custom_scalars(chromium: Any, url: str) -> bytes:
    """PNG of TensorBoard's page CUSTOM SCALARS, once the first three charts have their lines, with their legends."""
    page = new_page(chromium, "tensorboard")
    page.goto(f"{url}?darkMode=false#custom_scalars")
    page.locator("path.line").nth(2).wait_for(state="attached")
    for legend in page.locator(".toggle-matches-button").all()[:3]:
        legend.click()
    page.wait_for_timeout(2000)  # the lines move to their places
    return page.screenshot()


def new_page(chromium: Any, name: str) -> Any:
    width, height = SIZES[name]
    page = chromium.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(TIMEOUT_MS)
    return page


@contextmanager
def serve_tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard that serves this folder to this machine only."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "localhost", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        said = []
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"http://localhost:\d+/", line):
                break
        else:
            raise RunFailure(f"TensorBoard did not start: {''.join(said[-3:]).strip()}")
        yield found[0]
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
