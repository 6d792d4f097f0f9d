"""One table of promises, kept by a folder and by a real S3 server."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_api.errors import StorageError
from finetune_trainer.storage import (
    AlreadyExistsError,
    ChangedError,
    NotFoundError,
    ObjectStore,
    S3Store,
    download_tree,
    open_store,
    read_manifest,
    upload_tree,
)
from finetune_trainer.storage.s3 import make_client
from tests.support.s3 import S3Server, start_s3

PART = 5 << 20  # the protocol's smallest part


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with start_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@dataclass(frozen=True)
class Place:
    """A store, and the folder in which the bytes of its objects lie."""

    store: ObjectStore
    files: Path


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Place(open_store(f"file://{tmp_path}/store"), tmp_path / "store")
    server: S3Server = request.getfixturevalue("server")
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:32]
    server.make_bucket(name)
    store = S3Store(make_client(server.environ), name, "team/a", part_size=PART, page_size=7)
    return Place(store, server.folder / name / "team" / "a")


@pytest.fixture
def store(place: Place) -> ObjectStore:
    return place.store


def bytes_of(size: int) -> bytes:
    """Bytes without a period that a swapped or repeated part could hide behind."""
    return hashlib.shake_128(str(size).encode()).digest(size)


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


# ---------------------------------------------------------------- what every store promises


def test_put_then_get_gives_the_bytes_and_a_second_put_replaces_them(store: ObjectStore) -> None:
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"two")
    assert store.get("a/b.json") == b"two"


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    info = store.head("empty")
    assert info is not None
    assert info.size == 0


def test_keys_may_hold_spaces_unicode_and_reserved_characters(store: ObjectStore) -> None:
    names = ["a b/c", "a+b", "a%20b", "über/größe", "x#y?z=1&w"]
    for name in names:
        store.put(name, name.encode())
    assert [store.get(name).decode() for name in names] == names
    assert sorted(keys(store)) == sorted(names)


@pytest.mark.parametrize(
    "read", [lambda s, p: s.get("no"), lambda s, p: s.get_file("no", p / "no")], ids=["get", "get_file"]
)
def test_reading_a_missing_object_says_which(
    store: ObjectStore, tmp_path: Path, read: Callable[[ObjectStore, Path], object]
) -> None:
    store.put("other", b"")
    with pytest.raises(NotFoundError, match=f"there is no no below {store.uri}"):
        read(store, tmp_path / "fetched")
    assert not list(tmp_path.glob("fetched/*"))


def test_head_gives_size_and_a_tag_that_changes_with_the_content(store: ObjectStore) -> None:
    assert store.head("a") is None
    store.put("a", b"123")
    first = store.head("a")
    store.put("a", b"124")
    second = store.head("a")
    assert first is not None
    assert second is not None
    assert (first.key, first.size) == ("a", 3)
    assert first.etag != second.etag


def test_list_is_sorted_paged_and_knows_prefixes_that_end_within_a_name(store: ObjectStore) -> None:
    names = [*(f"run/{index:02}/x" for index in range(25)), "run2/x", "ruin"]
    for name in names:
        store.put(name, b".")
    assert keys(store) == sorted(names)
    assert keys(store, "run/") == [name for name in names if name.startswith("run/")]
    assert keys(store, "run/1") == [f"run/1{index}/x" for index in range(10)]
    assert keys(store, "nothing/here") == []


def test_what_list_says_is_what_head_says(store: ObjectStore) -> None:
    store.put("a/b", b"12345")
    assert list(store.list("a/")) == [store.head("a/b")]


def test_create_writes_once(store: ObjectStore) -> None:
    store.create("a/lock", b"first")
    with pytest.raises(AlreadyExistsError, match="a/lock"):
        store.create("a/lock", b"second")
    assert store.get("a/lock") == b"first"


def test_of_64_racing_creates_exactly_one_wins_and_its_bytes_stay(store: ObjectStore) -> None:
    def attempt(number: int) -> int | None:
        try:
            store.create("deep/er/lock", str(number).encode())
        except AlreadyExistsError:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(attempt, range(64)) if number is not None]
    assert [str(number).encode() for number in winners] == [store.get("deep/er/lock")]


def test_swap_replaces_only_the_object_that_was_read(store: ObjectStore) -> None:
    first = store.swap("a/record", b"one", None)
    with pytest.raises(ChangedError, match="a/record"):
        store.swap("a/record", b"zero", None)
    assert (info := store.head("a/record")) is not None
    assert info.etag == first
    second = store.swap("a/record", b"two", first)
    with pytest.raises(ChangedError, match="a/record"):
        store.swap("a/record", b"three", first)
    assert store.get("a/record") == b"two"
    store.put("a/record", b"of somebody who does not ask")
    with pytest.raises(ChangedError):
        store.swap("a/record", b"three", second)
    store.delete(["a/record"])
    with pytest.raises(ChangedError):
        store.swap("a/record", b"three", second)
    assert store.head("a/record") is None


def test_of_64_racing_swaps_exactly_one_wins_and_its_bytes_stay(store: ObjectStore) -> None:
    read = store.swap("deep/er/record", b"before", None)

    def attempt(number: int) -> int | None:
        try:
            store.swap("deep/er/record", str(number).encode(), read)
        except ChangedError:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(attempt, range(64)) if number is not None]
    assert [str(number).encode() for number in winners] == [store.get("deep/er/record")]


def test_an_object_can_be_hashed_where_it_lies(store: ObjectStore) -> None:
    store.put("a", bytes_of(PART))
    found = store.hash("a")
    assert (found.path, found.size, found.sha256) == ("a", PART, hashlib.sha256(bytes_of(PART)).hexdigest())
    with pytest.raises(NotFoundError, match="there is no b"):
        store.hash("b")


def test_a_copy_is_an_object_of_its_own(store: ObjectStore) -> None:
    store.put("a/ü +%.json", b"one")
    store.copy("a/ü +%.json", "b/copy.json")
    store.copy("a/ü +%.json", "b/copy.json")  # a second time is no error
    store.put("a/ü +%.json", b"two")
    assert store.get("b/copy.json") == b"one"
    store.copy("a/ü +%.json", "b/copy.json")
    store.delete(["a/ü +%.json"])
    assert store.get("b/copy.json") == b"two"
    assert keys(store) == ["b/copy.json"]
    with pytest.raises(NotFoundError):
        store.copy("a/ü +%.json", "b/another.json")
    assert keys(store) == ["b/copy.json"]


def test_a_link_in_place_of_a_file_is_not_sent(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="link"):
        store.put_file("a", tmp_path / "link")
    assert keys(store) == []


def test_delete_removes_what_is_there_and_ignores_what_is_not(store: ObjectStore) -> None:
    for name in ("a/1", "a/2", "b"):
        store.put(name, b".")
    store.delete(["a/1", "a/2", "never/was"])
    store.delete([])
    assert keys(store) == ["b"]
    store.create("a/1", b"anew")
    assert keys(store) == ["a/1", "b"]


@pytest.mark.parametrize("size", [0, 1, PART, 2 * PART + 1234], ids=["empty", "byte", "one part", "three parts"])
def test_a_file_goes_up_and_comes_down_whole_with_its_sha256(store: ObjectStore, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(bytes_of(size))
    sent = store.put_file("big/file", source)
    fetched = store.get_file("big/file", target)
    assert sent == fetched
    assert (sent.path, sent.size, sent.sha256) == ("big/file", size, hashlib.sha256(bytes_of(size)).hexdigest())
    assert target.read_bytes() == bytes_of(size)
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("key", ["", "/abs", "a//b", "../x", "a/../../x", "a/./b", "a/", "a\0b"])
def test_a_key_cannot_leave_the_prefix(store: ObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="is not a valid object key"):
        store.put(key, b"")


# ---------------------------------------------------------------- trees under a manifest


def tree(folder: Path) -> Path:
    """A folder of three files, one of them larger than a part."""
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "weights").write_bytes(bytes_of(PART + 17))
    (folder / "empty").write_bytes(b"")
    return folder


def test_a_tree_comes_back_as_it_went_and_its_manifest_names_every_file(store: ObjectStore, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    manifest = upload_tree(store, source, "models/m", "model", {"commit": "abc"})
    assert [entry.path for entry in manifest.files] == ["config.json", "empty", "sub/weights"]
    for entry in manifest.files:
        content = (source / entry.path).read_bytes()
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert download_tree(store, "models/m/", tmp_path / "target") == manifest == read_manifest(store, "models/m")
    assert {p.relative_to(tmp_path / "target") for p in (tmp_path / "target").rglob("*")} == {
        p.relative_to(source) for p in source.rglob("*")
    }


def test_what_a_killed_download_left_is_removed_by_the_next_one(store: ObjectStore, tmp_path: Path) -> None:
    upload_tree(store, tree(tmp_path / "source"), "m", "model")
    (tmp_path / "target" / "sub").mkdir(parents=True)
    for left in ("sub/.weights.unverified", "sub/.weights.unverified.6eF3a2c1", "sub/..weights.unverified.0f.partial"):
        (tmp_path / "target" / left).write_bytes(b"half")
    download_tree(store, "m", tmp_path / "target")
    assert [path.name for path in (tmp_path / "target" / "sub").iterdir()] == ["weights"]


def test_without_a_manifest_there_is_nothing_to_download(store: ObjectStore, tmp_path: Path) -> None:
    store.put("models/m/config.json", b"{}")
    assert read_manifest(store, "models/m") is None
    with pytest.raises(NotFoundError, match=r"there is no models/m/MANIFEST\.json"):
        download_tree(store, "models/m", tmp_path / "target")


def test_uploading_the_same_tree_again_is_no_error_but_another_tree_is_refused(
    store: ObjectStore, tmp_path: Path
) -> None:
    source = tree(tmp_path / "source")
    first = upload_tree(store, source, "m", "model")
    assert upload_tree(store, source, "m", "model") == first
    (source / "config.json").write_text("{ }")
    with pytest.raises(AlreadyExistsError, match=r"m/MANIFEST\.json"):
        upload_tree(store, source, "m", "model")


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-1], lambda data: data + b"x"],
    ids=["a flipped bit", "cut short", "too long"],
)
def test_a_damaged_object_is_found_on_download_and_not_left_behind(
    store: ObjectStore, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    upload_tree(store, tree(tmp_path / "source"), "m", "model")
    store.put("m/sub/weights", damage(bytes_of(PART + 17)))
    expected = hashlib.sha256(bytes_of(PART + 17)).hexdigest()
    with pytest.raises(StorageError, match=f"m/sub/weights .* manifest says {PART + 17} bytes with sha256 {expected}"):
        download_tree(store, "m", tmp_path / "target")
    assert not list((tmp_path / "target" / "sub").iterdir())


def test_a_missing_object_is_found_on_download(store: ObjectStore, tmp_path: Path) -> None:
    upload_tree(store, tree(tmp_path / "source"), "m", "model")
    store.delete(["m/empty"])
    with pytest.raises(NotFoundError, match="there is no m/empty"):
        download_tree(store, "m", tmp_path / "target")


def test_files_that_are_there_and_right_are_not_fetched_and_wrong_ones_are_mended(
    store: ObjectStore, tmp_path: Path
) -> None:
    upload_tree(store, tree(tmp_path / "source"), "m", "model")
    target = tmp_path / "target"
    download_tree(store, "m", target)
    kept = (target / "sub" / "weights").stat().st_ino
    (target / "config.json").write_text("[]")
    download_tree(store, "m", target)
    assert (target / "sub" / "weights").stat().st_ino == kept
    assert (target / "config.json").read_text() == "{}"


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"kind": "model", "created": "", "files": "x"}'])
def test_a_manifest_that_is_none_is_an_error_and_not_an_absence(store: ObjectStore, content: bytes) -> None:
    store.put("m/MANIFEST.json", content)
    with pytest.raises(StorageError, match=r"m/MANIFEST.json .* is not a manifest"):
        read_manifest(store, "m")


def test_a_manifest_cannot_make_a_download_write_outside_its_folder(store: ObjectStore) -> None:
    entry = '{"path": "../../evil", "size": 0, "sha256": ""}'
    store.put("m/MANIFEST.json", f'{{"kind": "model", "created": "", "files": [{entry}]}}'.encode())
    with pytest.raises(StorageError, match="is not a valid object key"):
        read_manifest(store, "m")
