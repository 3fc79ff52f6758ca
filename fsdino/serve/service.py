"""The models that are served and the memories that they share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import HTTPException

from fsdino.base.drawn import caution
from fsdino.base.result import resolve
from fsdino.predict.engines import Engine
from fsdino.predict.finish import AS_MEASURED, Finish, finished
from fsdino.predict.memory_file import SavedMemory, remembered
from fsdino.serve.answers import Form, as_json, drawn
from fsdino.serve.limits import Limits
from fsdino.serve.metrics import Metrics
from fsdino.serve.schemas import Said
from fsdino.serve.store import Full, MemoryStore, Record
from fsdino.serve.uploads import Upload, decoded, header, read_references
from fsdino.serve.worker import Busy, Worker

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """What to look for, how sure to be, and in which form to answer."""

    records: Sequence[Record]
    threshold: float | None  # None: a memory's own cut, or the model's threshold
    min_score: float
    form: Form
    finish: Finish = AS_MEASURED


class Runner:
    """A model, the thread that it runs in, and the memories that are held ready; its methods run in that thread."""

    def __init__(self, name: str, engine: Engine, store: MemoryStore, limits: Limits) -> None:
        self.name, self.engine, self.store, self.limits = name, engine, store, limits
        self.fingerprint = engine.fingerprint()
        self.worker = Worker(name, limits.max_waiting)
        self._ready: OrderedDict[str, tuple[Any, float | None]] = OrderedDict()  # with its own cut
        self._lock = threading.Lock()  # memories are forgotten from another thread

    @property
    def loaded(self) -> int:
        """Memories that are held ready."""
        return len(self._ready)

    def forget(self, memory_id: str) -> None:
        """Hold a memory no longer."""
        with self._lock:
            self._ready.pop(memory_id, None)

    def remember(self, said: Sequence[Said], images: Sequence[Upload], masks: Sequence[Upload]) -> list[Record]:
        """Keep a memory of each class."""
        classes = read_references(said, images, masks, self.limits)
        return self.store.add([remembered(self.engine, name, refs, self.fingerprint) for name, refs in classes.items()])

    def adopt(self, memory: SavedMemory, data: bytes) -> Record:
        """Keep a memory that came as a file, after a try on a blank image: it may hold anything."""
        numbers = [array for array in memory.arrays.values() if np.issubdtype(array.dtype, np.floating)]
        try:
            joined = self.engine.join([self.engine.unpack(memory.arrays)])
            found = list(self.engine.find(joined, np.zeros((32, 32, 3), np.uint8)))
        # Networks raise whatever they like on arrays of other names and shapes.
        except Exception:
            found = []
        if len(found) != 1 or not all(np.isfinite(array).all() for array in numbers):
            raise HTTPException(422, "the file is not a memory that the model can use; remember the class again.")
        return self.store.add([memory], data)[0]

    def find(self, question: Question, images: Sequence[Upload], until: float) -> tuple[list[dict], list[bytes]]:
        """Look for the memories in each image.

        Args:
            question: what is asked.
            images: the files.
            until: `time.monotonic` after which nobody waits for the answer.

        Returns:
            What `ImageAnswer` describes, and a drawing, for each image; no drawings where JSON is asked for.
        """
        # All headers first: a wrong one among many should not cost a minute.
        for upload in images:
            header(upload, self.limits)
        ready, asked = [self._memory(record) for record in question.records], question.threshold
        joined = self.engine.join([memory for memory, _ in ready])
        limit = self.engine.threshold if asked is None else asked
        cuts = [cut for _, cut in ready] if asked is None else []
        ids, answers, files = [record.id for record in question.records], [], []
        names, finish = [record.class_name for record in question.records], question.finish
        sharp = finish.refines(self.engine)
        # One after the other, so that the pixels of one image at a time are held.
        for upload in images:
            if time.monotonic() > until:
                raise TimeoutError
            image = decoded(upload, self.limits)
            size = (image.shape[0], image.shape[1])
            least = finish.least(self.engine, self.fingerprint, names, [image])
            found = finished(self.engine.find(joined, image), image, limit, least, sharp, cuts=cuts)
            maps = resolve(zip(ids, found), size, limit, question.min_score)
            answers.append(as_json(maps, question.records, upload.name, caution(self.fingerprint, [image])))
            if question.form != "json":
                files.append(drawn(question.form, image, maps, question.records))
        return answers, files

    def _memory(self, record: Record) -> tuple[Any, float | None]:
        with self._lock:
            if record.id in self._ready:
                self._ready.move_to_end(record.id)
                return self._ready[record.id]
        try:
            saved = self.store.load(record)
            memory = self.engine.unpack(saved.arrays), saved.cut
        except FileNotFoundError as error:
            raise HTTPException(404, f"memory {record.id} was deleted.") from error
        except ValueError as error:
            text = f"memory {record.id} is damaged; delete it and remember the class again."
            raise HTTPException(409, text) from error
        with self._lock:
            self._ready[record.id] = memory
            while len(self._ready) > self.limits.max_loaded:
                self._ready.popitem(last=False)
        return memory


class Service:
    """All that is served.

    Args:
        engines: name to model; the first is the one that runs where none is named.
        store: the memories.
        limits: of requests.
        finish: what becomes of an answer where a request does not say.
    """

    def __init__(
        self, engines: Mapping[str, Engine], store: MemoryStore, limits: Limits, finish: Finish = AS_MEASURED
    ) -> None:
        self.store, self.limits, self.finish, self.metrics = store, limits, finish, Metrics()
        self.runners = {name: Runner(name, engine, store, limits) for name, engine in engines.items()}
        self.metrics.memories.set_function(lambda: len(store.records()))
        for name, one in self.runners.items():
            self.metrics.waiting.labels(name).set_function(partial(getattr, one.worker, "waiting"))
            self.metrics.loaded.labels(name).set_function(partial(getattr, one, "loaded"))

    def names_of(self, fingerprint: str) -> list[str]:
        """The served models of a fingerprint."""
        return [name for name, one in self.runners.items() if one.fingerprint == fingerprint]

    def runner(self, name: str | None) -> Runner:
        """The model of a name; the first for None."""
        chosen = next(iter(self.runners)) if name is None else name
        if chosen not in self.runners:
            raise HTTPException(404, f"there is no model {chosen!r} here; there is {', '.join(self.runners)}.")
        return self.runners[chosen]

    def record(self, memory_id: str) -> Record:
        """The memory of a number."""
        if (record := self.store.get(memory_id)) is None:
            raise HTTPException(404, f"there is no memory {memory_id}; GET /v1/memories lists those that there are.")
        return record

    def runner_for(self, records: Sequence[Record], name: str | None) -> Runner:
        """The model that made all of some memories: the one of a name, or the first."""
        for record in records:
            able = self.names_of(record.fingerprint)
            if not able:
                text = f"was made by model {record.fingerprint}, which is not served here"
                raise HTTPException(422, f"memory {record.id} {text}; remember the class again.")
            if name is not None and self.runner(name).fingerprint != record.fingerprint:
                raise HTTPException(422, f"memory {record.id} was made by {able[0]}, not by {name}; ask {able[0]}.")
        if len({record.fingerprint for record in records}) > 1:
            raise HTTPException(422, "the memories were made by several models; ask for those of one at a time.")
        return self.runner(name or self.names_of(records[0].fingerprint)[0])

    async def run(self, runner: Runner, call: Callable[[], T]) -> T:
        """What a call gives in the thread of a model; what it finds wrong with its input is answered with 422."""
        try:
            return await asyncio.wrap_future(runner.worker.submit(call))
        except Busy as error:
            text = f"{self.limits.max_waiting} requests wait for model {runner.name}; come again in {error.seconds} s."
            raise HTTPException(503, text, {"Retry-After": str(error.seconds)}) from error
        except Full as error:
            text = f"there are {self.limits.max_memories} memories, which is all there may be; delete one first."
            raise HTTPException(409, text) from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    def close(self) -> None:
        """Begin no other work, and let another service have the folder."""
        for one in self.runners.values():
            one.worker.close()
        self.store.close()
