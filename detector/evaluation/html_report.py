"""report.html: a self-contained page with all results of an evaluation, including pictures."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from detector.evaluation import tables
from detector.evaluation.pictures import Picture

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem } h3 { margin: 1.2rem 0 .3rem }
table { border-collapse: collapse; margin: .8rem 0 } th, td { padding: .15rem .8rem; text-align: right }
th { border-bottom: 2px solid #888 } td:first-child, th:first-child { text-align: left }
tr:nth-child(even) td { background: #f4f4f4 } .wide { overflow-x: auto } tr.mean td { border-top: 2px solid #888 }
.row { display: flex; flex-wrap: wrap; gap: .8rem } figure { margin: 0; max-width: 250px }
figcaption { font-size: 13px; overflow-wrap: anywhere } .main { font-size: 1.4rem } p { max-width: 46rem }
"""
MEANING = {
    "duplicate": "a second detection of an object that a better scored one has found",
    "localisation": "right class, but the box is inaccurate",
    "confusion": "right place, wrong class",
    "both": "wrong class, and the box is inaccurate",
    "background": "there is no object here",
    "missed": "objects without any detection, the largest first",
}


def html_report(
    title: str,
    metrics: dict,
    error_plot: bytes,
    curve_plots: Mapping[str, bytes],
    pictures: Mapping[str, Sequence[Picture]],
) -> str:
    """The HTML page. metrics from `write_report`; curve_plots by class; pictures from `draw_errors`."""
    iou_threshold = f"{metrics['overlap']:.2f}"
    source = [[escape(str(key)), escape(str(value))] for key, value in metrics.get("source", {}).items()]
    main = metrics["main"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="main">{escape(main["metric"])}: <b>{tables.number(main["value"])}</b></p>',
        '<div class="wide"><table>' + "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in source),
        "</table></div>",
        "<h2>Average precision</h2>",
        _table(tables.ap_rows(metrics), mean_last=True),
        *(["<h3>COCO's twelve metrics</h3>", _table(tables.coco_rows(metrics))] if "coco" in metrics else []),
        "<h3>By object size</h3>",
        _table(tables.size_rows(metrics)),
        "<p>Areas as COCO divides them: small up to 32&times;32 pixels, medium up to 96&times;96, large above.</p>",
        f"<h2>Errors at IoU {iou_threshold}</h2>",
        "<p>The cost of a kind is the gain in mAP (area) if only these errors are fixed.</p>",
        _table(tables.error_rows(metrics)),
        _image("png", error_plot, "cost and count of each kind of error"),
        "<h2>The worst errors</h2>",
        "<p>The highest scored of each kind, one per image. Orange: the detection; white: its object.</p>",
        *(_gallery(kind, meaning, pictures[kind]) for kind, meaning in MEANING.items() if pictures[kind]),
        "<h2>The best detections</h2>",
        _gallery("", "the highest scored hits of each class in turn", pictures["best"]),
        "<h2>Precision and recall</h2>",
        '<div class="row">' + "".join(_image("png", png, name) for name, png in curve_plots.items()) + "</div>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _table(rows: list[list[str]], mean_last: bool = False) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in rows[0]) + "</tr>"]
    for row in rows[1:]:
        kind = ' class="mean"' if mean_last and row is rows[-1] else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return '<div class="wide"><table>' + "".join(lines) + "</table></div>"


def _gallery(kind: str, meaning: str, pictures: Sequence[Picture]) -> str:
    shown = ""
    for picture in pictures:
        image = _image("jpeg", picture.jpeg, picture.caption) if picture.jpeg else ""
        shown += f"<figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>"
    head = f"<h3>{escape(kind.capitalize())}</h3>" if kind else ""
    return f'{head}<p>{escape(meaning)}</p><div class="row">{shown or "none"}</div>'


def _image(kind: str, data: bytes, what: str) -> str:
    return f'<img alt="{escape(what)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
