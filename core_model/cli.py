"""The commands ``fedloom model`` and ``fedloom data``. What they need is imported when they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Make or look at a checkpoint of the shared model.")
data_app = typer.Typer(no_args_is_help=True, help="List and prepare the data sets fedloom knows.")

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DATA_SETS: dict[str, tuple[str, str]] = {
    "emoji": (
        "emoji:twemoji, emoji:openmoji, emoji:openmoji-line, emoji:noto",
        "Pictures of 1,628 emoji in four drawing styles, with names; from Python packages (extra demo).",
    ),
    "fashion-mnist": (
        "fashion-mnist:<k>/<n>?split=iid|dirichlet|shards&alpha=0.5&seed=0",
        "70,000 pictures of clothes in 10 classes; from Debian's dataset-fashion-mnist.",
    ),
    "digits": (
        "digits:<k>/<n>?split=iid|dirichlet|shards&alpha=0.5&seed=0",
        "1,797 handwritten digits of 8 x 8 pixels; part of scikit-learn.",
    ),
    "folder": ("folder:/path", "Your own pictures with a manifest.csv or manifest.parquet; see docs/data.md."),
    "module": ("package.module:function", "Your own function that returns a torch Dataset; see docs/data.md."),
}


@app.command("init")
def init(
    out: Annotated[Path, typer.Option("--out", help="The checkpoint file to write.")],
    config: Annotated[Path | None, typer.Option("--config", help="A federation.toml.")] = None,
    tables: Annotated[
        Path | None, typer.Option("--tables", help="In its place: JSON with the tables model, task and training.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the parameters.")] = 0,
    as_json: _Json = False,
) -> None:
    """Build version 0 of a model and write it as a checkpoint file."""
    from core_model.initial import initial_checkpoint

    learning = _learning(config, tables)
    # Whoever types this command runs their own configuration: what it names is what they asked for.
    manifest = initial_checkpoint(learning, seed, out, allow=learning.entry_points())
    facts = {
        "file": str(out),
        "size": len(manifest.header()) + 4 * manifest.dimension,
        "dimension": manifest.dimension,
        "manifest_hash": manifest.digest.hex(),
        "seed": seed,
    }
    _say(facts, f"{out}: {manifest.dimension:,} parameters, manifest {manifest.digest.hex()[:16]}", as_json=as_json)


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="A checkpoint file.")],
    as_json: _Json = False,
) -> None:
    """Print the tensors of a checkpoint file."""
    from core_model.checkpoint import read_manifest
    from core_model.errors import ManifestError

    try:
        manifest = read_manifest(file)
    except OSError as error:
        raise ManifestError(f"{file}: can't be read: {error.strerror}.") from None
    facts = {
        "file": str(file),
        "dimension": manifest.dimension,
        "manifest_hash": manifest.digest.hex(),
        "tensors": [{"name": e.name, "shape": list(e.shape), "dtype": e.dtype} for e in manifest.entries],
    }
    width = max(len(entry.name) for entry in manifest.entries)
    lines = [f"{e.name:<{width}}  {e.dtype}  {' x '.join(map(str, e.shape)) or 'scalar'}" for e in manifest.entries]
    lines.append(f"{manifest.dimension:,} parameters, manifest {manifest.digest.hex()}")
    _say(facts, "\n".join(lines), as_json=as_json)


@data_app.command("list")
def list_data(as_json: _Json = False) -> None:
    """List the data sets and how to name an institution's part of them."""
    rows = [{"name": n, "source": source, "what": what} for n, (source, what) in DATA_SETS.items()]
    lines = [f"{row['name']:<14} {row['what']}\n{'':<14} {row['source']}" for row in rows]
    _say({"data_sets": rows}, "\n".join(lines), as_json=as_json)


@data_app.command("prepare")
def prepare(
    name: Annotated[str, typer.Argument(help="Name of a data set, see `fedloom data list`.")],
    as_json: _Json = False,
) -> None:
    """Convert a data set into the cache, or check that it is there."""
    import difflib

    from core_model.errors import DataError

    if name == "emoji":
        from core_model.data.emoji import prepare_emoji

        folder = prepare_emoji()
    elif name == "fashion-mnist":
        from core_model.data.fashion_mnist import check_fashion_mnist

        folder = check_fashion_mnist()
    elif name == "digits":
        from core_model.data.source import open_source

        open_source("digits")
        folder = "scikit-learn"
    else:
        near = difflib.get_close_matches(name, ("emoji", "fashion-mnist", "digits"), 1)
        hint = f"Did you mean {near[0]}?" if near else "Try one of emoji, fashion-mnist, digits."
        raise DataError(f'There is no data set "{name}" to prepare.', hint)
    _say({"name": name, "folder": folder}, f"{name} is ready: {folder}", as_json=as_json)


def _learning(config: Path | None, tables: Path | None) -> Any:
    from core_model.errors import LearningConfigError
    from core_model.settings import parse_learning, read_learning

    if (config is None) == (tables is None):
        raise LearningConfigError("Give either --config or --tables.", "For example --config federation.toml.")
    if config is not None:
        return read_learning(config)
    assert tables is not None
    try:
        table = json.loads(tables.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LearningConfigError(f"{tables}: can't be read as JSON: {error}.") from None
    if not isinstance(table, dict):
        raise LearningConfigError(f"{tables}: not a JSON object.")
    return parse_learning(table, str(tables))


def _say(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else text)
