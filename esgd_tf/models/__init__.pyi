from .batch_norm import BatchNormalization as BatchNormalization
from .registry import build as build
from .registry import check_name as check_name
from .registry import names as names
from .registry import register as register
