"""Frames of videos and cameras, and writing a video, with OpenCV."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from detector.errors import InputError, RunFailure

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
USUAL_FPS = 25.0  # of a camera or file that does not state its own


def is_video(source: str) -> bool:
    """Whether this is the name of a video file, or the number of a camera."""
    return _is_camera(source) or source.lower().endswith(SUFFIXES)


def _is_camera(source: str) -> bool:
    return source.isdecimal() and not Path(source).exists()  # a folder may be named 2007


class Video:
    """An opened video file or, by its number, camera. Raises InputError if it cannot be read."""

    def __init__(self, source: str) -> None:
        self.source = source
        if not (is_camera := _is_camera(source)) and not Path(source).is_file():
            raise InputError(f"{source}: no such video file")
        self._capture = cv2.VideoCapture(int(source) if is_camera else source)
        if not self._capture.isOpened():
            what = "there is no such camera" if is_camera else "not a video that OpenCV can read"
            raise InputError(f"{source}: {what}")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or USUAL_FPS
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frames = frames if frames > 0 else None  # as the file states; None for a camera

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, (H, W, 3) uint8 RGB, once. The file is closed at the end."""
        try:
            while True:
                is_frame, frame = self._capture.read()
                if not is_frame:
                    return
                yield frame[..., ::-1]
        finally:
            self._capture.release()


class VideoWriter:
    """Writes frames of one size to an .mp4, as a context."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8 RGB."""
        if self._writer is None:
            height, width = frame.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), codec, self.fps, (width, height))
            if not self._writer.isOpened():
                raise RunFailure(f"{self.path}: OpenCV cannot write this video")
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))
