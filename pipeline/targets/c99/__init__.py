"""A model as C99 for microcontrollers: `emit` writes it, `parts` adds it to a bundle.

A small compiler. `operators` and `windows` make kernels of the nodes of a `graph`; `kernels` joins
them and plans their memory; `functions` writes each as C out of the pieces in `ctext`; `emitting`
makes the files of them.
"""

from pipeline.targets.c99.emitting import CModel, emit, parts

__all__ = ["CModel", "emit", "parts"]
