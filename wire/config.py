"""Configuration files: TOML into frozen models, every mistake named at once, and back into commented text."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from wire.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

MAX_CONFIG_BYTES: Final = 1 << 20
_WIDTH = 118


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: If it is missing, too large, not UTF-8 or not TOML; the message names the line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file", "Write a commented one with: fedloom init") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes", "Is this a configuration file?")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8", "Save the file as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path}: not valid TOML: {error}", "Texts stand in double quotes, sections in [brackets], one key a line."
        ) from error


def validate(model: type[M], table: Mapping[str, Any], source: str, *, section: str = "") -> M:
    """Make a model of a table; a file's mistakes are reported together.

    Args:
        model: The pydantic model.
        table: As read from TOML.
        source: What messages call the file.
        section: Where the table stands in the file, ``model`` for ``[model]``.

    Raises:
        ConfigError: One line for each mistake: file, section, key, the value given, what is allowed, and for an unknown
            key the nearest valid one.
    """
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        lines = list(dict.fromkeys(_line(model, item, section) for item in error.errors(include_url=False)))
        if len(lines) == 1:
            message = f"{source}: {lines[0]}"
        else:
            message = f"{source}: {len(lines)} mistakes\n" + "\n".join(f"  {line}" for line in lines)
        raise ConfigError(message, "`fedloom init` writes a file with every key and what it means.") from error


def _line(model: type[BaseModel], item: ErrorDetails, section: str) -> str:
    parts = [part for part in ([*section.split("."), *item["loc"]] if section else item["loc"]) if part != ""]
    where = _where(parts)
    kind = item["type"]
    if kind == "extra_forbidden":
        return _unknown_key(model, item, where, parts)
    if kind == "missing":
        return f"{where} is missing"
    allowed = _allowed(item)
    if item["loc"] and not isinstance(item["input"], Mapping):
        return f"{where} = {_shown(item['input'])}: {allowed}"
    return f"{where}: {allowed}" if where else allowed


def _where(parts: Sequence[int | str]) -> str:
    """``("rounds", "count")`` as ``[rounds] count``; ``("simulation", "institutions", 1, "name")`` with its index."""
    if not parts:
        return ""
    names = [f"#{part + 1}" if isinstance(part, int) else str(part) for part in parts]
    if len(names) == 1:
        return names[0]
    return f"[{'.'.join(names[:-1])}] {names[-1]}".replace(".#", " #")


def _unknown_key(model: type[BaseModel], item: ErrorDetails, where: str, parts: Sequence[int | str]) -> str:
    owner = _model_at(model, item["loc"][:-1])
    valid = sorted(field.alias or name for name, field in owner.model_fields.items()) if owner else []
    nearest = difflib.get_close_matches(str(parts[-1]), valid, n=1, cutoff=0.5)
    what = "section" if len(parts) == 1 and isinstance(item["input"], Mapping) else "key"
    text = f"[{parts[-1]}]" if what == "section" else f"{where} = {_shown(item['input'])}"
    if nearest:
        return f"{text}: unknown {what}; did you mean {nearest[0]!r}?"
    return f"{text}: unknown {what}; valid are {', '.join(valid)}"


def _allowed(item: ErrorDetails) -> str:
    context = item.get("ctx", {})
    error = context.get("error")
    if item["type"] == "value_error" and error is not None:
        return str(error)
    texts = {
        "greater_than_equal": "must be at least {ge}",
        "greater_than": "must be more than {gt}",
        "less_than_equal": "must be at most {le}",
        "less_than": "must be less than {lt}",
        "multiple_of": "must be a multiple of {multiple_of}",
        "literal_error": "must be one of {expected}",
        "enum": "must be one of {expected}",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "float_parsing": "must be a number",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false",
        "bool_parsing": "must be true or false",
        "string_type": "must be a text in quotes",
        "string_pattern_mismatch": "must match {pattern}",
        "string_too_short": "must have at least {min_length} characters",
        "string_too_long": "must have at most {max_length} characters",
        "list_type": "must be a list in [brackets]",
        "tuple_type": "must be a list in [brackets]",
        "dict_type": "must be a table",
        "model_type": "must be a table",
        "too_short": "must have at least {min_length} entries",
        "too_long": "must have at most {max_length} entries",
    }
    template = texts.get(item["type"])
    if template is None:
        return item["msg"]
    return template.format(**context)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel] | None:
    """The model that a path of keys and indices leads to."""
    current: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if current else None
        current = _model_in(field.annotation) if field else None
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as ``tuple[Model, ...]`` or ``Model | None``."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def commented_toml(config: BaseModel, tables: Mapping[str, BaseModel] | None = None) -> str:
    """A configuration as TOML in which a comment explains each key. Reading it gives the configuration back.

    The text is made of the models' own descriptions, types and ranges, so it can't say what the software doesn't do.

    Args:
        config: The whole configuration; its fields are the file's sections.
        tables: Models to show in place of sections that ``config`` holds as plain dicts.
    """
    lines = _comment(_summary(type(config)), "")
    sections: list[tuple[str, object, str]] = []
    for name, field in type(config).model_fields.items():
        shown = (tables or {}).get(name, getattr(config, name))
        description = _describe(type(config), name, field)
        if isinstance(shown, BaseModel | Mapping):
            sections.append((name, shown, description))
        else:
            _key_line(lines, name, field, shown, description)
    for name, shown, description in sections:
        _section(lines, name, shown, description)
    return "\n".join(lines).strip() + "\n"


def _section(lines: list[str], path: str, value: object, description: str) -> None:
    lines.append("")
    lines.extend(_comment(description, ""))
    lines.append(f"[{path}]")
    if isinstance(value, BaseModel):
        _fields(lines, path, value)
        return
    if not isinstance(value, Mapping):
        raise TypeError(f"{path} is not a table")
    for key, item in value.items():
        if item is not None:
            lines.append(f"{_key(key)} = {_toml(item)}")


def _fields(lines: list[str], path: str, value: BaseModel) -> None:
    later: list[tuple[str, BaseModel, str]] = []
    for name, field in type(value).model_fields.items():
        item = getattr(value, name)
        description = _describe(type(value), name, field)
        if isinstance(item, BaseModel):
            later.append((name, item, description))
            continue
        _key_line(lines, name, field, item, description)
    for name, item, description in later:
        _section(lines, f"{path}.{name}", item, description)


def _key_line(lines: list[str], name: str, field: FieldInfo, value: object, description: str) -> None:
    allowed = _range(field)
    lines.extend(_comment(f"{description} ({allowed})" if allowed else description, ""))
    # A key without a value can't be written in TOML; it stays there as a comment.
    lines.append(f"# {name} = " if value is None else f"{name} = {_toml(value)}")


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, _WIDTH)]


def _summary(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").split("\n\n")[0].replace("\n", " ").replace("``", "")


def _describe(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if field.description:
        return field.description
    documented = _attributes(inspect.getdoc(model) or "").get(name)
    if documented:
        return documented
    nested = _model_in(field.annotation)
    return _summary(nested) if nested else ""


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of a docstring's ``Attributes:`` block."""
    _, _, block = docstring.partition("Attributes:\n")
    entries: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        match = re.match(r" {4}(\w+): (.*)", line)
        if match:
            name = match.group(1)
            entries[name] = match.group(2).strip()
        elif line.startswith("     ") and name:
            entries[name] += " " + line.strip()
        elif line.strip():
            break
    return {key: text.replace("``", "") for key, text in entries.items()}


