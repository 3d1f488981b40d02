"""The files of a model in C: `model.h`, `model.c`, and `selftest.c` with the golden rows.

    cc -std=c99 model.c selftest.c -lm -o ../selftest && ../selftest

The self-test runs anywhere. It prints what fails, and exits with 1 then.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from pipeline.exporting.onnxmodel import METADATA, metadata
from pipeline.targets.c99.ctext import c_string, ctype, number, plain, table
from pipeline.targets.c99.functions import Function, function_of
from pipeline.targets.c99.kernels import Buffer, Elementwise, Kernel, Linear, Pooling, fused, plan
from pipeline.targets.c99.operators import read_graph
from serving.bundles.bundle import GOLDEN, MODEL, BundleManifest
from serving.bundles.golden import INPUT, load_golden
from serving.files import sha256_of_bytes
from serving.runtime.tensors import Array

ROUNDED = """/* The whole number nearest to a value in steps, ties to even ones, within bounds. */
static int32_t rounded(float steps, float zero, float low, float high)
{
    const float r = rintf(steps) + zero;
    return (int32_t)(r > low ? (r < high ? r : high) : low);
}
"""
EXPONENTIAL = """/* e to the power of x, within two roundings (Moshier, Cephes, expf): 2^n times e^r
 * for x = n ln 2 + r. That of a C library may set errno, which takes more memory than many a
 * model. */
static float exponential(float x)
{
    if (!(x > -87.0f)) {
        return 0.0f;
    }
    if (x > 88.0f) {
        return INFINITY;
    }
    const float n = rintf(x * 1.44269504f);
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    union { int32_t bits; float value; } power;
    power.bits = ((int32_t)n + 127) * 8388608; /* 2 to the power of n */
    return (p * r * r + r + 1.0f) * power.value;
}
"""
NOTES = """ *
 * Planes lie with the channels last: [height][width][channels]. Sums of whole numbers are exact;
 * for the very same roundings everywhere, compile floats without contraction (-std=c99, or
 * -ffp-contract=off) and without -ffast-math.
 *
 * In each step x is what it reads (x2, x3, ... what it reads besides), y what it writes, and i the
 * place in y, of row oy, column ox and channel o. iy and ix are the row and column that are read,
 * ky and kx those of the window over them, py and px those of the pooling.
 */"""
SHARED = {"rounded": ROUNDED, "exponential": EXPONENTIAL}
"""What kernels may call, by its name."""
LINE_BYTES = 12
"""Code of one line of C, Thumb-2 and -Os: measured over the models of the tests."""
CALLED_BYTES = {"rounded": 200, "exponential": 300, "tanhf": 2000}
"""Code of a function with what it takes of newlib, for a Cortex-M4F."""
STACK_BYTES = 200
"""Of the deepest call: 84 to 172 were measured."""
HEADER, SOURCE, SELFTEST = "model.h", "model.c", "selftest.c"


@dataclass(frozen=True, kw_only=True)
class CModel:
    """A model as C99; its texts are written when they are asked for, its room is known before."""

    name: str
    """What its C names begin with."""
    title: str
    """The model and the sha256 of its file, for comments."""
    labels: Sequence[str]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    kernels: Sequence[Kernel]
    functions: Sequence[Function]
    """One for each kernel."""
    offsets: Mapping[Buffer, int]
    """Bytes from the start of the arena."""
    arena_bytes: int
    """The static memory that all steps share."""

    @property
    def constant_bytes(self) -> int:
        """Weights, biases and scales."""
        return sum(int(values.nbytes) for one in self.functions for _, values, _ in one.tables)

    @property
    def flash_bytes(self) -> int:
        """Constants, code and what it takes of libm on a Cortex-M4F, the last two an estimate."""
        computing = sum(line[-1:] in ";{" for one in self.functions for line in one.lines)
        called = sum(size for name, size in CALLED_BYTES.items() if self._calls(name))
        return self.constant_bytes + computing * LINE_BYTES + called

    @property
    def ram_bytes(self) -> int:
        """Arena and stack, the latter an estimate; rows and answers are the caller's."""
        return self.arena_bytes + STACK_BYTES

    def _calls(self, name: str) -> bool:
        return any(f"{name}(" in line for one in self.functions for line in one.lines)

    @cached_property
    def header(self) -> str:
        """model.h, what a caller includes."""
        upper, values = self.name.upper(), (*self.inputs, *self.outputs)
        described = "\n".join(
            f" *   {one.place:<7}{one.name}: {ctype(one.dtype)} {_axes(one.shape)}"
            for one in values
        )
        sizes = [
            f"#define {upper}_{one.name.upper()}_SIZE {one.size} /* values */" for one in values
        ]
        if self.labels:
            texts = ", \\\n    ".join(c_string(label) for label in self.labels)
            sizes.append(f"#define {upper}_LABELS {{ \\\n    {texts}}}")
        return f"""/* {self.title}
 *
{described}
 *
 * One call answers one row. It works in {self.arena_bytes:,} bytes of static memory, so that only
 * one call may run at a time. Weights are constants, which a linker puts into flash.
 */
#ifndef FERRY_{upper}_H
#define FERRY_{upper}_H

#include <stdint.h>

{chr(10).join(sizes)}

#ifdef __cplusplus
extern "C" {{
#endif

void {self.name}_run({self._arguments});

#ifdef __cplusplus
}}
#endif

#endif
"""

    @property
    def _arguments(self) -> str:
        # Pointers, and no arrays: C++ reads this as well.
        read = [f"const {ctype(one.dtype)} *{one.name}" for one in self.inputs]
        written = [f"{ctype(one.dtype)} *{one.name}" for one in self.outputs]
        return ", ".join([*read, *written])

    @cached_property
    def source(self) -> str:
        """model.c, what is compiled."""
        parts = [f'/* {self.title}\n{NOTES}\n#include <math.h>\n\n#include "model.h"\n']
        if self.arena_bytes:
            size, kind = self.arena_bytes, "uint8_t"
            if self._aligned:
                size, kind = size // 4, "float"
            note = f"/* {self.arena_bytes:,} bytes, for what the steps hand on. */"
            parts.append(f"{note}\nstatic {kind} arena[{size}];\n")
        parts += [text for name, text in SHARED.items() if self._calls(name)]
        parts += dict.fromkeys(one.helper for one in self.functions if one.helper)
        for at, (kernel, function) in enumerate(self._steps, 1):
            parts += [table(*one) for one in function.tables]
            head = f"static void step{at}({function.arguments})"
            body = "\n".join(function.lines)
            parts.append(f"/* Step {at}: {_described(kernel)} */\n{head}\n{{\n{body}\n}}\n")
        return "\n".join([*parts, self._run])

    @property
    def _aligned(self) -> bool:
        """Whether the arena holds floats, which its type then aligns."""
        return any(buffer.dtype == "float" for buffer in self.offsets)

    @property
    def _steps(self) -> Iterator[tuple[Kernel, Function]]:
        return zip(self.kernels, self.functions, strict=True)

    @property
    def _run(self) -> str:
        calls = []
        for at, (kernel, function) in enumerate(self._steps, 1):
            passed = (kernel.source.buffer, *function.operands, kernel.target)
            calls.append(f"    step{at}({', '.join(map(self._place, passed))});")
        head = f"void {self.name}_run({self._arguments})"
        return "\n".join([head, "{", *calls, "}", ""])

    def _place(self, buffer: Buffer) -> str:
        """A buffer as an argument."""
        if buffer.place != "arena":
            return buffer.name
        offset, base = self.offsets[buffer], "arena"
        if buffer.dtype == "float":
            offset //= 4
        elif self._aligned or buffer.dtype != "uint8":
            base = f"({ctype(buffer.dtype)} *)arena"
        return f"{base} + {offset}" if offset else base


