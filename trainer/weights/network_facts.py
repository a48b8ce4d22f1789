"""What an adapter's own tensors say of it, for its metadata: so these can never contradict the file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from trainer.weights.adapter_kinds import DoraState
from trainer.weights.adapter_state import AdapterState
from trainer.weights.even_alphas import even_alphas
from trainer.weights.metadata import TrainingFacts
from trainer.weights.peft_configs import is_wide


def described(facts: TrainingFacts, state: AdapterState) -> TrainingFacts:
    """The facts, with kind, trained networks, rank, alpha and the kind's own arguments as the state has them.

    Raises:
        WeightsError: the state is not whole.
    """
    state.check()
    plain = [layer for layer in state.layers() if not is_wide(layer)]
    wide = [layer for layer in state.layers() if is_wide(layer)]
    return replace(
        facts,
        kind=state.kind,
        parts=tuple(sorted({layer.partition(".")[0] for layer in state.layers()})),
        rank=_commonest(state, plain or wide),
        alpha=_alpha(state, plain or wide),
        convolutions=bool(wide),
        convolution_rank=_commonest(state, wide),
        convolution_alpha=_alpha(state, wide),
        arguments=_arguments(state),
    )


def _commonest(state: AdapterState, layers: Sequence[str]) -> int | None:
    ranks = Counter(rank for layer in layers if (rank := state.rank(layer)) is not None)
    return ranks.most_common(1)[0][0] if ranks else None


def _alpha(state: AdapterState, layers: Sequence[str]) -> float | None:
    """The commonest alpha, as files have it; None where there is no rank that it goes with."""
    written = even_alphas(state)
    alphas = Counter(written[layer] for layer in layers if state.rank(layer) is not None)
    return alphas.most_common(1)[0][0] if alphas else None


def _arguments(state: AdapterState) -> dict[str, str]:
    """What LyCORIS would have been told to make such an adapter; of a plain LoRA nothing."""
    if isinstance(state, DoraState):
        rows = any(state.axis(layer) == "output" for layer in state.layers())
        algorithm = next((name for name, role in _ALGORITHMS.items() if _has(state, role)), "locon")
        return {"algo": algorithm, "dora_wd": "True", "wd_on_output": str(rows)}
    if state.kind == "lora":
        return {}
    if state.kind == "loha":
        return {"algo": "loha"}
    factors = [state.tensors[name].shape[0] for name in state.tensors if name.endswith((".lokr_w1", ".lokr_w1_a"))]
    both = any(name.endswith(".lokr_w1_a") for name in state.tensors)
    return {"algo": "lokr", "factor": str(Counter(factors).most_common(1)[0][0]), "decompose_both": str(both)}


def _has(state: AdapterState, beginning: str) -> bool:
    return any(name.rpartition(".")[2].startswith(beginning) for name in state.tensors)


_ALGORITHMS = {"loha": "hada_", "lokr": "lokr_"}
