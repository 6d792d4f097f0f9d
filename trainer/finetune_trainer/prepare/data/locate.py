"""From one uri to the files it names: a file, a pattern or a folder behind s3://, file://, hf:// or https://."""

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote

from finetune_api.errors import DataError, Problem, SpecError
from finetune_api.v1alpha1.data_names import is_hub_name
from finetune_trainer.prepare.data import file_patterns
from finetune_trainer.prepare.data.file_places import Place, StoredFile, blamed, local_file
from finetune_trainer.prepare.data.hub_splits import EVALUATION
from finetune_trainer.storage import open_store


def locate_files(uri: str, field: str, environ: Mapping[str, str], declared: str | None = None) -> tuple[Place, ...]:
    """Return the files behind a uri, sorted by name; at least one.

    Args:
        declared: the format that the job names, if it does: then names need not agree.

    Raises:
        SpecError: the uri is malformed, or of a scheme that cannot be read.
        DataError: the file does not exist, or a folder or pattern holds files that do not belong together.
        StorageError: the store refuses or is unreachable.
    """
    if "://" not in uri:
        uri = _named_on_hub(uri, field)
    scheme = uri.partition("://")[0]
    finders: dict[str, Callable[[str, str, Mapping[str, str]], list[Place]]] = {
        "file": _local,
        "s3": _stored,
        "hf": _on_hub,
        "https": _on_the_web,
        "http": _on_the_web,
    }
    if scheme not in finders:
        message = f"{uri} cannot be read; {', '.join(f'{name}://' for name in finders if name != 'http')} can"
        raise SpecError(
            Problem(code="UnknownScheme", field=field, message=message, cure="copy the data to one of them")
        )
    found = finders[scheme](uri, field, environ)
    if len(found) > 1:
        _go_together(uri, field, [place.name.rpartition("/")[2] for place in found], declared)
        filled = [place for place in found if place.size != 0]  # engines leave empty files among others
        found = filled or found
    return tuple(found)


def _named_on_hub(text: str, field: str) -> str:
    """Return the URI of a plain name of a data set; paths of this machine were made file:// before."""
    if is_hub_name(text):
        return f"hf://datasets/{text}"
    message = f"{text!r} is a path of one machine, and this machine has no such file"
    cure = (
        "copy the data to s3://, or mount a volume and write file:///path; a data set of the hub is organisation/name"
    )
    raise SpecError(Problem(code="PlainPath", field=field, message=message, cure=cure))


def _local(uri: str, field: str, _: Mapping[str, str]) -> list[Place]:
    given = unquote(uri.partition("://")[2])
    path = Path(given)
    if (one := local_file(path, uri, field)) is not None:
        return [one]

    def named(name: str) -> str:
        return f"file://{name}"

    if file_patterns.is_pattern(given):
        root = file_patterns.fixed_part(given)
        names = _walk(Path(root or ".")) if root or not given.startswith("/") else _walk(Path("/"))
        below = given[len(root) :].lstrip("/")
        found = [os.path.join(root, name) for name in file_patterns.matching(names, below)]  # noqa: PTH118 - keep the text
        return _places(uri, field, (local_file(Path(name), named(name), field) for name in found))
    if path.is_dir():
        if (path / file_patterns.SAVED).is_file():
            saved = _saved_split(uri, field, _walk(path))
            return _places(uri, field, (local_file(path / name, named(str(path / name)), field) for name in saved))
        names = [entry.name for entry in path.iterdir() if entry.is_file()]
        chosen = file_patterns.data_files(names)
        if not chosen:
            raise _empty_folder(uri, field, file_patterns.likely_data(_walk(path))[:1])
        return _places(uri, field, (local_file(path / name, named(str(path / name)), field) for name in chosen))
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise _missing(uri, field, path.name, siblings)


def _walk(root: Path) -> list[str]:
    """Return all files below a folder; links to folders are followed, each folder once."""
    found = []
    seen = {root.resolve()}
    above = set(root.resolve().parents)
    for parent, folders, files in os.walk(root, followlinks=True):
        new = {name: (Path(parent) / name).resolve() for name in sorted(folders) if not name.startswith(".")}
        # a link to where the walk came from would lead to all that lies beside the folder
        folders[:] = [name for name, place in new.items() if place not in seen and place not in above]
        seen.update(new.values())
        relative = Path(parent).relative_to(root)
        found += [(relative / name).as_posix() for name in files]
    return found


def _places(uri: str, field: str, found: Iterable[Place | None]) -> list[Place]:
    places = [place for place in found if place is not None]
    if not places:
        message = f"no file matches {uri}"
        raise DataError(Problem(code="FileNotFound", field=field, message=message, cure="correct the pattern"))
    return places


