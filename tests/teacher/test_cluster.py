"""The teacher pass on real Ray clusters of one machine: a head and nodes that are processes of their own."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pytest

from leaf.errors import LeafError
from leaf.recipe import Teacher
from leaf.teacher import cluster as module
from leaf.teacher.cluster import ClusterTeacher, Worker
from leaf.teacher.embed import cache_folder, cache_key, embed
from leaf.teacher.model import SentenceTransformerEncoder
from leaf.texts.shards import SCHEMA, shard_name, write_shard
from tiny import save_teacher, sentences

ray = pytest.importorskip("ray")
SHARDS, ROWS = 8, 20
SETTINGS = Teacher(model="letters")
#: A node that is killed is missed after one second instead of twenty.
HEAD = {"num_cpus": 0, "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 2}}
NODE = {"include_dashboard": False, "object_store_memory": 80 << 20}


class Letters:
    """Counts letters: a teacher that a worker has within a second, since it needs no torch."""

    name, dim, similarity = "letters", 8, "dot"

    def identity(self):
        return {"model": "letters", "dim": self.dim, "similarity": self.similarity, "compute_dtype": "float32"}

    def encode_query(self, texts, *, batch_size=32, advance=None):
        return -self.encode_document(texts)

    def encode_document(self, texts, *, batch_size=32, advance=None):
        return np.array([[text.count(letter) for letter in "aeiobdkm"] for text in texts], dtype=np.float32)


class Counting(Worker):
    """Has `Letters`."""

    def load(self, settings, device, sample):
        self.teacher = Letters()
        return self.teacher.identity()


class Slow(Worker):
    """Half a second more for each shard, so that there is a middle of the run to disturb."""

    def encode(self, *arguments):
        time.sleep(0.5)
        return super().encode(*arguments)


class SlowCounting(Slow, Counting):
    """Both."""


class Deadly(Counting):
    """Dies of one shard."""

    def encode(self, file, *arguments):
        time.sleep(0.1)  # the shard beside it has arrived, and dies as well
        if file.name == shard_name(2):
            os._exit(1)
        return super().encode(file, *arguments)


class Spoiled(Counting):
    """Answers NaN."""

    def load(self, *arguments):
        identity = super().load(*arguments)
        self.teacher.encode_query = lambda texts, **_: np.full((len(texts), 8), np.nan, dtype=np.float32)
        return identity


class Stillborn(Counting):
    """Dies while it loads."""

    def load(self, *arguments):
        os._exit(1)


@pytest.fixture(scope="module")
def cluster():
    """A head that does no work; the first test adds a machine that stays."""
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    # Sockets lie in the folder, and their paths may have 107 bytes, which pytest's own folders leave too few of.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        # The cluster's address goes to a folder that only `ray.init` makes: /tmp/ray, where nobody has used Ray before.
        patch.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        started = Cluster(initialize_head=True, head_node_args={**NODE, **HEAD, "temp_dir": folder})
        yield started
        started.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    patch.undo()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Eight shards of 20 texts, the last of 10; every third text is a query."""
    folder, shards = tmp_path_factory.mktemp("texts"), []
    everything = sentences(SHARDS * ROWS - 10)
    for number in range(SHARDS):
        rows = everything[number * ROWS : (number + 1) * ROWS]
        kinds = ["query" if row % 3 == 0 else "document" for row in range(len(rows))]
        table = pa.table({"text": rows, "kind": kinds, "source": ["s"] * len(rows)}).cast(SCHEMA)
        shards.append(write_shard(folder / shard_name(number), table))
    return folder, shards


def alone(texts, teacher, folder):
    """What one process makes of the texts."""
    key = cache_key(teacher, "float16")
    facts = embed(*texts, teacher, cache_folder(folder, key), key)
    return SimpleNamespace(key=key, facts=facts, parts=parts(folder))