def emit(model: onnx.ModelProto, name: str, *, sha256: str = "") -> CModel:
    """Write a model as C99, the same bytes whenever and wherever it is done.

    The function takes one row, uint8 [H][W][C] or float32, and gives each output of the graph.
    `sha256` is that of the file; without it, that of the model as ferry saves it. Raises ModelError
    for a model with an operator, a dtype or a shape that C has not, by the node's name.
    """
    program = read_graph(model)
    kernels = fused(program.kernels)
    offsets, arena_bytes = plan(kernels)
    digest = sha256 or hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    labels = json.loads(metadata(model).get(f"{METADATA}labels", "[]"))
    return CModel(
        name=c_name(name),
        title=f"{plain(name)}, written by ferry for the ONNX file with the sha256\n * {digest}",
        labels=[str(label) for label in labels],
        inputs=tuple(program.inputs),
        outputs=tuple(program.outputs),
        kernels=kernels,
        functions=[function_of(kernel, f"step{at}") for at, kernel in enumerate(kernels, 1)],
        offsets=offsets,
        arena_bytes=arena_bytes,
    )


def c_name(name: str) -> str:
    """What the C names of a model begin with."""
    made = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
    return made if made[:1].isalpha() else f"model_{made}"


def _described(kernel: Kernel) -> str:
    """The nodes that a kernel stands for, and the shapes, for a comment."""
    before, after = kernel.source.buffer, kernel.target
    shapes = f"[{before.size}]", f"[{after.size}]"
    if isinstance(kernel, Linear | Pooling):
        planes = kernel.window.before, kernel.window.after
        channels = (kernel.channels,) * 2 if isinstance(kernel, Pooling) else kernel.channels
        shapes = _shape(planes[0], channels[0]), _shape(planes[1], channels[1])
        if isinstance(kernel, Linear) and kernel.pool:
            shapes = shapes[0], f"{shapes[1]}, pooled {_shape(kernel.pool.after, channels[1])}"
    kind = "copied" if isinstance(kernel, Elementwise) and not kernel.tail else ""
    types = f"{before.dtype} {shapes[0]} to {after.dtype} {shapes[1]}"
    return f"{kernel.title}{f' {kind}' if kind else ''}\n *    {types}"


def _shape(size: tuple[int, int], channels: int) -> str:
    return _axes((channels,) if size == (1, 1) else (*size, channels))


