"""How an option of the configuration is declared, checked and read from text."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

LARGEST = 10**9
"""The largest integer that a setting may be, and less its sign the smallest: beyond all that can be computed."""


class ConfigError(ValueError):
    """A configuration that cannot be used. The message says what is wrong and lists what would be right."""


def option(default: Any, reason: str = "", **bounds: float) -> Any:
    """A field with its reason and its bounds: `least` and `most` are allowed, `above` and `below` are not."""
    return field(default=default, metadata={"reason": reason, **bounds})


def check_bounds(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    """Raise ConfigError for a number outside the bounds of its option."""
    if value is None or isinstance(value, str | bool | tuple):
        return
    for bound, holds, words in (
        ("least", value.__ge__, "{} or more"),
        ("above", value.__gt__, "above {}"),
        ("most", value.__le__, "{} or less"),
        ("below", value.__lt__, "below {}"),
    ):
        if bound in bounds and not holds(type(value)(bounds[bound])):
            raise ConfigError(f"{name} must be {words.format(bounds[bound])}, not {value}")


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Read `value` (a string from the command line, or JSON) as a field's type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{name} must be one of {', '.join(args)}, not {value!r}")
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "none":
            return None
        return coerce(name, value, next(a for a in args if a is not type(None)))
    if origin is tuple:
        items = [item.strip() for item in value.split(",") if value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{name} must be a list (on the command line: a,b,c, or nothing), not {value!r}")
        return tuple(coerce(name, item, args[0]) for item in items)
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is str and isinstance(value, str):
        return value
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = Decimal(str(value))  # exact, also "1e3"
        except InvalidOperation:
            number = Decimal("nan")
        if kind is float and number.is_finite() and math.isfinite(float(number)):
            return float(number)
        if kind is int and number.is_finite() and number == number.to_integral_value():
            if not -LARGEST <= number <= LARGEST:
                raise ConfigError(f"{name} must lie in {-LARGEST} … {LARGEST}, not {value}")
            return int(number)
    wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
    raise ConfigError(f"{name} must be {wanted}, not {value!r}")
