"""Data of web servers: downloads that break, servers that refuse, and addresses that lead nowhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.errors import DataError, StorageError
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data import web
from finetune_trainer.prepare.data.dataset import check_dataset
from finetune_trainer.prepare.data.locate import locate_files
from finetune_trainer.prepare.data.sources import locate_all
from tests.local.source_tree import FIELD, ROWS, refused, silent
from tests.support.web import Web, start_web


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(web, "FIRST_WAIT", 0.001)
    with start_web() as running:
        yield running


def at(site: Web, path: str, content: bytes = ROWS, tag: str | None = '"1"') -> str:
    site.files[path] = content
    if tag:
        site.tags[path] = tag
    return site.address + path


def test_a_file_of_the_web_is_fetched_without_its_query_in_any_name(site: Web, tmp_path: Path) -> None:
    uri = at(site, "/data/rows.jsonl") + "?signature=secret"
    (place,) = locate_files(uri, FIELD, {})
    path = place.fetch(tmp_path, silent)
    assert (path.name, path.read_bytes(), place.size) == ("rows.jsonl", ROWS, len(ROWS))
    assert "secret" not in place.name + str(path)
    assert all("signature=secret" in asked for asked, _ in site.seen)
    assert place.is_unchanged()
    (again,) = locate_files(site.address + "/data/rows.jsonl?signature=other", FIELD, {})
    assert again.fingerprint == place.fingerprint


def test_a_broken_download_goes_on_where_it_broke(site: Web, tmp_path: Path) -> None:
    (place,) = locate_files(at(site, "/x.jsonl"), FIELD, {})
    site.breaks["/x.jsonl"] = [500, 300]
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS
    assert [asked for _, asked in site.seen] == [None, None, "bytes=500-", "bytes=800-"]


@pytest.mark.parametrize("tag", [None, 'W/"1"'])
def test_without_a_strong_tag_a_broken_download_begins_again(site: Web, tmp_path: Path, tag: str | None) -> None:
    (place,) = locate_files(at(site, "/x.jsonl", tag=tag), FIELD, {})
    site.breaks["/x.jsonl"] = [500]
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS
    assert [asked for _, asked in site.seen] == [None, None, None]


def test_a_server_that_knows_no_ranges_begins_again(site: Web, tmp_path: Path) -> None:
    (place,) = locate_files(at(site, "/x.jsonl"), FIELD, {})
    site.ranges = False
    site.breaks["/x.jsonl"] = [500]
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS


def test_a_server_that_tells_no_size_is_read_to_its_end(site: Web, tmp_path: Path) -> None:
    site.lengths = False
    (place,) = locate_files(at(site, "/x.jsonl"), FIELD, {})
    assert place.size is None
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS


def test_a_server_that_fails_now_and_then_is_asked_again(site: Web, tmp_path: Path) -> None:
    uri = at(site, "/x.jsonl")
    site.statuses["/x.jsonl"] = [503, 429]
    (place,) = locate_files(uri, FIELD, {})
    site.statuses["/x.jsonl"] = [500, 502]
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS


def test_a_server_that_always_sends_less_than_it_announces_is_given_up(site: Web, tmp_path: Path) -> None:
    (place,) = locate_files(at(site, "/x.jsonl", tag=None), FIELD, {})
    site.breaks["/x.jsonl"] = [500] * 10
    with pytest.raises(StorageError, match="cannot be fetched after 6 attempts"):
        place.fetch(tmp_path, silent)
    assert not list(tmp_path.rglob("x.jsonl"))


def test_a_file_that_changes_meanwhile_is_told(site: Web, tmp_path: Path) -> None:
    (place,) = locate_files(at(site, "/x.jsonl"), FIELD, {})
    site.tags["/x.jsonl"] = '"2"'
    assert not place.is_unchanged()
    with pytest.raises(DataError, match="changed while it was read"):
        place.fetch(tmp_path, silent)


def test_a_file_without_a_tag_is_never_taken_for_one_seen_before(site: Web) -> None:
    uri = at(site, "/x.jsonl", tag=None)
    assert locate_files(uri, FIELD, {})[0].fingerprint != locate_files(uri, FIELD, {})[0].fingerprint


@pytest.mark.parametrize(
    ("path", "status", "code", "message"),
    [
        ("/x", 401, "AccessDenied", "asks for a login (the server answers 401)"),
        ("/x", 403, "AccessDenied", "may not be read (the server answers 403)"),
        ("/x?signature=s", 403, "AccessDenied", "the signature may have expired"),
        ("/x", 404, "FileNotFound", "is not there"),
        ("/x", 418, "WebRefused", "the server answers 418"),
        ("/x", 500, "WebFailed", "cannot be fetched after 6 attempts: the server answers 500"),
    ],
)
def test_what_a_server_refuses_is_told(site: Web, path: str, status: int, code: str, message: str) -> None:
    site.statuses["/x"] = [status] * 6
    seen = refused(site.address + path)
    assert seen[0] == code
    assert message in seen[1]
    assert "signature=s" not in seen[1]


def test_addresses_that_lead_nowhere_are_told(site: Web) -> None:
    site.redirects |= {"/a": "/b", "/b": "/a", "/c": "/x.jsonl", "/d": "http://example.invalid/x", "/e": "ftp://x/y"}
    at(site, "/x.jsonl")
    assert refused(f"{site.address}/a")[0] == "RedirectLoop"
    assert len(locate_files(f"{site.address}/c", FIELD, {})) == 1
    assert refused("http://127.0.0.1:9/x.jsonl")[0] == "WebFailed"
    assert refused(f"{site.address}/*.jsonl")[0] == "InvalidURI"
    assert refused("http://example.invalid/x.jsonl")[0] == "UnsafeURI"
    assert refused(f"{site.address}/e")[0] == "RedirectLoop"


def test_a_page_instead_of_a_file_is_told(site: Web, tmp_path: Path) -> None:
    spec = DatasetSpec.model_construct(train=at(site, "/x.jsonl", b"<!doctype html>\n<html></html>"))
    with pytest.raises(DataError, match="the file is a web page"):
        check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), tmp_path, seed=1)
