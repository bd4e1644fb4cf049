"""Put models of the catalogue into a models folder without pulling: `python -m lab.ollama.seed DIR NAME…`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.ollama import catalogue
from lab.ollama.names import parse
from lab.ollama.store import Store


def write_zeros_blob(path: Path, content: bytes, size: int) -> None:
    """A file of `content` and zeros up to `size`; the zeros take no disk."""
    part = path.with_name(path.name + ".new")
    with part.open("wb") as file:
        file.write(content)
        file.truncate(size)
    part.replace(path)


def seed(models: Path, names: list[str]) -> None:
    """Write models of the catalogue; KeyError for one that it hasn't."""
    store = Store(models)
    store.prepare()
    for text in names:
        model = catalogue.find(text)
        name = parse(text)
        if model is None or name is None:
            raise KeyError(f"{text}: not in the catalogue; there are {', '.join(sorted(catalogue.MODELS))}")
        manifest, blobs = catalogue.package(model.name)
        for blob in blobs:
            path = store.blob_path(blob.digest)
            if not path.exists():
                write_zeros_blob(path, blob.content, blob.size)
        store.write_manifest(name, manifest)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="the models folder (OLLAMA_MODELS)")
    parser.add_argument("names", nargs="+", help="models, such as llama3.2:3b")
    options = parser.parse_args()
    try:
        seed(options.models, options.names)
    except KeyError as error:
        parser.exit(1, f"Error: {error.args[0]}\n")


if __name__ == "__main__":
    main()
