"""Stable Diffusion 1.x, and the small bundled base, which is the same classes scaled down."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from trainer.batch import Conditioning, Encoders, Geometry, Posterior
from trainer.core.device import Precision
from trainer.core.errors import DataError, WeightsError
from trainer.core.settings import Settings
from trainer.families.clip import ClipWords, TokenLimit, check_tokenizer, join_chunks
from trainer.families.loading import check_part, digest_of_part, find_weights, load_part, read_json
from trainer.families.model import DiffusionModel, LatentShape
from trainer.objective.predictions import prediction_of
from trainer.objective.schedules import DiscreteSchedule
from trainer.weights.metadata import KnownFamily
from trainer.weights.names import SD_NAMES, Naming

_TRANSFORMER = r".*\.transformer_blocks\.\d+\."
_ATTENTION = _TRANSFORMER + r"attn[12]\.to_(?:q|k|v|out\.0)"
_FEED_FORWARD = _TRANSFORMER + r"ff\.net\.(?:0\.proj|2)"
_PROJECTION = r".*\.attentions\.\d+\.proj_(?:in|out)"
_CONVOLUTION = (
    r".*\.resnets\.\d+\.(?:conv1|conv2|conv_shortcut|time_emb_proj)|.*\.(?:down|up)samplers\.\d+\.conv"  # as sd-scripts
)

ENCODING_VERSION = 1  # counts up when a change here changes what a cache would hold


class Sd1(Settings):
    """Stable Diffusion 1.x (one CLIP text encoder, 4 latent channels), of any size."""

    kind: Literal["sd1"] = "sd1"
    weights: str = "bundled"
    """`bundled` (the small base model that comes with the package), a diffusers folder, or a hub name."""
    token_limit: TokenLimit = 75
    """How many tokens of a caption are read: 75 at once, or 150 or 225 in two or three parts that are encoded one by
    one. What lies beyond is cut off, and `trainer doctor` names it."""

    def check(self) -> None:
        """Make sure, from small files alone, that the weights are there, whole and of this family.

        Raises:
            WeightsError: they are missing, a pickle, or of another family.
        """
        check_model(find_weights(self.weights))

    def load(self, precision: Precision, device: torch.device) -> DiffusionModel:
        """The model, its networks to be read when they are first used.

        Raises:
            WeightsError: the weights are missing, a pickle, broken, or of another family.
        """
        return Sd1Model(find_weights(self.weights), precision, device, self.token_limit)


class Sd1Model(DiffusionModel):
    """A loaded Stable Diffusion 1.x."""

    family: ClassVar[KnownFamily] = "sd1"
    naming: ClassVar[Naming] = SD_NAMES
    adaptable: ClassVar[Mapping[str, str]] = {
        "attention": _ATTENTION,
        "feed_forward": _FEED_FORWARD,
        "transformer": f"{_ATTENTION}|{_FEED_FORWARD}|{_PROJECTION}",
        "convolution": _CONVOLUTION,
    }

    def __init__(self, folder: Path, precision: Precision, device: torch.device, token_limit: TokenLimit = 75) -> None:
        check_model(folder)
        self.folder = folder
        self.device = device
        self.token_limit = token_limit
        autoencoder = read_json(folder, "vae/config.json")
        self._factor = float(autoencoder.get("scaling_factor", 0.18215))
        scale = 2 ** (len(autoencoder["block_out_channels"]) - 1)
        halvings = len(read_json(folder, "unet/config.json")["block_out_channels"]) - 1
        self.latent = LatentShape(channels=int(autoencoder["latent_channels"]), scale=scale, multiple=2**halvings)
        self._scheduler = read_json(folder, "scheduler/scheduler_config.json")
        self.schedule = DiscreteSchedule.from_scheduler_config(self._scheduler)
        self.prediction = prediction_of(self._scheduler)
        self._dtype = precision.dtype
        self._denoiser: Any = None
        self._autoencoder: Any = None
        self._text: Any = None
        self._words = ClipWords(folder / "tokenizer", token_limit)

    @property
    @override
    def denoiser(self) -> nn.Module:
        from diffusers import UNet2DConditionModel

        if self._denoiser is None:
            network = load_part(UNet2DConditionModel, self.folder, "unet", self._dtype)
            self._denoiser = network.to(device=self.device, memory_format=torch.channels_last)
        return self._denoiser

    @denoiser.setter
    @override
    def denoiser(self, network: nn.Module) -> None:
        self._denoiser = network

    @override
    def encode_pictures(self, pixels: Tensor) -> Posterior:
        height, width = pixels.shape[-2:]
        if height % self.latent.scale or width % self.latent.scale:
            raise DataError(f"A picture of {width}x{height} pixels is no multiple of {self.latent.scale}.")
        with torch.no_grad():
            # float32 whatever the recipe's precision: it happens once, and some autoencoders give NaN in float16
            picture = pixels.to(self.device, torch.float32, memory_format=torch.channels_last)
            posterior = self._vae().encode(picture).latent_dist
            return Posterior(mean=posterior.mean * self._factor, deviation=posterior.std * self._factor)

    @override
    def decode_latents(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            return self._vae().decode(latents.to(self.device, torch.float32) / self._factor).sample

    @override
    def encode_words(self, captions: Sequence[str]) -> Conditioning:
        from transformers import CLIPTextModel

        if self._text is None:
            self._text = load_part(CLIPTextModel, self.folder, "text_encoder", torch.float32).to(self.device)
        chunks = self._words.chunks(captions)
        with torch.no_grad():
            states = self._text(chunks.flatten(0, 1).to(self.device))[0]
        return Conditioning(tokens=join_chunks(states.unflatten(0, chunks.shape[:2])))

    @override
    def count_tokens(self, caption: str) -> int:
        return self._words.count(caption)

    @override
    def lost_words(self, caption: str) -> str:
        return self._words.lost(caption)

    @override
    def predict(self, noisy: Tensor, t: Tensor, words: Conditioning, geometry: Geometry | None = None) -> Tensor:
        noisy = noisy.to(self._dtype).contiguous(memory_format=torch.channels_last)
        return self.denoiser(noisy, t, encoder_hidden_states=words.tokens.to(self._dtype), return_dict=False)[0]

    @override
    def encoders(self) -> Encoders:
        digests = self._digests
        words = f"{digests['text_encoder']}-{digests['tokenizer']}-{self.token_limit}"
        return Encoders(
            encode_pictures=self.encode_pictures,
            encode_words=self.encode_words,
            pictures_identity=f"sd1-vae-{digests['vae']}-{ENCODING_VERSION}",
            words_identity=f"sd1-text-{words}-{ENCODING_VERSION}",
            scale=self.latent.scale,
        )

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        """Of the parts that encode; taken once, since reading gigabytes takes seconds."""
        return {part: digest_of_part(self.folder, part) for part in ("vae", "text_encoder", "tokenizer")}

    @override
    def use_gradient_checkpointing(self) -> None:
        unet: Any = self.denoiser  # diffusers adds the method to its modules
        unet.enable_gradient_checkpointing()

    @override
    def release_encoders(self) -> None:
        self._autoencoder = None
        self._text = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @override
    def scheduler_config(self) -> dict[str, object]:
        return dict(self._scheduler)

    def _vae(self) -> Any:
        from diffusers import AutoencoderKL

        if self._autoencoder is None:
            network = load_part(AutoencoderKL, self.folder, "vae", torch.float32)
            self._autoencoder = network.to(device=self.device, memory_format=torch.channels_last)
        return self._autoencoder


def check_model(folder: Path) -> None:
    """Make sure that a folder holds a Stable Diffusion 1.x that can be trained.

    Raises:
        WeightsError: it is another family, or an inpainting model; or a part is missing, broken, or a pickle.
    """
    for part in ("vae", "text_encoder", "unet"):
        check_part(folder, part)
    check_tokenizer(folder / "tokenizer")
    pipeline = str(read_json(folder, "model_index.json").get("_class_name", ""))
    unet = read_json(folder, "unet/config.json")
    found = None
    if "XL" in pipeline or unet.get("addition_embed_type") == "text_time":
        found = "Stable Diffusion XL"
    elif unet.get("use_linear_projection") or unet.get("cross_attention_dim") == 1024:
        found = "Stable Diffusion 2.x"
    elif not pipeline.startswith("StableDiffusion") or unet.get("_class_name") != "UNet2DConditionModel":
        found = f"another family ({pipeline or 'unnamed'})"
    elif unet.get("in_channels") != unet.get("out_channels"):
        found = "an inpainting or otherwise extended model, which is not supported"
    if found is not None:
        raise WeightsError(
            f"The recipe asks for Stable Diffusion 1.x, and these weights are {found}.",
            where=str(folder),
            mend="Name weights of Stable Diffusion 1.x in model.weights.",
        )
