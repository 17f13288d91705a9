"""Transformer layers and their stacks. Vaswani et al. 2017."""

import copy
import math
from collections.abc import Callable
from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn import functional as F
from fastnn.nn import init
from fastnn.nn.attention import MultiheadAttention
from fastnn.nn.container import ModuleList
from fastnn.nn.dropout import Dropout
from fastnn.nn.linear import Linear
from fastnn.nn.module import Module
from fastnn.nn.norm import LayerNorm

Activation = str | Callable[[Tensor], Tensor]


def _activation(activation: Activation) -> Callable[[Tensor], Tensor]:
    if not isinstance(activation, str):
        return activation
    known: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
    if activation not in known:
        raise ValueError(f"expected activation to be 'relu', 'gelu' or a function, got {activation!r}")
    return known[activation]


class _Layer(Module):
    """What the layers share: self-attention, the feed-forward pair of products, and sublayers with residuals.

    A sublayer f gives norm(x + f(x)), or x + f(norm(x)) with ``norm_first``.
    """

    _cross: bool  # whether it attends to a memory too

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()

        def attention() -> MultiheadAttention:
            return MultiheadAttention(
                d_model, nhead, dropout, bias, batch_first=batch_first, device=device, dtype=dtype
            )

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype)

        self.self_attn = attention()
        if self._cross:
            self.multihead_attn = attention()
        self.linear1 = Linear(d_model, dim_feedforward, bias, device, dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, device, dtype)
        self.norm_first = norm_first
        self.norm1 = norm()
        self.norm2 = norm()
        if self._cross:
            self.norm3 = norm()
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        if self._cross:
            self.dropout3 = Dropout(dropout)
        self.activation = _activation(activation)

    def _sublayer(self, x: Tensor, norm: Module, f: Callable[[Tensor], Tensor]) -> Tensor:
        y: Tensor = x + f(norm(x)) if self.norm_first else norm(x + f(x))
        return y

    def _self_attention(self, x: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool) -> Tensor:
        y: Tensor = self.dropout1(self.self_attn(x, x, x, padding, False, mask, is_causal=is_causal)[0])
        return y

    def _feed_forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return y


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward network, each with residual and layer normalization.

    src (L, N, d_model), or (N, L, d_model) with ``batch_first``, or (L, d_model) -> the same shape. Masks are those of
    ``MultiheadAttention``: True takes a key out. ``activation`` is "relu", "gelu" or a function.
    """

    _cross = False

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        x = self._sublayer(
            src, self.norm1, lambda x: self._self_attention(x, src_mask, src_key_padding_mask, is_causal)
        )
        return self._sublayer(x, self.norm2, lambda x: self.dropout2(self._feed_forward(x)))


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to ``memory``, and a feed-forward network, each with residual and layer normalization.

    tgt (T, N, d_model), memory (S, N, d_model) -> (T, N, d_model); batch first or absent as in the encoder layer.
    """

    _cross = True

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        def cross_attention(x: Tensor) -> Tensor:
            y = self.multihead_attn(
                x, memory, memory, memory_key_padding_mask, False, memory_mask, is_causal=memory_is_causal
            )[0]
            dropped: Tensor = self.dropout2(y)
            return dropped

        x = self._sublayer(
            tgt, self.norm1, lambda x: self._self_attention(x, tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        )
        x = self._sublayer(x, self.norm2, cross_attention)
        return self._sublayer(x, self.norm3, lambda x: self.dropout3(self._feed_forward(x)))


class TransformerEncoder(Module):
    """A stack of ``num_layers`` copies of an encoder layer, and a norm after them if given; called as the layer is."""

    def __init__(self, encoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        self.layers = ModuleList([copy.deepcopy(encoder_layer) for _ in range(num_layers)])
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        x = src
        for layer in self.layers:
            x = layer(x, mask, src_key_padding_mask, is_causal)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(Module):
    """A stack of ``num_layers`` copies of a decoder layer, and a norm after them if given; called as the layer is."""

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        self.layers = ModuleList([copy.deepcopy(decoder_layer) for _ in range(num_layers)])
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        x = tgt
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        for layer in self.layers:
            x = layer(x, memory, *masks, tgt_is_causal, memory_is_causal)
        return x if self.norm is None else self.norm(x)


class Transformer(Module):
    """An encoder and a decoder that attends to it.

    src (S, N, d_model), tgt (T, N, d_model) -> (T, N, d_model); with ``batch_first`` the batch comes first. Weights of
    two and more dimensions start Xavier-uniform. ``custom_encoder`` and ``custom_decoder`` replace the stacks.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        sizes = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias)

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype)

        self.encoder = custom_encoder or TransformerEncoder(
            TransformerEncoderLayer(*sizes, device, dtype), num_encoder_layers, norm()
        )
        self.decoder = custom_decoder or TransformerDecoder(
            TransformerDecoderLayer(*sizes, device, dtype), num_decoder_layers, norm()
        )
        self.d_model = d_model
        self.nhead = nhead
        self.batch_first = batch_first
        for parameter in self.parameters():
            if parameter.dim() > 1:
                init.xavier_uniform_(parameter)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool = False,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        if src.shape[-1] != self.d_model or tgt.shape[-1] != self.d_model:
            raise ValueError(
                f"Transformer: expected {self.d_model} features, got shapes {tuple(src.shape)} and {tuple(tgt.shape)}"
            )
        memory = self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        result: Tensor = self.decoder(
            tgt,
            memory,
            tgt_mask,
            memory_mask,
            tgt_key_padding_mask,
            memory_key_padding_mask,
            tgt_is_causal,
            memory_is_causal,
        )
        return result

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: Any = None, dtype: Any = None) -> Tensor:
        """(sz, sz): 0 on and below the diagonal, -inf above it."""
        return _C.full((sz, sz), float("-inf"), device=device, dtype=dtype).triu(1)


class SinusoidalPositionalEncoding(Module):
    """x + PE, then dropout: PE[t, 2i] = sin(t / 10000^(2i/d)), PE[t, 2i + 1] = cos of the same. Vaswani et al. 2017.

    x (L, N, d_model), or (N, L, d_model) with ``batch_first`` -> the same shape. ValueError beyond ``max_len``
    positions.
    """

    pe: Tensor

    def __init__(self, d_model: int, dropout: float = 0.1, max_len: int = 5000, batch_first: bool = False) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.batch_first = batch_first
        rates = (_C.arange(0, d_model, 2, dtype=_C.float64) * (-math.log(10000.0) / d_model)).exp()
        angles = _C.arange(max_len, dtype=_C.float64).unsqueeze(1) * rates
        pairs = _C.stack([angles.sin(), angles.cos()], -1).flatten(1).narrow(1, 0, d_model)
        self.register_buffer("pe", pairs.float(), persistent=False)

    def forward(self, input: Tensor, offset: int = 0) -> Tensor:
        """``offset`` is the position of the first row."""
        axis = 1 if self.batch_first else 0
        length = input.shape[axis]
        if input.dim() != 3 or offset < 0 or offset + length > self.pe.shape[0]:
            raise ValueError(
                f"SinusoidalPositionalEncoding: expected 3 dimensions and at most {self.pe.shape[0]} positions, got "
                f"shape {tuple(input.shape)} at offset {offset}"
            )
        rows = self.pe.narrow(0, offset, length).to(input.dtype)
        y: Tensor = self.dropout(input + (rows if self.batch_first else rows.unsqueeze(1)))
        return y
