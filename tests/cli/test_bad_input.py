import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_study import LOSSES, baseline_values, tiny_values, write_config

from handclip.datasets.manifest import Manifest
from handclip.loss.cross_entropy_loss import CrossEntropyLoss

Handclip = Callable[..., Any]


@pytest.fixture
def own_hands(hands: Path, here: Path) -> Path:
    """A copy of the data set that a test may spoil."""
    return Path(shutil.copytree(hands, here / "hands"))


@pytest.fixture
def config(manifests: Path, here: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        return write_config(here / "tiny.yml", tiny_values(manifests, **{"epochs": 1, **changes}))

    return write


def assert_refused(answer: Any, *texts: str, code: int = 1) -> None:
    """One message, no traceback, and the exit code."""
    assert answer.code == code, answer
    assert "Traceback" not in answer.err
    for text in texts:
        assert text in answer.err


def prepare(handclip: Handclip, root: Path, *options: str) -> Any:
    return handclip("prepare", "11k", "--root", root, "--out", "manifests", *options)


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"not an image"}[how])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "are not in"),
        ("truncated", "cannot be decoded"),
        ("empty", "is empty (0 bytes)"),
        ("text", "is not an image of a known format"),
    ],
)
def test_an_image_that_cannot_be_read(how: str, message: str, handclip: Handclip, own_hands: Path, here: Path) -> None:
    image = own_hands / "Hands" / "Hand_0000005.jpg"
    spoil(image, how)
    assert_refused(prepare(handclip, own_hands), message, image.name, "--allow-missing")
    assert not (here / "manifests").exists()
    allowed = prepare(handclip, own_hands, "--allow-missing")
    assert allowed.code == 0
    assert f"Left out: 1 {'absent' if how == 'missing' else 'unreadable'}" in allowed.out


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("how", ["missing", "truncated", "same size"])
def test_a_manifest_whose_images_have_changed(
    command: str, how: str, handclip: Handclip, own_hands: Path, here: Path
) -> None:
    assert prepare(handclip, own_hands).code == 0
    manifest = Manifest.load(here / "manifests" / "manifest_dorsal_r.json")
    image = manifest.path_of(manifest.train[0] if command == "train" else manifest.test[0])
    if how == "same size":
        data = image.read_bytes()
        image.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        spoil(image, how)
    values = (tiny_values if command == "train" else baseline_values)(here / "manifests")
    answer = handclip(command, write_config(here / "tiny.yml", values))
    expected = {"missing": "1 are gone", "truncated": "1 have another size", "same size": "has changed since"}
    assert_refused(answer, image.name, expected[how])


def test_hand_info_lacks_a_column(handclip: Handclip, own_hands: Path) -> None:
    table = own_hands / "HandInfo.csv"
    table.write_bytes(table.read_bytes().replace(b"aspectOfHand", b"aspect"))
    assert_refused(prepare(handclip, own_hands), "HandInfo.csv lacks the column aspectOfHand")


@pytest.mark.parametrize("dataset", ["11k", "hd", "folder"])
def test_an_empty_folder(dataset: str, handclip: Handclip, here: Path) -> None:
    (here / "empty").mkdir()
    assert_refused(handclip("prepare", dataset, "--root", "empty", "--out", "manifests"), "empty")
    assert_refused(handclip("prepare", dataset, "--root", "nowhere", "--out", "manifests"), "nowhere")


def test_fewer_identities_than_a_batch_holds(handclip: Handclip, config: Callable[..., Path], here: Path) -> None:
    answer = handclip("train", config(batch_size=16, losses=LOSSES["ce_triplet"]))
    assert_refused(answer, "a batch needs 8 identities", "there are 6 to train on", "lower batch_size")
    assert not (here / "train_logs").exists()


