"""The smallest model worth a session: what a provider must run to count as usable.

`probe.onnx` is one MatMul and one Add on float32 [1, 4], opset 13, IR 8: old enough for every
provider, and large enough that a provider has nodes to take or to refuse.
"""

from importlib import resources

__all__ = ["probe"]


def probe() -> bytes:
    """The bytes of the probe, an ONNX model of a few hundred bytes."""
    return resources.files("serving").joinpath("probe.onnx").read_bytes()
