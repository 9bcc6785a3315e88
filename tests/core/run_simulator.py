"""A run on paper: the ledger's rows and Celery's messages as plain values, in any order of events.

It follows flowstone/store/dispatch.py, steps.py and cancellation.py, and tasks/step.py
statement by statement; only `expand` is the real one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

from flowstone.expand import MAX_CHAIN, Canvas, Chain, Node, expand, members
from flowstone.store.dispatch import LOW_PART
from tests.strategies import Dag

IN_FLIGHT = ("queued", "running", "retrying")
FINAL = ("succeeded", "failed", "upstream_failed", "cancelled")
NOT_STARTED = ("pending", "queued", "retrying")


@dataclass
class Step:
    """A row of the table steps."""

    id: int
    upstream: tuple[int, ...]
    readers: tuple[int, ...]
    open_deps: int
    state: str = "pending"
    canvas: int | None = None

    @property
    def feeds(self) -> int | None:
        return self.readers[0] if len(self.readers) == 1 else None


@dataclass
class Join:
    """A chord as the result backend keeps it: the parts that have come, and the body."""

    size: int
    body: tuple[int, ...]
    parts: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Wake:
    """A coordinator that is due: the message, or a worker that goes on by itself after a commit.

    Both are a transaction of their own, before which others may come.
    """


@dataclass(frozen=True)
class Due:
    """The moment at which the clock finds that the retry of a parked step is due."""

    step: int


@dataclass(frozen=True)
class Message:
    """The message `flowstone.step`, with the rest of its canvas."""

    step: int
    canvas: int
    rest: tuple[int, ...] = ()
    join: int | None = None
    part: int = 0


class Run:
    """One run. Each method is one transaction, or one thing that Celery does."""

    def __init__(
        self,
        dag: Dag,
        max_in_flight: int,
        optional: Collection[tuple[int, int]] = (),
        *,
        chords: bool = True,
    ) -> None:
        self._chords = chords
        readers = {step: tuple(r for r, ups in dag.items() if step in ups) for step in dag}
        self.steps = {id: Step(id, ups, readers[id], len(ups)) for id, ups in dag.items()}
        self.optional = frozenset(optional)
        self.max_in_flight = max_in_flight
        self.messages: list[Wake | Message | Due] = [Wake()]
        self.running: list[Message] = []
        self.joins: dict[int, Join] = {}
        self.canvases: list[Canvas] = []
        self.published = 1
        self.commits: Counter[int] = Counter()
        self.order: list[int] = []
        self.closed = False
        self.cancelled = False
        self._ids = count(1)

    def in_state(self, *states: str) -> list[Step]:
        return [step for step in self.steps.values() if step.state in states]

    def in_flight(self) -> list[Step]:
        """What the window counts; a parked step has no canvas."""
        return [step for step in self.in_state(*IN_FLIGHT) if step.canvas is not None]

    def ready(self) -> list[int]:
        return [step.id for step in self.in_state("pending") if step.open_deps == 0]

    def window_left(self) -> int:
        return self.max_in_flight - len(self.in_flight())

    # The coordinator.

    def coordinate(self) -> None:
        if self.cancelled:
            self._sweep()
            return
        budget = self.window_left()
        ready = self.ready()[:budget]
        canvases = expand(ready, self._ahead(ready), budget, chords=self._chords)
        if not canvases and all(step.state in FINAL for step in self.steps.values()):
            self.closed = True
        for canvas in canvases:
            self._check(canvas)
            self._mark(canvas)
        assert len(self.in_flight()) <= self.max_in_flight

    def _ahead(self, ready: Sequence[int]) -> dict[int, Node]:
        nodes: dict[int, Node] = {}
        for start in ready:
            at: int | None = start
            for _ in range(2 * MAX_CHAIN + 1):
                if at is None or self.steps[at].state != "pending":
                    break
                step = self.steps[at]
                nodes[at] = Node(at, step.feeds, step.open_deps)
                at = step.feeds
        return nodes

    def _check(self, canvas: Canvas) -> None:
        """Hold a canvas to its promise: true dependencies only, and everything they need."""
        stretches = [canvas.steps] if isinstance(canvas, Chain) else [*canvas.header, canvas.body]
        for stretch in stretches:
            assert 1 <= len(stretch) <= MAX_CHAIN
            for before, after in pairwise(stretch):
                assert self._open(after) == {before}, "a chain member waits for another step"
        if not isinstance(canvas, Chain):
            assert len(canvas.header) > 1
            assert self._open(canvas.body[0]) == {stretch[-1] for stretch in canvas.header}
        starts = [canvas.steps[0]] if isinstance(canvas, Chain) else [h[0] for h in canvas.header]
        assert all(not self._open(start) for start in starts)
        assert len(set(members(canvas))) == len(members(canvas))

    def _open(self, id: int) -> set[int]:
        """Return what a step still waits for."""
        return {
            up
            for up in self.steps[id].upstream
            for state in [self.steps[up].state]
            if state != "succeeded" and not (state in FINAL and (up, id) in self.optional)
        }

    def _mark(self, canvas: Canvas) -> None:
        canvas_id = next(self._ids)
        for member in members(canvas):
            step = self.steps[member]
            assert step.state == "pending", "dispatched twice"
            step.state, step.canvas = "queued", canvas_id
        self.canvases.append(canvas)
        if isinstance(canvas, Chain):
            self._publish(Message(canvas.steps[0], canvas_id, canvas.steps[1:]))
            return
        self.joins[canvas_id] = Join(len(canvas.header), canvas.body)
        for part, stretch in enumerate(canvas.header):
            self._publish(Message(stretch[0], canvas_id, stretch[1:], canvas_id, part))

    def _publish(self, message: Wake | Message) -> None:
        self.published += 1
        self.messages.append(message)

    # A worker.

    def deliver(self, message: Message) -> None:
        """Claim the step of a message, or refuse it."""
        step = self.steps[message.step]
        if step.canvas == message.canvas and step.open_deps == 0 and (
            step.state in ("queued", "retrying")
        ):  # fmt: skip
            assert not self.cancelled, "started in a run that is being cancelled"
            assert not self._open(step.id), "claimed before what it reads has committed"
            step.state = "running"
            self.running.append(message)
        elif step.canvas == message.canvas and step.state == "succeeded":
            self._carry_on(message)

    def succeed(self, message: Message) -> None:
        step = self.steps[message.step]
        step.state = "succeeded"
        self.commits[step.id] += 1
        self.order.append(step.id)
        for reader in (self.steps[id] for id in step.readers):
            reader.open_deps -= 1
        if self.needs_coordinator():
            self._publish(Wake())
        self._carry_on(message)

    def needs_coordinator(self) -> bool:
        """Return what is asked after each commit: is there a backlog while little can start, or
        nothing left at all?"""
        if any(step.open_deps == 0 for step in self.in_state("pending")):
            startable = sum(step.open_deps == 0 for step in self.in_state("queued"))
            return startable < max(1, self.max_in_flight // LOW_PART)
        return all(step.state in FINAL for step in self.steps.values())

    def _carry_on(self, message: Message) -> None:
        """Do what Celery does after a task without an error."""
        if message.rest:
            following = message.rest[0]
            self._publish(
                Message(following, message.canvas, message.rest[1:], message.join, message.part)
            )
        elif message.join is not None:
            join = self.joins[message.join]
            done_before = len(join.parts) == join.size
            join.parts.add(message.part)
            if len(join.parts) == join.size and not done_before:
                self._publish(Message(join.body[0], message.canvas, join.body[1:]))

    def fail(self, message: Message) -> None:
        step = self.steps[message.step]
        step.state = "failed"
        self._release(message.canvas)
        below = [step]
        while below:
            failed = below.pop()
            for reader in (self.steps[id] for id in failed.readers):
                if (failed.id, reader.id) in self.optional:
                    reader.open_deps -= 1
                elif reader.state in ("pending", "queued"):
                    reader.state = "upstream_failed"
                    below.append(reader)
        if self.needs_coordinator():
            self._publish(Wake())

    def cancel(self) -> None:
        if not self.closed:
            self.cancelled = True
            self._sweep()

    def _sweep(self) -> None:
        for step in self.in_state(*NOT_STARTED):
            step.state = "cancelled"
        self.closed = not self.in_state("running")

    def stop(self, message: Message) -> None:
        self.steps[message.step].state = "cancelled"
        if self.needs_coordinator():
            self._publish(Wake())

    def force(self) -> None:
        """Take what runs from its attempts, when the grace is over."""
        for step in self.in_state("running"):
            step.state = "cancelled"
        self._sweep()

    def retry(self, message: Message) -> None:
        if self.cancelled:
            self.stop(message)
            return
        self.steps[message.step].state = "retrying"
        self._publish(message)

    def park(self, message: Message) -> None:
        if self.cancelled:
            self.stop(message)
            return
        step = self.steps[message.step]
        step.state, step.canvas = "retrying", None
        self._release(message.canvas)
        self.messages.append(Due(step.id))
        if self.needs_coordinator():
            self._publish(Wake())

    # The reconciler.

    def tick(self, due: Due) -> None:
        """Let a parked step go on whose retry is due."""
        step = self.steps[due.step]
        if step.state == "retrying" and step.canvas is None:
            step.state = "pending"
            self._publish(Wake())

    def reconcile(self) -> None:
        """Free the steps of dead workers and of lost messages, and wake the run."""
        lost = [step for step in self.in_flight() if step.open_deps == 0]
        canvases = [step.canvas for step in lost]
        for step in lost:
            step.state, step.canvas = "pending", None
        for canvas in canvases:
            assert canvas is not None
            self._release(canvas)
        self._publish(Wake())

    def _release(self, canvas: int) -> None:
        for step in self.in_state("queued"):
            if step.canvas == canvas and step.open_deps > 0:
                step.state, step.canvas = "pending", None


def play(
    run: Run, pick: Callable[[int], int], outcomes: Sequence[str], events: int = 10**9
) -> None:
    """Play events in the order that `pick` draws, until nothing is under way, or up to `events`.

    `outcomes` are the ends that an attempt may have: succeed, fail, retry, park, die;
    "twice" among them lets a message come a second time, "lose" lets it vanish.
    """
    attempts: Counter[int] = Counter()
    for _ in range(events):
        if not (run.messages or run.running):
            return
        at = pick(len(run.messages) + len(run.running))
        if at < len(run.messages):
            _deliver(run, run.messages.pop(at), pick, outcomes)
        else:
            message = run.running.pop(at - len(run.messages))
            attempts[message.step] += 1
            _end(run, message, _draw(pick, outcomes, attempts[message.step]))


def _draw(pick: Callable[[int], int], outcomes: Sequence[str], attempt: int) -> str:
    ends = [o for o in outcomes if o not in ("twice", "lose")]
    if attempt > 2:
        ends = [o for o in ends if o in ("succeed", "fail")]
    return ends[pick(len(ends))]


def _deliver(
    run: Run, message: Wake | Message | Due, pick: Callable[[int], int], outcomes: Sequence[str]
) -> None:
    if isinstance(message, Due):
        # It is no message, and is never lost nor comes twice.
        run.tick(message)
        return
    if "lose" in outcomes and pick(6) == 1:
        return
    if "twice" in outcomes and pick(6) == 1 and run.published < 200:
        run.messages.append(message)
    if isinstance(message, Wake):
        run.coordinate()
    else:
        run.deliver(message)


def _end(run: Run, message: Message, outcome: str) -> None:
    match outcome:
        case "succeed":
            run.succeed(message)
        case "fail":
            run.fail(message)
        case "retry":
            run.retry(message)
        case "park":
            run.park(message)
        case "die":
            pass
