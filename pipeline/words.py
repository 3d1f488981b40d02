"""What a word of a text is: what stands between blanks, as the exported graph splits it.

The graph splits with ONNX's StringSplit; the one function here does the same in Python, for the
vocabulary and for training.
"""

__all__ = ["words"]

BLANK = " "
"""The one character that ONNX Runtime splits at: a tab or a line break is part of a word."""


def words(text: str) -> list[str]:
    """Split a text at blanks, of which several count as one; those at either end count for none.

    The same as ONNX's StringSplit without a delimiter in ONNX Runtime.
    """
    return [word for word in text.split(BLANK) if word]