def _range(field: FieldInfo) -> str:
    """Allowed values in words, from the annotation and its constraints."""
    texts: list[str] = []
    literals = _literals(field.annotation)
    if literals:
        texts.append(" | ".join(_toml(value) for value in literals))
    for constraint in field.metadata:
        match constraint:
            case Ge(ge=bound):
                texts.append(f"at least {bound}")
            case Gt(gt=bound):
                texts.append(f"more than {bound}")
            case Le(le=bound):
                texts.append(f"at most {bound}")
            case Lt(lt=bound):
                texts.append(f"less than {bound}")
            case MultipleOf(multiple_of=step):
                texts.append(f"a multiple of {step}")
            case _:
                continue
    return ", ".join(texts)


def _literals(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(value for part in typing.get_args(annotation) for value in _literals(part))
    return ()


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: object) -> str:
    """A value in TOML's syntax."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, str | Path):
        # TOML's basic strings have JSON's escapes, except that DEL must be escaped too.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, BaseModel):
        return _toml(value.model_dump(mode="python"))
    if isinstance(value, Mapping):
        entries = ", ".join(f"{_key(str(key))} = {_toml(item)}" for key, item in value.items() if item is not None)
        return f"{{ {entries} }}" if entries else "{}"
    if isinstance(value, Sequence):
        if value and all(isinstance(item, BaseModel | Mapping) for item in value):
            return "[\n" + "".join(f"    {_toml(item)},\n" for item in value) + "]"
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} has no TOML form")