MODEL_AND_PLACES = [
    (["model=vitb17"], ["there is no model 'vitb17'", "vitb16"]),
    (["device=cuda:99"], ["device: cuda:99: this machine has"]),
    (["device=gpu"], ["device"]),
    (["seed"], ["--set seed: should be key=value"]),
    (["pretrained=opnai", "model=vitb16", "input_size=224"], ["'opnai'", "openai"]),
]
TRAINING = [
    (["epoch=3"], ["--set epoch=3: unknown key 'epoch'", "Did you mean 'epochs'?"]),
    (["margin=3"], ["unknown key 'margin'", "losses"]),
    (["augmentation.flp=1"], ["unknown key 'augmentation.flp'", "Did you mean 'flip'?"]),
    (["losses=[{type: tripplet}]"], ["there is no loss 'tripplet'", "Did you mean 'triplet'?"]),
    (["losses=[{type: triplet, margn: 1}]"], ["margn", "Did you mean 'margin'?"]),
    (["lr=fast"], ["lr: ", "'fast'"]),
]


@pytest.mark.parametrize(
    ("command", "overrides", "texts"),
    [("train", *case) for case in MODEL_AND_PLACES + TRAINING] + [("evaluate", *case) for case in MODEL_AND_PLACES],
)
def test_a_config_that_asks_for_what_is_not_there(
    command: str, overrides: list[str], texts: list[str], handclip: Handclip, here: Path
) -> None:
    # A data set that is not there either: the config is judged first.
    values = tiny_values if command == "train" else baseline_values
    path = write_config(here / "tiny.yml", values(here, manifest=None, data_root="nowhere"))
    answer = handclip(command, path, *(part for override in overrides for part in ("--set", override)))
    assert_refused(answer, "Error: ", *texts, code=2)
    assert sorted(path.name for path in here.iterdir()) == ["tiny.yml"]


def test_a_config_that_is_not_there(handclip: Handclip, config: Callable[..., Path]) -> None:
    config()
    assert_refused(handclip("train", "tiny.yaml"), "tiny.yaml: no such file", "Did you mean 'tiny.yml'?", code=2)
    assert_refused(handclip("train", "."), "cannot be read", code=2)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("text.pth", b"hello", "resume_from: text.pth: is damaged, or is not a weights file"),
        ("empty.pth", b"", "resume_from: empty.pth: is damaged"),
        ("other.pth", {"a": torch.zeros(1)}, "resume_from: other.pth: is not a HandCLIP checkpoint"),
    ],
)
def test_resume_from_what_is_no_checkpoint(
    name: str, content: Any, text: str, handclip: Handclip, config: Callable[..., Path], here: Path
) -> None:
    if isinstance(content, bytes):
        (here / name).write_bytes(content)
    else:
        torch.save(content, here / name)
    assert_refused(handclip("train", config(resume_from=name)), text)
    assert not (here / "train_logs").exists()


def test_a_checkpoint_that_is_not_there(handclip: Handclip, config: Callable[..., Path], here: Path) -> None:
    answer = handclip("train", config(resume_from="saved_models/stage1.pth"))
    assert_refused(answer, "resume_from: saved_models/stage1.pth: no such file. There is no *.pth", code=2)
    (here / "saved_models").mkdir()
    (here / "saved_models" / "stage_1.pth").touch()
    answer = handclip("train", config(resume_from="saved_models/stage1.pth"))
    assert_refused(answer, "Did you mean 'saved_models/stage_1.pth'?", code=2)
    answer = handclip("evaluate", config(checkpoint="saved_models/stage2.pth"))
    assert_refused(answer, "checkpoint: saved_models/stage2.pth: no such file", code=2)
    assert_refused(handclip("evaluate", config()), "this run is not trained yet, saved_models/tiny_", code=2)


@pytest.mark.parametrize("more", [(), ("--root", "nowhere", "--out", "new/manifests")])
def test_a_misspelt_data_set_to_prepare(more: tuple[str, ...], handclip: Handclip, here: Path) -> None:
    assert_refused(handclip("prepare", "11kk", *more), "there is no data set '11kk'. Did you mean '11k'?", code=2)
    assert_refused(handclip("prepare", "synthetic", *more), "handclip prepare 11k --root DIR --out DIR", code=2)
    assert not list(here.iterdir())


