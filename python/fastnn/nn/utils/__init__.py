"""Helpers over a model: its gradients, its parameters as one vector, batch normalization folded into weights."""

from fastnn.nn.utils import fusion, rnn
from fastnn.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights, fuse_linear_bn_eval, fuse_linear_bn_weights
from fastnn.nn.utils.parameters import (
    clip_grad_norm_,
    clip_grad_value_,
    gradients_of,
    parameters_to_vector,
    vector_to_parameters,
)
