"""What a checkpoint's config.json says, read key by key: what is not understood is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

_NONE = object()


class Keys:
    """A config (or an object inside of one); every error names the file, the key and the value.

    A key whose value is null is one that is absent, as to the library that writes these files.
    """

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where, self.values = where, values

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: Any = _NONE) -> int:
        """A whole number above 0."""
        value = self._given(key, default, "a whole number above 0")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(key, "it must be a whole number above 0")
        return value

    def number(self, key: str, default: Any = _NONE) -> float:
        """A number above 0."""
        value = self._given(key, default, "a number above 0")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            self.refuse(key, "it must be a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "it must be true or false")
        return value

    def one_of(self, key: str, allowed: tuple[Any, ...], default: Any) -> Any:
        """A value that we can compute; others are refused."""
        value = self.get(key, default)
        if value not in allowed:
            self.refuse(key, f"only {', '.join(map(_shown, allowed))} is supported")
        return value

    def classes(self) -> int:
        """How many classes a classifier has: as many as it has names for, two if it has none."""
        names = self.inside("id2label").values
        return len(names) if names else self.whole("num_labels", 2)

    def inside(self, key: str) -> Keys:
        """The object of that key; empty where there is none."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            self.refuse(key, "it must be an object")
        return Keys(f"{self.where}, {key}", value)

    def blamed(self, error: ValueError) -> ValueError:
        """What our model's config refused, as an error of this file."""
        told = str(error)
        return error if self.where in told else ValueError(f"{self.where}: {told}")

    def refuse(self, key: str, why: str) -> NoReturn:
        raise ValueError(f"{self.where}: {key} = {_shown(self.values.get(key))}: {why}")

    def _given(self, key: str, default: Any, right: str) -> Any:
        value = self.get(key, default)
        if value is _NONE:
            raise ValueError(f"{self.where}: {key} is missing: it must be {right}")
        return value


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)[:80]
