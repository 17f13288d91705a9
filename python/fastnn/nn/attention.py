"""Multi-head attention, rotary position embedding, and the cache of keys and values for decoding."""

from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn import functional as F
from fastnn.nn import init
from fastnn.nn.linear import Linear
from fastnn.nn.module import Module, Parameter


def float_mask(mask: Tensor | None, dtype: Any, name: str) -> Tensor | None:
    """The mask as numbers to be added to scores: -inf where a boolean one is True, as MultiheadAttention means it."""
    if mask is None or mask.is_floating_point():
        return mask if mask is None else mask.to(dtype)
    if mask.dtype != _C.bool:
        raise TypeError(f"MultiheadAttention: expected a bool or floating {name}, got {mask.dtype}")
    return _C.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))


class MultiheadAttention(Module):
    """concat(head_1 ... head_h) W^O, head_i = attention(Q W_i^Q, K W_i^K, V W_i^V). Vaswani et al. 2017.

    query (L, N, E), key (S, N, kdim), value (S, N, vdim) -> (L, N, E); with ``batch_first`` the batch comes first, and
    without a batch the inputs are 2-D. Parameters and initialization are PyTorch's: ``in_proj_weight`` (3E, E), or
    ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight`` where kdim or vdim differ from E; ``in_proj_bias``,
    ``out_proj``, and ``bias_k``, ``bias_v`` with ``add_bias_kv``. ValueError for an ``embed_dim`` that ``num_heads``
    does not divide.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0 or embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: expected embed_dim to be a multiple of num_heads, got {embed_dim} and {num_heads}"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout = dropout
        self.batch_first = batch_first
        self.add_zero_attn = add_zero_attn

        def parameter(*shape: int) -> Parameter:
            return Parameter(_C.empty(shape, device=device, dtype=dtype))

        self._shared = self.kdim == embed_dim and self.vdim == embed_dim
        self.in_proj_weight = parameter(3 * embed_dim, embed_dim) if self._shared else None
        self.q_proj_weight = None if self._shared else parameter(embed_dim, embed_dim)
        self.k_proj_weight = None if self._shared else parameter(embed_dim, self.kdim)
        self.v_proj_weight = None if self._shared else parameter(embed_dim, self.vdim)
        self.in_proj_bias = parameter(3 * embed_dim) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, device, dtype)
        self.bias_k = parameter(1, 1, embed_dim) if add_bias_kv else None
        self.bias_v = parameter(1, 1, embed_dim) if add_bias_kv else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)
        for row in (self.bias_k, self.bias_v):
            if row is not None:
                init.xavier_normal_(row)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and the weights (N, L, S) averaged over the heads or (N, heads, L, S); None unless wanted.

        ``key_padding_mask`` (N, S) and ``attn_mask`` (L, S) or (N heads, L, S): True takes the key out, which is the
        opposite of ``scaled_dot_product_attention``; floating ones are added to the scores. ``is_causal``: query i
        sees the keys up to i; an ``attn_mask`` beside it is taken to say the same. ``need_weights=False`` is the fast
        way: the fused kernel never has the weights.
        """
        batched = query.dim() == 3
        if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
            raise ValueError(
                f"MultiheadAttention: expected query, key and value of 2 or 3 dimensions alike, got "
                f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
            )
        inputs = [query, key, value]
        if not batched:
            inputs = [x.unsqueeze(0) for x in inputs]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        q, k, v = self._projections(*inputs)
        causal_only = is_causal and key_padding_mask is None and not self.add_zero_attn and self.bias_k is None
        mask = self._mask(q, k, attn_mask, key_padding_mask, is_causal and not causal_only)
        k, v, mask = self._extended(k, v, mask)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            y, weights = self._explicit(q, k, v, mask, dropout, causal_only)
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = _C.scaled_dot_product_attention(q, k, v, None if causal_only else mask, dropout, causal_only)
            weights = None
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _projections(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as (N, heads, length, head_dim), views of the products."""
        width = self.embed_dim
        projected = []
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        for i, (x, own) in enumerate(zip((query, key, value), separate, strict=True)):
            weight = own if self.in_proj_weight is None else self.in_proj_weight.narrow(0, i * width, width)
            assert weight is not None
            bias = None if self.in_proj_bias is None else self.in_proj_bias.narrow(0, i * width, width)
            y = _C.linear(x, weight, bias)
            projected.append(y.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2))
        return projected[0], projected[1], projected[2]

    def _mask(
        self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None, is_causal: bool
    ) -> Tensor | None:
        """Both masks and causality, added up: broadcasts to (N, heads, L, S)."""
        n, heads, length, n_keys = q.shape[0], self.num_heads, q.shape[2], k.shape[2]
        mask = float_mask(attn_mask, q.dtype, "attn_mask")
        if mask is not None:
            if tuple(mask.shape) not in ((length, n_keys), (n * heads, length, n_keys)):
                raise ValueError(
                    f"MultiheadAttention: expected an attn_mask of shape {(length, n_keys)} or "
                    f"{(n * heads, length, n_keys)}, got {tuple(mask.shape)}"
                )
            mask = mask.unflatten(0, (n, heads)) if mask.dim() == 3 else mask
        elif is_causal:
            later = _C.ones((length, n_keys), dtype=_C.bool, device=q.device).triu(1)
            mask = float_mask(later, q.dtype, "attn_mask")
        rows = float_mask(padding, q.dtype, "key_padding_mask")
        if rows is None:
            return mask
        if tuple(rows.shape) != (n, n_keys):
            raise ValueError(
                f"MultiheadAttention: expected a key_padding_mask of shape {(n, n_keys)}, got {tuple(rows.shape)}"
            )
        rows = rows.reshape(n, 1, 1, n_keys)
        return rows if mask is None else mask + rows

    def _extended(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """With the keys of ``bias_k`` and of ``add_zero_attn``, which every query sees."""
        n, heads, _, dim = k.shape
        before = k.shape[2]
        if self.bias_k is not None and self.bias_v is not None:
            rows = [b.reshape(1, heads, 1, dim).expand(n, heads, 1, dim) for b in (self.bias_k, self.bias_v)]
            k, v = _C.cat([k, rows[0]], 2), _C.cat([v, rows[1]], 2)
        if self.add_zero_attn:
            zero = _C.zeros((n, heads, 1, dim), dtype=k.dtype, device=k.device)
            k, v = _C.cat([k, zero], 2), _C.cat([v, zero], 2)
        added = k.shape[2] - before
        return k, v, mask if mask is None or added == 0 else F.pad(mask, (0, added))

    def _explicit(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, is_causal: bool
    ) -> tuple[Tensor, Tensor]:
        """Attention with its weights, in separate steps."""
        if is_causal and mask is None:
            later = _C.ones((q.shape[2], k.shape[2]), dtype=_C.bool, device=q.device).triu(1)
            mask = float_mask(later, q.dtype, "attn_mask")
        scores = _C.matmul(q * self.head_dim**-0.5, k.transpose(-1, -2))
        weights = _C.softmax(scores if mask is None else scores + mask, -1)
        weights = _C.dropout(weights, dropout, True) if dropout > 0 else weights
        return _C.matmul(weights, v), weights

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, batch_first={self.batch_first}"


class RotaryEmbedding(Module):
    """Turns pairs of features by an angle that grows with the position: x (..., length, dim) -> the same shape.

    Pair i at position t is turned by t base^(-2i/dim), so that the product of a query and a key depends on their
    distance alone. Pairs are features i and i + dim/2 (GPT-NeoX, Llama), with ``interleaved`` 2i and 2i + 1 (the
    paper). ``offset`` is the position of the first row: the length of the cache, when decoding. Su et al. 2021.
    ValueError for an odd ``dim``.
    """

    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False) -> None:
        super().__init__()
        if dim <= 0 or dim % 2:
            raise ValueError(f"RotaryEmbedding: expected an even dim, got {dim}")
        self.dim = dim
        self.base = base
        self.interleaved = interleaved
        self._tables: tuple[Tensor, Tensor] | None = None

    def _angles(self, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (end or more, dim / 2), kept until a longer, or another kind of tensor is asked for."""
        kept = self._tables
        if kept is None or kept[0].shape[0] < end or kept[0].dtype != like.dtype or kept[0].device != like.device:
            rates = self.base ** (_C.arange(0, self.dim, 2, dtype=_C.float64) * (-1.0 / self.dim))
            angles = _C.arange(end, dtype=_C.float64).unsqueeze(1) * rates
            kept = (angles.cos().to(like.dtype).to(like.device), angles.sin().to(like.dtype).to(like.device))
            self._tables = kept
        return kept

    def forward(self, input: Tensor, offset: int = 0) -> Tensor:
        if input.dim() < 2 or input.shape[-1] != self.dim or offset < 0:
            raise ValueError(
                f"RotaryEmbedding: expected an input (..., length, {self.dim}) and offset >= 0, got "
                f"{tuple(input.shape)} and {offset}"
            )
        length = input.shape[-2]
        cos, sin = (t.narrow(0, offset, length) for t in self._angles(offset + length, input))
        if self.interleaved:
            pairs = input.unflatten(-1, (self.dim // 2, 2))
            a, b = pairs.select(-1, 0), pairs.select(-1, 1)
            return _C.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        a, b = input.chunk(2, -1)
        return _C.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def extra_repr(self) -> str:
        return f"{self.dim}, base={self.base}, interleaved={self.interleaved}"


class KVCache:
    """Keys and values of the positions decoded so far, in memory allocated once.

    ``update(k, v)`` appends k (batch, heads, length, dim) and v (batch, heads, length, value_dim) and gives all keys
    and values so far, as views that the next update does not move. Without gradients. ValueError beyond ``max_length``.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        max_length: int,
        dim: int,
        value_dim: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        shape = (batch, heads, max_length)
        self.keys = _C.zeros((*shape, dim), device=device, dtype=dtype)
        self.values = _C.zeros((*shape, dim if value_dim is None else value_dim), device=device, dtype=dtype)
        self.length = 0

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends, and gives (batch, heads, length so far, dim) and the same of values."""
        added, end = k.shape[2], self.length + k.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(f"KVCache: {end} positions do not fit into the {self.keys.shape[2]} allocated")
        self.keys.narrow(2, self.length, added).copy_(k.detach())
        self.values.narrow(2, self.length, added).copy_(v.detach())
        self.length = end
        return self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)

    def reset(self) -> None:
        """Forgets all positions; the memory stays."""
        self.length = 0
