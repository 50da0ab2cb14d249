"""What ViT and GPT-2 are made of alike: pre-norm blocks of fused q, k, v and a plain MLP, with
biases and LayerNorms, as spaces (:mod:`perturb.architecture`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from perturb.architecture import Axis, Folded, Space, columns, entries, rows
from perturb.architecture import Block as Removable


@dataclass
class Blocks:
    """Spaces and blocks, and what the blocks add to the stream, read from it and norm it by."""

    spaces: list[Space] = field(default_factory=list)
    removable: list[Removable] = field(default_factory=list)
    writes: list[Axis] = field(default_factory=list)
    reads: list[Axis] = field(default_factory=list)
    norms: list[Folded] = field(default_factory=list)

    def add(
        self,
        at: str,
        attention: tuple[str, str],
        mlp: tuple[str, str],
        norms: tuple[str, str],
        heads: int,
        head_size: int,
        hidden: int,
    ) -> None:
        """A block: its name, and those of (qkv, proj), (fc1, fc2) and the two norms within it."""
        (qkv, proj), (fc1, fc2), before = (
            tuple(f"{at}.{name}" for name in names) for names in (attention, mlp, norms)
        )
        self.spaces += [
            Space(
                f"{at}.heads",
                heads,
                writes=(rows(qkv, head_size, 3), entries(f"{qkv}.bias", head_size, 3)),
                reads=(columns(proj, head_size),),
            ),
            Space(f"{at}.mlp", hidden, writes=tuple(writing(fc1)), reads=(columns(fc2),)),
        ]
        layers = (qkv, proj, fc1, fc2)
        vectors = [f"{n}.bias" for n in layers]
        vectors += [f"{n}.{kind}" for n in before for kind in ("scale", "bias")]
        self.removable.append(Removable(at, layers, tuple(vectors)))
        self.writes += writing(proj) + writing(fc2)
        self.reads += [columns(qkv), columns(fc1)]
        self.norms += [folded(before[0], qkv), folded(before[1], fc1)]

    def stream(self, size: int, begun: list[Axis], heads: tuple[str, ...], norm: Folded) -> Space:
        """The residual stream; begun: what writes it first; heads: what reads it last."""
        return Space(
            "residual",
            size,
            writes=(*begun, *self.writes),
            reads=(*self.reads, *map(columns, heads)),
            allows=frozenset({"rotate", "scale"}),
            norms=(*self.norms, norm),
            fixes="mean",
        )


def writing(layer: str) -> list[Axis]:
    """The outputs of a layer with a bias."""
    return [rows(layer), entries(f"{layer}.bias")]


def folded(norm: str, *readers: str) -> Folded:
    return Folded(f"{norm}.scale", readers, f"{norm}.bias")
