"""A page on this machine that shows proposals, detections and the pooled features of a detection.

    python scripts/demo.py --checkpoint RUN/checkpoints/best.pt --images photographs

Open the printed address in a browser; end the program with Ctrl-C. Only this machine can open the page, and no data
leave it. It needs the extra `demo`: uv pip install ".[demo]". Exit status: 0 ended, 1 the page cannot be served, 2
invalid input, 130 or 143 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detector
from detector.errors import InputError, RunFailure
from detector.runtime.exits import exit_status
from detector.runtime.files import find_files

HOST = "127.0.0.1"
EXAMPLES_SHOWN = 12


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the network: RUN/checkpoints/best.pt")
    parser.add_argument("--images", help="folder or pattern of images to choose from, beside uploads")
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    arguments = parser.parse_args(command_line)
    return exit_status(lambda: run(arguments), "the page has ended")


def run(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.port < 2**16:
        raise InputError(f"--port: {arguments.port} must be from 1 to 65535")
    examples = list(find_files(arguments.images).values()) if arguments.images else []
    gradio = import_gradio()
    from scripts._demo_page import Demo, build_page

    network = detector.load(arguments.checkpoint, arguments.device)
    page = build_page(gradio, Demo(network), examples[:EXAMPLES_SHOWN])
    print(f"http://{HOST}:{arguments.port}", flush=True)
    try:
        page.launch(server_name=HOST, server_port=arguments.port, share=False, quiet=True, footer_links=[])
    except OSError as error:
        raise RunFailure(f"--port: {arguments.port}: {error}: give another number") from None


def import_gradio() -> Any:
    """Gradio, with its analytics disabled. Raises InputError if it is not installed."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio
    except ImportError:
        raise InputError('the demo needs the package gradio, an optional extra: uv pip install ".[demo]"') from None
    return gradio


if __name__ == "__main__":
    sys.exit(main())
