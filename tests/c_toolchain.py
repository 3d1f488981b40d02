"""Compile and run the C program of a model, here and on an emulated Cortex-M4, and measure it.

The emulated board is QEMU's `mps2-an386`, which reads and writes files here by semihosting. It
counts no cycles: what is measured is memory.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.targets.c99.ctext import ctype
from pipeline.targets.c99.emitting import CModel
from serving.errors import MissingInputError, ModelError
from serving.runtime.tensors import Array

Machine = Literal["host", "cortex-m4"]
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror")
SANITIZED = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
"""Not optimised: it finds the same, and compiles ten times as fast."""
CORTEX_M4 = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-Os")
LINKED = ("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-nostartfiles")
CROSS, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
QEMU = ("-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none")
LONGEST_RUN = 600
"""Seconds until an emulated board counts as hung."""
LINKER = """MEMORY
{
    flash (rx) : ORIGIN = 0x00000000, LENGTH = 4M
    ram (rwx) : ORIGIN = 0x20000000, LENGTH = 4M
}
ENTRY(reset)
SECTIONS
{
    .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) } > flash
    .ARM.exidx : { *(.ARM.exidx*) } > flash
    .data : { *(.data*) } > ram
    .bss (NOLOAD) : { bss_start = .; *(.bss*) *(COMMON) . = ALIGN(8); bss_end = .; } > ram
    end = .;
    stack_top = ORIGIN(ram) + LENGTH(ram);
    stack_low = stack_top - 64K;
}
"""
STARTUP = """#include <stdint.h>
#include <stdlib.h>

extern uint32_t bss_start[], bss_end[], stack_top[];
extern void initialise_monitor_handles(void);
extern int main(void);

void _init(void) {}
void _fini(void) {}

void reset(void)
{
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* the floating-point unit */
    for (uint32_t *at = bss_start; at < bss_end; at++) {
        *at = 0;
    }
    initialise_monitor_handles();
    exit(main());
}

static void fault(void)
{
    _Exit(3);
}

__attribute__((section(".vectors"), used)) static const uintptr_t vectors[] = {
    (uintptr_t)stack_top, (uintptr_t)reset, (uintptr_t)fault, (uintptr_t)fault,
    (uintptr_t)fault,     (uintptr_t)fault, (uintptr_t)fault,
};
"""
# The stack below is filled with a pattern before a call, and looked at after it.
DRIVER = """#include <stdint.h>
#include <stdio.h>

#include "model.h"

{buffers}

static void run(void)
{{
    {call}
}}

#ifdef __arm__
extern uint8_t stack_low[];

static unsigned deepest(void)
{{
    uintptr_t top;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    for (volatile uint8_t *at = stack_low; (uintptr_t)at < top; at++) {{
        *at = 0xA5;
    }}
    run();
    const volatile uint8_t *used = stack_low;
    while (*used == 0xA5) {{
        used++;
    }}
    return (unsigned)(top - (uintptr_t)used);
}}
#endif

int main(void)
{{
    FILE *rows = fopen("rows.bin", "rb"), *answers = fopen("answers.bin", "wb");
    if (!rows || !answers) {{
        return 2;
    }}
    while ({read}) {{
        run();
        {write}
    }}
    fclose(answers);
#ifdef __arm__
    FILE *stack = fopen("stack.txt", "w");
    fprintf(stack, "%u", deepest());
    fclose(stack);
#endif
    return 0;
}}
"""
BARE = """#include <stdint.h>

#include "model.h"

