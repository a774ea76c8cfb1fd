"""The teacher pass on a Ray cluster: workers hold the teacher, this process hands out shards and keeps what comes back.

    from leaf.teacher.embed import cache_folder, cache_key

    with ClusterTeacher(recipe.teacher, "10.0.0.1:6379", sample=held_out_texts) as teacher:
        key = cache_key(teacher, "float16")
        facts = teacher.embed(texts, shards, cache_folder(embeddings, key), key)

Shards and finished parts travel through Ray's object store, so the machines need no shared folder, and a part has the
bytes of one that was made here. The code of this package travels along. The machines need what it depends on
(`pip install 'leaf[train]' ray`) and a way to the teacher's weights: the hub, or the same path.
"""

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import leaf
from leaf.errors import LeafError
from leaf.files import atomic_path
from leaf.progress import progress, say
from leaf.recipe import Teacher as Settings
from leaf.run import difference
from leaf.teacher.embed import check_disk, encode_shard, facts, held_parts, work_per_text
from leaf.teacher.opening import open_teacher
from leaf.texts.shards import read_shard
from leaf.vector_files import check_part, write_part

#: CPUs of a worker without a GPU. With one left free, this divides what machines have: 3 of 4, 6 of 8, 15 of 16.
CPUS = 3
#: Shards that a worker holds: one that is encoded, and one that is read, written or on its way.
IN_FLIGHT = 2
#: Workers that a shard may cost, or the loading of the teacher, before the run stops.
MAX_DEATHS = 3
#: Seconds that a cluster has to answer. Left to itself, Ray tries for over five minutes.
CONNECT_TIMEOUT = 10.0
#: Seconds between two looks at the clock, and without a worker until a person is told so.
TICK, PATIENCE = 5.0, 60.0

Shard = Mapping[str, Any]
Bytes = NDArray[np.uint8]


class Worker:
    """The teacher in a process of its own, somewhere on the cluster: an actor with `IN_FLIGHT` threads."""

    def __init__(self) -> None:
        self._encoding = threading.Lock()

    def load(self, settings: Settings, device: str, sample: Sequence[str]) -> dict[str, Any]:
        """Loads the teacher and says which it is. Not in `__init__`: of its errors, only the text would arrive."""
        self.teacher = open_teacher(settings, device=device, embeddings=Path(os.devnull), sample=lambda: sample)
        return self.teacher.identity()

    def encode(self, file: Path, content: Bytes, key: dict[str, Any], batch_size: int) -> Bytes:
        """The part of vectors under `key` for a text shard, both as the bytes of files; `file` is the shard's."""
        with tempfile.TemporaryDirectory(prefix="leaf-") as folder:
            path = Path(folder) / file.name
            content.tofile(path)
            try:
                shard = read_shard(path)
            except LeafError as error:
                raise LeafError(str(error).replace(folder, str(file.parent))) from error
            with self._encoding:  # the other thread reads or writes meanwhile: a GPU does not wait for it
                vectors = encode_shard(shard, self.teacher, batch_size)
            write_part(path, vectors, key, key["storage_dtype"])
            return np.fromfile(path, dtype=np.uint8)


class _Hired:
    """A worker as seen from here: `loading` until it has answered once, then `shards` by what it will answer."""

    def __init__(self, actor: Any, loading: Any) -> None:
        self.actor, self.loading = actor, loading
        self.shards: dict[Any, Shard] = {}

    @property
    def awaited(self) -> list[Any]:
        return list(self.shards) if self.loading is None else [self.loading]


@dataclass(frozen=True)
class _Done:
    shard: Shard
    part: Bytes


@dataclass(frozen=True)
class _Lost:
    shards: list[Shard]
    reason: str


