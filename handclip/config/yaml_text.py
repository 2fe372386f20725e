"""YAML as its version 1.2 has it, read with limits, and written so that readers of 1.1 understand the same.

In YAML 1.1, PyYAML's own, `010` is 8, `1:30` is 90, `1_000` is 1000, `no` is false and `1e-5` is a text.
Here numbers are what they look like, and all else is text. An integer with leading zeros, of which the versions make
two different ones, is text too, so that it is refused where a number is wanted.
"""

import re
from typing import Any

import yaml

MAX_VALUES = 20_000
"""Keys, values and lists in a file, each counted as often as aliases repeat it."""
MAX_DIGITS = 400
"""Of a number; more than any floating-point number can have before its point."""

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_MERGE = "tag:yaml.org,2002:merge"

_DECIMAL = r"[-+]?(0|[1-9][0-9]*)"
_POINT = r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?"
_EXPONENT = r"[-+]?[0-9]+[eE][-+]?[0-9]+"
_RESOLVERS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, rf"{_DECIMAL}|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (_FLOAT, rf"{_POINT}|{_EXPONENT}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+0123456789.")),
    (_MERGE, "<<", ["<"]),
)
"""The core schema of YAML 1.2, but for leading zeros, and with merge keys: tag, pattern, first characters."""


class _Loader(yaml.SafeLoader):
    """Refuses what YAML allows and an experiment file does not need.

    A later key would silently replace an earlier one. Aliases of aliases make gigabytes out of a few lines, and so does
    a number of a million digits of time.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        self._values_of: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        before = self._values
        node: yaml.Node | None = super().compose_node(parent, index)
        if node is not None and is_alias and node not in self._values_of:
            raise yaml.composer.ComposerError(None, None, "an alias stands inside of what it repeats", mark)
        self._values += self._values_of[node] if node is not None and is_alias else 1
        if self._values > MAX_VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"there are more than {MAX_VALUES:,} values, counting what aliases (*name) repeat", mark
            )
        if node is not None and not is_alias:
            self._values_of[node] = self._values - before
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if len(value) > MAX_DIGITS and node.tag in (_INT, _FLOAT):
            raise yaml.constructor.ConstructorError(None, None, f"a number has {len(value):,} digits", node.start_mark)
        return value

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node), 0)  # refuses leading zeros

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes each text that either version of YAML would take for something else."""


_Loader.yaml_implicit_resolvers = {}  # nothing of version 1.1
_Loader.add_constructor(_INT, _Loader.construct_int)
for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), _first)


def load_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        yaml.YAMLError: it is none, repeats a key, or goes beyond `MAX_VALUES` or `MAX_DIGITS`.
        RecursionError: it is nested too deeply.
    """
    return yaml.load(text, _Loader)  # a SafeLoader


def dump_yaml(value: Any, **options: Any) -> str:
    """Return a plain value as YAML that both versions read alike.

    Args:
        value: to write.
        options: of `yaml.dump`.
    """
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options)
    return text


def numbers_meant(text: str) -> list[str]:
    """Return in plain digits what a text may mean that is no plain number, but would be one in YAML 1.1 or in Python.

    Nothing is returned of a plain number, nor of what is no number by any reading.
    """
    if re.fullmatch(f"{_DECIMAL}|{_POINT}|{_EXPONENT}", text) or not re.fullmatch(
        r"\s*[-+]?[0-9.][\w.:+-]{,40}\s*", text
    ):
        return []
    meant = []
    for read in (int, float, yaml.safe_load):
        try:
            number = read(text)
        except (ValueError, yaml.YAMLError):
            continue
        if type(number) in (int, float) and number not in meant:
            meant.append(number)
    return [f"{number}" for number in meant]
