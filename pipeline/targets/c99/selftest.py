"""What a bundle for microcontrollers holds besides: the C program, and a test that runs anywhere.

    cc -std=c99 model.c selftest.c -lm -o selftest && ./selftest

The golden rows are in the test itself. It prints what fails, and exits with 1 then.
"""

import io
from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from pipeline.targets.c99.ctext import ctype, number
from pipeline.targets.c99.emitting import CModel, emit
from pipeline.targets.c99.kernels import Buffer
from serving.bundles.bundle import GOLDEN, MODEL, BundleManifest
from serving.bundles.golden import INPUT
from serving.files import sha256_of_bytes
from serving.runtime.tensors import Array

HEADER, SOURCE, SELFTEST = "model.h", "model.c", "selftest.c"
WIDTH = 32
"""Numbers a line."""
TEXT = """/* Golden rows of {title}
 *
 *   cc -std=c99 model.c selftest.c -lm -o selftest && ./selftest
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
/* How far answers are from what they must be, or other answers were if that is more. */
static float apart(const float *found, const float *wanted, int size, float worst)
{{
    for (int i = 0; i < size; i++) {{
        const float off = fabsf(found[i] - wanted[i]);
        worst = isnan(off) ? INFINITY : off > worst ? off : worst;
    }}
    return worst;
}}

static int largest(const float *values, int size)
{{
    int at = 0;
    for (int i = 1; i < size; i++) {{
        at = values[i] > values[at] ? i : at;
    }}
    return at;
}}

int main(void)
{{
    int failed = 0;
    float worst = 0.0f;
    for (int row = 0; row < ROWS; row++) {{
        {call}
        float off = 0.0f;
{checks}
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
    with np.load(io.BytesIO(files[GOLDEN]), allow_pickle=False) as archive:
        golden = {name: archive[name] for name in archive.files}
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
    checks = [
        f"        off = apart(found_{one.name}, wanted_{one.name}[row], {one.size}, off);"
        for one in outputs
    ]
    checks += ["        int decided = 0, expected = 0;", *_decision(outputs, scores)]
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


def _decision(outputs: tuple[Buffer, ...], scores: int | None) -> Iterator[str]:
    if scores is None:
        return
    one = outputs[scores]
    yield f"        decided = largest(found_{one.name}, {one.size});"
    yield f"        expected = largest(wanted_{one.name}[row], {one.size});"
    yield "        if (decided != expected) {"
    yield '            printf("row %d: class %d, not %d\\n", row, decided, expected);'
    yield "        }"


def _rows(rows: Array) -> Iterator[str]:
    """Each row, which is left out where the test is compiled with fewer."""
    for at, row in enumerate(rows.reshape(len(rows), -1)):
        lines = ",\n     ".join(_lines(row))
        yield f"#if ROWS > {at}\n    {{{lines}}},\n#endif"


def _wanted(buffer: Buffer, values: Array) -> str:
    flat = values.reshape(len(values), -1).astype(np.float32)
    rows = ",\n".join(f"    {{{', '.join(_lines(row))}}}" for row in flat)
    found = f"static float found_{buffer.name}[{buffer.size}];\n"
    return f"{found}static const float wanted_{buffer.name}[][{buffer.size}] = {{\n{rows},\n}};\n"


def _lines(row: Array) -> Iterator[str]:
    texts = [number(one) if row.dtype.kind == "f" else str(one) for one in row]
    for start in range(0, len(texts), WIDTH):
        yield ",".join(texts[start : start + WIDTH])
