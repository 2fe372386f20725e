"""Run names: readable, and different for any two runs that compute something different."""

import hashlib
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from handclip.config.experiment import ExperimentConfig, Reranking

_LONGEST_EXTRAS = 80
_LONGEST_NAME = 240
_NAMED = frozenset({"experiment", "model", "dataset", "aspect", "epochs", "lr", "batch_size", "variant"})


def run_name(config: ExperimentConfig) -> str:
    """Return `{experiment}_{model}_{dataset}_{aspect}_e{epochs}_lr{..}_bs{batch}_loss{a+b}` and what else differs.

    A baseline, which trains nothing, is named `{experiment}_{model}_{dataset}_{aspect}`. Every other key that changes
    what is computed and differs from its default is appended as `_{key}-{value}`; values too long for a file name are
    replaced by a hash.
    """
    name = f"{config.experiment}_{config.model}_{config.dataset}_{config.aspect}"
    if config.variant == "finetuned":
        losses = "+".join(loss.type for loss in config.losses)
        name += f"_e{config.epochs}_lr{_digits(config.lr)}_bs{config.batch_size}_loss{losses}"
    extras = {key: _short(value) for key, value in _extras(config).items()}
    suffix = "".join(f"_{key}-{value}" for key, value in extras.items())
    return name + (suffix if len(suffix) <= _LONGEST_EXTRAS else f"_x-{_digest(suffix, 12)}")


def evaluation_name(run: str, *, on: str = "", rerank: Reranking | None = None) -> str:
    """Return the name of an evaluation: its run's, `_on_{other data}` across domains, and `_rerank-...`.

    File systems end names at 255 bytes; a longer one is cut and ends in a hash.
    """
    name = run + (f"_on_{on}" if on else "")
    if rerank is not None:
        name += f"_rerank-k1-{rerank.k1}-k2-{rerank.k2}-lambda-{rerank.lambda_:g}"
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 15]}_x-{_digest(name, 12)}"


def _extras(config: ExperimentConfig) -> dict[str, Any]:
    ignored = _NAMED | config.PLACES | config.EVALUATION
    if config.dataset == "folder":
        ignored -= {"data_root"}  # alone among the data sets it has no name but its place
    values = config.to_dict()
    fields = ExperimentConfig.model_fields
    extras: dict[str, Any] = {}
    if config.model.startswith("coca_"):
        # Alone among the models these end in another's name: `a_coca` with `ViT-B-32` would read the same.
        extras["model"] = config.model
    for key in sorted(values.keys() - ignored):
        if key == "losses":
            # The types stand in the name already; what remains is any option that is not its default.
            defaults = [type(loss)(type=loss.type).model_dump(mode="json") for loss in config.losses]
            options = [
                {option: value for option, value in given.items() if value != default[option]}
                for given, default in zip(values[key], defaults, strict=True)
            ]
            if config.variant == "finetuned" and any(options):
                extras[key] = options
        elif key == "resume_from" and values[key] is not None:
            # A checkpoint is named after its run, so its name says what it is wherever it lies.
            extras[key] = Path(values[key]).name
        elif values[key] != _plain(fields[key].get_default(call_default_factory=True)):
            extras[key] = values[key]
    return extras


def _plain(value: Any) -> Any:
    """Return a default as `to_dict` would write it."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _digits(lr: float) -> str:
    """0.0001 -> "0001"; 1.0 keeps its point, so that 1.0 and 10.0 and 0.1 stay apart."""
    plain = format(Decimal(repr(lr)), "f")
    return plain.removeprefix("0.")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    plain = text.replace(".", "").replace("-", "").isalnum() and text.isascii()
    return text if plain and len(text) <= 16 else _digest(text, 8)


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
