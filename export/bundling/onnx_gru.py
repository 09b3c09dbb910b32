"""A bidirectional GRU as ONNX operators: PyTorch's, over packed sequences, has no ONNX form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from camp_sdk.export.network.encoders import BidirectionalGRU, word_mask


class OnnxGRU(nn.Module):
    """A `BidirectionalGRU` as two ONNX operators, which maps the same inputs to the same outputs.

    The backward direction runs forward over the reversed words of each text, and its output is reversed again. ONNX's
    GRU accepts lengths for this, but some engines ignore them (OpenVINO 2026.4 does), which makes every text but the
    longest wrong.

    Args:
        rnn: the module to replace, whose weights are copied.
    """

    def __init__(self, rnn: BidirectionalGRU) -> None:
        super().__init__()
        self.rnn = rnn
        for suffix in ("l0", "l0_reverse"):
            for name in ("weight_ih", "weight_hh"):
                self.register_buffer(f"{name}_{suffix}", self._onnx_gates(f"{name}_{suffix}")[None])
            biases = [self._onnx_gates(f"{name}_{suffix}") for name in ("bias_ih", "bias_hh")]
            self.register_buffer(f"bias_{suffix}", torch.cat(biases)[None])
        # Without an initial state, TensorRT 10's parser adds one of float32 zeros, which does not fit float16 weights.
        self.register_buffer("begin", torch.zeros(1, 1, self.rnn.hidden_size))

    def _onnx_gates(self, name: str) -> Tensor:
        # ONNX orders the gates update, reset, new; PyTorch orders them reset, update, new.
        reset, update, new = getattr(self.rnn, name).detach().chunk(3)
        return torch.cat([update, reset, new])

    def _run(self, words: Tensor, suffix: str) -> Tensor:
        """One direction over words [N, T, word_width], from first to last: [N, T, d]."""
        names = (f"weight_ih_{suffix}", f"weight_hh_{suffix}", f"bias_{suffix}")
        length, count, width = words.shape[0], words.shape[1], self.rnn.hidden_size
        begin = self.get_buffer("begin").expand(1, count, width)
        out = torch.onnx.ops.symbolic(
            "GRU",
            (words, *(self.get_buffer(name) for name in names), None, begin),
            {"hidden_size": width, "linear_before_reset": 1},
            dtype=words.dtype,
            shape=(length, 1, count, width),
        )
        return out.squeeze(1)

    @staticmethod
    def _reverse(words: Tensor, lengths: Tensor) -> Tensor:
        """The words of each text in reverse order, [N, T, width]; padding stays at the end."""
        return torch.onnx.ops.symbolic(
            "ReverseSequence",
            (words, lengths),
            {"batch_axis": 1, "time_axis": 0},
            dtype=words.dtype,
            shape=tuple(words.shape),
        )

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Both directions over the real words of each text: [T, N, word_width] and lengths [T] -> [T, N, 2d]."""
        words = words.transpose(0, 1)  # [N, T, word_width]
        backward = self._reverse(self._run(self._reverse(words, lengths), "l0_reverse"), lengths)
        both = torch.cat([self._run(words, "l0"), backward], dim=-1).transpose(0, 1)  # [T, N, 2d]
        return both * word_mask(lengths, words.shape[0])[..., None]
