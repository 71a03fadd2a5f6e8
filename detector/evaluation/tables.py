"""Text tables of the metrics of an evaluation."""

from detector.evaluation.coco_ap import NAMES
from detector.evaluation.error_analysis import KINDS


def number(value: float | None) -> str:
    """The value with four decimals; None, for a class or size without objects, is "no object"."""
    return "no object" if value is None else f"{value:.4f}"


def tag_of(metric: str) -> str:
    """A metric's name, such as `area@0.50:0.95`, as part of a TensorBoard tag, without @ and colon."""
    return metric.replace("@", "_").replace(":", "-")


def ap_rows(metrics: dict) -> list[list[str]]:
    """A header, one row per class, and the mean; one column per metric."""
    voc, coco = metrics["voc"], metrics.get("coco")
    classes = list(next(iter(voc.values()))["AP"])
    rows = [["class", *voc], *([name, *(number(voc[column]["AP"][name]) for column in voc)] for name in classes)]
    rows.append(["mAP", *(number(voc[column]["mAP"]) for column in voc)])
    if coco:
        for row, cell in zip(rows, ["coco", *map(number, coco["classes"].values()), number(coco["AP"])], strict=True):
            row.append(cell)
    return rows


def coco_rows(metrics: dict) -> list[list[str]]:
    """A header and one row: COCO's twelve metrics."""
    return [list(NAMES), [number(metrics["coco"][name]) for name in NAMES]]


def size_rows(metrics: dict) -> list[list[str]]:
    """A header and one row per object size."""
    sizes = metrics["sizes"]
    return [["size", "objects", f"area@{metrics['overlap']:.2f}"]] + [
        [name, str(size["objects"]), number(size["mAP"])] for name, size in sizes.items()
    ]


def error_rows(metrics: dict) -> list[list[str]]:
    """A header and one row per kind of error."""
    errors = metrics["errors"]
    return [["error", "count", "mAP it costs"]] + [
        [kind, str(errors[kind]["count"]), number(errors[kind]["cost"])] for kind in KINDS
    ]


def ap_table(metrics: dict) -> str:
    """The AP of each class and the mean, one column per metric."""
    return text_table(ap_rows(metrics))


def summary(metrics: dict) -> str:
    """All metrics: AP, COCO's twelve, sizes and errors."""
    tables = [ap_rows(metrics), *([coco_rows(metrics)] if "coco" in metrics else [])]
    return "\n\n".join(map(text_table, [*tables, size_rows(metrics), error_rows(metrics)]))


def text_table(rows: list[list[str]]) -> str:
    """Rows as aligned columns, the first left-justified, the others right-justified."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)
