"""Detection in several images at once, each on its own thread."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from detector.runtime.threads import thread_pool

Image = TypeVar("Image")
Output = TypeVar("Output")
MOST_AT_ONCE = 8  # images that are processed at the same time: each needs the memory of a forward pass


def share_cores(cores: int, images: int = MOST_AT_ONCE) -> tuple[int, int]:
    """How many of these images are processed at once, and the number of cores for each."""
    at_once = max(min(cores, images, MOST_AT_ONCE), 1)
    return at_once, max(cores // at_once, 1)


def detect_stream(
    detect: Callable[[Image], Output],
    images: Iterable[Image],
    threads: int,
    begin_thread: Callable[[], None] | None = None,
) -> Iterator[Output]:
    """Yield `detect(image)` of each image, in order, while the next images are processed on `threads` threads.

    All steps of an image run on one thread. Decoding, selective search, the network, post-processing and writing
    release the GIL, so the steps of different images run at the same time. At most twice as many images as threads are
    processed or wait for the caller.

    An exception of `detect` is raised in the image's turn and ends the stream. When the stream ends or is closed, no
    further image is started, and the stream waits for those that run. After Ctrl-C and SIGTERM, which raise
    KeyboardInterrupt and Stopped here, it does not wait.

    Args:
        begin_thread: called once on each thread, such as to limit the threads that the network starts in turn.
    """
    with thread_pool(threads, begin_thread) as pool:
        waiting: deque[Future[Output]] = deque()
        for image in images:
            waiting.append(pool.submit(detect, image))
            # A camera needs time for the next image: yield finished results before.
            while waiting and (len(waiting) >= 2 * threads or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
