"""Resolution of an input (folder, list or published dataset) to sources."""

import os
from typing import Literal

from pipelines.config.ingest import IngestSettings
from pipelines.errors import UserError
from pipelines.filesystems import is_file, is_folder, is_web
from pipelines.paths import is_uri
from pipelines.sources.folders import list_folder
from pipelines.sources.lists import list_notes, local_list, read_list
from pipelines.sources.published_datasets import list_published
from pipelines.sources.source import LIST_SUFFIXES, SourceList, check_once, suffix_of


def list_sources(input_path: str, labels: Literal["auto", "folder", "none"]) -> SourceList:
    """Finds the sources of a folder or a list, sorted by path.

    Args:
        input_path: A path, or a URI.
        labels: Whether folder names are labels.

    Raises:
        UserError: If the input does not exist, is neither, or holds no source.
    """
    location = input_path if is_uri(input_path) else os.path.abspath(input_path)
    found = _list(location, labels, input_path)
    if not found.sources:
        ignored = ", ".join(f"{count} {suffix}" for suffix, count in found.ignored.items())
        what = f"only {ignored}" if ignored else "it is empty"
        raise UserError(f"input ({input_path}) must hold media, but {what}")
    found.sources.sort(key=lambda source: source.uri)
    check_once(found)
    return found


def _list(location: str, labels: Literal["auto", "folder", "none"], given: str) -> SourceList:
    is_list = suffix_of(location) in LIST_SUFFIXES
    if is_web(location):
        if not is_list:
            raise UserError(
                f"input ({given}) must be a list that ends with {', '.join(LIST_SUFFIXES)}: "
                "a web server has no folders to go through"
            )
    elif is_folder(location):
        return list_folder(location, labels)
    elif not (is_file(location) if is_uri(location) else os.path.exists(location)):
        raise UserError(f"input ({given}) does not exist")
    elif not is_list:
        raise UserError(
            f"input ({given}) must be a folder or a list that ends with {', '.join(LIST_SUFFIXES)}"
            "; for a single file, give a folder that holds it alone"
        )
    with local_list(location) as file:
        # A query may contain a slash and is not part of the base of relative paths.
        whole = location.partition("?")[0] if is_web(location) else location
        base = whole.rpartition("/")[0]
        sources = list(read_list(file, base, location))
    return SourceList(location, sources, notes=list_notes(sources))


def list_input(input_path: str, settings: IngestSettings) -> SourceList:
    """Finds the sources of a published dataset, a folder or a list.

    Raises:
        UserError: If it holds no source, or a list is missing or malformed.
    """
    if settings.dataset is None:
        return list_sources(input_path, settings.labels)
    return list_published(input_path, settings.dataset, settings.fold or 1)
