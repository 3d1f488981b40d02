"""Modules as people write them, each with something that is hard to export, and what comes of it.

`RIGHT` are exported with parity; `REFUSED` are refused in one line. Those of `foreign_nets` are
tried one by one elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

FOUR, STEPS, PIXELS = "x:float32[b,4]", "x:float32[b,t,4]", "x:float32[b,3,8,8]"


@dataclass(frozen=True)
class Awkward:
    """A module, its inputs, and what is said of it."""

    build: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    says: str = ""
    """A pattern: of the lines on free axes of what is right, or of the refusal."""

    @property
    def name(self) -> str:
        return self.build.__name__


def _linear(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


# What is right


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 3


class Numbers(nn.Module):
    """Writes into its input, sorts, looks up, scatters, rounds, and hands on what it was given."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        given = x.clone()
        x.mul_(2)
        x += 1
        made = torch.zeros_like(x)
        made[:, 1:3] = x[:, :2]
        made = made.masked_fill(x > 0, -1).scatter_add(1, x.argsort(1), x)
        tens = x * 10
        return {
            "same": x,
            "part": given[:, ::2],
            "one": x[:, :1].expand(-1, 3),
            "sorted": x.sort(1, descending=True),
            "top": x.topk(2),
            "best": x.argmax(1),
            "any": (x > 0).any(1),
            "bucket": torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])),
            "scattered": made + torch.einsum("bi,bj->bij", x, x).sum(1),
            "even": (x * 2).round(),
            "rest": (tens % 3, torch.fmod(tens, 3)),
            "byte": tens.abs().to(torch.uint8),
            "divided": [torch.div(tens, 3, rounding_mode=mode) for mode in ("floor", "trunc")],
            "own": Tripled.apply(x),
            "numpy": torch.fft.rfft(torch.from_numpy(x.numpy() * 2)).abs(),
        }


class WholeNumbers(nn.Module):
    """Of the operators behind `%` and `div` some have the name that another one was given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(5, 3)

    def forward(self, ids: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> dict[str, Tensor]:
        truths = {
            "not": ~a,
            "both": a & (d > 0),
            "count": a.sum(1),
            "hot": functional.one_hot(ids, 5),
        }
        return truths | {
            "rest": ids % 3,
            "half": torch.div(ids, 2, rounding_mode="floor"),
            "bag": self.bag(ids),
            "bits": (ids << 2) ^ 3,
            "mean": (b + 1).float().mean(1),
            "more": c * 2,
            "less": d - 1,
        }


def names() -> nn.Module:
    """Compiled, with odd names, weights that are shared and weights that are made of others."""
    torch.manual_seed(0)
    made = nn.Sequential()
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    made.add_module("größe/x", first)
    made.add_module("main", nn.ReLU())
    made.add_module("Add", second)
    made.add_module("spectral", parametrizations.spectral_norm(nn.Linear(4, 4)))
    made.add_module("scaled", parametrizations.weight_norm(nn.Linear(4, 4)))
    compiled: nn.Module = torch.compile(made)  # type: ignore[assignment]
    return compiled


class Keys(nn.Module):
    """Outputs that are called as torch calls its values and constants, or oddly."""

    def forward(self, x: Tensor) -> dict[Any, Tensor]:
        known = {"softmax": x.softmax(1) * 2, "val_0": x % 3, "scalar_tensor_default": x + 1}
        return known | {0: x + 1, "größe": x * 2, "": x * 3, "a b/c": x - 1, ("t", 1): x / 2}


class AnyKeyword(nn.Module):
    def forward(self, **given: Tensor) -> Tensor:
        return given["x"] * 2 - given["mask"]


class Spatial(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        turn = functional.affine_grid(torch.eye(2, 3).expand(x.shape[0], 2, 3), x.shape, False)
        return {
            "larger": functional.interpolate(x, scale_factor=2, mode="bilinear"),
            "smaller": functional.interpolate(x, size=(5, 5)),
            "windows": functional.unfold(x, 3),
            "turned": functional.grid_sample(x, turn, align_corners=False),
            "moved": functional.pixel_unshuffle(x, 2).roll(1, 2).flip(3),
        }


class Encoder(nn.Module):
    """Torch's own layer, with a fast path of its own and a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        made: Tensor = self.layer(x.masked_fill(~mask.unsqueeze(2), -1))
        return made


