"""What every tracker that a recipe can name promises."""

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from trainer.core.run_folder import RunFolder
from trainer.tracking import AnyTracker
from trainer.tracking.tracker import TrackerSettings

MEMBERS: list[type[TrackerSettings]] = list(get_args(get_args(AnyTracker)[0]))
OFFLINE: dict[str, dict[str, Any]] = {"wandb": {"mode": "offline"}}  # a test has no network


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__name__)
def test_every_tracker_is_found_by_its_kind_alone_and_takes_no_unknown_key(member: type[TrackerSettings]) -> None:
    word = member.model_fields["kind"].default
    adapter: TypeAdapter[TrackerSettings] = TypeAdapter(AnyTracker)
    assert adapter.validate_python({"kind": word}) == member()
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": word, "api_key": "never in a recipe"})


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__name__)
def test_every_tracker_can_go_on_after_a_resume_and_writes_in_its_own_folder(
    member: type[TrackerSettings], tmp_path: Path
) -> None:
    kind = member.model_fields["kind"].default
    settings = member(**OFFLINE.get(kind, {}))
    folder = RunFolder(tmp_path / "blob")
    folder.create()
    for start in (0, 2):
        tracker = settings.open(folder, {"rank": 4}, start)
        tracker.scalars(start + 1, {"train/loss": 0.5})
        tracker.close()
    assert [path.name for path in folder.root.iterdir()] == [kind]
