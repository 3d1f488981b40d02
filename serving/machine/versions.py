"""Which packages are installed, by their metadata alone: nothing is imported to find out.

ONNX Runtime comes in several wheels that write the same folder; two of them break each other.
"""

RUNTIME_WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    from importlib import metadata  # brings the parser of e-mails along

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def ferry_version() -> str | None:
    """The version of ferry that is installed, or None when it runs from a folder."""
    return installed_version("onnx-ferry")


def runtime_wheels() -> dict[str, str]:
    """The installed wheels that hold ONNX Runtime, with their versions; there should be one."""
    found = {name: installed_version(name) for name in RUNTIME_WHEELS}
    return {name: version for name, version in found.items() if version is not None}