def _axes(shape: Sequence[int]) -> str:
    return "".join(f"[{axis}]" for axis in shape) or "[1]"


WIDTH = 32
"""Numbers a line."""
TEXT = """/* Golden rows of {title}
 *
 *   cc -std=c99 model.c selftest.c -lm -o ../selftest && ../selftest
 *
 * Exit status 0 where each row is decided as it must be, and no answer is further off than the
 * limit. -DROWS=8 leaves rows out, for a board with little flash.
 */
#include <math.h>
#include <stdio.h>

#include "model.h"

#ifndef ROWS
#define ROWS {count}
#endif

static const float limit = {limit};

static const {kind} rows[][{size}] = {{
{rows}
}};

{wanted}
/* The larger of two differences; infinity for none. */
static float larger(float off, float difference)
{{
    difference = fabsf(difference);
    return isnan(difference) ? INFINITY : difference > off ? difference : off;
}}

int main(void)
{{
    int failed = 0;
    float worst = 0.0f;
    for (int row = 0; row < ROWS; row++) {{
        {call}
        float off = 0.0f;
        int decided = 0, expected = 0;
{checks}
        if (decided != expected) {{
            printf("row %d: class %d, not %d\\n", row, decided, expected);
        }}
        if (off > limit) {{
            printf("row %d: %g off, the limit is %g\\n", row, (double)off, (double)limit);
        }}
        worst = off > worst ? off : worst;
        failed += off > limit || decided != expected;
    }}
    printf("%d of %d golden rows pass, the largest difference is %g\\n", ROWS - failed, ROWS,
           (double)worst);
    return failed > 0;
}}
"""


def parts(manifest: BundleManifest, files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """`model.h`, `model.c` and `selftest.c` of a bundle's model and golden rows.

    Raises ModelError for a model that C cannot compute, by the operator's name.
    """
    model = onnx.load_model_from_string(files[MODEL])
    program = emit(model, manifest.name, sha256=sha256_of_bytes(files[MODEL]))
    golden = load_golden(files[GOLDEN])
    names = [output.name for output in model.graph.output]
    scores = manifest.classes.scores.name if manifest.classes.scores else ""
    test = selftest(
        program,
        golden[INPUT],
        {one: golden[name] for name, one in zip(names, program.outputs, strict=True)},
        limit=manifest.golden.max_abs_diff,
        scores=next((at for at, name in enumerate(names) if name == scores), None),
    )
    texts = {HEADER: program.header, SOURCE: program.source, SELFTEST: test}
    return {name: text.encode("ascii") for name, text in texts.items()}


def selftest(
    program: CModel,
    rows: Array,
    wanted: Mapping[Buffer, Array],
    *,
    limit: float,
    scores: int | None,
) -> str:
    """The C of a test of golden rows, [rows, ...] of the input's dtype, with their answers.

    `limit` is the largest difference that an answer may show, `scores` the number of the output
    whose largest value tells the class; None where there are no classes.
    """
    (source,) = program.inputs
    outputs = program.outputs
    call = f"{program.name}_run(rows[row], {', '.join(f'found_{one.name}' for one in outputs)});"
    checks = []
    for at, one in enumerate(outputs):
        found, wanted_here = f"found_{one.name}", f"wanted_{one.name}[row]"
        compared = [f"off = larger(off, (float){found}[i] - {wanted_here}[i]);"]
        if at == scores:
            compared += [
                f"decided = {found}[i] > {found}[decided] ? i : decided;",
                f"expected = {wanted_here}[i] > {wanted_here}[expected] ? i : expected;",
            ]
        body = "\n            ".join(compared)
        checks.append(
            f"        for (int i = 0; i < {one.size}; i++) {{\n            {body}\n        }}"
        )
    return TEXT.format(
        title=program.title,
        count=len(rows),
        limit=number(np.nextafter(np.float32(limit), np.float32(np.inf))),
        kind=ctype(source.dtype),
        size=source.size,
        rows="\n".join(_rows(rows)),
        wanted="\n".join(_wanted(one, values) for one, values in wanted.items()),
        call=call,
        checks="\n".join(checks),
    )


def _rows(rows: Array) -> Iterator[str]:
    """Each row, which is left out where the test is compiled with fewer."""
    for at, row in enumerate(rows.reshape(len(rows), -1)):
        lines = ",\n     ".join(_lines(row))
        yield f"#if ROWS > {at}\n    {{{lines}}},\n#endif"


def _wanted(buffer: Buffer, values: Array) -> str:
    flat = values.reshape(len(values), -1).astype(np.float32)
    rows = ",\n".join(f"    {{{', '.join(_lines(row))}}}" for row in flat)
    found = f"static {ctype(buffer.dtype)} found_{buffer.name}[{buffer.size}];\n"
    return f"{found}static const float wanted_{buffer.name}[][{buffer.size}] = {{\n{rows},\n}};\n"


def _lines(row: Array) -> Iterator[str]:
    texts = [number(one) if row.dtype.kind == "f" else str(one) for one in row]
    for start in range(0, len(texts), WIDTH):
        yield ",".join(texts[start : start + WIDTH])