class Recurrent(nn.Module):
    """Torch declares its answer to be as long as the example."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x)[0]
        return made


class BothWays(nn.Module):
    """A branch on a length, as torch exports it, with weights in both ways, and a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.long, self.short = _linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = torch.cond(x.shape[1] > 4, self.long.forward, self.short.forward, (x,))
        looped: tuple[Tensor, Tensor] = torch.while_loop(
            lambda step, _: step < 3,
            lambda step, made: (step + 1, made * 2),
            (torch.tensor(0), made),
        )
        return looped[1]


class DownAndUp(nn.Module):
    """Takes even heights alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.up(self.down(x))
        return made


class Positions(nn.Module):
    """Knows sixteen of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.known = nn.Embedding(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.known(torch.arange(x.shape[1]))


class Windows(nn.Module):
    """A kernel of three does not fit into less."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv1d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x.transpose(1, 2)).mean(2)
        return made


class JoinedAndSpread(nn.Module):
    """Of one value there is no spread."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([x, y], 1), y.var(1)


class ManyOrFew(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] > 4 else x * 20


RIGHT = (
    Awkward(Numbers, (FOUR,)),
    Awkward(
        WholeNumbers,
        ("ids:int64[b,4]", "a:bool[b,4]", "b:uint8[b,4]", "c:int8[b,4]", "d:int32[b,4]"),
    ),
    Awkward(names, ("input:float32[b,4]",)),
    Awkward(Keys, ("mul_2:float32[b,4]",)),
    Awkward(AnyKeyword, ("mask:float32[b,4]", FOUR)),
    Awkward(Spatial, (PIXELS,)),
    Awkward(Encoder, (STEPS, "mask:bool[b,t]"), r"axis t: proven at 1, 2, 7, 8, 16, 19, up to"),
    Awkward(Recurrent, (STEPS,), r"axis t: proven at 1, 2, 7, 8, 16, 19, up to \d\.\de-\d\d$"),
    Awkward(BothWays, (STEPS,), r"axis t: proven at 1, 2, 3, 4, 5, 7, 8, 16, 19, up to"),
    Awkward(
        DownAndUp,
        ("x:float32[b,3,h,8]",),
        r"axis h: proven at 1, 2, 8, 16, .*; not at 3, 7, 19: the module refuses x \[4, 3, 3, 8",
    ),
    Awkward(Positions, (STEPS,), r"16, up to .*; not at 19: the module refuses .* IndexError: ind"),
    Awkward(
        Windows,
        (STEPS,),
        r"at 3, 4, 7, 8, 16, 19, .*; not below 3: the module refuses .*lengths from 3 on$",
    ),
    Awkward(Windows, ("x:float32[b,t=3..64,4]",), r"proven at 3, 4, 7, 8, 16, 19, 63, 64, up to"),
    Awkward(
        JoinedAndSpread,
        (STEPS, "y:float32[b,s,4]"),
        r"axis s: proven at 2, 7, 8, 16, 19, .*; not below 2: its answers are NaN or infinite$",
    ),
    Awkward(ManyOrFew, ("x:float32[b,t=5..,4]",), r"axis t: proven at 5, 6, 7, 8, 16, 19, up to"),
)


# What is refused


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True)


class BatchStatistics(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, None, None, training=True)


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x)


class Sparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to_sparse()


class Selecting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


def scripted() -> nn.Module:
    made: nn.Module = torch.jit.script(nn.Sequential(nn.Linear(4, 3)))
    return made


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3))


class SparseWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.eye(4).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return x


class NoEvaluation(nn.Module):
    def eval(self) -> "NoEvaluation":
        raise RuntimeError("not trained yet")


class NoState(nn.Module):
    def state_dict(self, *given: Any, **others: Any) -> Any:
        raise RuntimeError("kept elsewhere")

    def forward(self, x: Tensor) -> Tensor:
        return x


