"""What every member of the objective's unions promises."""

from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.objective.distances import AnyDistance
from trainer.objective.noises import AnyNoise, Noise, Offset
from trainer.objective.predictions import AnyPrediction
from trainer.objective.timesteps import AnyTimesteps, Timesteps
from trainer.objective.weightings import AnyWeighting

UNIONS = [AnyTimesteps, AnyNoise, AnyPrediction, AnyWeighting, AnyDistance]
MEMBERS = [(union, member) for union in UNIONS for member in get_args(get_args(union)[0])]
LAWS = get_args(get_args(AnyTimesteps)[0])
TIMESTEPS = [member() for member in LAWS] + [member(spread=3, shift=2.0) for member in LAWS]
NOISES = [*(member() for member in get_args(get_args(AnyNoise)[0])), Offset(random_strength=True)]


def kind(member: object) -> str:
    return type(member).__name__


@pytest.mark.parametrize(("union", "member"), MEMBERS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_part_is_found_by_its_kind_alone_and_takes_no_unknown_key(union: Any, member: type[Settings]) -> None:
    word = member.model_fields["kind"].default
    adapter: TypeAdapter[Settings] = TypeAdapter(union)
    assert adapter.validate_python({"kind": word}) == member()
    assert adapter.validate_json(member().model_dump_json()) == member()
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": word, "unheard_of": 1})


@pytest.mark.parametrize("timesteps", TIMESTEPS, ids=kind)
def test_times_belong_to_their_slot_alone(timesteps: Timesteps) -> None:
    whole = timesteps.draw(Seeds(5), 3, range(8))
    assert whole.shape == (8,)
    assert whole.dtype == torch.float64
    assert ((whole >= 0) & (whole < 1)).all()
    assert torch.equal(whole[[6, 1]], timesteps.draw(Seeds(5), 3, [6, 1]))
    assert not torch.equal(whole, timesteps.draw(Seeds(5), 4, range(8)))
    assert not torch.equal(whole, timesteps.draw(Seeds(6), 3, range(8)))
    assert len(set(whole.tolist())) == 8


@pytest.mark.parametrize("timesteps", TIMESTEPS, ids=kind)
def test_times_keep_to_their_range(timesteps: Timesteps) -> None:
    t = timesteps.model_copy(update={"low": 0.3, "high": 0.4}).draw(Seeds(5), 3, range(200))
    assert ((t >= 0.3) & (t < 0.4)).all()
    with pytest.raises(ValidationError, match="less than high"):
        type(timesteps)(low=0.5, high=0.5)


@pytest.mark.parametrize("noise", NOISES, ids=kind)
@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 5, 24)])
def test_noise_belongs_to_its_slot_alone(noise: Noise, shape: tuple[int, int, int]) -> None:
    whole = noise.draw(shape, Seeds(5), 3, range(6))
    assert whole.shape == (6, *shape)
    assert whole.dtype == torch.float32
    assert torch.equal(whole[[4, 1]], noise.draw(shape, Seeds(5), 3, [4, 1]))
    assert not torch.equal(whole, noise.draw(shape, Seeds(5), 4, range(6)))
    assert not torch.equal(whole, noise.draw(shape, Seeds(6), 3, range(6)))


@pytest.mark.parametrize("noise", NOISES, ids=kind)
def test_noise_has_no_mean_and_about_unit_variance(noise: Noise) -> None:
    many = noise.draw((4, 16, 16), Seeds(5), 3, range(400))
    assert abs(many.mean().item()) < 0.02
    assert abs(many.var().item() - 1) < 0.03
