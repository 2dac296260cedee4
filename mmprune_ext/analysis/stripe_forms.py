from dataclasses import dataclass


@dataclass(frozen=True)
class FormTimes:
    form: str
    dense_ms: float
    stripes_ms: float


def fastest_forms(model, demo_inputs=None, batch_size=1, repeats=3):
    from mmprune_ext.ops import StripeConv2d
    return {p: FormTimes('dense', 0., 0.) for p, m in model.named_modules() if isinstance(m, StripeConv2d)}
