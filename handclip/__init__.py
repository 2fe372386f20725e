"""HandCLIP: identify people by photographs of their hands.

Importing the package is cheap: nothing heavy is loaded until a part that needs it is.
"""

import os

from handclip._torchvision_operators import prepare_torchvision_import

__version__ = "0.1.0"

# Before anything imports torch: threads that wait for each other give their core away. By default they spin, and where
# other programs need the cores too, a training step then takes several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

prepare_torchvision_import()
