"""Where the jobs of a run are made: in this process, in local processes, or in actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.studies.worker import TOKEN, Bench, Entry, Job, Outcome, Post, enter, perform, work

ANSWER_SECONDS = 5.0
"""How long the head of a Ray cluster may take to answer."""


class Executor(Protocol):
    """Some slots, each with one worker that makes one job at a time."""

    slots: int
    died: type[Exception]
    """What a future raises whose worker is gone."""

    def enter(self, slot: int) -> Future[Entry]:
        """Put a new worker into a slot, in place of one that died."""
        ...

    def submit(self, slot: int, job: Job) -> Future[Outcome]:
        """Give a job to the worker in a slot."""
        ...

    def interrupt(self) -> None:
        """Ask busy workers to keep their state and to stop."""
        ...

    def close(self) -> None:
        """Let all workers go; those that are busy are ended."""
        ...


class InProcess:
    """One slot, which is this process: a job is made while it is submitted."""

    slots = 1
    died: type[Exception] = BrokenProcessPool

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def enter(self, slot: int) -> Future[Entry]:
        return _done(Entry(os.getpid()))

    def submit(self, slot: int, job: Job) -> Future[Outcome]:
        return _done(perform(self._bench, job))

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


class LocalProcesses:
    """Processes of this machine, one for each slot; each is a pool of one, so that it can be replaced."""

    died: type[Exception] = BrokenProcessPool

    def __init__(self, post: Post, slots: int) -> None:
        self.slots = slots
        self._post = post
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._pids: dict[int, int] = {}
        self._busy: dict[int, Future[Outcome]] = {}

    def enter(self, slot: int) -> Future[Entry]:
        if slot in self._pools:
            self._pools[slot].shutdown()
        self._pools[slot] = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        entry = self._pools[slot].submit(enter, self._post)
        entry.add_done_callback(lambda done: self._note_process(slot, done))
        return entry

    def submit(self, slot: int, job: Job) -> Future[Outcome]:
        self._busy[slot] = self._pools[slot].submit(work, job)
        return self._busy[slot]

    def interrupt(self) -> None:
        self._post.token.unlink(missing_ok=True)

    def close(self) -> None:
        for slot, pool in self._pools.items():
            if slot in self._pids and slot in self._busy and not self._busy[slot].done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pids[slot], signal.SIGKILL)
            pool.shutdown(cancel_futures=True)

    def _note_process(self, slot: int, entry: Future[Entry]) -> None:
        if not entry.cancelled() and entry.exception() is None:
            self._pids[slot] = entry.result().pid


class RayActors:
    """Actors of a Ray cluster, as many as it has room for or as are asked for; needs the extra [search].

    `address` is "local" for a cluster of this machine alone that ends with the run, else that of a running one.
    """

    def __init__(self, post: Post, address: str, slots: int | None, *, gpu: bool) -> None:
        self._ray = ray = _import_ray()
        self.died: type[Exception] = ray.exceptions.RayActorError
        local = address == "local"
        cores = (slots or default_slots(post.threads)) * post.threads if local else None
        try:
            ray.init(
                address="local" if local else address,
                num_cpus=cores,
                include_dashboard=False if local else None,
                log_to_driver=False,
                logging_level="error",
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--ray {address}: {str(error).splitlines()[0]}; start one with `ray start --head`"
            ) from error
        offered = ray.cluster_resources()
        room = int(offered.get("GPU", 0)) if gpu else int(offered.get("CPU", 0)) // post.threads
        if room < (slots or 1):
            ray.shutdown()
            raise UserError(
                f"--ray {address}: the cluster has room for {room} workers of {post.threads} threads"
                f"{' and a GPU' if gpu else ''}, not {slots or 1}; ask for fewer --workers or --threads"
            )
        self.slots = slots or room
        self._post = post
        self._actor = ray.remote(num_cpus=post.threads, num_gpus=int(gpu), max_restarts=0)(_RayWorker)
        self._actors: dict[int, Any] = {}

    def enter(self, slot: int) -> Future[Entry]:
        self._actors[slot] = self._actor.remote()
        future: Future[Entry] = self._actors[slot].enter.remote(self._post).future()
        return future

    def submit(self, slot: int, job: Job) -> Future[Outcome]:
        future: Future[Outcome] = self._actors[slot].work.remote(job).future()
        return future

    def interrupt(self) -> None:
        self._post.token.unlink(missing_ok=True)

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()


class _RayWorker:
    """A worker's two functions, as Ray wants them."""

    def enter(self, post: Post) -> Entry:
        return enter(post)

    def work(self, job: Job) -> Outcome:
        return work(job)


def default_slots(threads: int) -> int:
    """Workers of so many threads that this machine has cores for, at least one."""
    return max(1, (os.cpu_count() or 1) // threads)


@contextlib.contextmanager
def posted(bench: str, directory: Path, threads: int) -> Iterator[Post]:
    """Within the block workers of a run may work; at its end they are told to stop, if any is left."""
    place = directory.resolve()
    for left in place.glob(f"{TOKEN}*"):  # of a call that was killed, whose workers may still be there
        left.unlink()
    token = place / f"{TOKEN}{secrets.token_hex(8)}"
    variables = {name: os.environ[name] for name in ("POSTGRAD_DATA",) if name in os.environ}
    write_atomic(token, "")
    try:
        yield Post(bench, place, token, threads, Path.cwd(), variables)
    finally:
        token.unlink(missing_ok=True)


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError("--ray needs Ray, which is not installed; run: pip install 'postgrad[search]'") from error
    return ray


def check_ray(address: str) -> None:
    """Say at once that Ray is not installed or that nobody answers at the address; Ray itself would try for minutes."""
    _import_ray()
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise UserError(f"--ray {address}: expected local, auto, or HOST:PORT of a cluster's head")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--ray {address}: nothing answers there ({error}); start a cluster with `ray start --head`"
        ) from error


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future
