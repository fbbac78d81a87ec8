"""Every layer and activation of Keras, in a small network around it, or why it is in none.

What is in `keras.layers` stands in one of the tables `EXACT`, `NOT_TRIED` and `NOT_IN_A_NETWORK`,
if it is not another name of the same; what is in `keras.activations` in `ACTIVATIONS`. The tables
of docs/landscape.md are held equal to these.
"""

import keras
import numpy as np

K = keras.layers

# Inputs, without the batch.
LINE, ROW, IMAGE, VOLUME, FILM = (4,), (6, 3), (6, 6, 2), (4, 4, 4, 2), (3, 5, 5, 2)
IMAGE_OF_3 = (6, 6, 3)


class Case:
    """A layer, and how a small network is built around it.

    Args:
        shape: Of one input.
        make: Of no arguments; returns the layer, or a function of a tensor.
        tokens: Whether the layer takes whole numbers, so that no weight comes before it.
        before: Whether a layer with weights comes before it.
        through: Whether a gradient goes through it.
        dtype: In which the network is tried: float64, but where TensorFlow has kernels for float32
            only.
        step: Of the central differences.
        within: By which part the product may be off.
    """

    def __init__(
        self,
        shape,
        make,
        tokens=0,
        before=True,
        through=True,
        dtype="float64",
        step=1e-5,
        within=1e-6,
    ):
        self.shape, self.make, self.tokens = shape, make, tokens
        self.before, self.through = before and not tokens, through
        self.dtype, self.step, self.within = dtype, step, within

    def model(self):
        """Return a network with weights before and behind the layer, none at a special place."""
        inputs = keras.Input(self.shape, dtype="int32" if self.tokens else None)
        x = inputs
        if self.before:
            x = K.Dense(self.shape[-1], activation="tanh", name="before")(x)
        x = self.make()(x)
        x = K.Dense(2, name="behind")(K.Flatten()(x))
        model = keras.Model(inputs, x)
        rng = np.random.default_rng(1)
        for variable in model.trainable_variables:
            variable.assign(rng.normal(size=variable.shape, scale=0.6))
        for variable in model.non_trainable_variables:
            if "variance" in variable.path:
                variable.assign(0.5 + rng.random(variable.shape))
        return model

    def data(self, n=3):
        """Return inputs and targets."""
        rng = np.random.default_rng(2)
        if self.tokens:
            x = rng.integers(0, self.tokens, (n, *self.shape))
        else:
            x = rng.normal(size=(n, *self.shape))
        return x, rng.normal(size=(n, 2))


def _in_float32(shape, make):
    return Case(shape, make, dtype="float32", step=3e-4, within=2e-3)


def _rounded(shape, make):
    """Return the case of a layer that rounds to float32 inside."""
    return Case(shape, make, step=1e-3, within=1e-4)


def _two(layer, **options):
    """Return a function that gives a layer of two inputs the same one twice, turned around."""

    def make():
        made = layer(**options)
        return lambda x: made([x, keras.ops.sin(2.0 * x)])

    return make


def _attention(layer, **options):
    def make():
        made = layer(**options)
        return lambda x: made(x, keras.ops.sin(2.0 * x))

    return make


def _normalized():
    layer = K.Normalization()
    layer.adapt(np.random.default_rng(3).normal(1.0, 2.0, (50, 6, 3)))
    return layer


# Layers for data augmentation: networks are measured as they are evaluated, without it.
AT_RANDOM = {
    "AugMix": (), "CutMix": (), "MixUp": (), "RandAugment": (), "RandomBrightness": (0.1,),
    "RandomColorDegeneration": (0.1,), "RandomColorJitter": (0.1,), "RandomContrast": (0.1,),
    "RandomCrop": (6, 6), "RandomElasticTransform": (), "RandomErasing": (), "RandomFlip": (),
    "RandomGaussianBlur": (), "RandomGrayscale": (), "RandomHue": (0.1,), "RandomInvert": (),
    "RandomPerspective": (), "RandomPosterization": (4,), "RandomRotation": (0.1,),
    "RandomSaturation": (0.1,), "RandomSharpness": (0.1,), "RandomShear": (),
    "RandomTranslation": (0.1, 0.1), "RandomZoom": (0.1,), "Solarization": (),
}  # fmt: skip

