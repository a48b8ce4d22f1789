"""How much an adapter changes each layer, without building what it need not build."""

from trainer.weights.forms import Roles, form_of, without_tucker


def change_norm(layer: str, roles: Roles, alpha: float | None) -> tuple[float, int]:
    """The Frobenius norm of a layer's change of weight, and the number of weights it changes.

    Args:
        layer: for messages.
        roles: tensors by their roles (lora_A.weight, hada_w1_a, lokr_w1, ...). A DoRA's magnitudes count for nothing:
            what they do depends on the base.
        alpha: None where the file has none: it is the rank then.

    Returns:
        The norm may be NaN or infinite, as the tensors are.

    Raises:
        WeightsError: a half is missing, or shapes do not fit.
    """
    plain = without_tucker(layer, roles)
    form = form_of(plain)
    form.check(layer, plain)
    outputs, inner = form.size(plain)
    scale = 1.0 if alpha is None else form.scale(plain, alpha)
    return abs(scale) * form.norm(plain), outputs * inner
