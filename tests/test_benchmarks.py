"""scripts/benchmarks: stages of a call, and training with several processes, without training."""

import argparse
import json

import torch

from detector.models import build_model
from detector.settings import Model
from scripts.benchmarks import processes
from scripts.benchmarks._stages import STAGES, stages


def test_stages_of_a_training_step():
    network = build_model(Model(backbone="resnet18", hidden=64), 2)
    images, rois = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[0.0, 1, 1, 40, 50]])
    found = stages(lambda: network(images, rois)[0].sum().backward(), torch.device("cpu"))
    assert list(found) == list(STAGES)
    assert min(found.values()) > 0
    empty = stages(lambda: torch.zeros(2).relu(), torch.device("cpu"))
    assert [name for name, value in empty.items() if value] == ["rest ms"]


def test_the_table_of_processes(monkeypatch, capsys):
    commands = []

    def fake(command, **options):
        commands.append(command)
        [folder] = [part.partition("=")[2] for part in command if part.startswith("run.dir=")]
        processes.Path(folder).mkdir()
        times = [9.0] + 3 * [0.5 / len(commands)]  # the first ten steps do not count
        lines = [
            {"time/step_s": s, "time/data_s": 0.125, "time/images_per_s": 2 / s, "memory/peak_mib": 700} for s in times
        ]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"loss/val": 1}])
        processes.Path(folder, "metrics.jsonl").write_text(text)
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(processes.subprocess, "run", fake)
    parser = argparse.ArgumentParser()
    processes.add_arguments(parser)
    processes.run(parser.parse_args(["--settings", "model=vgg16"]))
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["| 1 | 4 | 0.5 | 0.125 | 700 | 1 |", "| 2 | 8 | 0.25 | 0.125 | 700 | 2 |"]
    assert ["--nproc-per-node=2" in command for command in commands] == [False, True]
    assert all("model=vgg16" in command for command in commands)
