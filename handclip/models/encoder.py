"""What every image encoder offers, whatever its architecture."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from handclip.datasets.transforms import Preprocessing
from handclip.errors import ConfigError


class ImageEncoder(nn.Module):
    """Maps a batch of images to one or more named embeddings, and knows its own preprocessing."""

    preprocessing: Preprocessing
    embedding_dims: dict[str, int]
    """Name and dimension of each embedding, in the order in which they are joined."""
    facts: dict[str, str | bool | None]
    """What identifies the architecture and its weights beyond its name: activation, source of the weights."""

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images of shape (B, 3, height, width), normalised; each embedding is (B, D)."""

    @abstractmethod
    def blocks(self) -> Sequence[Sequence[nn.Module | nn.Parameter]]:
        """Return the encoder in blocks from input to output: what `freeze: all_but_last_N` counts.

        What follows the last block (a final norm, a projection) belongs to it.
        """

    def new_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters that no pre-trained weights cover; they get the learning rate of new layers."""
        return ()

    def checkpoint_gradients(self) -> None:
        """Keep only each block's input for the backward pass, which computes the rest of the block a second time.

        Raises:
            ConfigError: the encoder cannot; unless it says otherwise, because it has batch norm.
        """
        raise ConfigError(
            f"gradient_checkpointing: {self.facts['architecture']} has batch norm, and computing a block twice would "
            "update its running statistics twice; it is for vision transformers"
        )
