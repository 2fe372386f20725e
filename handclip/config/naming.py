"""Run names: readable, and different for any two runs that compute something different."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from handclip.config.experiment import COMPUTED_KEYS, ExperimentConfig, Reranking
from handclip.config.losses import LOSS_TYPES, SHORT_NAMES

_LONGEST_EXTRAS = 80
_SHORT_LOSSES = {long: short for short, long in SHORT_NAMES.items()}
_LONGEST_NAME = 255
"""Bytes of a file's name, by most file systems."""
LAST = "_last"
"""What the name of a run's last model ends with."""
_LONGEST_RUN = _LONGEST_NAME - len(f".{LAST}.pth.01234567.part")
"""Bytes of a run's name: the longest that is made from it is that of its last checkpoint while it is written."""
_LONGEST_EVALUATION = 240
"""Bytes of an evaluation's name, which leave room for the name of its folder's lock."""
_END = "_x-{}"
"""Of a name that was cut, with a hash of all of it."""
_NAMED = frozenset({"experiment", "model", "dataset", "aspect", "epochs", "lr", "batch_size", "variant"})


def run_name(config: ExperimentConfig) -> str:
    """Return `{experiment}_{model}_{dataset}_{aspect}_e{epochs}_lr{..}_bs{batch}_loss{a+b}` and what else differs.

    A baseline, which trains nothing, is named `{experiment}_{model}_{dataset}_{aspect}`. Every other key that changes
    what is computed and differs from its default is appended as `_{key}-{value}`; values too long for a file name are
    replaced by a hash. A name that leaves no room for those of the run's files is cut and ends in a hash.
    """
    name = f"{config.experiment}_{config.model}_{config.dataset}_{config.aspect}"
    if config.variant == "finetuned":
        losses = "+".join(loss.type for loss in config.losses)
        name += f"_e{config.epochs}_lr{_digits(config.lr)}_bs{config.batch_size}_loss{losses}"
    suffix = "".join(f"_{key}-{_short(value)}" for key, value in _extras(config).items())
    return _cut(name + (suffix if len(suffix) <= _LONGEST_EXTRAS else _END.format(_digest(suffix, 12))), _LONGEST_RUN)


def last_name(run: str) -> str:
    """Return the name of a run's last model, whose best is named as the run is."""
    return f"{run}{LAST}"


def evaluation_name(run: str, *, on: str = "", rerank: Reranking | None = None) -> str:
    """Return the name of an evaluation: its run's, `_on_{other data}` across domains, and `_rerank-...`.

    That of the run's last model takes `last_name` for the run's.

    One too long for a file system is cut and ends in a hash.
    """
    name = run + (f"_on_{on}" if on else "")
    if rerank is not None:
        name += f"_rerank-k1-{rerank.k1}-k2-{rerank.k2}-lambda-{rerank.lambda_:g}"
    return _cut(name, _LONGEST_EVALUATION)


def beginning_of_evaluations(run: str, *, on: str) -> str:
    """Return what the names of all evaluations of a run on some data begin with, however long they are."""
    return f"{run}_on_{on}"[: _LONGEST_EVALUATION - len(_END.format(_digest("", 12)))]


def stage_of(variant: str, resume_from: object) -> str:
    """Return an experiment's stage: 0 trains nothing, 1 starts from pre-trained weights, 2 from an earlier stage."""
    if variant == "baseline":
        return "0"
    return "1" if resume_from is None else "2"


def losses_text(types: Iterable[str]) -> str:
    """Return losses by their short names, as in the config files' names: `ce + triplet`."""
    return " + ".join(_SHORT_LOSSES.get(name, name) for name in types) or "no training"


def options_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that change what is computed and differ from their default.

    Left out is what names an experiment or its data: `experiment`, `variant`, `model`, `dataset`, `aspect`,
    `manifest`, `pattern` and `seed`. `losses` stand there only where one has an option that is not its default, and
    then each with its type and such options; `resume_from` is a file name.

    Args:
        values: a resolved config, as `ExperimentConfig.to_dict` returns it.
    """
    left_out = {"experiment", "variant", "model", "dataset", "aspect", "manifest", "pattern", "seed"}
    return {key: value for key, value in _changed(values).items() if key not in left_out}


def _changed(values: Mapping[str, Any]) -> dict[str, Any]:
    fields = ExperimentConfig.model_fields
    changed: dict[str, Any] = {}
    for key in sorted(values.keys() & COMPUTED_KEYS):
        if key == "losses":
            losses = [_changed_options(loss) for loss in values[key]]
            if values["variant"] == "finetuned" and any(options.keys() != {"type"} for options in losses):
                changed[key] = losses
        elif key == "resume_from" and values[key] is not None:
            # A checkpoint is named after its run, so its name says what it is wherever it lies.
            changed[key] = Path(values[key]).name
        elif values[key] != _plain(fields[key].get_default(call_default_factory=True)):
            changed[key] = values[key]
    return changed


def _changed_options(loss: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a loss that are not its default, and its type."""
    default = LOSS_TYPES[loss["type"]](type=loss["type"]).model_dump(mode="json")
    return {option: value for option, value in loss.items() if option == "type" or value != default[option]}


def _extras(config: ExperimentConfig) -> dict[str, Any]:
    extras = {key: value for key, value in _changed(config.to_dict()).items() if key not in _NAMED}
    if config.dataset == "folder" and config.data_root is not None:
        extras["data_root"] = str(config.data_root)  # alone among the data sets it has no name but its place
    if "losses" in extras:
        # The types stand in the name already.
        extras["losses"] = [{key: loss[key] for key in loss if key != "type"} for loss in extras["losses"]]
    # Alone among the models CoCa's end in another's name: `a_coca` with `ViT-B-32` would read the same.
    model = {"model": config.model} if config.model.startswith("coca_") else {}
    return model | dict(sorted(extras.items()))


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


def _cut(name: str, longest: int) -> str:
    """Return a name of at most so many bytes; one that is cut ends in a hash of all of it."""
    encoded, end = name.encode(), _END.format(_digest(name, 12))
    return name if len(encoded) <= longest else encoded[: longest - len(end)].decode(errors="ignore") + end


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
