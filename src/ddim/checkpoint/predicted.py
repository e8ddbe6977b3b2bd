"""What a single file says of itself beside the weights: what its network predicts, and whether its last SNR is zero.

The weights look the same whatever a network was trained to predict, and a wrong guess spoils every image. So the
programs that write such files leave a note, each in its own way: an empty tensor called `v_pred` (ComfyUI, which other
programs read too), an entry of the model specification of Stability AI (`modelspec.…`), or an entry of the settings of
training (`ss_…`, kohya's scripts). `docs/single-file.md` lists them.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Mapping
from typing import NamedTuple, cast

from ddim.errors import ConfigError
from ddim.process import PredictionType

# Names of tensors that are notes: they count by being there, whatever they hold, which mostly is nothing.
V_PREDICTION_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"

# Entries of the metadata that name what is predicted, and the words that programs use for it, without signs.
_NAMED = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
_WORDS = {
    "v_prediction": ("v", "vpred", "vprediction", "velocity", "vparameterization"),
    "epsilon": ("epsilon", "eps", "noise", "epsilonprediction"),
    "sample": ("sample", "x0"),
}
# Entries that say whether v is predicted, and whether the SNR of the last timestep is zero: a boolean as a text.
_ASKED = ("ss_v_parameterization", "ss_v_prediction")
_ZERO_SNR = ("ss_zero_terminal_snr",)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# Names of models that imply it: "sd_v2_v" is kohya's for Stable Diffusion 2 with v; without the v, nothing is said.
_MODELS = {
    "ss_base_model_version": {"v_prediction": r"sd_v[12]\w*_v"},
    "modelspec.architecture": {
        "v_prediction": r"stable-diffusion-v2-768-v\b.*",
        "epsilon": r"stable-diffusion-v2-512\b.*",
    },
}


class Notes(NamedTuple):
    """What a file says.

    Attributes:
        predictions: where it says what is predicted -> what: "epsilon", "v_prediction", "sample", or, if the word there
            is none that is known, that word in quotes.
        zero_snr: where it says that the last timestep has no signal; "" if it does not.
    """

    predictions: dict[str, str]
    zero_snr: str

    def prediction_type(self, file: object) -> PredictionType | None:
        """What the network predicts; None if the file does not say it.

        Raises:
            ConfigError: it says two things, or a word that is not known.
        """
        found = set(self.predictions.values())
        if not found:
            return None
        said = "; ".join(f"{where} says {what}" for where, what in self.predictions.items())
        if len(found) > 1:
            raise ConfigError(f"{file} contradicts itself: {said}. Pass prediction_type= to say which is right")
        (kind,) = found
        if kind not in _WORDS:
            raise ConfigError(
                f"{file} predicts what is not known here: {said}. Pass prediction_type='epsilon', 'v_prediction' or "
                "'sample' if it is one of these"
            )
        return cast(PredictionType, kind)


def read_notes(names: Collection[str], metadata: Mapping[str, str]) -> Notes:
    """Find a file's notes.

    Args:
        names: of its tensors.
        metadata: the texts of its header.
    """
    predictions = {}
    if V_PREDICTION_MARK in names:
        predictions[f"the tensor {V_PREDICTION_MARK}"] = "v_prediction"
    for key in _NAMED:
        word = re.sub(r"[\W_]", "", metadata.get(key, "")).lower()
        if word and word != "none":
            known = (kind for kind, words in _WORDS.items() if word in words)
            predictions[key] = next(known, reprlib.repr(metadata[key]))
    for key in _ASKED:
        asked = _BOOLEANS.get(metadata.get(key, "").lower())
        if asked is not None:
            predictions[key] = "v_prediction" if asked else "epsilon"
    for key, patterns in _MODELS.items():
        for kind, pattern in patterns.items():
            if re.fullmatch(pattern, metadata.get(key, "")):
                predictions[key] = kind
    marks = [f"the tensor {ZERO_SNR_MARK}"] if ZERO_SNR_MARK in names else []
    marks += [key for key in _ZERO_SNR if _BOOLEANS.get(metadata.get(key, "").lower())]
    return Notes(predictions, marks[0] if marks else "")
