"""The ops: functions of tensors, each with a reference implementation under the same name in `reference`."""

if __name__ == "kernels":
    # Python run at the top of the repository finds this folder under this name too, and so does transformers, which
    # looks for an optional package `kernels`. The ops must not be registered a second time: it is the same module.
    import importlib
    import sys

    sys.modules[__name__] = importlib.import_module("firebolt_vl.kernels")
else:
    from . import reference
    from .diagonal_scan import diagonal_scan
    from .fft_conv import fft_conv
    from .gated_scan import gated_scan
    from .implementation import use_implementation
    from .linear import linear
    from .modulation import correlation_context, film_residual, grounded_film
    from .selective_scan import selective_scan, selective_state_update
    from .spectrum import cauchy, vandermonde

    __all__ = [
        "cauchy",
        "correlation_context",
        "diagonal_scan",
        "fft_conv",
        "film_residual",
        "gated_scan",
        "grounded_film",
        "linear",
        "reference",
        "selective_scan",
        "selective_state_update",
        "use_implementation",
        "vandermonde",
    ]
