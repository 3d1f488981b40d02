"""MNIST: 60,000 training and 10,000 test images of handwritten digits, grey, 28 x 28.

Copyright Yann LeCun and Corinna Cortes.
"""

from pipeline.datasets import Dataset, idx_files, idx_reader

OFFICIAL = ("http://yann.lecun.com/exdb/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/")
SIZE = (28, 28)
CLASSES = 10


DATASET = Dataset(
    title="MNIST",
    kind="image",
    homepage="http://yann.lecun.com/exdb/mnist/",
    citation=(
        "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document "
        "recognition, Proceedings of the IEEE 86(11):2278-2324, 1998"
    ),
    licence="CC BY-SA 3.0",
    labels=tuple(str(digit) for digit in range(CLASSES)),
    files=idx_files(
        OFFICIAL,
        (
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    read=idx_reader(SIZE, CLASSES),
)