class TwoOfOneName(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"a": {"b": x}, "a.b": x + 1}


class NamedAsItsInput(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x + 1}


class Leaving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            raise SystemExit("not now")
        return x


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, count + 1, batch_first=True, enforce_sorted=False)
        made: Tensor = self.layer(packed)[1][0][0]
        return made


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 3)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return state


class Added(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Strict(nn.Module):
    """What it refuses, it does not while it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and x.shape[1] != 8:
            raise ValueError("eight steps")
        return x * 2


class OneUnlike(nn.Module):
    """One length is special, and nothing in the range of the axis says so."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] != 5 else x * 3


class MoreForFew(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {"mean": x.mean(1)}
        return found if x.shape[1] > 7 else found | {"sum": x.sum(1)}


class Counted(nn.Module):
    """`len` is a number to torch, where `shape[0]` is a symbol."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(len(x), 1)


class AsManyOnes(nn.Module):
    """The window of the pool is the example's."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool1d(x.transpose(1, 2), 4)


class LargeHalves(nn.Module):
    """Torch divides whole numbers as float32, which holds those to 2^24."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.div(ids * 40000001 - 3, 2, rounding_mode="floor")


REFUSED = (
    Awkward(Counting, (FOUR,), "answers the same rows otherwise the second time"),
    Awkward(AlwaysDropping, (FOUR,), "answers the same rows otherwise the second time"),
    Awkward(BatchStatistics, (FOUR,), r"refuses x \[1, 4\]: ValueError: Expected more than 1"),
    Awkward(Complex, (FOUR,), "output output is complex64, which cannot be compared; cast it"),
    Awkward(Sparse, (FOUR,), "output output is sparse; return it dense"),
    Awkward(Selecting, (FOUR,), "its first axis must be the rows"),
    Awkward(scripted, (FOUR,), "is TorchScript, .* return the Python module"),
    Awkward(lazy, (FOUR,), "weight 0.weight has no shape yet; call the module once before"),
    Awkward(SparseWeight, (FOUR,), "weight table is sparse or quantized"),
    Awkward(NoEvaluation, (FOUR,), "cannot be set to evaluation: RuntimeError: not trained yet"),
    Awkward(NoState, (FOUR,), "state cannot be read: RuntimeError: kept elsewhere"),
    Awkward(TwoOfOneName, (FOUR,), r"answers two tensors called 'a\.b'"),
    Awkward(NamedAsItsInput, (FOUR,), r"an input and an output called 'x', .* instance x_in:"),
    Awkward(Leaving, (FOUR,), "cannot export the module: SystemExit: not now"),
    Awkward(Packed, (STEPS, "count:int64[b]"), r"cannot export the module: zeros\(\): argument"),
    Awkward(Looped, (STEPS,), "fixes the t axis: traced with a length of 8 of x, .*a Python loop"),
    Awkward(
        ManyOrFew,
        (STEPS,),
        r"output\[.*; where t = 1; torch traced it for lengths from 5 on: ask for those, t=5\.\.,",
    ),
    Awkward(OneUnlike, (STEPS,), r"where t = 5; .*, of which torch asked Eq\(t, 5\), Ne\(t, 5\)"),
    Awkward(Added, (STEPS, "y:float32[b,s,4]"), "axis s of y as t alone; .* must have one name"),
    Awkward(Strict, (STEPS,), "axis t takes no length but 8: write the number, .*: eight steps"),
    Awkward(Counted, (FOUR,), r"fixes the batch axis: traced with 2 rows of x, .*\(its `len`"),
    Awkward(MoreForFew, (STEPS,), "answers mean, sum where t is 1, and mean where it is 8"),
    Awkward(AsManyOnes, (STEPS,), "where t = 1, the module answers and its file does not: .*4, 1"),
    Awkward(
        Windows,
        ("x:float32[b,t=1..64,4]",),
        r"t=1\.\.64 asks for a length of 1: the module refuses",
    ),
    Awkward(
        LargeHalves, ("ids:int64[b,4]",), r"1\.0e\+00 .*at output.*first divergence at main/Cast"
    ),
)
