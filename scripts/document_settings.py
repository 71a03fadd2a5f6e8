"""Write docs/settings.md from the schema in detector/settings.py: python scripts/document_settings.py"""

import argparse
from pathlib import Path

import yaml
from pydantic.fields import FieldInfo

from detector.schema import Policy, Settings, groups_of, meaning, valid_values
from detector.settings import EvaluateSettings, TrainSettings

PAGE = Path(__file__).resolve().parents[1] / "docs/settings.md"
INTRODUCTION = """# Settings

This page lists every setting of `train.py` and of `evaluate.py` with its valid values, default, meaning and policy.
A setting that is not fixed may change when a run resumes; the change is logged. `python train.py --help` prints the
current values. This page is generated from `detector/settings.py` by `python scripts/document_settings.py`.

Set one on the command line (`train.iterations=4000`), or many in a file `configs/experiment/NAME.yaml`
(`experiment=NAME`). Defaults include those of `configs/train.yaml`. A dash means that the selected file in `configs/`
gives the value, such as that of `optimizer=adamw`. A selected file, such as `data=folder`, `model=vgg16` or
`augment=flip`, may override other defaults too.
"""


OF_NEW_RUNS = yaml.safe_load(
    (PAGE.parents[1] / "configs/train.yaml").read_text(encoding="utf-8")
)  # overrides defaults of the schema


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(settings_page(), encoding="utf-8")


def settings_page() -> str:
    """The page, in Markdown."""
    train = "\n".join(_sections(TrainSettings, ""))
    evaluate = "\n".join(_sections(EvaluateSettings, "", nested=False))
    below = """
`data`, `detect` and `proposals` have the settings above. They are null by default, which means the value of training;
`proposals.folder` is always that of the evaluation. `metric` and `distributed` are as above, but `metric.coco` is true.
"""
    return f"{INTRODUCTION}\n## train.py\n\n{train}\n\n## evaluate.py\n\n{evaluate}\n{below}"


def _sections(
    schema: type[Settings], prefix: str, policies: frozenset[Policy] = frozenset(), nested: bool = True
) -> list[str]:
    """A table of the settings of a group, then the groups below it."""
    rows, below = [], []
    for name, field in schema.model_fields.items():
        key, groups = prefix + (field.alias or name), groups_of(field.annotation)
        inherited = policies | {item for item in field.metadata if isinstance(item, Policy)}
        for group in groups:
            if nested:
                title = f"`{key}`" if len(groups) == 1 else f"`{key}`: {group.__name__}"
                below += ["", f"### {title}", "", f"{group.__doc__}", "", *_sections(group, f"{key}.", inherited)]
        if not groups:
            rows.append(_row(key, field, inherited, "target" not in schema.model_fields))
    head = ["| setting | values | default | meaning |", "|---|---|---|---|"]
    return (head + rows if rows else []) + below


def _row(key: str, field: FieldInfo, policies: frozenset[Policy], has_default: bool) -> str:
    group, _, name = key.rpartition(".")
    default = OF_NEW_RUNS.get(group, {}).get(name, field.default)
    if field.is_required() or not has_default:
        shown = "-"
    elif isinstance(default, tuple):
        shown = f"`{[*default]}`"
    else:
        shown = f"`{'null' if default is None else str(default).lower() if isinstance(default, bool) else default}`"
    notes = "; ".join(sorted(policy.text for policy in policies))
    text = f"{meaning(field)}{f' *{notes[0].upper()}{notes[1:]}.*' if notes else ''}"
    return " | ".join(["", f"`{key}`", valid_values(field.annotation, field.metadata), shown, text, ""]).strip()


if __name__ == "__main__":
    main()
