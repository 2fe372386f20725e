"""How much arithmetic an image costs."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from handclip.models.embedding_model import EmbeddingModel


@torch.no_grad()
def count_flops(model: EmbeddingModel) -> int:
    """Return the floating-point operations of embedding one image at the model's input size.

    Those of matrix products and convolutions, which are nearly all; a multiplication and an addition are two.
    """
    size = model.encoder.preprocessing
    image = torch.zeros(1, 3, size.height, size.width, device=next(model.parameters()).device)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The counter knows attention only as the matrix products that it is made of, not as one fused operation.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.embed(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return int(counter.get_total_flops())
