"""The names of the files that runs and studies write, and that resuming, auditing and reporting look for."""

CONFIG = "config.yml"
"""The resolved config of a training or an evaluation."""

ENVIRONMENT = "environment.json"
"""Hardware, precision and library versions."""

PROVENANCE = "provenance.json"
"""What a run was made from, and its sessions."""

CHECKSUMS = "SHA256SUMS"
"""The checksums of the others, in the format of `sha256sum`."""

# Of a training.
SNAPSHOTS = "checkpoints"
"""The folder of what an interrupted run goes on from."""
LOG = "train.log"
HISTORY = "metrics.csv"
"""A row for each epoch."""
RESULT = "result.json"
"""Written when training has ended."""

# Of an evaluation.
METRICS_FILE = "metrics.json"  # METRICS are the names of the numbers in it
PER_SPLIT = "per_split.csv"
"""A row for each draw."""
PER_QUERY = "per_query.csv"
"""A row for each query of each draw."""
COST = "cost.json"
FEATURES = "features.safetensors"
ATTRIBUTES = "attributes.csv"
EXPLANATIONS = "explanations.safetensors"
EVALUATION_LOG = "eval.log"
"""The numbers as text."""

# Of a study.
STUDY = "study.json"
"""What became of each run."""
