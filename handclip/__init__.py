"""HandCLIP: identify people by photographs of their hands.

Importing the package is cheap: nothing heavy is loaded until a part that needs it is.
"""

from handclip._torchvision_operators import prepare_torchvision_import

__version__ = "0.1.0"

prepare_torchvision_import()
