"""From the plain values of a config or checkpoint to frozen typed settings, with errors for the user."""

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from detector.errors import InputError

Group = TypeVar("Group", bound="Settings")


class Settings(BaseModel):
    """A group of settings. The docstring of a field is its description in docs/settings.md."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def plain(self) -> dict[str, Any]:
        """Nested dicts, lists and plain values, from which `parse` makes equal settings."""
        return self.model_dump(mode="json", by_alias=True)

    def with_values(self: Group, **values: Any) -> Group:
        """A copy with other values, which are validated as in `parse`."""
        return parse(type(self), self.plain() | values)


@dataclass(frozen=True)
class Valid:
    """The valid values of a setting in words, for messages and documentation."""

    text: str


@dataclass(frozen=True)
class Policy:
    """How a setting, or each setting of a group, is treated when a checkpoint meets other settings."""

    text: str


FIXED = Policy("fixed when a run resumes")
PER_INVOCATION = Policy("not compared when a run resumes")
AS_TRAINED = Policy("evaluation uses the value of training unless given")
LAYOUT = Policy("applies to some data layouts only")
MACHINE = Policy("names a path of this machine: null in exported weights")


class Setting(NamedTuple):
    """One setting: its dotted name, its value, and the policies of it and its groups."""

    key: str
    value: Any
    policies: frozenset[Policy]


def walk(group: Settings, prefix: str = "", inherited: frozenset[Policy] = frozenset()) -> Iterator[Setting]:
    """All settings below the group, in the order of the schema; extra arguments of a class last."""
    for name, field in type(group).model_fields.items():
        value, key = getattr(group, name), prefix + (field.alias or name)
        policies = inherited | {item for item in field.metadata if isinstance(item, Policy)}
        if isinstance(value, Settings):
            yield from walk(value, f"{key}.", policies)
        else:
            yield Setting(key, value, policies)
    for name, value in (group.model_extra or {}).items():
        yield Setting(prefix + name, value, inherited)


class Change(NamedTuple):
    """A setting that has another value than before; None where there is no such setting."""

    key: str
    before: Any
    now: Any
    policies: frozenset[Policy]


def changed(before: Settings, now: Settings) -> list[Change]:
    """The settings that differ, by name, without those that are never compared."""
    old, new = ({item.key: item for item in walk(group)} for group in (before, now))
    found = []
    for key in sorted(old.keys() | new.keys()):
        one, other = (group[key].value if key in group else None for group in (old, new))
        policies = (new.get(key) or old[key]).policies
        if one != other and PER_INVOCATION not in policies:
            found.append(Change(key, one, other, policies))
    return found


def change_table(changes: Sequence[Change]) -> str:
    """The changes as a table: setting, saved, now."""
    rows = [("setting", "saved", "now")]
    rows += [(item.key, _in_yaml(item.before), _in_yaml(item.now)) for item in changes]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"  {key:{widths[0]}}  {before:{widths[1]}}  {now}" for key, before, now in rows)


def _in_yaml(value: Any) -> str:
    """A value as on the command line."""
    value = [*value] if isinstance(value, tuple) else value
    return value if isinstance(value, str) else json.dumps(value, default=str)


def flatten(group: Settings) -> dict[str, str | int | float | bool]:
    """Settings by dotted name; values other than numbers, strings and booleans are converted to strings."""
    return {
        item.key: item.value if isinstance(item.value, str | int | float) else str(item.value) for item in walk(group)
    }


def parse(schema: type[Group], values: Any, source: str = "", ignore_unknown: bool = False) -> Group:
    """Typed settings from nested dicts. Raises InputError for the first invalid, missing or unknown one.

    `source`, such as a file, is named in the message.
    """
    try:
        return schema.model_validate(values, extra="ignore" if ignore_unknown else None)
    except ValidationError as error:
        prefix = f"{source}: " if source else ""
        raise InputError(f"{prefix}{_in_words(schema, values, error.errors()[0])}") from None


def defaults(schema: type[Settings]) -> dict[str, Any]:
    """The default of each setting that has one, as plain values; classes with `_target_` are left to files."""
    found: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        groups = groups_of(field.annotation)
        if len(groups) == 1 and "target" not in groups[0].model_fields:
            given = field.get_default().plain() if isinstance(field.default, Settings) else {}
            found[name] = defaults(groups[0]) | given
        elif not groups and not field.is_required():
            found[name] = [*field.default] if isinstance(field.default, tuple) else field.default
    return found


def default(schema: type[Settings], name: str) -> Any:
    """The default of one setting."""
    return schema.model_fields[name].default


def missing_keys(expected: Mapping, values: Any, prefix: str = "") -> list[str]:
    """The dotted names in nested dicts `expected` that are not in `values`."""
    if not isinstance(values, Mapping):
        return []  # not a group: `parse` says so
    found = [prefix + key for key in expected if key not in values]
    for key in expected.keys() & values.keys():
        if isinstance(expected[key], Mapping):
            found += missing_keys(expected[key], values[key], f"{prefix}{key}.")
    return found


def describe(schema: type[Settings], values: Any, prefix: str = "") -> str:
    """The values, one `key=value` a line, each with its description."""
    if isinstance(values, dict) and (values or not prefix):
        return "\n".join(describe(schema, value, f"{prefix}.{key}" if prefix else key) for key, value in values.items())
    field = dict(fields(schema)).get(prefix)
    value = values if isinstance(values, str) else json.dumps(values)
    return f"{prefix}={value}  # {meaning(field)}" if field else f"{prefix}={value}"


def meaning(field: FieldInfo) -> str:
    """The description of a setting, on one line."""
    return " ".join((field.description or "Import path of the class.").split())


def nullable(schema: type[Settings], name: str) -> type[Settings]:
    """The same settings, all null by default, where null means "not given"."""
    optional: dict[str, Any] = {}
    for key, field in schema.model_fields.items():
        null = Field(default=None, description=field.description)
        optional[key] = Annotated[field.annotation, Field(), *field.metadata] | None, null
    return create_model(name, __base__=Settings, __module__=schema.__module__, **optional)


def valid_values(annotation: Any, metadata: Collection = ()) -> str:
    """The valid values of a type in words, such as `null or an integer above 0`."""
    if wanted := [item.text for item in metadata if isinstance(item, Valid)]:
        return wanted[-1]
    if get_origin(annotation) is Annotated:
        return valid_values(get_args(annotation)[0], annotation.__metadata__)
    if get_origin(annotation) in (Union, UnionType):
        kinds = sorted(get_args(annotation), key=lambda kind: kind is not NoneType)  # null first
        return " or ".join(dict.fromkeys(valid_values(kind) for kind in kinds)).replace("null or null", "null")
    if get_origin(annotation) is Literal:
        *others, last = map(str, get_args(annotation))
        return f"{', '.join(others)} or {last}" if others else last
    names = {NoneType: "null", bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return names.get(annotation) or "a group of settings"


# Settings of earlier versions, and what replaces them.
GONE = {
    "metric.overlaps": "it is now metric.iou_thresholds",
    "channels_last": "remove it: images and features always have this memory format",
}


def no_such_setting(key: str, known: Collection[str]) -> InputError:
    """The error for an unknown setting, with its new name or the most similar known one."""
    if key in GONE:
        return InputError(f"{key}: no such setting; {GONE[key]}")
    near = difflib.get_close_matches(key, {*known} - {key}, n=1)
    return InputError(f"{key}: no such setting{f'; did you mean {near[0]}?' if near else '.'} --help lists all")


def fields(schema: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The dotted names of all groups and settings, with their fields."""
    for name, field in schema.model_fields.items():
        key = prefix + (field.alias or name)
        yield key, field
        for group in groups_of(field.annotation):
            yield from fields(group, f"{key}.")


