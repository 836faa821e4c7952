"""Networks that predict the next word: words `(B, T)` in, logits `(B, T, V)` out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WordLSTM(nn.Module):
    """An LSTM between an embedding and a linear layer; its state is zero before every row.

    Source: Zaremba et al., Recurrent Neural Network Regularization (2014), without dropout.
    """

    def __init__(self, n_words: int, width: int, n_layers: int):
        super().__init__()
        self.embed = nn.Embedding(n_words, width)
        self.lstm = nn.LSTM(width, width, n_layers, batch_first=True)
        self.head = nn.Linear(width, n_words)

    def forward(self, words: Tensor) -> Tensor:
        h, _ = self.lstm(self.embed(words))  # (B, T, width)
        return self.head(h)


class CausalBlock(nn.Module):
    """Attention to the words before, and a layer for each word, both added to their input."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.joined = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.norm_1(x)).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = parts.movedim((2, 3), (0, 2))  # (B, heads, T, width / heads) each
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, heads, T, T)
        later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        seen = scores.masked_fill(later, -torch.inf).softmax(dim=-1) @ v
        x = x + self.joined(seen.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm_2(x))))


class WordGPT(nn.Module):
    """A decoder with learned positions; the embedding of the words is also the last layer.

    Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019).
    """

    def __init__(self, n_words: int, context: int, width: int, n_layers: int, n_heads: int):
        super().__init__()
        self.embed, self.place = nn.Embedding(n_words, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[CausalBlock(width, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words) + self.place.weight[: words.shape[-1]]  # (B, T, width)
        return F.linear(self.norm(self.blocks(x)), self.embed.weight)