def parts(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*/*.parquet"))}


@pytest.fixture(scope="module")
def counted(texts, tmp_path_factory):
    return alone(texts, Letters(), tmp_path_factory.mktemp("counted"))


def test_a_machine_that_dies_takes_no_shard_with_it_and_the_bytes_are_those_of_one_process(
    cluster, texts, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it for a worker of one CPU
    model = str(save_teacher(tmp_path / "teacher", prompts={"query": "ba be: ", "document": ""}))
    here = SentenceTransformerEncoder(model, device="cpu")
    here.use_bfloat16_where_exact(sentences(8))
    expected = alone(texts, here, tmp_path / "alone")
    monkeypatch.setattr(module, "Worker", Slow)
    said, out = [], tmp_path / "out"
    monkeypatch.setattr(module, "say", said.append)
    doomed = cluster.add_node(num_cpus=1, **NODE)

    def kill():
        while not parts(out):
            time.sleep(0.02)
        cluster.remove_node(doomed, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    with ClusterTeacher(Teacher(model=model), cluster.address, sample=sentences(8), workers=2, cpus=1) as teacher:
        key = cache_key(teacher, "float16")
        assert key == expected.key  # "auto" was decided there as it is here
        first = teacher._hired[0]
        cluster.add_node(num_cpus=1, **NODE)  # room for the second of two workers, none for a third
        killer.start()
        facts = teacher.embed(*texts, cache_folder(out, key), key)
        assert first not in teacher._hired
        assert sorted(worker.loading is None for worker in teacher._hired) == [False, True]
    killer.join()
    assert [each.partition(": ")[0] for each in said] == ["a worker is lost and will be replaced"], said
    assert facts == expected.facts
    assert parts(out) == expected.parts


@pytest.mark.usefixtures("cluster")
def test_finished_shards_are_not_computed_again_nor_a_cluster_asked(texts, counted, tmp_path):
    with ClusterTeacher(SETTINGS, "127.0.0.1:1") as teacher:
        with pytest.raises(LeafError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 .*`ray start --head --port 1`"):
            teacher.identity()
        embed(*texts, Letters(), tmp_path, counted.key)
        assert teacher.embed(*texts, tmp_path, counted.key) == counted.facts


def test_a_driver_that_is_killed_goes_on_with_the_shards_that_are_missing(
    cluster, texts, counted, tmp_path, monkeypatch
):
    script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}
import test_cluster as test
from pathlib import Path
test.ray.cloudpickle.register_pickle_by_value(test)
test.module.Worker = test.SlowCounting
with test.ClusterTeacher(test.SETTINGS, "{cluster.address}", workers=2, cpus=1) as teacher:
    teacher.embed(Path({str(texts[0])!r}), {texts[1]}, Path({str(tmp_path / "out")!r}), {counted.key})
"""
    driver = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    while driver.poll() is None and len(parts(tmp_path)) < 2:
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    _, problems = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, problems.decode()[-2000:]
    finished = parts(tmp_path)
    assert 2 <= len(finished) < SHARDS

    sent = []
    monkeypatch.setattr(module, "Worker", Counting)
    real = np.fromfile
    monkeypatch.setattr(module.np, "fromfile", lambda file, **kwargs: sent.append(file.name) or real(file, **kwargs))
    with ClusterTeacher(SETTINGS, cluster.address, workers=2, cpus=1) as teacher:
        assert teacher.embed(*texts, tmp_path / "out", counted.key) == counted.facts
    assert sorted([*sent, *finished]) == [shard["file"] for shard in texts[1]]
    assert parts(tmp_path) == counted.parts


def test_a_shard_that_workers_die_of_stops_the_run_and_is_named(cluster, texts, counted, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Worker", Deadly)
    with (
        ClusterTeacher(SETTINGS, cluster.address, workers=1, cpus=1) as teacher,
        pytest.raises(LeafError, match=r"3 workers died of .*part-00002\.parquet \(the last: .*worker process"),
    ):
        teacher.embed(*texts, tmp_path / "out", counted.key)
    assert {shard_name(0), shard_name(1)} <= parts(tmp_path).keys()


@pytest.mark.slow
def test_what_workers_say_is_wrong_arrives_as_the_same_line(cluster, texts, counted, tmp_path, monkeypatch):
    def run(worker, texts=texts, key=counted.key):
        monkeypatch.setattr(module, "Worker", worker)
        with ClusterTeacher(SETTINGS, cluster.address, workers=1, cpus=1) as teacher:
            teacher.embed(*texts, tmp_path / "out", key)

    with pytest.raises(LeafError, match=r"^the teacher returned NaN or infinity for row 0 of part-0000\d; nothing"):
        run(Spoiled)
    other = {**counted.key, "teacher": {**counted.key["teacher"], "weights": "abc"}}
    with pytest.raises(LeafError, match=r'a worker has another teacher \(weights was "abc", is now null\)'):
        run(Counting, key=other)
    monkeypatch.setattr(module, "MAX_DEATHS", 2)
    with pytest.raises(LeafError, match=r"2 workers in a row died while they loaded the teacher \(.*worker process"):
        run(Stillborn)
    damaged = tmp_path / "texts"
    damaged.mkdir()
    for shard in texts[1]:
        (damaged / shard["file"]).write_bytes(b"PAR1")
    with pytest.raises(LeafError, match=rf"^{damaged}/part-0000\d\.parquet is damaged .*delete {damaged} and run"):
        run(Counting, texts=(damaged, texts[1]))


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_a_cluster_of_this_machine_is_started_and_leaves_no_process_behind(texts, counted, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Worker", Counting)
    before = set(psutil.Process().children(recursive=True))
    with ClusterTeacher(SETTINGS, "local") as teacher:
        assert teacher.embed(*texts, tmp_path / "out", counted.key) == counted.facts
        started = set(psutil.Process().children(recursive=True)) - before
        assert any("raylet" in each.name() for each in started)
    assert parts(tmp_path) == counted.parts
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


@pytest.mark.parametrize(
    ("machines", "asked", "expected"),
    [
        # (machines as CPUs and GPUs, what was asked for as workers, CPUs and GPUs, the same as decided)
        ([(16, 0), (8, 0), (0, 0)], (None, None, None), (5 + 2, 3, 0)),  # 15 of 16 and 6 of 8; a head has none
        ([(2, 0)], (None, None, None), (1, 1, 0)),
        ([(1, 0)], (None, None, None), (1, 1, 0)),
        ([(64, 8), (64, 8)], (None, None, None), (16, 0, 1)),
        ([(64, 8), (64, 0)], (None, None, 0.5), (16, 0, 0.5)),
        ([(64, 8)], (None, 8, 0), (7, 8, 0)),
        ([(0, 0)], (32, 2, 1), (32, 2, 1)),  # for an autoscaler that has started nothing yet
    ],
)
def test_workers_fill_what_is_there_but_for_one_cpu_of_every_machine(machines, asked, expected):
    workers, cpus, gpus = asked
    teacher = ClusterTeacher(SETTINGS, "local", workers=workers, cpus=cpus, gpus=gpus)
    nodes = [{"Alive": True, "Resources": {"CPU": cpu, "GPU": gpu}} for cpu, gpu in machines]
    nodes.append({"Alive": False, "Resources": {"CPU": 99, "GPU": 99}})
    teacher._ray = SimpleNamespace(nodes=lambda: nodes)
    teacher._plan()
    assert (teacher._workers, teacher._cpus, teacher._gpus) == expected


def test_a_worker_on_nothing_is_refused():
    teacher = ClusterTeacher(SETTINGS, "local", cpus=0)
    teacher._ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": {"CPU": 8}}])
    with pytest.raises(LeafError, match="a worker needs a GPU or CPUs, and --cpus is 0 where there is no GPU"):
        teacher._plan()


def test_teachers_that_machines_do_not_make_faster_are_refused():
    with pytest.raises(LeafError, match="openai:text-embedding-3-small is bound by its rate limit, not by machines"):
        ClusterTeacher(Teacher(model="openai:text-embedding-3-small"), "local")
    with pytest.raises(LeafError, match=r"teacher\.vectors are looked up where they are kept; embed without --cluster"):
        ClusterTeacher(Teacher(model="a/b", vectors={"source": "dump.parquet"}), "local")