def test_prepare_check_takes_nothing_else(handclip: Handclip, manifests: Path) -> None:
    answer = handclip("prepare", "11k", "--check", manifests / "manifest_dorsal_r.json")
    assert_refused(answer, "prepare --check takes a manifest and nothing else", code=2)


def test_resume_from_another_architecture(handclip: Handclip, config: Callable[..., Path], here: Path) -> None:
    assert handclip("train", config()).code == 0
    [model] = here.glob("saved_models/*cross_entropy*[!t].pth")
    answer = handclip("train", config(resume_from=str(model), model="rn_small"))
    assert_refused(answer, "was trained with model: vit_small, but the config says model: rn_small")

    loaded = torch.load(model, weights_only=True)
    loaded["model_state"] = {f"other.{key}": value for key, value in loaded["model_state"].items()}
    torch.save(loaded, here / "no_key.pth")
    assert_refused(handclip("train", config(resume_from="no_key.pth")), "no_key.pth")


def test_an_output_folder_that_cannot_be_written(
    handclip: Handclip, config: Callable[..., Path], hands: Path, manifests: Path, here: Path
) -> None:
    (here / "file").write_text("in the way")
    assert_refused(handclip("train", config(output_dir="file/logs")), "cannot write file/logs/", "file is not a folder")
    assert_refused(handclip("train", config(save_dir="file/models")), "cannot write file/models")
    assert not (here / "train_logs").exists()
    assert_refused(
        handclip("prepare", "11k", "--root", hands, "--out", "file/manifests"), "cannot write file/manifests"
    )
    assert_refused(handclip("prepare", "11k", "--root", hands, "--out", "file"), "file is a file, not a folder")
    baseline = write_config(here / "baseline.yml", baseline_values(manifests, eval_dir="file/eval"))
    assert_refused(handclip("evaluate", baseline), "cannot write file/eval")
    assert (here / "file").read_text() == "in the way"


@pytest.mark.promise("not-finite-training")
def test_a_loss_that_is_not_finite(
    handclip: Handclip, config: Callable[..., Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 1.0, 1.0, float("inf")])
    compute = CrossEntropyLoss.compute
    monkeypatch.setattr(
        CrossEntropyLoss, "compute", lambda self, features, labels: compute(self, features, labels) * next(losses)
    )
    answer = handclip("train", config(epochs=3))
    assert_refused(answer, "epoch 2, step 4: cross_entropy is inf", "Everything up to epoch 1 is saved")
    [good] = here.glob("saved_models/*")
    assert torch.load(good, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_weights_that_cannot_be_fetched(
    command: str, handclip: Handclip, manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "empty_cache"))
    values = tiny_values if command == "train" else baseline_values
    path = write_config(here / "tiny.yml", values(manifests, model="vitb16", pretrained="openai", input_size=None))
    answer = handclip(command, path)
    assert_refused(
        answer,
        "the weights 'openai' of vitb16 are not cached here and could not be fetched",
        "open_clip_model.safetensors of https://huggingface.co/timm/vit_base_patch16_clip_224.openai",
        "pretrained: path/to/the/file",
    )


def test_a_manifest_that_is_not_there(handclip: Handclip, config: Callable[..., Path]) -> None:
    assert_refused(handclip("train", config(manifest="nowhere")), "manifest: nowhere: no such file", code=2)
    assert_refused(handclip("prepare", "--check", "nowhere.json"), "nowhere.json")


def test_an_odd_image_among_the_hands_is_read(handclip: Handclip, own_hands: Path, here: Path) -> None:
    for number, mode in enumerate(("L", "P", "CMYK", "RGBA"), start=1):
        path = own_hands / "Hands" / f"Hand_{number:07}.jpg"
        with Image.open(path) as image:
            odd = image.convert(mode)
        odd.save(path, format="JPEG" if mode in ("L", "CMYK") else "PNG")
    assert prepare(handclip, own_hands).code == 0
    values = tiny_values(here / "manifests", aspect="all", epochs=1)
    assert handclip("train", write_config(here / "tiny.yml", values)).code == 0
