"""The classes that a config may name. A config, and the one in a checkpoint, may be untrusted."""

import importlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from detector.errors import InputError


def instantiate(settings: Mapping, packages: tuple[str, ...], /, **more: Any) -> Any:
    """Instantiate the class that `_target_` names, with the other settings and `more` as its arguments.

    `packages`: where the class may come from, as narrow as the use allows. Raises InputError for anything but a class
    of these packages, and if the class does not accept the settings.
    """
    arguments = {key: value for key, value in settings.items() if key != "_target_"}
    target = str(settings.get("_target_"))
    cls = find_class(target, packages)
    try:
        for name, parameter in inspect.signature(cls).parameters.items():
            if isinstance(parameter.default, bool) and not isinstance(arguments.get(name, True), bool):
                raise ValueError(f"{name}={arguments[name]} must be true or false")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", r"Argument\(s\) .* not valid")  # albumentations ignores them
            return cls(**arguments, **more)
    except (TypeError, ValueError, RuntimeError, AttributeError, UserWarning) as error:
        raise InputError(f"{target} does not take {arguments}: {error}") from None


def find_class(target: str, packages: tuple[str, ...]) -> type:
    """The class of this name. Raises InputError for anything but a class defined in one of these packages."""
    module, _, name = target.rpartition(".")
    if target.startswith(packages):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            found = None
        # The defining module counts too: modules expose what they import, such as detector.runtime.files.os.
        if isinstance(found, type) and f"{found.__module__}.".startswith(packages):
            return found
    raise InputError(f"_target_: {target}: not a class of {', '.join(name.rstrip('.') for name in packages)}")
