"""Hearing values from inside a program, whatever transforms they are computed in.

A traced function can hand nothing out of a ``jit``, ``scan``, ``cond`` or ``vmap`` inside of it. So
it marks the values with :func:`tell`, and :func:`replay` runs its jaxpr anew, calling a Python
function at each mark, at every level of control flow: what that function adds up in a ``jax.Ref``
is right in loops and in branches. Marks are ``io_callback`` equations (no transform drops or moves
them) that never run: no host, no thread, one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import io_callback
from jax.extend import core

from perturb.types import Array

Hear = Callable[["Note", Sequence[Array], bool], None]
# Calls of one function, to be replayed in place.
INLINE = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "custom_vmap_call",
}


class Unheard(ValueError):
    """A value is marked where no one can hear it; ``note``: which."""

    def __init__(self, note: Note, place: str) -> None:
        super().__init__(place)
        self.note, self.place = note, place


class Note:
    """Whom a mark is for, made anew for each.

    batched: whether a vmapped value is heard as one with its lanes in front; else
    :class:`Unheard` is raised. shapes: of the values, as they are told.
    """

    def __init__(self, name: str, *, batched: bool = True) -> None:
        self.name, self.batched = name, batched
        self.shapes: tuple[tuple[int, ...], ...] = ()

    def __call__(self, *_: Any) -> None:
        raise RuntimeError(f"the program that tells of {self.name} was run instead of replayed")


def tell(note: Note, *values: Array) -> None:
    """Mark these values for :func:`replay`. Under vmap the batch axes come first, outermost first;
    a value that is the same in all lanes has an axis of size 1.

    Their derivatives are nobody's business: a program that differentiates tells them, too.
    """

    @jax.custom_batching.custom_vmap
    def mark(*values: Array) -> tuple[()]:
        io_callback(note, None, *values)
        return ()

    @mark.def_vmap
    def _(size: int, batched: Sequence[bool], *values: Array) -> tuple[tuple[()], tuple[()]]:
        if not any(batched):
            return mark(*values), ()
        if not note.batched:
            raise Unheard(note, "vmap")
        lanes = (v if b else v[None] for v, b in zip(values, batched, strict=True))
        return mark(*lanes), ()

    note.shapes = tuple(jax.numpy.shape(v) for v in values)
    mark(*map(jax.lax.stop_gradient, values))


class Part(NamedTuple):
    """Some equations of a flat program: what they need, and what of them is used outside."""

    constvars: tuple[()]
    invars: list[Any]
    outvars: list[Any]
    eqns: list[Any]


def play(part: Part, values: Sequence[Any], hear: Hear) -> list[Any]:
    """:func:`replay` of a part of a program."""
    return _run(part, (), values, hear, False)


def tell_again(note: Note, values: Sequence[Array], _: bool) -> None:
    """For :func:`replay`: the marks of a program stay in the program that replays it."""
    io_callback(note, None, *values)


def called_notes(eqn: Any) -> list[str]:
    """The names that an equation tells of, itself or anywhere inside."""
    note = _note(eqn)
    return [note.name] if note is not None else [n.name for n in _inside(eqn)]


def replay(closed: core.ClosedJaxpr, values: Sequence[Any], hear: Hear) -> list[Any]:
    """The outputs of a jaxpr at these inputs, with ``hear(note, values, nested)`` at each mark.

    nested: whether it is called inside of a loop or a branch, from where values get out by a
    ``jax.Ref`` only (see :func:`nested`). Raises :class:`Unheard` for marks inside a transform
    that cannot be replayed.
    """
    return _run(closed.jaxpr, closed.consts, values, hear, False)


def _run(
    jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], hear: Hear, nested: bool
) -> list[Any]:
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= zip(jaxpr.invars, values, strict=True)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        with eqn.ctx.manager:
            if (note := _note(eqn)) is not None:
                hear(note, inputs, nested)
                continue
            if (inside := next(_inside(eqn), None)) is not None:
                outputs = _control(eqn, inside, inputs, hear, nested)
            else:
                params = eqn.primitive.get_bind_params(eqn.params)
                outputs = eqn.primitive.bind(*inputs, **params)
                outputs = outputs if eqn.primitive.multiple_results else [outputs]
        env |= zip(eqn.outvars, outputs, strict=True)
    return [read(v) for v in jaxpr.outvars]


def nested(closed: core.ClosedJaxpr) -> set[str]:
    """The names that are told of inside loops or branches."""
    return set(_nested(closed.jaxpr))


def _nested(jaxpr: Any) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in INLINE:
            for inner in _jaxprs(eqn):
                yield from _nested(getattr(inner, "jaxpr", inner))
        else:
            yield from (n.name for n in _inside(eqn))


def check(closed: core.ClosedJaxpr, told: Sequence[Note]) -> None:
    """Raise :class:`Unheard` for a mark that is not in the program: jax drops them in the
    derivative of a scan. A body that jax traced twice leaves one of two: names and shapes count."""
    kept = {(n.name, n.shapes) for n in _notes(closed.jaxpr)}
    for note in told:
        if (note.name, note.shapes) not in kept:
            raise Unheard(note, "the derivative of a loop, or a trace that is never run")


def _note(eqn: Any) -> Note | None:
    if eqn.primitive.name != "io_callback":
        return None
    told = getattr(eqn.params["callback"], "callback_func", None)
    return told if isinstance(told, Note) else None


def _jaxprs(eqn: Any) -> Iterator[Any]:
    """The jaxprs, open or closed, among the parameters of an equation."""
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield part


def _inside(eqn: Any) -> Iterator[Note]:
    """The notes that are told inside an equation, at any depth."""
    for jaxpr in _jaxprs(eqn):
        yield from _notes(getattr(jaxpr, "jaxpr", jaxpr))


def _notes(jaxpr: Any) -> Iterator[Note]:
    for eqn in jaxpr.eqns:
        note = _note(eqn)
        if note is not None:
            yield note
        else:
            yield from _inside(eqn)


def _control(eqn: Any, note: Note, inputs: list[Any], hear: Hear, nested: bool) -> Sequence[Any]:
    """An equation with marks inside, built anew around their replay."""
    name, p = eqn.primitive.name, eqn.params

    def run(jaxpr: Any, values: Sequence[Any]) -> list[Any]:
        inner, consts = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
        return _run(inner, consts, values, hear, nested or name not in INLINE)

    if name in INLINE:
        (jaxpr,) = _jaxprs(eqn)
        return run(jaxpr, inputs)
    if name == "cond":
        index, *operands = inputs
        branches = [lambda *x, b=b: tuple(run(b, x)) for b in p["branches"]]
        return jax.lax.switch(index, branches, *operands)
    if name == "scan":
        # [constants, carry, sliced] -> [carry, stacked], told by ranks: parameters differ with jax
        inner = p["jaxpr"].jaxpr
        n = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.outvars, inner.outvars, strict=True))
        m = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.invars, inner.invars, strict=True))
        consts, carry, xs = inputs[: m - n], tuple(inputs[m - n : m]), tuple(inputs[m:])

        def step(carry: Any, xs: Any) -> Any:
            out = run(p["jaxpr"], [*consts, *carry, *xs])
            return tuple(out[: len(carry)]), tuple(out[len(carry) :])

        carry, ys = jax.lax.scan(
            step, carry, xs, length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
        )
        return [*carry, *ys]
    if name == "while":
        n, m = p["cond_nconsts"], p["body_nconsts"]
        test, body, carry = inputs[:n], inputs[n : n + m], tuple(inputs[n + m :])
        if any(True for _ in _notes(p["cond_jaxpr"].jaxpr)):
            raise Unheard(note, "the condition of a while_loop")
        return jax.lax.while_loop(
            lambda c: run(p["cond_jaxpr"], [*test, *c])[0],
            lambda c: tuple(run(p["body_jaxpr"], [*body, *c])),
            carry,
        )
    raise Unheard(note, name)


class Scan(NamedTuple):
    """The calls inside of a scan."""

    calls: list[Any]
    length: int
    reverse: bool


def called(closed: core.ClosedJaxpr) -> list[Any]:
    """The names that a program tells of in its order, those inside of a scan as a :class:`Scan`."""
    return list(_called(closed.jaxpr))


def _called(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        note = _note(eqn)
        if note is not None:
            yield note.name
            continue
        inner = [c for j in _jaxprs(eqn) for c in _called(getattr(j, "jaxpr", j))]
        if inner and eqn.primitive.name == "scan":
            yield Scan(inner, eqn.params["length"], eqn.params["reverse"])
        else:
            yield from inner