EXACT = {
    # Core
    "Dense": Case(LINE, lambda: K.Dense(3, "tanh")),
    "EinsumDense": Case(ROW, lambda: K.EinsumDense("abc,cd->abd", (6, 2), activation="tanh")),
    "Embedding": Case((5,), lambda: K.Embedding(7, 3, mask_zero=False), tokens=7),
    "ReversibleEmbedding": Case((5,), lambda: K.ReversibleEmbedding(7, 3), tokens=7),
    "Activation": Case(LINE, lambda: K.Activation("tanh")),
    "Identity": Case(LINE, K.Identity),
    "Lambda": Case(LINE, lambda: K.Lambda(lambda x: x**3)),
    "Masking": Case(ROW, lambda: lambda x: K.LSTM(2)(K.Masking()(x))),
    "InputLayer": Case(LINE, lambda: lambda x: x),
    # Convolutions
    "Conv1D": Case(ROW, lambda: K.Conv1D(2, 3, activation="tanh")),
    "Conv2D": Case(IMAGE, lambda: K.Conv2D(2, 3, strides=2, activation="tanh")),
    "Conv3D": Case(VOLUME, lambda: K.Conv3D(2, 2, activation="tanh")),
    "Conv1DTranspose": Case(ROW, lambda: K.Conv1DTranspose(2, 3, activation="tanh")),
    "Conv2DTranspose": Case(IMAGE, lambda: K.Conv2DTranspose(2, 3, strides=2, activation="tanh")),
    "Conv3DTranspose": Case(VOLUME, lambda: K.Conv3DTranspose(1, 2, activation="tanh")),
    "DepthwiseConv1D": Case(ROW, lambda: K.DepthwiseConv1D(3, activation="tanh")),
    "DepthwiseConv2D": Case(IMAGE, lambda: K.DepthwiseConv2D(3, activation="tanh")),
    "SeparableConv1D": Case(ROW, lambda: K.SeparableConv1D(2, 3, activation="tanh")),
    "SeparableConv2D": Case(IMAGE, lambda: K.SeparableConv2D(2, 3, activation="tanh")),
    # Pooling
    "AveragePooling1D": Case(ROW, lambda: K.AveragePooling1D(2)),
    "AveragePooling2D": Case(IMAGE, lambda: K.AveragePooling2D(2)),
    "AveragePooling3D": _in_float32(VOLUME, lambda: K.AveragePooling3D(2)),
    "MaxPooling1D": Case(ROW, lambda: K.MaxPooling1D(2)),
    "MaxPooling2D": Case(IMAGE, lambda: K.MaxPooling2D(2)),
    "MaxPooling3D": _in_float32(VOLUME, lambda: K.MaxPooling3D(2)),
    "GlobalAveragePooling1D": Case(ROW, K.GlobalAveragePooling1D),
    "GlobalAveragePooling2D": Case(IMAGE, K.GlobalAveragePooling2D),
    "GlobalAveragePooling3D": Case(VOLUME, K.GlobalAveragePooling3D),
    "GlobalMaxPooling1D": Case(ROW, K.GlobalMaxPooling1D),
    "GlobalMaxPooling2D": Case(IMAGE, K.GlobalMaxPooling2D),
    "GlobalMaxPooling3D": Case(VOLUME, K.GlobalMaxPooling3D),
    "AdaptiveAveragePooling1D": Case(ROW, lambda: K.AdaptiveAveragePooling1D(4)),
    "AdaptiveAveragePooling2D": Case(IMAGE, lambda: K.AdaptiveAveragePooling2D(4)),
    "AdaptiveAveragePooling3D": _in_float32(VOLUME, lambda: K.AdaptiveAveragePooling3D(3)),
    "AdaptiveMaxPooling1D": Case(ROW, lambda: K.AdaptiveMaxPooling1D(4)),
    "AdaptiveMaxPooling2D": Case(IMAGE, lambda: K.AdaptiveMaxPooling2D(4)),
    "AdaptiveMaxPooling3D": _in_float32(VOLUME, lambda: K.AdaptiveMaxPooling3D(3)),
    # Recurrent
    "LSTM": Case(ROW, lambda: K.LSTM(2)),
    "GRU": Case(ROW, lambda: K.GRU(2)),
    "SimpleRNN": Case(ROW, lambda: K.SimpleRNN(2)),
    "RNN": Case(ROW, lambda: K.RNN(K.SimpleRNNCell(2))),
    "LSTMCell": Case(ROW, lambda: K.RNN(K.LSTMCell(2), return_sequences=True)),
    "GRUCell": Case(ROW, lambda: K.RNN(K.GRUCell(2, reset_after=False))),
    "SimpleRNNCell": Case(ROW, lambda: K.RNN(K.SimpleRNNCell(2), go_backwards=True)),
    "StackedRNNCells": Case(
        ROW, lambda: K.RNN(K.StackedRNNCells([K.GRUCell(2), K.SimpleRNNCell(2)]))
    ),
    "Bidirectional": Case(ROW, lambda: K.Bidirectional(K.LSTM(2))),
    "TimeDistributed": Case(ROW, lambda: K.TimeDistributed(K.Dense(2, "tanh"))),
    "ConvLSTM1D": Case((3, 5, 2), lambda: K.ConvLSTM1D(2, 3)),
    "ConvLSTM2D": Case(FILM, lambda: K.ConvLSTM2D(1, 3)),
    "ConvLSTM3D": Case((2, 3, 3, 3, 1), lambda: K.ConvLSTM3D(1, 2)),
    # Normalization
    "BatchNormalization": Case(ROW, K.BatchNormalization),
    "LayerNormalization": Case(ROW, K.LayerNormalization),
    "GroupNormalization": Case((6, 4), lambda: K.GroupNormalization(2)),
    "RMSNormalization": Case(ROW, K.RMSNormalization),
    "UnitNormalization": Case(ROW, K.UnitNormalization),
    "SpectralNormalization": Case(ROW, lambda: K.SpectralNormalization(K.Dense(2, "tanh"))),
    "Normalization": Case(ROW, _normalized),
    # Attention
    "Attention": Case(ROW, _attention(lambda: lambda q, v: K.Attention(use_scale=True)([q, v]))),
    "AdditiveAttention": Case(ROW, _attention(lambda: lambda q, v: K.AdditiveAttention()([q, v]))),
    "MultiHeadAttention": Case(ROW, _attention(lambda: K.MultiHeadAttention(2, 2))),
    "GroupQueryAttention": Case(ROW, _attention(lambda: K.GroupQueryAttention(2, 2, 1))),
    # Activations
    "ELU": Case(LINE, K.ELU),
    "LeakyReLU": Case(LINE, K.LeakyReLU),
    "PReLU": Case(LINE, K.PReLU),
    "ReLU": Case(LINE, lambda: K.ReLU(6.0, 0.1, 0.05)),
    "Softmax": Case(LINE, K.Softmax),
    # Merging
    "Add": Case(LINE, _two(K.Add)),
    "Average": Case(LINE, _two(K.Average)),
    "Concatenate": Case(LINE, _two(K.Concatenate)),
    "Dot": Case(LINE, _two(K.Dot, axes=1, normalize=True)),
    "Maximum": Case(LINE, _two(K.Maximum)),
    "Minimum": Case(LINE, _two(K.Minimum)),
    "Multiply": Case(LINE, _two(K.Multiply)),
    "Subtract": Case(LINE, _two(K.Subtract)),
    # Shapes
    "Cropping1D": Case(ROW, lambda: K.Cropping1D(1)),
    "Cropping2D": Case(IMAGE, lambda: K.Cropping2D(1)),
    "Cropping3D": Case(VOLUME, lambda: K.Cropping3D(1)),
    "Flatten": Case(ROW, K.Flatten),
    "Permute": Case(ROW, lambda: K.Permute((2, 1))),
    "RepeatVector": Case(LINE, lambda: K.RepeatVector(2)),
    "Reshape": Case(ROW, lambda: K.Reshape((9, 2))),
    "UpSampling1D": Case(ROW, lambda: K.UpSampling1D(2)),
    "UpSampling2D": _rounded(IMAGE, lambda: K.UpSampling2D(2, interpolation="bilinear")),
    "UpSampling3D": Case((2, 2, 2, 2), lambda: K.UpSampling3D(2)),
    "ZeroPadding1D": Case(ROW, lambda: K.ZeroPadding1D(1)),
    "ZeroPadding2D": Case((3, 3, 2), lambda: K.ZeroPadding2D(1)),
    "ZeroPadding3D": Case((2, 2, 2, 2), lambda: K.ZeroPadding3D(1)),
    # Regularization
    "ActivityRegularization": Case(LINE, lambda: K.ActivityRegularization(l2=0.3)),
    "AlphaDropout": Case(LINE, lambda: K.AlphaDropout(0.5)),
    "Dropout": Case(LINE, lambda: K.Dropout(0.5)),
    "GaussianDropout": Case(LINE, lambda: K.GaussianDropout(0.5)),
    "GaussianNoise": Case(LINE, lambda: K.GaussianNoise(0.5)),
    "SpatialDropout1D": Case(ROW, lambda: K.SpatialDropout1D(0.5)),
    "SpatialDropout2D": Case(IMAGE, lambda: K.SpatialDropout2D(0.5)),
    "SpatialDropout3D": Case(VOLUME, lambda: K.SpatialDropout3D(0.5)),
    # Images and sound
    "CenterCrop": Case(IMAGE, lambda: K.CenterCrop(4, 4)),
    "Rescaling": Case(IMAGE, lambda: K.Rescaling(0.5, 0.1)),
    "Resizing": _rounded(IMAGE, lambda: K.Resizing(8, 4)),
    "MelSpectrogram": _in_float32((64,), lambda: K.MelSpectrogram(16, 8, 16, num_mel_bins=4)),
    "STFTSpectrogram": Case(
        (32, 1), lambda: K.STFTSpectrogram("real", frame_length=8, frame_step=8)
    ),
    "AutoContrast": Case(IMAGE_OF_3, lambda: K.AutoContrast((0.0, 1.0))),
    "ContrastLimitedAdaptiveHistogramEqualization": Case(
        IMAGE_OF_3, K.ContrastLimitedAdaptiveHistogramEqualization, through=False
    ),
    "Pipeline": Case(IMAGE_OF_3, lambda: K.Pipeline([K.Rescaling(0.5), K.RandomFlip()])),
    **{
        name: Case(IMAGE_OF_3, lambda name=name, given=given: getattr(K, name)(*given))
        for name, given in AT_RANDOM.items()
    },
    # Whole numbers
    "CategoryEncoding": Case((4,), lambda: K.CategoryEncoding(7, output_mode="count"), tokens=7),
    "Discretization": Case(LINE, lambda: K.Discretization([-0.5, 0.0, 0.5]), through=False),
    "Hashing": Case((4,), lambda: K.Hashing(5), tokens=7),
    "HashedCrossing": Case(
        (4,),
        lambda: lambda x: K.HashedCrossing(5)((x[:, :1], x[:, 1:2])),
        tokens=7,
    ),
    "IntegerLookup": Case((4,), lambda: K.IntegerLookup(vocabulary=[1, 2, 3]), tokens=7),
}

