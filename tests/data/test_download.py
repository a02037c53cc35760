import hashlib
import socket
import threading

import pytest
from tests.support.cifar_files import SMALL10
from tests.support.local_server import Answer, serve

from dctps.data import DataError, download
from dctps.data.cifar import load_cifar

BODY = bytes(range(256)) * 5000
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_whole_file_arrives_and_nothing_else(tmp_path, capsys):
    with serve({"/file": Answer(BODY)}) as (url, _):
        download(url + "file", tmp_path / "new" / "file", MD5, size=len(BODY))
    assert (tmp_path / "new" / "file").read_bytes() == BODY
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file"]
    assert "100%" in capsys.readouterr().err


def test_no_progress_bar_when_not_wanted(tmp_path, capsys):
    with serve({"/file": Answer(BODY)}) as (url, _):
        download(url + "file", tmp_path / "file", MD5, progress=False)
    assert capsys.readouterr().err == ""


def test_redirects_are_followed(tmp_path):
    answers = {"/old": Answer(status=302, headers={"Location": "/moved"}), "/moved": Answer(BODY)}
    with serve(answers) as (url, requested):
        download(url + "old", tmp_path / "file", MD5, progress=False)
    assert requested == ["/old", "/moved"]
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize(
    ("answer", "options", "message"),
    [
        (Answer(BODY[:-1], announced=len(BODY)), {}, rf"cut off at {len(BODY) - 1} of {len(BODY)} bytes"),
        (Answer(b"", announced=len(BODY)), {}, rf"cut off at 0 of {len(BODY)} bytes"),
        (Answer(BODY[:-1]), {}, rf"has MD5 {hashlib.md5(BODY[:-1]).hexdigest()} instead of {MD5}"),
        (
            Answer(BODY + b"x"),
            {"size": len(BODY)},
            rf"announces {len(BODY) + 1} bytes instead of {len(BODY)}",
        ),
        (Answer(BODY, status=404), {}, "answers 404 Not Found"),
        (Answer(BODY, status=503), {}, "answers 503 Service Unavailable"),
    ],
)
def test_a_bad_answer_leaves_the_target_as_it_was(tmp_path, answer, options, message):
    (tmp_path / "file").write_bytes(b"old")
    with serve({"/file": answer}) as (url, _), pytest.raises(DataError, match=message) as caught:
        download(url + "file", tmp_path / "file", MD5, progress=False, **options)
    assert f"{url}file" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_server_that_falls_silent(tmp_path):
    done = threading.Event()
    answer = Answer(BODY[:1000], announced=len(BODY), stall=done)
    with serve({"/file": answer}) as (url, _):
        with pytest.raises(DataError, match="timed out"):
            download(url + "file", tmp_path / "file", MD5, progress=False, timeout=0.2)
        done.set()
    assert list(tmp_path.iterdir()) == []


def test_no_server(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        with pytest.raises(DataError, match=r"cannot download .*refused.*try again"):
            download(url, tmp_path / "file", MD5, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_no_such_address(tmp_path):
    with pytest.raises(DataError, match="unknown url type"):
        download("nonsense", tmp_path / "file", MD5, progress=False)


def test_no_place_to_write_to(tmp_path):
    (tmp_path / "occupied").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write to .*occupied"):
        download("http://127.0.0.1:9/file", tmp_path / "occupied" / "file", MD5, progress=False)


def test_a_data_set_is_downloaded_once(tmp_path):
    spec, _, archives = SMALL10
    name = "cifar-10-python.tar.gz"
    with serve({f"/{name}": Answer(archives[name])}) as (url, requested):
        first = load_cifar(spec, tmp_path / "data", download=True, base_url=url)
        second = load_cifar(spec, tmp_path / "data", download=True, base_url=url)
    assert requested == [f"/{name}"]
    assert first.train.images.equal(second.train.images)
    assert [p.name for p in (tmp_path / "data").iterdir()] == [name]
