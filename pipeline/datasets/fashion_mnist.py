"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes, grey, 28 x 28.

Copyright Zalando SE. No experiment of params.yaml is on it; for one of your own, add its section
there: `fashion_mnist: {validation_rows: 5000, seed: 1}`.
"""

from pipeline.datasets import Dataset, idx_files, idx_reader

OFFICIAL = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
SIZE = (28, 28)
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


DATASET = Dataset(
    title="Fashion-MNIST",
    kind="image",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    citation=(
        "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking "
        "Machine Learning Algorithms, arXiv:1708.07747, 2017"
    ),
    licence="MIT",
    labels=LABELS,
    files=idx_files(
        OFFICIAL,
        (
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
    read=idx_reader(SIZE, len(LABELS)),
)