def _stored(uri: str, field: str, environ: Mapping[str, str]) -> list[Place]:
    bucket, _, key = uri.partition("://")[2].partition("/")
    key = key.rstrip("/")
    if not bucket or file_patterns.is_pattern(bucket) or any(part in ("", ".", "..") for part in key.split("/") if key):
        raise SpecError(
            Problem(
                code="InvalidURI",
                field=field,
                message=f"{uri!r} does not name a file of a bucket",
                cure="write s3://bucket/path, without empty parts",
            )
        )
    with blamed(field):
        store = open_store(f"s3://{bucket}", environ)
        if file_patterns.is_pattern(key):
            root = file_patterns.fixed_part(key)
            infos = {info.key: info for info in store.list(f"{root}/" if root else "")}
            return _places(uri, field, (StoredFile(store, infos[n], field) for n in file_patterns.matching(infos, key)))
        info = store.head(key) if key else None
        if info is not None:
            return [StoredFile(store, info, field)]
        prefix = f"{key}/" if key else ""
        below = {info.key.removeprefix(prefix): info for info in store.list(prefix) if info.key != prefix}
        if not below:
            parent, _, name = key.rpartition("/")
            siblings = (info.key.rpartition("/")[2] for info in store.list(f"{parent}/" if parent else ""))
            raise _missing(uri, field, name, list(siblings)[:1000])
    if file_patterns.SAVED in below:
        return [StoredFile(store, below[name], field) for name in _saved_split(uri, field, below)]
    chosen = file_patterns.data_files(name for name in below if "/" not in name)
    if not chosen:
        raise _empty_folder(uri, field, file_patterns.likely_data(below)[:1])
    return [StoredFile(store, below[name], field) for name in chosen]


def _on_hub(uri: str, field: str, environ: Mapping[str, str]) -> list[Place]:
    from finetune_trainer.prepare.data.hub_files import files_on_hub

    return files_on_hub(uri, field, environ)


def _on_the_web(uri: str, field: str, _: Mapping[str, str]) -> list[Place]:
    from finetune_trainer.prepare.data.web import find_web_file

    return [find_web_file(uri, field)]


def _saved_split(uri: str, field: str, names: Iterable[str]) -> list[str]:
    """Return the files of the split that a field needs, from a folder that holds several splits."""
    splits = file_patterns.saved_splits(names)
    wanted = EVALUATION if field == "spec.dataset.eval" else ("train",)
    split = next((split for split in wanted if split in splits), None)
    if split is None:
        known = ", ".join(sorted(splits)) or "none"
        message = f"{uri} is a saved data set without the split {wanted[0]!r}; its splits are {known}"
        cure = f"name the folder of one: {uri.rstrip('/')}/{next(iter(sorted(splits)), 'train')}"
        raise DataError(Problem(code="SplitNotFound", field=field, message=message, cure=cure))
    return splits[split]


def _missing(uri: str, field: str, name: str, siblings: Iterable[str]) -> DataError:
    close = difflib.get_close_matches(name, [other for other in siblings if other != name], 1)
    cure = f"did you mean {close[0]}?" if close else "correct the path"
    if uri.startswith("file://~"):
        cure = "write the whole path: only a shell replaces ~"
    return DataError(Problem(code="FileNotFound", field=field, message=f"there is no file {uri}", cure=cure))


def _empty_folder(uri: str, field: str, deeper: list[str]) -> DataError:
    cure = "name the folder or file that holds the data"
    if deeper:
        cure = f"name a deeper folder, or write {uri.rstrip('/')}/**/* for all below (there is {deeper[0]})"
    return DataError(
        Problem(code="NoDataFiles", field=field, message=f"{uri} is a folder without data files", cure=cure)
    )


def _go_together(uri: str, field: str, names: list[str], declared: str | None) -> None:
    forms = file_patterns.formats_of(names)
    if declared is None and len(forms) > 1:
        seen = " and ".join(f"{name} ({form})" for form, name in forms.items())
        folder = uri.rpartition("/")[0] if file_patterns.is_pattern(uri) else uri.rstrip("/")
        cure = f"name one kind, such as {folder}/*"
        suffix = next(iter(forms.values())).partition(".")[2]
        message = f"{uri} holds files of several formats: {seen}"
        raise DataError(Problem(code="MixedFormats", field=field, message=message, cure=f"{cure}.{suffix}"))
    if (both := file_patterns.splits_among(names)) is not None:
        message = f"{uri} holds training and evaluation data: {both[0]} and {both[1]}; all of it would be one split"
        cure = "name the files of each split, in spec.dataset.train and spec.dataset.eval"
        raise DataError(Problem(code="SplitsInFolder", field=field, message=message, cure=cure))