class ClusterTeacher:
    """A teacher that is loaded on the machines of a Ray cluster, never here. A context manager.

    `address` is the HOST:PORT of a cluster that this machine belongs to (it may give no CPUs), or `local`: a cluster
    of this machine alone. `sample` are the texts that decide `compute_dtype = "auto"`, on the first worker; all others
    compute as it does. `workers` processes are asked for, by default as many as there is room for; where they are more,
    an autoscaler acts. Each takes `gpus` GPUs (by default 1 if the cluster has any; 0.5 puts two on one) and `cpus`
    CPUs (by default none beside a GPU, else 3, leaving one of every machine free).

    Raises `LeafError` for a teacher without weights or with vectors of its own and for a cluster that does not answer.
    """

    def __init__(
        self,
        settings: Settings,
        address: str,
        *,
        sample: Sequence[str] = (),
        workers: int | None = None,
        cpus: float | None = None,
        gpus: float | None = None,
    ) -> None:
        if settings.is_remote:
            raise LeafError(f"{settings.model} is bound by its rate limit, not by machines; embed without --cluster")
        if settings.vectors is not None:
            raise LeafError(
                "teacher.vectors are looked up where they are kept; embed without --cluster, or in shares of one "
                "folder with --rank and --world"
            )
        # A folder is told in full, since workers start elsewhere.
        model = str(Path(settings.model).resolve()) if Path(settings.model).is_dir() else settings.model
        self.model, self._settings = settings.model, settings.model_copy(update={"model": model})
        self.address, self._sample = address, list(sample)
        self._workers, self._cpus, self._gpus = workers, cpus, gpus
        self._ray: Any = None
        self._ours = False
        self._hired: list[_Hired] = []
        self._failed_loads = 0
        self._identity: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._hired:
            self._ray.kill(worker.actor)
        self._hired.clear()
        if self._ours:
            self._ray.shutdown()
        self._ray, self._ours = None, False

    def identity(self) -> dict[str, Any]:
        """Everything that can change a vector of the first worker's teacher, as plain JSON."""
        self._connect()
        while self._identity is None:
            self._hire(1)
            for _ in self._events():
                pass
        return self._identity

    def embed(
        self, texts: Path, shards: Sequence[Shard], folder: Path, key: Mapping[str, Any], batch_size: int = 32
    ) -> dict[str, Any]:
        """As `leaf.teacher.embed.embed`: the same files and facts, from workers instead of this process.

        A worker that dies, alone or with its machine, gives its shards back and is replaced. In memory is one part at
        a time here, and in the object store `IN_FLIGHT` shards a worker. Raises also what workers raise as `LeafError`,
        and a `LeafError` for a worker with another teacher than the `key` and for a shard that three workers died of.
        """
        held, teacher = held_parts(folder, shards, key), key["teacher"]
        missing = [shard for shard in shards if shard["file"] not in held]
        check_disk(folder, missing, teacher["dim"], key)
        if missing:
            self._expect(teacher)
            self._connect()
            num_texts, to_do = (sum(shard["rows"] for shard in some) for some in (shards, missing))
            each = work_per_text(texts, missing, key)
            work = sum(shard["rows"] * each[shard["file"]] for shard in missing)
            with progress("embedding", num_texts, completed=num_texts - to_do, work=work) as bar:
                for done in self._encoded(texts, missing, key, batch_size):
                    path = folder / done.shard["file"]
                    with atomic_path(path) as temporary:
                        done.part.tofile(temporary)
                    check_part(path, {**key, "texts": done.shard["digest"]})
                    note = f"{sum(worker.loading is None for worker in self._hired)} workers"
                    bar.advance(done.shard["rows"], note, each=each[done.shard["file"]])
        found = facts(folder, shards, key, teacher["dim"], teacher["similarity"])
        assert found is not None, "no part is missing now"
        return found

    def _encoded(
        self, texts: Path, missing: Sequence[Shard], key: Mapping[str, Any], batch_size: int
    ) -> Iterator[_Done]:
        """The missing shards with their parts, in the order in which they are done."""
        todo, deaths = deque(missing), Counter[str]()
        while left := len(todo) + sum(len(worker.shards) for worker in self._hired):
            self._hire(left)
            while todo and (worker := self._free(todo[0], deaths)) is not None:
                shard = todo.popleft()
                file, part_key = texts / shard["file"], {**key, "texts": shard["digest"]}
                content = np.fromfile(file, dtype=np.uint8)
                worker.shards[worker.actor.encode.remote(file, content, part_key, batch_size)] = shard
            for event in self._events():
                if isinstance(event, _Done):
                    yield event
                    continue
                todo.extendleft(reversed(event.shards))
                deaths.update(shard["file"] for shard in event.shards)
                for shard in event.shards:
                    if deaths[shard["file"]] >= MAX_DEATHS:
                        raise LeafError(
                            f"{MAX_DEATHS} workers died of {texts / shard['file']} (the last: {event.reason}); give a "
                            "worker more memory, or lower teacher.batch_size"
                        )

    def _free(self, shard: Shard, deaths: Counter[str]) -> _Hired | None:
        """The worker with the least to do that may have `shard`; None while there is none."""

        def may(worker: _Hired) -> bool:
            # Whatever a worker has died of is encoded alone, so that the next death is blamed on the right shard.
            suspected = any(deaths[each["file"]] for each in (shard, *worker.shards.values()))
            return worker.loading is None and len(worker.shards) < (1 if suspected else IN_FLIGHT)

        return min(filter(may, self._hired), key=lambda worker: len(worker.shards), default=None)

    def _hire(self, shards: int) -> None:
        """Asks for workers, no more than there are shards. Nobody waits for one that the cluster has no room for."""
        while len(self._hired) < min(self._workers or 1, shards):
            actor: Any = self._actors.remote()
            device = "cuda" if self._gpus else "cpu"
            self._hired.append(_Hired(actor, actor.load.remote(self._settings, device, self._sample)))

    def _events(self) -> Iterator[_Done | _Lost]:
        """What becomes known within a tick: parts that are done, and workers that are lost."""
        from ray import exceptions

        lost = (
            exceptions.RayActorError,
            exceptions.NodeDiedError,
            exceptions.WorkerCrashedError,
            exceptions.OutOfMemoryError,
            exceptions.ObjectLostError,
        )
        waiting = {ref: worker for worker in self._hired for ref in worker.awaited}
        ready, _ = self._ray.wait(list(waiting), timeout=TICK)
        self._tell_who_waits()
        for ref in ready:
            worker = waiting[ref]
            try:
                answer = self._ray.get(ref)
            except lost as error:
                self._hired.remove(worker)
                self._ray.kill(worker.actor)  # one that is only out of reach must not come back
                reason = _reason(error)
                self._failed_loads += worker.loading is not None
                if self._failed_loads >= MAX_DEATHS:
                    raise LeafError(
                        f"{MAX_DEATHS} workers in a row died while they loaded the teacher ({reason})"
                    ) from None
                say(f"a worker is lost and will be replaced: {reason}")
                yield _Lost(list(worker.shards.values()), reason)
            except exceptions.RayTaskError as error:
                if isinstance(error.cause, LeafError):
                    raise error.cause from None
                if isinstance(error.cause, ModuleNotFoundError):
                    raise LeafError(
                        f"a machine of the cluster has no package '{error.cause.name}'; pip install 'leaf[train]' there"
                    ) from None
                raise
            else:
                if worker.loading is None:
                    yield _Done(worker.shards.pop(ref), answer)
                else:
                    self._expect({**answer, "model": self.model})
                    worker.loading, self._failed_loads = None, 0

    def _expect(self, identity: dict[str, Any]) -> None:
        """All workers are to have this teacher. Raises `LeafError` where another is known already."""
        if self._identity is None:
            self._identity = identity
            self._settings = self._settings.model_copy(update={"compute_dtype": identity["compute_dtype"]})
        elif identity != self._identity:
            raise LeafError(
                f"a worker has another teacher ({difference(self._identity, identity)}); all machines need the same "
                "weights and package versions, and teacher.revision pins the first"
            )

    def _tell_who_waits(self) -> None:
        if any(worker.loading is None for worker in self._hired) or time.monotonic() < self._tell_at:
            return
        self._tell_at += 10 * PATIENCE
        free = self._ray.available_resources()
        say(
            f"no worker is ready yet; each needs {self._cpus:g} CPUs and {self._gpus:g} GPUs, and the cluster has "
            f"{free.get('CPU', 0):g} and {free.get('GPU', 0):g} free (--cpus and --gpus ask for less)"
        )

    def _connect(self) -> None:
        if self._ray is not None:
            return
        import ray

        self._ray = ray
        if not ray.is_initialized():
            _check_address(self.address)
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here tells nobody
            on_sigterm = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(
                    self.address,
                    runtime_env={"py_modules": [leaf]},
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise LeafError(f"the Ray cluster at {self.address} cannot be joined: {reason}") from error
            self._ours = True
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there
        self._plan()
        self._tell_at = time.monotonic() + PATIENCE
        self._actors = ray.remote(Worker).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_concurrency=IN_FLIGHT,
            scheduling_strategy="SPREAD",  # a machine's memory bandwidth is shared by its workers
        )

    def _plan(self) -> None:
        """Decides what was left open of workers, CPUs and GPUs by what the cluster has now."""
        machines = [machine["Resources"] for machine in self._ray.nodes() if machine["Alive"]]
        cpus, gpus = ([machine.get(name, 0.0) for machine in machines] for name in ("CPU", "GPU"))
        if self._gpus is None:
            self._gpus = 1.0 if any(gpus) else 0.0
        if self._cpus is None:
            self._cpus = 0.0 if self._gpus else max(1.0, min(CPUS, max(cpus, default=1.0) - 1))
        if not self._gpus and not self._cpus:
            raise LeafError(
                "a worker needs a GPU or CPUs, and --cpus is 0 where there is no GPU; give --cpus 1 or more"
            )
        if self._workers is None:
            room = [gpu // self._gpus for gpu in gpus] if self._gpus else [(cpu - 1) // self._cpus for cpu in cpus]
            self._workers = max(1, int(sum(each for each in room if each > 0)))


def _check_address(address: str) -> None:
    """Raises `LeafError` unless something listens at HOST:PORT; other forms of address are left to Ray."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT).close()
    except OSError as error:
        raise LeafError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head --port {port}`, or give "
            "--cluster local"
        ) from error


def _reason(error: Exception) -> str:
    """What Ray says of a death, in a line: the end of it, without its general advice."""
    last = str(error).strip().splitlines()[-1]
    return last.partition(" Some common causes")[0].strip()[:300]
