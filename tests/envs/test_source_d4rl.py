from __future__ import annotations

import contextlib
import http.server
import threading
import urllib.request

import numpy as np
import pytest

from unroll.envs import load_episodes
from unroll.envs.datasets.sources.d4rl_set import COUNTERPART, load_d4rl
from unroll.envs.datasets.sources.download import download_hdf5
from unroll.errors import DatasetError


@pytest.fixture
def hopper(fields):
    """Fields of Hopper's width, without timeouts."""
    del fields["timeouts"]
    return fields | {"observations": np.zeros((12, 11), np.float32), "actions": np.zeros((12, 3), np.float32)}


@pytest.fixture
def serve(monkeypatch):
    """Serves ``content`` in place of D4RL's host; ``announce`` is the size that the server claims."""
    servers = []

    def serve(content: bytes, announce: int | None = None, status: int = 200) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content) if announce is None else announce))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # a client that was interrupted
                    self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/hopper_medium-v2.hdf5"
        monkeypatch.setattr(
            "unroll.envs.datasets.sources.d4rl_set.d4rl_table", lambda: {"hopper-medium-v2": {"url": url}}
        )
        return url

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def fake_d4rl(tmp_path, monkeypatch):
    """Puts a package ``d4rl`` (and gym) with the given source on the path of this process and of its children."""

    def fake(source: str, gym: str = "") -> None:
        folder = tmp_path / "fake"
        (folder / "d4rl").mkdir(parents=True)
        (folder / "d4rl" / "__init__.py").write_text(source)
        (folder / "gym.py").write_text(gym)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.syspath_prepend(folder)

    return fake


def test_a_file_in_d4rls_folder_is_read_without_d4rl(hopper, write, tmp_path):
    (tmp_path / "d4rl").mkdir()
    write(hopper).rename(tmp_path / "d4rl" / "hopper_medium_replay-v2.hdf5")
    episodes = load_episodes("d4rl:hopper-medium-replay-v2")
    assert episodes.name == "hopper-medium-replay-v2"
    assert episodes.env_id == "Hopper-v5"
    assert episodes.reference_returns == (-20.272305, 3234.3)
    assert episodes.reference_name == "D4RL hopper-medium-replay-v2"
    assert episodes.lengths.tolist() == [4, 8]


def test_ant_has_no_counterpart_because_its_observations_differ():
    assert "ant" not in COUNTERPART
    assert COUNTERPART["walker2d"] == "Walker2d-v5"


def test_an_unknown_id_suggests_the_nearest():
    with pytest.raises(DatasetError, match="did you mean hopper-medium-v2"):
        load_episodes("d4rl:hopper-medum-v2")
    with pytest.raises(DatasetError, match="did you mean d4rl:hopper-medium-v2"):
        load_episodes("hopper-medium-v2")


def test_a_missing_file_says_where_it_was_looked_for_and_how_to_get_it(tmp_path):
    with pytest.raises(DatasetError) as error:
        load_d4rl("hopper-medium-v2")
    url = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/hopper_medium-v2.hdf5"
    assert str(tmp_path / "d4rl" / "hopper_medium-v2.hdf5") in str(error.value)
    assert f"--download true fetches it from {url}" in str(error.value)
    assert "\n" not in str(error.value)


def test_download_fetches_the_file_once(hopper, write, serve, tmp_path, monkeypatch):
    serve(write(hopper).read_bytes())
    assert load_episodes("d4rl:hopper-medium-v2", download=True).n_steps == 12
    assert [path.name for path in (tmp_path / "d4rl").iterdir()] == ["hopper_medium-v2.hdf5"]
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert load_episodes("d4rl:hopper-medium-v2", download=True).n_steps == 12


def test_nothing_is_fetched_unless_asked_for(hopper, write, serve):
    serve(write(hopper).read_bytes())
    with pytest.raises(DatasetError, match="--download true"):
        load_episodes("d4rl:hopper-medium-v2")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("cut", "connection ended|IncompleteRead|download failed"),
        ("web page", "something else than an HDF5 file"),
        ("missing", "HTTP Error 404"),
        ("short but announced so", "download failed"),
        ("no server", "download failed"),
    ],
)
def test_a_failed_download_leaves_no_file(hopper, write, serve, tmp_path, case, message):
    whole = write(hopper).read_bytes()
    if case == "cut":
        url = serve(whole[:-500], announce=len(whole))
    elif case == "web page":
        url = serve(b"<html>sign in</html>")
    elif case == "missing":
        url = serve(b"", status=404)
    elif case == "short but announced so":
        url = serve(whole[:-500])
    else:
        url = "http://127.0.0.1:1/x.hdf5"
    with pytest.raises(DatasetError, match=message) as error:
        download_hdf5(url, tmp_path / "d4rl" / "x.hdf5")
    assert url in str(error.value)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "d4rl").iterdir()) == []


def test_an_interrupted_download_leaves_no_file(hopper, write, serve, tmp_path, monkeypatch):
    url = serve(write(hopper).read_bytes())

    def interrupt(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("unroll.envs.datasets.sources.download.Progress.update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download_hdf5(url, tmp_path / "d4rl" / "x.hdf5")
    assert list((tmp_path / "d4rl").iterdir()) == []


def test_a_d4rl_package_that_raises_bare_exceptions_counts_as_absent(fake_d4rl, caplog):
    fake_d4rl("raise Exception('You appear to be missing MuJoCo.')")
    with pytest.raises(DatasetError, match="--download true"):
        load_d4rl("hopper-medium-v2")
    assert "the installed d4rl does not work: Exception: You appear to be missing MuJoCo." in caplog.text


def test_a_d4rl_package_that_works_is_the_last_resort(fake_d4rl):
    gym = """
import numpy as np

class Env:
    def get_dataset(self):
        print("noise on standard output")
        terminals = np.array([False, True] * 3)
        return {"observations": np.zeros((6, 11)), "actions": np.zeros((6, 3)), "rewards": np.ones(6),
                "terminals": terminals, "timeouts": ~terminals & False, "infos/qpos": np.zeros((6, 2))}

def make(name):
    assert name == "hopper-medium-v2"
    return Env()
"""
    fake_d4rl("", gym)
    episodes = load_episodes("d4rl:hopper-medium-v2")
    assert episodes.lengths.tolist() == [2, 2, 2]
    assert episodes.returns.tolist() == [2, 2, 2]
    assert episodes.env_id == "Hopper-v5"
