"""Steps, epochs, pictures: the one clock of a run."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Clock:
    """Counts what was done; nobody else keeps a step.

    A step is one movement of the weights: `accumulate` batches summed.
    """

    steps: int  # how many the recipe asks for
    batches_per_epoch: int
    accumulate: int = 1
    step: int = 0
    pictures: int = 0

    @property
    def batch(self) -> int:
        """The number of batches eaten when `step` steps are whole: where a resumed run goes on."""
        return self.step * self.accumulate

    @property
    def epoch(self) -> int:
        """Whole passes over the data so far."""
        return self.batch // self.batches_per_epoch

    @property
    def done(self) -> bool:
        """Whether the run has made all its steps."""
        return self.step >= self.steps

    def tick(self, pictures: int) -> None:
        """One more step is whole; it has eaten `pictures` pictures."""
        self.step += 1
        self.pictures += pictures

    def due(self, every: int | None) -> bool:
        """Whether something asked for each `every` steps is due now; None or 0 means never."""
        return bool(every) and self.step > 0 and self.step % every == 0
