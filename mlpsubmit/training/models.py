"""The default MODEL: a multilayer perceptron."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """A multilayer perceptron with ``depth`` hidden layers of ``width`` units.

    Its layers are named as in MLPscape, so that grabs written for that run as they are.

    Attributes:
        input_layer: Linear, weight (width, d_in).
        hidden_layers: ModuleList of depth - 1 Linear layers, weight (width, width).
        output_layer: Linear, weight (d_out, width).
        nonlin: the nonlinearity after each but the last.
    """

    def __init__(
        self,
        d_in: int = 1,
        width: int = 4096,
        depth: int = 2,
        d_out: int = 1,
        bias: bool = True,
        nonlinearity: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.width, self.depth, self.d_out = d_in, width, depth, d_out
        self.input_layer = nn.Linear(d_in, width, bias)
        self.hidden_layers = nn.ModuleList(nn.Linear(width, width, bias) for _ in range(depth - 1))
        self.output_layer = nn.Linear(width, d_out, bias)
        self.nonlin = nn.ReLU() if nonlinearity is None else nonlinearity

    def forward(self, X: Tensor) -> Tensor:
        """Return the outputs (n, d_out) of inputs (n, d_in), or (n, ...) that flatten to it."""
        h = self.nonlin(self.input_layer(X.flatten(1)))
        for layer in self.hidden_layers:
            h = self.nonlin(layer(h))
        output: Tensor = self.output_layer(h)
        return output

    def get_activations(self, X: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the activations (n, width) of each hidden layer, and the output (n, d_out)."""
        activations = [self.nonlin(self.input_layer(X.flatten(1)))]
        for layer in self.hidden_layers:
            activations.append(self.nonlin(layer(activations[-1])))
        return activations, self.output_layer(activations[-1])