/* Rows and answers lie outside of what is measured. */
void reset(void)
{{
    {name}_run({pointers});
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a program takes on a Cortex-M4F, compiled with -Os, with what it needs of libm."""

    flash_bytes: int
    """Code and constants."""
    arena_bytes: int
    """Static memory."""
    stack_bytes: int | None
    """Of the last run on the emulated board in that folder; None where there was none."""


def missing(machine: Machine) -> str:
    """What this machine lacks to run programs; "" for nothing."""
    needed = ("gcc",) if machine == "host" else (CROSS, EMULATOR)
    return ", ".join(program for program in needed if shutil.which(program) is None)


def answers(
    program: CModel,
    rows: Mapping[str, Array],
    folder: Path,
    *,
    machine: Machine = "host",
    flags: Sequence[str] = ("-O2",),
) -> dict[str, Array]:
    """Run a program on rows, by the C names of its inputs; returns [rows, values] by output.

    `flags` are for the compiler of the host. Raises MissingInputError without a compiler or
    emulator, ModelError for a program that does not compile or ends badly.
    """
    _write(program, folder)
    drive(program, folder)
    write_rows(program, rows, folder)
    if machine == "host":
        _do(["gcc", *STRICT, *flags, "driver.c", "model.c", "-o", "driver", "-lm"], folder)
        _do(["./driver"], folder)
    else:
        build = [CROSS, *STRICT, *CORTEX_M4, *LINKED, "--specs=rdimon.specs", "-T", "board.ld"]
        _do([*build, "startup.c", "driver.c", "model.c", "-o", "driver.elf", "-lm"], folder)
        emulate(folder / "driver.elf")
    return _read(program, folder)


def emulate(program: Path) -> str:
    """Run a program for the emulated board in its folder; returns what it prints."""
    native = ["-semihosting-config", "enable=on,target=native", "-kernel", program.name]
    return _do([EMULATOR, *QEMU, *native], program.parent)


def measure(program: CModel, folder: Path) -> Memory:
    """Measure a program; raises MissingInputError without the cross compiler."""
    _write(program, folder)
    pointers = ", ".join(
        f"({'const ' if one.place == 'input' else ''}{ctype(one.dtype)} *)0x20000000"
        for one in (*program.inputs, *program.outputs)
    )
    (folder / "bare.c").write_text(BARE.format(name=program.name, pointers=pointers))
    build = [CROSS, *STRICT, *CORTEX_M4, *LINKED, "-T", "board.ld", "bare.c", "model.c"]
    _do([*build, "-o", "bare.elf", "-lm", "-lc", "-lgcc"], folder)
    sizes = _do([CROSS.replace("gcc", "size"), "bare.elf"], folder).splitlines()[1].split()
    text, data, bss = (int(size) for size in sizes[:3])
    told = folder / "stack.txt"
    stack = int(told.read_text()) if told.is_file() else None
    return Memory(flash_bytes=text + data, arena_bytes=data + bss, stack_bytes=stack)


def _write(program: CModel, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.h").write_text(program.header)
    (folder / "model.c").write_text(program.source)
    board(folder)


def board(folder: Path) -> None:
    """Write what a program needs beside it on the emulated board."""
    (folder / "board.ld").write_text(LINKER)
    (folder / "startup.c").write_text(STARTUP)


def drive(program: CModel, folder: Path) -> None:
    """Write a `main` that answers the rows of a file."""
    values = (*program.inputs, *program.outputs)
    buffers = "\n".join(f"static {ctype(one.dtype)} {one.name}_[{one.size}];" for one in values)
    call = f"{program.name}_run({', '.join(f'{one.name}_' for one in values)});"
    read = " && ".join(
        f"fread({one.name}_, sizeof {one.name}_, 1, rows) == 1" for one in program.inputs
    )
    write = " ".join(
        f"fwrite({one.name}_, sizeof {one.name}_, 1, answers);" for one in program.outputs
    )
    text = DRIVER.format(buffers=buffers, call=call, read=read, write=write)
    (folder / "driver.c").write_text(text)


def write_rows(program: CModel, rows: Mapping[str, Array], folder: Path) -> None:
    """Write the file of rows, all inputs of one after the other."""
    parts = [
        np.ascontiguousarray(rows[one.name], _numpy(one.dtype)).reshape(len(rows[one.name]), -1)
        for one in program.inputs
    ]
    joined = np.concatenate([part.view(np.uint8) for part in parts], axis=1)
    (folder / "rows.bin").write_bytes(joined.tobytes())


def _read(program: CModel, folder: Path) -> dict[str, Array]:
    kinds = [(one.name, _numpy(one.dtype), (one.size,)) for one in program.outputs]
    found = np.fromfile(folder / "answers.bin", np.dtype(kinds))
    return {one.name: np.array(found[one.name]) for one in program.outputs}


def _numpy(dtype: str) -> np.dtype:
    return np.dtype({"float": np.float32}.get(dtype, dtype))


def _do(command: Sequence[str], folder: Path) -> str:
    """Run a program in a folder; returns what it prints."""
    if "/" not in command[0] and shutil.which(command[0]) is None:
        raise MissingInputError(f"{command[0]} is not installed: it compiles or runs C here")
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=LONGEST_RUN
    )
    if done.returncode:
        said = (done.stderr + done.stdout).strip()[-1000:]
        raise ModelError(f"`{' '.join(command)}` in {folder} ended with {done.returncode}: {said}")
    return done.stdout
