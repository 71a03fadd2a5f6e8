"""Where the time of one call goes."""

import os
import re
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler reports its own work on stderr

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

STAGES = {  # by names of torch's operators, the first that matches
    "RoI pooling ms": "roi_pool|RoIPool",
    "convolutions ms": "conv",
    "matrix products ms": "mm$|linear|inner_product",
    "copies and casts ms": "copy_|aten::cat|index|contiguous",
    "rest ms": "",
}


def stages(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Milliseconds of the operators of one call by kind; on a GPU, of their kernels, and the number of kernels, the
    fraction of the time in which they run, and the peak memory.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        function()
        wait_for(device)
    found = dict.fromkeys(STAGES, 0.0)
    events = profiler.key_averages()
    for event in events:
        if event.device_type == DeviceType.CPU:
            stage = next(stage for stage, pattern in STAGES.items() if re.search(pattern, event.key))
            found[stage] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3
    if on_gpu:
        kernels = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
        start = min(event.time_range.start for event in kernels)
        whole = max(event.time_range.end for event in kernels) - start
        found |= {
            "kernels": len(kernels),
            "GPU busy": sum(event.time_range.elapsed_us() for event in kernels) / whole,
            "peak MiB": torch.cuda.max_memory_allocated(device) / 2**20,
        }
    return found


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
