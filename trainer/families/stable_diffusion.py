"""What Stable Diffusion 1.x, 2.x and XL share: settings, checks, networks, one U-Net."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from trainer.batch import Conditioning, Encoders, Geometry, Posterior
from trainer.core.device import Precision
from trainer.core.memory import give_back
from trainer.core.settings import Settings
from trainer.families.autoencoder import Autoencoder
from trainer.families.checkpointing import checkpoint_text_encoder
from trainer.families.clip import ChunkStates, ClipWords, TokenLimit, at_rest, check_tokenizer, join_states
from trainer.families.denoiser import Keeping
from trainer.families.emphasised import Emphasised, join_weighed, lay_out
from trainer.families.fitting import check_facts, check_parts
from trainer.families.loading import open_weights
from trainer.families.merged_weights import MergedWeights
from trainer.families.model import DiffusionModel, LatentShape
from trainer.families.new_words import vocabulary_of
from trainer.families.source import Part, WeightsSource
from trainer.objective.predictions import AnyPrediction, Epsilon, Sample, Velocity
from trainer.objective.schedules import DiscreteSchedule
from trainer.weights.base_loras import BaseLora
from trainer.weights.metadata import KnownFamily
from trainer.weights.opening import NAMINGS

_TRANSFORMER = r".*\.transformer_blocks\.\d+\."
_ATTENTION = _TRANSFORMER + r"attn[12]\.to_(?:q|k|v|out\.0)"
_FEED_FORWARD = _TRANSFORMER + r"ff\.net\.(?:0\.proj|2)"
_PROJECTION = r".*\.attentions\.\d+\.proj_(?:in|out)"
_CONVOLUTION = (
    r".*\.resnets\.\d+\.(?:conv1|conv2|conv_shortcut|time_emb_proj)|.*\.(?:down|up)samplers\.\d+\.conv"  # as sd-scripts
)
_CLIP = r"(?:text_model\.)?encoder\.layers\.\d+\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12])"

_PREDICTIONS: Mapping[str, AnyPrediction] = {"epsilon": Epsilon(), "velocity": Velocity(), "sample": Sample()}
_WORDS = {"epsilon": "epsilon", "velocity": "v_prediction", "sample": "sample"}  # as schedulers call them

ENCODING_VERSION = 2  # counts up when a change here changes what a cache would hold


class StableDiffusionSettings(Settings, ABC):
    """What a recipe may say about any Stable Diffusion."""

    kind: str
    weights: str
    """A .safetensors checkpoint, a diffusers folder, a hub name, or `bundled` (the small SD 1.x of the package)."""
    vae: str | None = None
    """A file or folder with an autoencoder that stands in for the one of the weights."""
    loras: tuple[BaseLora, ...] = ()
    """LoRAs that become part of the weights before anything else happens."""
    token_limit: TokenLimit = 75
    """How many tokens of a caption are read: 75 at once, or 150 or 225 in two or three parts that are encoded one by
    one. What lies beyond is cut off, and `trainer doctor` names it."""
    prediction: Literal["epsilon", "velocity"] | None = None
    """What the weights predict, where they do not say it themselves; absent: as they say."""
    zero_terminal_snr: bool | None = None
    """Whether the last step of the schedule is pure noise (arXiv:2305.08891); absent: as the weights say."""
    quantize: Literal["none", "int8", "nf4", "float8"] = "none"
    """Keeps the frozen weights of the U-Net's transformer blocks in fewer bits: int8 and float8 take half the memory of
    bfloat16, nf4 a quarter. They are unpacked where they are used; what is trained stays in float32."""
    resident: float = Field(default=1.0, ge=0, le=1)
    """The share of the frozen U-Net that stays on the device. The rest waits in the computer's memory, and its blocks
    come to the device one by one, just before they are used, and are computed again in the backward pass."""

    @property
    def files(self) -> dict[str, Path]:
        """Files that decide a run's result besides the weights themselves, by their keys in a recipe."""
        return {f"model.loras.{number}.file": lora.file.expanduser() for number, lora in enumerate(self.loras)}

    @abstractmethod
    def check(self) -> None:
        """Make sure, from small files and headers alone, that the weights are there, whole, and as the recipe says.

        Raises:
            WeightsError: they are missing, a pickle, broken, of another family, or contradict the recipe.
        """

    @abstractmethod
    def load(self, precision: Precision, device: torch.device) -> DiffusionModel:
        """The model, its networks to be read when they are first used.

        Raises:
            WeightsError: as of `check`.
        """


