"""Data sets of images: loading, corrupting and preprocessing them, and batches to train on.

    data = load("fashion_mnist_small")
    prepare = preprocessor("meanstd", data)
    batches = training_batches(data.train_images, data.train_labels, batch_size=128, seed=42,
                               preprocess=prepare, augmentation="flip_crop")

Nothing here imports TensorFlow before it is needed: `--help` can list data sets, preprocessings,
augmentations and corruptions at once, and `load` reports a missing data set within seconds.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.data", "tensorflow", "tensorflow", "keras")
require("esgd_tf.data", "data", "tensorflow_datasets", "filelock", "PIL", "tqdm")

# The names stand in the stub beside this file, where editors and type checkers look for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