# Options with another way to compute, by which a layer may be exact or not.
VARIANTS = {
    "Embedding, masked": Case(
        (5,), lambda: lambda x: K.GRU(2)(K.Embedding(7, 3, mask_zero=True)(x)), tokens=7
    ),
    "ReversibleEmbedding, both ways": Case(
        (5,), lambda: _there_and_back(K.ReversibleEmbedding(7, 3)), tokens=7
    ),
    "LayerNormalization, two features": Case((3, 2), lambda: K.LayerNormalization(epsilon=0.1)),
    "LayerNormalization, two axes": Case(ROW, lambda: K.LayerNormalization(axis=(1, 2))),
    "LayerNormalization, bare": Case(ROW, lambda: K.LayerNormalization(center=False, scale=False)),
    "GroupNormalization, one group": Case(ROW, lambda: K.GroupNormalization(1)),
    "GroupNormalization, a group each": Case(ROW, lambda: K.GroupNormalization(-1)),
    "GroupNormalization, axis 1": Case(ROW, lambda: K.GroupNormalization(2, axis=1)),
    "BatchNormalization, bare": Case(ROW, lambda: K.BatchNormalization(center=False, scale=False)),
    "UnitNormalization, axis 1": Case(ROW, lambda: K.UnitNormalization(axis=1)),
    **{
        f"Resizing, {method}": _rounded(
            (5, 4, 2), lambda method=method: K.Resizing(3, 7, interpolation=method)
        )
        for method in ("nearest", "bilinear", "bicubic", "area", "lanczos3", "lanczos5")
    },
    "Resizing, antialiased": _rounded(IMAGE, lambda: K.Resizing(3, 4, antialias=True)),
    "Resizing, cropped": _rounded((6, 4, 2), lambda: K.Resizing(3, 3, crop_to_aspect_ratio=True)),
    "Resizing, padded": _rounded((6, 4, 2), lambda: K.Resizing(3, 3, pad_to_aspect_ratio=True)),
    "UpSampling2D, nearest": Case(IMAGE, lambda: K.UpSampling2D(2)),
    "UpSampling2D, bicubic": _rounded(
        (3, 3, 2), lambda: K.UpSampling2D(2, interpolation="bicubic")
    ),
    "LSTM, backwards": Case(ROW, lambda: K.LSTM(2, go_backwards=True, return_sequences=True)),
    "LSTM, unrolled": Case(ROW, lambda: K.LSTM(2, unroll=True)),
    "LSTM, for cuDNN": Case(ROW, lambda: K.LSTM(2, use_cudnn=True)),
    "GRU, reset before": Case(ROW, lambda: K.GRU(2, reset_after=False)),
    "Bidirectional, summed": Case(ROW, lambda: K.Bidirectional(K.GRU(2), merge_mode="sum")),
    "MultiHeadAttention, causal": Case(ROW, lambda: _causal(K.MultiHeadAttention(1, 2))),
    "AveragePooling2D, padded": Case(IMAGE, lambda: K.AveragePooling2D(3, 2, padding="same")),
    "MaxPooling2D, overlapping": Case(IMAGE, lambda: K.MaxPooling2D(3, 1, padding="same")),
    "Conv2D, dilated": Case(IMAGE, lambda: K.Conv2D(2, 2, dilation_rate=2, activation="tanh")),
    # Not in groups: TensorFlow has no first derivative of these on a CPU either.
    "STFTSpectrogram, log": Case(
        (32, 1), lambda: K.STFTSpectrogram("log", frame_length=8, frame_step=8)
    ),
}