class StableDiffusionFamily(StableDiffusionSettings):
    """The same, for the families themselves."""

    @override
    def check(self) -> None:
        self.open()

    def open(self) -> WeightsSource:
        """The weights, checked.

        Raises:
            WeightsError: as of `check`.
        """
        source = open_weights(self.weights, self.vae)
        # every family's kind is its name
        check_facts(source, cast("KnownFamily", self.kind), self.prediction, zero_terminal_snr=self.zero_terminal_snr)
        if self.loras:
            source = MergedWeights(source, self.loras, NAMINGS[source.facts.family])
        check_parts(source, own_vae=self.vae is None)
        source.check()
        for tokenizer in self.tokenizers:
            check_tokenizer(source.tokenizer(tokenizer))
        return source

    @property
    def tokenizers(self) -> Sequence[Literal["tokenizer", "tokenizer_2"]]:
        """One for each text encoder."""
        return ("tokenizer",)


class StableDiffusion(DiffusionModel):
    """A loaded Stable Diffusion of any family."""

    adaptable: ClassVar[Mapping[str, str]] = {
        "attention": _ATTENTION,
        "feed_forward": _FEED_FORWARD,
        "transformer": f"{_ATTENTION}|{_FEED_FORWARD}|{_PROJECTION}",
        "convolution": _CONVOLUTION,
    }
    text_parts: ClassVar[Mapping[str, str]] = {"te1": "text_encoder"}
    adaptable_text: ClassVar[str] = _CLIP

    def __init__(
        self, settings: StableDiffusionFamily, precision: Precision, device: torch.device, vae_dtype: torch.dtype
    ) -> None:
        """Nothing is loaded yet.

        Raises:
            WeightsError: as of the settings' `check`.
        """
        self.source = source = settings.open()
        facts = source.facts
        self.device = device
        self.revision = source.revision
        self.token_limit = settings.token_limit
        self.prediction = _PREDICTIONS[settings.prediction or facts.prediction]
        wanted = settings.zero_terminal_snr
        self.zero_terminal_snr = facts.zero_terminal_snr if wanted is None else wanted
        self._scheduler = {**source.config("scheduler"), "rescale_betas_zero_snr": self.zero_terminal_snr}
        self.schedule = DiscreteSchedule.from_scheduler_config(self._scheduler)
        self._autoencoder = Autoencoder(source, vae_dtype, device)
        unet = source.config("unet")
        halvings = len(unet["block_out_channels"]) - 1
        scale = self._autoencoder.scale
        self.latent = LatentShape(channels=self._autoencoder.channels, scale=scale, multiple=2**halvings)
        self.resolution = int(unet.get("sample_size") or 64) * scale
        self._dtype = precision.dtype
        self._how = Keeping(dtype=self._dtype, device=device, quantize=settings.quantize, resident=settings.resident)
        self._networks: dict[str, Any] = {}  # the U-Net and the text encoders, as far as they are loaded
        self._kept = False
        self._words = [ClipWords(source.tokenizer(name), settings.token_limit) for name in settings.tokenizers]
        words = dict(zip(self.text_parts.values(), self._words, strict=True))
        self.vocabulary = vocabulary_of(source, words, self.network)

    @property
    @override
    def denoiser(self) -> nn.Module:
        return self.network("unet")

    @denoiser.setter
    @override
    def denoiser(self, network: nn.Module) -> None:
        self.set_network("unet", network)

    @override
    def network(self, part: str) -> nn.Module:
        if part not in self._networks:
            if part == "unet":
                self._denoiser = self._how.load(self.source)
                self._networks[part] = self._denoiser.network
            else:
                # in float32 whatever the recipe's precision: what they say is computed once, or trained
                self._networks[part] = self.source.load(cast("Part", part), torch.float32).to(self.device)
        return self._networks[part]

    @override
    def set_network(self, part: str, network: nn.Module) -> None:
        self._networks[part] = network

    @override
    def hold_in(self, part: str, dtype: torch.dtype) -> nn.Module:
        if part == "unet":
            self._dtype, self._how = dtype, replace(self._how, dtype=dtype)
        return nn.Module.to(self.network(part), dtype)  # diffusers' own warns without need

    @override
    def keep_text_encoders(self) -> None:
        self._kept = True

    @override
    def encode_pictures(self, pixels: Tensor) -> Posterior:
        return self._autoencoder.encode(pixels)

    @override
    def decode_latents(self, latents: Tensor, most: int | None = None) -> Tensor:
        return self._autoencoder.decode(latents, most)

    @override
    def encode_words(self, captions: Sequence[str]) -> Conditioning:
        with torch.no_grad(), at_rest(map(self.network, self.text_parts.values())):
            return self.encode_words_live(captions)

    @override
    def encode_words_live(self, captions: Sequence[str]) -> Conditioning:
        return join_states(self.read_tokens([words.chunks(captions).to(self.device) for words in self._words]))

    @override
    def encode_emphasised(self, prompt: Emphasised) -> Conditioning:
        read = [lay_out(words, prompt) for words in self._words]
        with torch.no_grad(), at_rest(map(self.network, self.text_parts.values())):
            return join_weighed(self.read_tokens([laid.tokens.to(self.device) for laid in read]), read)

    @abstractmethod
    def read_tokens(self, tokens: Sequence[Tensor]) -> ChunkStates:
        """What the text encoders, each in the mode that it is in, make of the tokens [B N 77] of each tokenizer."""

    @override
    def count_tokens(self, caption: str) -> int:
        return self._words[0].count(caption)

    @override
    def lost_words(self, caption: str) -> str:
        return self._words[0].lost(caption)

    @override
    def predict(self, noisy: Tensor, t: Tensor, words: Conditioning, geometry: Geometry | None = None) -> Tensor:
        return self._ask(noisy, t, words, {})

    def _ask(self, noisy: Tensor, t: Tensor, words: Conditioning, more: Mapping[str, Any]) -> Tensor:
        """The denoiser's answer [B C h w] with `more` of the arguments that diffusers' U-Net knows."""
        noisy = noisy.to(self._dtype).contiguous(memory_format=torch.channels_last)
        states = words.tokens.to(self._dtype)
        return self.denoiser(noisy, t, encoder_hidden_states=states, return_dict=False, **more)[0]

    @override
    def encoders(self) -> Encoders:
        digests = self._digests
        words = "-".join(digests[part] for part in digests if part != "vae")
        return Encoders(
            encode_pictures=self.encode_pictures,
            encode_words=self.encode_words,
            pictures_identity=f"{self.family}-vae-{digests['vae']}-{self._autoencoder.name}-{ENCODING_VERSION}",
            words_identity=f"{self.family}-text-{words}-{self.token_limit}-{self.reading}-{ENCODING_VERSION}",
            scale=self.latent.scale,
        )

    @property
    @abstractmethod
    def reading(self) -> str:
        """Which states of the text encoders are taken; for cache keys."""

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        """Of the parts that encode; taken once, since reading gigabytes takes seconds."""
        tokenizers: Mapping[str, Literal["tokenizer", "tokenizer_2"]]
        tokenizers = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
        digests = {"vae": self.source.digest("vae")}
        for part in self.text_parts.values():
            digests[part] = self.source.digest(cast("Part", part))
            digests[tokenizers[part]] = self.source.digest(tokenizers[part])
        return digests

    @override
    def use_gradient_checkpointing(self, every: int = 1) -> None:
        network = self.denoiser
        self._denoiser.checkpoint(network, every)
        for part in self.text_parts.values() if self._kept else ():
            checkpoint_text_encoder(self.network(part), every)

    @override
    def release_encoders(self) -> None:
        self._autoencoder.release()
        for part in () if self._kept else self.text_parts.values():
            self._networks.pop(part, None)
        give_back(self.device)

    @override
    def scheduler_config(self) -> dict[str, object]:
        own = {"prediction_type": _WORDS[self.prediction.kind]}
        # diffusers' pipelines force these two on old configurations; latents are not bounded, so clipping breaks them
        always = {"clip_sample": False, "steps_offset": 1}
        # any other spacing leaves out the last step, which is the one that was made pure noise (arXiv:2305.08891, 3.3)
        spacing = {"timestep_spacing": "trailing"} if self.zero_terminal_snr else {}
        return {**self._scheduler, **own, **always, **spacing}
