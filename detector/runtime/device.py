"""The device and precision of the network."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import psutil
import torch
from torch import Tensor, nn

from detector.errors import InputError
from detector.runtime.ranks import rank_info

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Output = TypeVar("Output")
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NOT_DETERMINISTIC = "does not have a deterministic implementation"
_limiting = threading.Lock()


class Movable(Protocol):
    """Tensors that move to a device together."""

    def to(self, device: torch.device) -> Self: ...


Moved = TypeVar("Moved", bound=Movable)


def resolve_device(name: str) -> torch.device:
    """The device of this name. `auto` is an NVIDIA GPU, or the CPU if there is none; each process has its own GPU.

    Raises InputError for a device that is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and rank_info().world_size > 1:
        if name != "cuda":
            raise InputError(
                f"device: {rank_info().world_size} processes cannot share '{name}'; with device=cuda each has its own"
            )
        name = f"cuda:{rank_info().local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: '{name}' is not a device; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device: '{name}' is not supported; use auto, cpu, cuda, cuda:N or mps")
    if device.type == "mps" and (device.index or not torch.backends.mps.is_available()):
        raise InputError(
            f"device: '{name}' is not available: mps is the GPU of a Mac with Apple silicon; use device=cpu"
        )
    if device.type == "mps" and rank_info().world_size > 1:
        raise InputError(f"device: {rank_info().world_size} processes cannot share '{name}'; use device=cpu")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(
            f"device: '{name}' is not available: torch sees {torch.cuda.device_count()} GPUs; use device=cpu"
        )
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively; elsewhere it is emulated and slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class Compute:
    """The device, and the dtype of the network (losses and boxes are float32)."""

    device: torch.device
    dtype: torch.dtype

    def place(self, model: nn.Module) -> None:
        """Move the model to the device, in the channels_last memory format."""
        model.to(self.device).to(memory_format=torch.channels_last)

    def forward(self, model: Callable[[Tensor, Tensor], Output], images: Tensor, rois: Tensor) -> Output:
        """The outputs of the model, or of a method of it, for images (B, 3, H, W) uint8 and rois (R, 5)."""
        images = images.to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return model(images, rois.to(self.device))

    def copy_ahead(self, batches: Iterable[Moved]) -> Iterator[tuple[Moved, Moved]]:
        """Each batch and its copy on the device. On an NVIDIA GPU it is copied while the step before it is computed; on
        a CPU the batch itself is used.

        A batch in pinned memory is copied asynchronously. A copy is valid until the next one is requested.
        """
        if self.device.type != "cuda":
            yield from ((batch, batch.to(self.device)) for batch in batches)
            return
        stream = torch.cuda.Stream(self.device)

        def start(batch: Moved) -> tuple[Moved, Moved, torch.cuda.Event]:
            with torch.cuda.stream(stream):
                return batch, batch.to(self.device), stream.record_event()

        started = map(start, batches)
        current = next(started, None)
        while current is not None:
            following = next(started, None)
            batch, copy, copied = current
            torch.cuda.current_stream(self.device).wait_event(copied)
            yield batch, copy
            current = following


def resolve_compute(device: str, precision: str) -> Compute:
    """Build a Compute from the settings; precision `auto` is bfloat16 where that is fast."""
    chosen = resolve_device(device)
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(chosen) else "float32"
    return Compute(chosen, PRECISIONS[precision])


def set_deterministic(enabled: bool) -> None:
    """Let torch use deterministic algorithms alone, or whichever is fastest. Call it before CUDA is used.

    An operation that has none then raises RuntimeError, whose text contains NOT_DETERMINISTIC. RoI pooling adds its
    gradients in fixed point, see `roi_pool.cuda.backward`.
    """
    workspaces = (":4096:8", ":16:8")  # with others, the matrix products of cuBLAS depend on timing
    if enabled and (given := os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", workspaces[0])) not in workspaces:
        raise InputError(
            f"deterministic=true: the environment variable CUBLAS_WORKSPACE_CONFIG={given} must be "
            f"{' or '.join(workspaces)}, or unset"
        )
    torch.use_deterministic_algorithms(enabled)
    # Filling is a debugging aid, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def loss_scaler(compute: Compute) -> torch.amp.GradScaler:
    """Scales the loss in float16, where small gradients would become 0; in other precisions it does nothing."""
    return torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16)


def limit_threads(threads: int) -> None:
    """Limit the threads of torch operators called from this thread.

    torch.set_num_threads sets the number for the calling thread, and for threads that use torch for the first time
    later; for these, the number is restored here.
    """
    with _limiting:
        usual = torch.get_num_threads()
        torch.set_num_threads(min(threads, usual))
        with ThreadPoolExecutor(1) as other:
            other.submit(torch.set_num_threads, usual).result()


def free_memory_gib(device: torch.device) -> float:
    """GiB of memory that are available: of the GPU, or of this machine."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return free / 2**30


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: allocated by torch on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20  # the current value; torch records no peak for MPS
    if resource is None:
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
