"""From a YAML or JSON file and `key=value` words to a mapping that knows the line of each key."""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from uni_dpo.errors import UniDPOError


class SettingsError(UniDPOError):
    """Faults of a configuration, all at once.

    Attributes:
        faults: (dotted key, what is wrong with it); an empty key stands for the whole file.
    """

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{key}: {text}" if key else text for key, text in self.faults))


class Given(dict[str, Any]):
    """A mapping of settings that knows where each was read.

    Attributes:
        file: the file that they come from.
        lines: dotted key → its line in the file, from 1.
        overridden: dotted keys of the command line.
    """

    def __init__(self, values: Mapping[str, Any], file: Path, lines: Mapping[str, int]) -> None:
        super().__init__(values)
        self.file = file
        self.lines = dict(lines)
        self.overridden: set[str] = set()

    def place(self, key: str) -> str:
        """Name where the setting `key`, or else the mapping that should hold it, was given."""
        while key:
            if key in self.overridden:
                return "command line"
            if key in self.lines:
                return f"{self.file}:{self.lines[key]}"
            key = re.sub(r"(^|\.)[^.]*$|\[\d+\]$", "", key)
        return str(self.file)


def read_mapping(path: str | Path) -> Given:
    """Read a file of settings: JSON where its name ends so, else YAML.

    `1e-3` is a number here, as in JSON, and a date is a text.

    Raises:
        UniDPOError: there is no such file, it is not valid, it holds no mapping, or a key is given twice in one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UniDPOError(f"{path}: there is no such configuration file; check the name") from None
    except OSError as error:
        raise UniDPOError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UniDPOError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    given = _read_json(text, path) if path.suffix == ".json" else _read_yaml(text, path)
    if not isinstance(given, Given):
        found = "nothing" if given is None else f"a {type(given).__name__}"
        raise UniDPOError(f"{path}: expected `key: value` lines; found {found}")
    return given


def is_config(word: str) -> bool:
    """Tell the name of a configuration file from another word of a command line."""
    return word.endswith((".yaml", ".yml", ".json")) and not word.startswith("-")


def override(raw: Mapping[str, Any], given: Sequence[str]) -> Any:
    """Return the mapping with the settings of a command line in the place of a file's.

    Args:
        raw: a mapping, as of `read_mapping`; it is left as it is.
        given: `key=value`, the value in YAML; `reward.function=exact` reaches into a mapping. A key of the file that
            has dots in it is found too.

    Raises:
        SettingsError: something else than `key=value`, or a key that leads into what is no mapping.
    """
    changed = copy.deepcopy(raw)
    faults = []
    for item in given:
        key, equals, value = item.partition("=")
        place, name = _reach(changed, key)
        if not equals or not name or place is None:
            faults.append(("", f"{item!r}: `key=value` is expected, with a key of the configuration"))
            continue
        try:
            place[name] = yaml.load(value, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            faults.append(("", f"{item!r}: the value is not valid YAML: {_problem(error)}"))
        if isinstance(changed, Given):
            changed.overridden.add(key)
    if faults:
        raise SettingsError(faults)
    return changed


@contextmanager
def located(given: Mapping[str, Any]) -> Iterator[None]:
    """Name file and line, or the command line, in faults raised within the block; nothing for a plain mapping."""
    try:
        yield
    except UniDPOError as error:
        if not isinstance(given, Given):
            raise
        # What is wrong with a setting begins with its key: `pairs.min_gap: …`.
        lines = [f"{given.place(line.partition(': ')[0])}: {line}" for line in str(error).splitlines()]
        raise UniDPOError("\n".join(lines)) from error.__cause__


@contextmanager
def beneath(where: str) -> Iterator[None]:
    """Put `where` before the keys of the faults that are raised within the block."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError([(f"{where}.{key}" if key else where, text) for key, text in error.faults]) from None
    except UniDPOError as error:
        raise SettingsError([(where, line) for line in str(error).splitlines()]) from None


class FaultCollector:
    """Collects the faults of several blocks, so that all are said at once."""

    def __init__(self) -> None:
        self.faults: list[tuple[str, str]] = []

    @contextmanager
    def collecting(self, key: str = "") -> Iterator[None]:
        """Keep the faults that are raised within the block, those of no setting under `key`, and go on after it."""
        try:
            yield
        except SettingsError as error:
            self.faults += error.faults
        except UniDPOError as error:
            self.faults += [(key, line) for line in str(error).splitlines()]

    def raise_any(self) -> None:
        """Raise a SettingsError of what was collected, if anything was."""
        if self.faults:
            raise SettingsError(self.faults)


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of JSON, and dates as texts."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _read_yaml(text: str, path: Path) -> Any:
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            lines, repeated = _walk(root)
            value = None if root is None else {} if repeated else loader.construct_document(root)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UniDPOError(f"{path}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {_problem(error)}") from error
    _refuse_repeated(path, repeated)
    return Given(value, path, lines) if isinstance(value, dict) else value


def _read_json(text: str, path: Path) -> Any:
    repeated: list[tuple[int | None, str]] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated.extend((None, key) for key in dict.fromkeys(keys) if keys.count(key) > 1)
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UniDPOError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except RecursionError:
        raise UniDPOError(f"{path}: not valid JSON: nested too deeply") from None
    try:  # nearly all JSON is YAML too, whose reader knows the lines
        lines, repeated_there = _walk(yaml.compose(text, _Loader))
    except (yaml.YAMLError, ValueError, RecursionError):
        lines, repeated_there = {}, []
    _refuse_repeated(path, repeated_there or repeated)
    return Given(value, path, lines) if isinstance(value, dict) else value


def _walk(root: yaml.Node | None) -> tuple[dict[str, int], list[tuple[int | None, str]]]:
    """The line of every dotted key, and the keys that stand twice in a mapping, with the line of the second."""
    lines: dict[str, int] = {}
    repeated: list[tuple[int | None, str]] = []
    visited: set[int] = set()

    def visit(node: yaml.Node, where: str, within: tuple[int, ...]) -> None:
        if id(node) in within:
            raise ValueError("a value that contains itself")
        if id(node) in visited:
            return  # an anchor's content has the lines of the anchor
        visited.add(id(node))
        inside = (*within, id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                lines[f"{where}[{index}]"] = item.start_mark.line + 1
                visit(item, f"{where}[{index}]", inside)
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                name = str(key.value)
                dotted = f"{where}.{name}" if where else name
                line = key.start_mark.line + 1
                if name in seen and name != "<<":
                    repeated.append((line, dotted))
                seen.add(name)
                lines[dotted] = line
                visit(value, dotted, inside)

    if root is not None:
        visit(root, "", ())
    return lines, repeated


def _refuse_repeated(path: Path, repeated: Sequence[tuple[int | None, str]]) -> None:
    if repeated:
        lines = (f"{path}{f':{line}' if line else ''}: {key}: is given twice; keep one" for line, key in repeated)
        raise UniDPOError("\n".join(lines))


def _problem(error: Exception) -> str:
    said = getattr(error, "problem", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0]


def _reach(raw: Any, key: str) -> tuple[dict[str, Any] | None, str]:
    """The mapping that a dotted key leads to, and the last part of the key; None where it leads into no mapping."""
    place = raw
    while isinstance(place, dict):
        known = [name for name in place if isinstance(name, str) and key.startswith(f"{name}.")]
        part = max(known, key=len, default=key.partition(".")[0] if key not in place else key)
        if part == key:
            return place, key
        key = key[len(part) + 1 :]
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
    return None, ""
