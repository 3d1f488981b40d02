"""The exceptions of the stages; they hang in the tree that `serving.errors` draws.

FerryError                                   exit 1
├── ...                                      see serving.errors
├── ConfigError         (ValueError)         exit 2: params.yaml, by the key's full path
├── DownloadError       (ConnectionError)    no address had the file
├── DivergedError       (ArithmeticError)    a loss that is not a number
└── GateError           (ValueError)         a gate that was not met
    └── ParityError                          an ONNX variant that is not the trained model
"""

from serving.errors import FerryError


class ConfigError(FerryError, ValueError):
    """A key of params.yaml that is unknown, missing, mistyped or out of range."""

    exit_code = 2


class DownloadError(FerryError, ConnectionError):
    """No address had the file; the message names them all and the ways out."""


class DivergedError(FerryError, ArithmeticError):
    """A training loss that is not a number; the message names epoch, step and learning rate."""


class GateError(FerryError, ValueError):
    """A measured value outside its limit."""


class ParityError(GateError):
    """An ONNX variant that does not answer as the trained weights do."""