def _there_and_back(layer):
    return lambda x: layer(keras.ops.tanh(layer(x)), reverse=True)


def _causal(layer):
    return lambda x: layer(x, x, use_causal_mask=True)


NOT_TRIED = {
    "FlaxLayer": "computes in JAX, which need not be installed",
    "JaxLayer": "computes in JAX, which need not be installed",
    "TFSMLayer": "a saved graph, as right as the operations in it",
    "TorchModuleWrapper": "computes in PyTorch, not with TensorFlow",
}

NOT_IN_A_NETWORK = {
    "Equalization": "returns its input when not in training, which Keras takes for a cycle",
    "Input": "a function that makes an InputLayer",
    "InputSpec": "no layer",
    "Layer": "the base class",
    "MaxNumBoundingBoxes": "takes boxes, for data",
    "StringLookup": "takes strings, for data",
    "TextVectorization": "takes strings, for data",
    "Wrapper": "the base class",
    "deserialize": "no layer",
    "serialize": "no layer",
}

ACTIVATIONS = {
    "celu", "elu", "exponential", "gelu", "glu", "hard_shrink", "hard_sigmoid", "hard_silu",
    "hard_tanh", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "mish", "relu", "relu6",
    "selu", "sigmoid", "silu", "soft_shrink", "softmax", "softplus", "softsign", "sparse_plus",
    "sparse_sigmoid", "sparsemax", "squareplus", "tanh", "tanh_shrink", "threshold",
}  # fmt: skip
NO_ACTIVATIONS = {"deserialize", "get", "serialize"}
