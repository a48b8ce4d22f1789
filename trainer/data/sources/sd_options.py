"""The keys of sd-scripts' dataset configuration: where each may stand, and what becomes of it here.

Source: https://github.com/kohya-ss/sd-scripts/blob/main/docs/config_README-en.md
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.core.settings import Settings

Level = Literal["general", "datasets", "datasets.subsets"]

_Rate = Annotated[StrictInt | StrictFloat, Field(ge=0, le=1)]
_Size = StrictInt | tuple[StrictInt, StrictInt]


class DatasetOptions(Settings):
    """What may stand in [general] and [[datasets]]."""

    resolution: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    batch_size: StrictInt | None = None
    enable_bucket: StrictBool | None = None
    min_bucket_reso: StrictInt | None = None
    max_bucket_reso: StrictInt | None = None
    bucket_reso_steps: StrictInt | None = None
    bucket_no_upscale: StrictBool | None = None
    network_multiplier: StrictInt | StrictFloat | None = None
    validation_split: _Rate | None = None
    validation_seed: StrictInt | None = None
    skip_image_resolution: _Size | None = None


class SharedOptions(Settings):
    """What may stand everywhere, and is about a subset."""

    num_repeats: StrictInt | None = None
    caption_extension: StrictStr | None = None
    class_tokens: StrictStr | None = None
    shuffle_caption: StrictBool | None = None
    keep_tokens: NonNegativeInt | None = None
    keep_tokens_separator: StrictStr | None = None
    caption_separator: StrictStr | None = None
    secondary_separator: StrictStr | None = None
    enable_wildcard: StrictBool | None = None
    caption_prefix: StrictStr | None = None
    caption_suffix: StrictStr | None = None
    caption_dropout_rate: _Rate | None = None
    caption_tag_dropout_rate: _Rate | None = None
    caption_dropout_every_n_epochs: NonNegativeInt | None = None
    token_warmup_min: PositiveInt | None = None
    token_warmup_step: StrictInt | StrictFloat | None = None
    flip_aug: StrictBool | None = None
    color_aug: StrictBool | None = None
    random_crop: StrictBool | None = None
    face_crop_aug_range: tuple[StrictInt | StrictFloat, StrictInt | StrictFloat] | None = None
    resize_interpolation: StrictStr | None = None
    cache_info: StrictBool | None = None
    custom_attributes: dict[str, object] | None = None


class SubsetOptions(SharedOptions):
    """What may stand in [[datasets.subsets]]."""

    image_dir: StrictStr | None = None
    metadata_file: StrictStr | None = None
    conditioning_data_dir: StrictStr | None = None
    is_reg: StrictBool | None = None
    alpha_mask: StrictBool | None = None


class GeneralOptions(DatasetOptions, SharedOptions):
    """What may stand in [general], and beside `subsets` in [[datasets]]."""


class EveryOption(GeneralOptions, SubsetOptions):
    """All that holds for one subset, the nearest of three places having won."""


class Otherwise(NamedTuple):
    """A key without a setting of its own here: what sd-scripts does without it, and what to write instead."""

    usual: object
    advice: str


_BUCKETS: Final = "the recipe's data.buckets hold for all sources"

OTHERWISE: Final[Mapping[str, Otherwise]] = {
    "batch_size": Otherwise(None, "write `batch` in the recipe"),
    "enable_bucket": Otherwise(True, "every picture goes into the bucket of its shape; see data.buckets"),
    "min_bucket_reso": Otherwise(None, f"{_BUCKETS}: write data.buckets.max_aspect"),
    "max_bucket_reso": Otherwise(None, f"{_BUCKETS}: write data.buckets.max_aspect"),
    "bucket_reso_steps": Otherwise(None, f"{_BUCKETS}: write data.buckets.step"),
    "bucket_no_upscale": Otherwise(False, f"{_BUCKETS}: write data.buckets.upscale"),
    "network_multiplier": Otherwise(1, "write `weight` for the source"),
    "validation_split": Otherwise(0, "keep pictures back in a source of their own, with `held_out: true`"),
    "validation_seed": Otherwise(None, "keep pictures back in a source of their own, with `held_out: true`"),
    "skip_image_resolution": Otherwise(None, "move the small pictures into a folder of their own"),
    "token_warmup_step": Otherwise(0, "a warm-up counts epochs here: write data.captions.warmup_epochs"),
    "color_aug": Otherwise(False, "colours are never changed"),
    "random_crop": Otherwise(False, "write data.crops.places to cut at several places"),
    "face_crop_aug_range": Otherwise(None, "write data.crops.places to cut at several places"),
    "resize_interpolation": Otherwise(None, "pictures are always resized in the same way"),
    "cache_info": Otherwise(False, "what was looked at is always remembered, by content"),
    "custom_attributes": Otherwise(None, "it has no meaning here"),
    "conditioning_data_dir": Otherwise(
        None, "put the masks beside their pictures as NAME.mask.png, and write a source with `masks: files`"
    ),
}


def read_options(kind: type[Settings], content: object, level: Level, where: str) -> dict[str, object]:
    """The keys of one table of the file, checked.

    Raises:
        DataError: a key is unknown, stands in the wrong place, or has a wrong value.
    """
    place = f"{where}: [{level}]" if level == "general" else f"{where}: [[{level}]]"
    if not isinstance(content, dict):
        raise DataError(f"{level} is no table.", where=where, mend=f"Write [{level}] and its keys below it.")
    for key in content:
        if key not in kind.model_fields:
            raise _unknown(str(key), level, place)
    try:
        options = kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise DataError(
            f"{key} cannot be {printable(repr(content[key]))[:80]}.", where=place, mend=f"{first['msg']}."
        ) from error
    return {key: getattr(options, key) for key in options.model_fields_set}  # by the names that were just checked


def _unknown(key: str, level: Level, place: str) -> DataError:
    if key in EveryOption.model_fields:
        right = "[[datasets.subsets]]" if key in SubsetOptions.model_fields else "[[datasets]] or [general]"
        return DataError(f"{key} cannot stand in {level}.", where=place, mend=f"Write it under {right}.")
    near = get_close_matches(key, EveryOption.model_fields, n=1)
    mend = f"Did you mean {near[0]}?" if near else "sd-scripts has no such key; remove it."
    return DataError(f"There is no key {printable(key)[:80]!r}.", where=place, mend=mend)
