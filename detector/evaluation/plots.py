"""Pictures of an evaluation."""

import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from detector.evaluation.results import file_name
from detector.evaluation.voc_ap import Curve, area_ap
from detector.files import write_atomically


def write_precision_recall(folder: Path, curves: Mapping[str, Mapping[str, Curve]]) -> None:
    """One PNG a class, `CLASS.png`, with a curve for each overlap; a class without objects has none."""
    for name in next(iter(curves.values())):
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.subplots()
        for overlap, by_class in curves.items():
            curve = by_class[name]
            if curve.num_objects:
                axes.plot(curve.recall, curve.precision, label=f"IoU {overlap}: AP {area_ap(curve):.3f} (area)")
        if not axes.lines:
            continue
        axes.set_title(name, parse_math=False)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left")
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=100)
        write_atomically(folder / f"{file_name(name)}.png", data.getvalue())
