"""The rivals of local entropy: what else makes training prefer flat minima.

SAM, ASAM, GSAM and LPF-SGD take the gradient elsewhere than at the weights; SWA, EMA and Lookahead
evaluate elsewhere than they train. All are Keras optimizers around any other one, with the weight
decay, skipping, clipping, saving and evaluation that local entropy has. One gradient evaluation is
one gradient of one minibatch: a step of SAM, ASAM and GSAM costs two of them, all others one.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.baselines", "tensorflow", "tensorflow", "keras")

# The names stand in the stub beside this file, where editors and type checkers look for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
