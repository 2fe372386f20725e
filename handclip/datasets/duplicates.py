"""Copies: the very same photograph, byte for byte, under more than one path.

Who is recognised on a copy of what was learned, or of what is searched among, says nothing of a model: any finds it.
"""

from collections.abc import Iterable, Sequence

from handclip.datasets.manifest import Draw, Manifest
from handclip.plurals import counted

Pair = tuple[str, str]
"""The path of an image, and that of the image that it is the same photograph as."""


def same_photographs(
    manifest: Manifest, indices: Iterable[int], others: Iterable[int], *, of: Manifest | None = None
) -> list[Pair]:
    """Return each image that is the same photograph as one of the others, with the first such; never with itself.

    Args:
        manifest: of the images.
        indices: the images.
        others: the images that they are compared with.
        of: the manifest of the others, if it is another.
    """
    source = manifest if of is None else of
    first: dict[str, int] = {}
    for index in others:
        first.setdefault(source.images[index].sha256, index)
    found = [(index, first.get(manifest.images[index].sha256)) for index in indices]
    return [
        (manifest.images[index].path, source.images[same].path)
        for index, same in found
        if same is not None and (source is not manifest or same != index)
    ]


def copied_queries(manifest: Manifest, draws: Sequence[Draw], protocol: str) -> list[Pair]:
    """Return each draw's queries of which the gallery holds the very same photograph, with that one.

    Args:
        manifest: of the draws.
        draws: some of its draws, or all.
        protocol: `gallery` or `gallery_all`.
    """
    return [pair for draw in draws for pair in same_photographs(manifest, draw.query, getattr(draw, protocol))]


def learned_by_heart(manifests: Sequence[Manifest]) -> list[Pair]:
    """Return each test image that is the same photograph as one that is trained or validated on, with that one.

    Args:
        manifests: those of all aspects that one model is trained on.
    """
    return [
        pair
        for tested in manifests
        for trained in manifests
        for pair in same_photographs(tested, tested.test, trained.train_all, of=trained)
    ]


def such_as(pairs: Sequence[Pair]) -> str:
    """Name the first pair of several."""
    return "such as {} and {}".format(*pairs[0])


def describe_learned(manifests: Sequence[Manifest]) -> str:
    """Say without a full stop how many photographs are tested and trained or validated on; nothing where none is.

    Args:
        manifests: those of all aspects that one model is trained on.
    """
    pairs = learned_by_heart(manifests)
    if not pairs:
        return ""
    images = counted(len(pairs), "image")
    return f"test has {images} of which train and val hold the very same photograph ({such_as(pairs)})"


def name_of_gallery(protocol: str) -> str:
    """Name what is searched under a gallery protocol, within a sentence."""
    return "the gallery" if protocol == "gallery" else protocol


def describe_validated(pairs: Sequence[Pair], validation_images: int) -> str:
    """Say in a sentence what validation images with copies among the training images do.

    Args:
        pairs: the validation images, each with its copy; at least one.
        validation_images: how many there are.
    """
    return (
        f"The training images hold the very same photograph as {len(pairs):,} of {validation_images:,} validation "
        f"images ({such_as(pairs)}), so the best epoch is chosen on what was learned by heart"
    )


def describe_copies(manifest: Manifest) -> list[str]:
    """Say in a sentence each what copies do to the numbers of a manifest; nothing where there are none.

    A photograph that is both trained and tested on is said by `check_copies`, and not here.
    """
    sentences = []
    for protocol in manifest.gallery_protocols:
        if pairs := copied_queries(manifest, manifest.draws, protocol):
            queries = sum(len(draw.query) for draw in manifest.draws)
            place = name_of_gallery(protocol)
            sentences.append(
                f"In {len(pairs):,} of {queries:,} queries {place} holds the very same photograph ({such_as(pairs)}), "
                "whose rank says nothing of a model"
            )
    if pairs := same_photographs(manifest, manifest.val, manifest.train):
        sentences.append(describe_validated(pairs, len(manifest.val)))
    return sentences
