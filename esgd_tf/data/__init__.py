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

require("esgd_tf.data", "data", "tensorflow_datasets", "filelock", "PIL", "tqdm")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "catalog": ["AUGMENTATIONS", "DATASETS", "PREPROCESSINGS"],
        "corrupted_data": ["corrupt_data", "corrupt_new_images"],
        "corruption": ["CORRUPTIONS", "Corruption", "parse_corruptions"],
        "errors": ["DataError"],
        "input_noise": ["corrupt_in_order", "input_corruption"],
        "pipeline": ["evaluation_batches", "steps_per_epoch", "training_batches"],
        "preprocessing": ["Preprocessor", "preprocessor"],
        "sources": ["ImageData", "load"],
        "targets": ["soft_labels"],
    },
)
