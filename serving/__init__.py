"""Run what ferry exported: sessions that prove their provider, bundles, batch inference, timing.

from serving import open_model
open_model("bundles/mnist-cnn").predict(images)             # of images, texts or numbers
open_model("bundles/mnist-autoencoder").answers(images)     # any model: its outputs by name
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.model import Model, Prediction, open_model

__all__ = ["Model", "Prediction", "open_model"]


def __getattr__(name: str) -> Any:
    """Import what is public when it is first used: `ferry --help` must not wait for numpy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from serving import model

    return getattr(model, name)
