"""The target `web`: a page that runs the model in a browser, beside the files of every bundle.

    ferry bundle digits-cnn --target web && ferry demo bundles/digits-cnn.web

The folder can be served by any server of static files. The page is the files of `web/` as they are,
written by hand, and ONNX Runtime for browsers as it is published: a script, and WebAssembly that is
kept packed here.
"""

import lzma
from collections.abc import Mapping
from importlib import resources

from serving.bundles.bundle import BundleManifest
from serving.errors import IntegrityError
from serving.files import sha256_of_bytes

PACKED = ".xz"
RUNTIME_VERSION = "1.30.0"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
RUNTIME = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""The sha256 of the files of the npm package onnxruntime-web of that version."""


def web_page(_manifest: BundleManifest, _core: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of the page by name, the same for every model: the page reads the manifest.

    Raises IntegrityError for a runtime whose bytes are not the published ones.
    """
    pages = {}
    files = resources.files("pipeline.targets").joinpath("web").iterdir()
    # In one order everywhere: it becomes the order in the manifest, and so a part of its digest.
    for file in sorted(files, key=lambda one: one.name):
        content = file.read_bytes()
        name = file.name.removesuffix(PACKED)
        pages[name] = lzma.decompress(content) if name != file.name else content
    for name, expected in RUNTIME.items():
        found = sha256_of_bytes(pages.get(name, b""))
        if found != expected:
            raise IntegrityError(
                f"{name} of the page has sha256 {found[:12]}…, onnxruntime-web {RUNTIME_VERSION} "
                f"has {expected[:12]}…; install onnx-ferry anew"
            )
    return pages
