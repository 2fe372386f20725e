"""What a data set says of the people and hands on its images."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from handclip.datasets.hands11k import DATASET, has_11k_layout, read_attributes
from handclip.datasets.manifest import Manifest
from handclip.datasets.safe_paths import unicode_form


def attributes_of(manifests: Mapping[str, Manifest]) -> dict[str, dict[str, str]]:
    """Return the attributes of the test images, by path: `age`, `gender`, `skin_colour`, ...; see `read_attributes`.

    Only 11k Hands, and what has its layout, says anything; elsewhere nothing is returned.

    Args:
        manifests: by aspect.

    Raises:
        DataError: `HandInfo.csv` is damaged.
    """
    attributes = {}
    for manifest in manifests.values():
        if manifest.dataset != DATASET or not has_11k_layout(manifest.root):
            continue
        by_name = read_attributes(manifest.root)
        for index in manifest.test:
            path = manifest.images[index].path
            # Where the original scripts have sorted the images into folders, they have kept their names.
            if found := by_name.get(unicode_form(PurePosixPath(path).name)):
                attributes[path] = found
    return attributes
