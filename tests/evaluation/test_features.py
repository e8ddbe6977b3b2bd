"""The shipped feature extractors: what they see, what they refuse, and that Inception is asked for politely."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ddim.checkpoint import bundled_models, read_tensors
from ddim.data import digits
from ddim.errors import CheckpointError, ConfigError, MissingExtraError
from ddim.evaluation import EXTRACTORS, FeatureStatistics, frechet_distance, load_features
from ddim.evaluation.features import features_for, load_digits_classifier, load_emoji_encoder

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "src" / "ddim" / "weights" / "features"


def all_digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    source = digits(split)
    images = torch.stack([source.load(i) for i in range(source.count)])  # type: ignore[arg-type]
    return images, torch.tensor(source.labels)


def test_they_are_shipped_in_float16_and_are_no_pipeline() -> None:
    assert "features" not in bundled_models()
    for name in ("digits", "emoji"):
        tensors = read_tensors(FOLDER / f"{name}.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4_000_000
    assert "Licence" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_classifier_knows_held_out_digits_as_well_as_it_says() -> None:
    images, labels = all_digits("held-out")
    with torch.no_grad():
        accuracy = float((load_digits_classifier()(images).argmax(1) == labels).float().mean())
    said = json.loads((FOLDER / "features.json").read_text(encoding="utf-8"))["digits"]["accuracy_held_out"]
    assert accuracy > 0.98
    assert accuracy == pytest.approx(said, abs=1 / 360)


def test_digits_features_tell_digits_from_blurred_ones() -> None:
    extractor = load_features("digits")
    images, _ = all_digits("all")
    features = extractor(images)
    assert features.shape == (1797, 64)
    assert features.dtype == torch.float32
    first, second = (FeatureStatistics.of(features[start::2]) for start in (0, 1))
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    damaged = FeatureStatistics.of(extractor((images + blurred) / 2)[1::2])
    assert frechet_distance(damaged, first) > 3 * frechet_distance(second, first)


def test_emoji_features_are_those_of_the_scorer() -> None:
    scorer = ROOT / "data" / "scorer" / "scorer.safetensors"
    stored = read_tensors(FOLDER / "emoji.safetensors")
    original = load_file(scorer)
    assert set(stored) == {name for name in original if name.startswith(("see.", "seen."))} | {"scales"}
    assert all(torch.equal(tensor, original[name]) for name, tensor in stored.items() if name != "scales")
    extractor = load_features("emoji")
    pictures = torch.rand(3, 3, 64, 64) * 2 - 1
    features = extractor(pictures)
    assert features.shape == (3, extractor.size)
    torch.testing.assert_close(extractor(pictures[1:]), features[1:], rtol=0, atol=1e-5)  # batches do not matter
    assert not features.requires_grad
    parts = load_emoji_encoder().parts(pictures)
    assert [part.shape[1] for part in parts] == [32, 64, 128, 192, 192]
    torch.testing.assert_close(parts[-1].norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "shape"), [("digits", (2, 3, 8, 8)), ("emoji", (2, 3, 32, 32)), ("digits", (1, 8, 8))]
)
def test_pictures_that_features_are_not_for(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=f"{name} features are of pictures"):
        load_features(name)(torch.zeros(shape))


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match=", ".join(EXTRACTORS)):
        load_features("vgg")
    with pytest.raises(ConfigError, match="inside the package"):
        load_features("digits", weights="x.pth")
    with pytest.raises(ConfigError, match="--features inception"):
        features_for((3, 32, 32))


# --- Inception -------------------------------------------------------------------------------------------------------


def test_inception_without_weights_says_where_they_are() -> None:
    with pytest.raises(ConfigError, match=r"weights-inception.*--features-weights"):
        load_features("inception")
    with pytest.raises(CheckpointError, match="there is no file"):
        load_features("inception", weights="/no/such/file.pth")


class _Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('run')",)


@pytest.mark.parametrize("content", ["code", "text", "list"])
def test_a_weights_file_that_is_no_dict_of_tensors_is_never_run(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pth"
    if content == "code":
        path.write_bytes(pickle.dumps(_Code()))
    elif content == "text":
        path.write_text("not at all")
    else:
        torch.save([torch.zeros(2)], path)
    with pytest.raises(CheckpointError, match=r"no file of tensors|no dict"):
        load_features("inception", weights=path)


def test_a_missing_torch_fidelity_is_one_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"x": torch.zeros(2)}, tmp_path / "weights.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'ddim\[inception\]'"):
        load_features("inception", weights=tmp_path / "weights.pth")


def test_inception_is_given_bytes_in_three_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch-fidelity: what is handed to it, and what comes back."""
    given: list[torch.Tensor] = []

    class Network(torch.nn.Module):
        def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
            super().__init__()
            assert features == ["2048"]
            assert Path(feature_extractor_weights_path) == tmp_path / "weights.pth"

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            given.append(x)
            return (x.flatten(1)[:, :1].float().expand(-1, 2048),)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"x": torch.zeros(2)}, tmp_path / "weights.pth")
    extractor = load_features("inception", weights=tmp_path / "weights.pth")
    features = extractor(torch.tensor([-1.0, 0.0, 1.0, 5.0]).view(4, 1, 1, 1).expand(-1, 1, 4, 4))
    assert given[0].dtype == torch.uint8
    assert given[0].shape == (4, 3, 4, 4)
    assert given[0][:, 0, 0, 0].tolist() == [0, 128, 255, 255]
    assert features.shape == (4, 2048)


@pytest.mark.slow
def test_torch_fidelity_itself(tmp_path: Path) -> None:
    """Its network with random weights: ours passes pictures through it unchanged."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed: pip install 'ddim[inception]'")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path / "weights.pth"

    def keep_random(self: Any, state: dict[str, torch.Tensor]) -> SimpleNamespace:
        torch.save(torch.nn.Module.state_dict(self), path)
        return SimpleNamespace()

    torch.save({}, tmp_path / "empty.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", keep_random)
        theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    extractor = load_features("inception", weights=path)
    pictures = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    torch.testing.assert_close(extractor(pictures / 127.5 - 1), theirs(pictures)[0])
    torch.save({"wrong": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not the weights of torch-fidelity"):
        load_features("inception", weights=path)
