"""What the projection heads of the losses have in common."""

from torch import nn


def mlp(hidden_size: int, mlp_size: int, out: int) -> nn.Sequential:
    """[..., hidden_size] -> [..., out], with one hidden layer."""
    return nn.Sequential(nn.Linear(hidden_size, mlp_size), nn.GELU(), nn.Linear(mlp_size, out))