def groups_of(annotation: Any) -> list[type[Settings]]:
    """The groups of settings that a type allows: itself, or the members of a union."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Settings) else []
    return [group for part in get_args(annotation) for group in groups_of(part)]


def _in_words(schema: type[Settings], values: Any, error: Any) -> str:
    """One of pydantic's errors: the setting, its value, and the valid values."""
    if error["type"] == "value_error":  # of a validator of the schema: a message in words
        return str(error["ctx"]["error"])
    names: list[str] = []
    groups, field = [schema], None
    for part in error["loc"]:  # names of fields, and below them tags of unions and positions in lists, which are not
        below = {info.alias or name: info for group in groups for name, info in group.model_fields.items()}
        if part in below or (groups and part == error["loc"][-1] and error["type"] == "extra_forbidden"):
            field = below.get(part)
            names.append(str(part))
            values = values.get(part) if isinstance(values, Mapping) else None
            groups = groups_of(field.annotation) if field else []
    key = ".".join(names)
    if error["type"] == "extra_forbidden":
        if key == "experiment":
            return (
                "experiment: its file must begin with the line `# @package _global_`, because its settings are global"
            )
        return str(no_such_setting(key, dict(fields(schema))))
    assert field is not None, error
    wanted = valid_values(field.annotation, field.metadata)
    return (
        f"{key} is not given: must be {wanted}" if error["type"] == "missing" else f"{key}={values}: must be {wanted}"
    )
