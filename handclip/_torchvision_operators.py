"""Make `import torchvision` work beside a PyTorch that its compiled operators were not built for.

PyPI's Linux torchvision is built for CUDA. Beside a CPU-only PyTorch its compiled library does not load, and its Python
half then fails on import with «operator torchvision::nms does not exist», because it registers shape functions for
operators that nobody declared. Declaring the two operators' schemas first is enough: HandCLIP never calls them.

PyTorch takes seconds to import, so nothing happens until somebody imports torchvision: a finder at the head of
`sys.meta_path` waits for that name, does its work once, and steps aside.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[object] = []  # an operator lives as long as the Library object that declared it


class _TorchvisionFinder:
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare_missing_operators()
        return None


def prepare_torchvision_import() -> None:
    """Watch for the first import of torchvision, and declare its operators just before it where they are missing."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())


def are_stand_ins() -> bool:
    """Whether torchvision's operators had to be declared here; they cannot be called then."""
    return bool(_libraries)


def declare_missing_operators() -> bool:
    """Declare torchvision's operators if its compiled library does not load here; return whether it was needed."""
    spec = PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False

    import torch

    for compiled in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
        except OSError:
            continue
    if hasattr(torch.ops.torchvision, "nms"):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(library)
    return True
