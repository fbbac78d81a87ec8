"""The data sets that can be loaded: names, shapes, counts, classes and archives.

The numbers are those of the published sets (see their home pages below), and archives and prepared
records are checked against them. The numbers of images in each class are recorded too, because the
archives of MNIST and Fashion-MNIST have the same file names and shapes and differ in nothing else
that could be checked. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses

PREPROCESSINGS: tuple[str, ...] = ("scale", "meanstd", "gcn_zca")
AUGMENTATIONS: tuple[str, ...] = ("none", "flip_crop", "flip_rotate")


@dataclasses.dataclass(frozen=True)
class IdxFiles:
    """The four gzip-compressed idx files of one MNIST-like set.

    Attributes:
        train_images: File name of the training images.
        train_labels: File name of the training labels.
        test_images: File name of the test images.
        test_labels: File name of the test labels.
    """

    train_images: str = "train-images-idx3-ubyte.gz"
    train_labels: str = "train-labels-idx1-ubyte.gz"
    test_images: str = "t10k-images-idx3-ubyte.gz"
    test_labels: str = "t10k-labels-idx1-ubyte.gz"

    @property
    def names(self) -> tuple[str, ...]:
        """The four file names."""
        return (self.train_images, self.train_labels, self.test_images, self.test_labels)


@dataclasses.dataclass(frozen=True)
class NpzFile:
    """The file in which Keras keeps a set.

    Attributes:
        file: File name.
    """

    file: str


@dataclasses.dataclass(frozen=True)
class CifarArchive:
    """One tar archive of a CIFAR set.

    Attributes:
        file: File name of the archive.
        folder: The folder of its members.
        train: Members with training images, in order.
        test: Members with test images, in order.
        names: Three names for each label of a record, in the order of the binary records: the
            key of the label in a pickled batch, the member that lists its class names, and the key
            of that list in a pickle.
        pickled: Whether members are pickles ("python version") or plain records ("binary").
    """

    file: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: tuple[tuple[str, str, str], ...]
    pickled: bool


Archive = IdxFiles | NpzFile | CifarArchive


@dataclasses.dataclass(frozen=True)
class Entry:
    """One data set of the catalog.

    Attributes:
        name: The name for `-d`, which is also its TFDS name.
        version: The version under which records are stored. It is that of TFDS' own builder, so
            that TFDS and this library can read each other's records.
        image_shape: (height, width, channels).
        label_names: Class names, in the order of the labels.
        train_counts: Training images per class.
        test_counts: Test images per class.
        description: What the set is, in one line.
        homepage: The web page with the archives.
        citation: BibTeX entry.
        archives: The archives that the set is published as; any one of them is enough.
        probe_url: A file that TFDS would download, which is asked for first to see whether a
            download could work. None if the set cannot be downloaded.
        coarse_names: Names of the coarse classes; empty if there are none.
        torchvision: The folder of the archives below torchvision's root; "" if torchvision does
            not have them.
    """

    name: str
    version: str
    image_shape: tuple[int, int, int]
    label_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    description: str
    homepage: str
    citation: str
    archives: tuple[Archive, ...]
    probe_url: str | None
    coarse_names: tuple[str, ...] = ()
    torchvision: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return sum(self.train_counts)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return sum(self.test_counts)


_MNIST_CITATION = """@article{lecun1998gradient,
  title={Gradient-based learning applied to document recognition},
  author={LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal={Proceedings of the IEEE}, volume={86}, number={11}, pages={2278--2324}, year={1998}
}"""
_FASHION_CITATION = """@article{xiao2017fashion,
  title={Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author={Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal={arXiv:1708.07747}, year={2017}
}"""
_CIFAR_CITATION = """@techreport{krizhevsky2009learning,
  title={Learning multiple layers of features from tiny images},
  author={Krizhevsky, Alex}, institution={University of Toronto}, year={2009}
}"""
_CIFAR_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"

_FASHION_NAMES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
# The fine classes of CIFAR-100 are in alphabetical order, and so are the coarse ones.
_CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100_COARSE_NAMES = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
household_furniture insects large_carnivores large_man-made_outdoor_things
large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""

_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR10_ARCHIVES = (
    CifarArchive(
        file="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=_BATCHES,
        test=("test_batch",),
        names=(("labels", "batches.meta", "label_names"),),
        pickled=True,
    ),
    CifarArchive(
        file="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        train=tuple(f"{batch}.bin" for batch in _BATCHES),
        test=("test_batch.bin",),
        names=(("labels", "batches.meta.txt", ""),),
        pickled=False,
    ),
)
_CIFAR100_ARCHIVES = (
    CifarArchive(
        file="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        names=(
            ("coarse_labels", "meta", "coarse_label_names"),
            ("fine_labels", "meta", "fine_label_names"),
        ),
        pickled=True,
    ),
    CifarArchive(
        file="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        names=(
            ("coarse_labels", "coarse_label_names.txt", ""),
            ("fine_labels", "fine_label_names.txt", ""),
        ),
        pickled=False,
    ),
)

_FASHION = Entry(
    name="fashion_mnist",
    version="3.0.1",
    image_shape=(28, 28, 1),
    label_names=tuple(_FASHION_NAMES.split(",")),
    train_counts=(6000,) * 10,
    test_counts=(1000,) * 10,
    description="Zalando's article images: 60,000 + 10,000 grey 28x28 images in 10 classes.",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    citation=_FASHION_CITATION,
    archives=(IdxFiles(),),
    probe_url=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-labels-idx1-ubyte.gz"
    ),
    torchvision="FashionMNIST/raw",
)

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        # 875 + 175 images per class and not 1,000 + 200: twelve thousand images would take 6.8 MB
        # of PNG records, and the repository has room for 6 MB.
        dataclasses.replace(
            _FASHION,
            name="fashion_mnist_small",
            version="1.0.0",
            train_counts=(875,) * 10,
            test_counts=(175,) * 10,
            description="A stratified subset of Fashion-MNIST that comes with the repository.",
            probe_url=None,
        ),
        Entry(
            name="mnist",
            version="3.0.1",
            image_shape=(28, 28, 1),
            label_names=tuple("0123456789"),
            train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
            test_counts=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
            description="Handwritten digits: 60,000 + 10,000 grey 28x28 images in 10 classes.",
            homepage="http://yann.lecun.com/exdb/mnist/",
            citation=_MNIST_CITATION,
            archives=(IdxFiles(), NpzFile("mnist.npz")),
            probe_url=(
                "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-labels-idx1-ubyte.gz"
            ),
            torchvision="MNIST/raw",
        ),
        _FASHION,
        Entry(
            name="cifar10",
            version="3.0.2",
            image_shape=(32, 32, 3),
            label_names=tuple(_CIFAR10_NAMES.split()),
            train_counts=(5000,) * 10,
            test_counts=(1000,) * 10,
            description="Tiny photographs: 50,000 + 10,000 colour 32x32 images in 10 classes.",
            homepage=_CIFAR_HOME,
            citation=_CIFAR_CITATION,
            archives=_CIFAR10_ARCHIVES,
            probe_url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        ),
        Entry(
            name="cifar100",
            version="3.0.2",
            image_shape=(32, 32, 3),
            label_names=tuple(_CIFAR100_NAMES.split()),
            train_counts=(500,) * 100,
            test_counts=(100,) * 100,
            description="Tiny photographs: 50,000 + 10,000 colour 32x32 images in 100 classes.",
            homepage=_CIFAR_HOME,
            citation=_CIFAR_CITATION,
            archives=_CIFAR100_ARCHIVES,
            probe_url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            coarse_names=tuple(_CIFAR100_COARSE_NAMES.split()),
        ),
    )
}

DATASETS: tuple[str, ...] = tuple(ENTRIES)
