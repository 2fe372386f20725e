"""Parameters and floating-point operations of the models, as `docs/models.md` lists them; the same on every machine."""

from handclip.config.loading import parse_config
from handclip.models.builder import build_model
from handclip.models.flops import count_flops
from handclip.models.registry import family_of

MODELS = ("vitb16", "rn50", "mbanet", "resnet50", "vit_small", "rn_small", "mbanet_small", "resnet_small")


def size_line(name: str, **keys: object) -> str:
    """Return one line on a model with random weights: name, pixels a side, millions, GFLOPs per image, embeddings."""
    values = {"experiment": "sizes", "dataset": "11k", "pretrained": "none", "model": name, "variant": "baseline"}
    values |= {"embedding": "both"} if family_of(name).key == "clip" else {}
    values |= keys
    model = build_model(parse_config(values, "benchmark")).eval()
    size = model.encoder.preprocessing
    embeddings = ", ".join(f"{key} {dims:,}" for key, dims in model.encoder.embedding_dims.items())
    millions = sum(parameter.numel() for parameter in model.encoder.parameters()) / 1e6
    return f"{name:14} {size.height:4}  {millions:6.1f}  {count_flops(model) / 1e9:6.2f}  {embeddings}"


def main() -> None:
    """Print the table."""
    print(f"{'model':14} {'px':>4}  {'M':>6}  {'GFLOPs':>6}  embeddings")
    for name in MODELS:
        print(size_line(name), flush=True)
    print(size_line("mbanet", input_size=224))


if __name__ == "__main__":
    main()
